"""The score over tasks against its ends, SUPERB's published tables, and mistakes in pins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from speechssl.score.aggregate import pins_of, superb_score

FILE = Path(__file__).parents[2] / "egs/superb/pins.yaml"
PINS = {"name": "n", "about": "a", "tasks": {"up": {"uar": [0.2, 0.8]},
        "two": {"f1": [0.5, 1.0], "cer": [0.4, 0.2]}}}  # fmt: skip


def test_the_baseline_is_0_and_the_best_1000_whichever_end_is_good() -> None:
    pins = pins_of(PINS)
    for place, expected in ((0, 0.0), (1, 1000.0)):
        found = {t: {k: v[place] for k, v in x.items()} for t, x in pins.tasks.items()}
        assert superb_score(found, pins)[0] == pytest.approx(expected)
    # A task counts once, however many figures it has.
    mixed = {"up": {"uar": 0.2}, "two": {"f1": 1.0, "cer": 0.3}}
    assert superb_score(mixed, pins)[0] == pytest.approx(1000 * (0 + (1 + 0.5) / 2) / 2)
    assert superb_score({"up": {"uar": 0.95}}, pins)[0] > 1000  # better than the best that is known


def test_a_task_of_which_a_figure_is_missing_does_not_count() -> None:
    pins = pins_of(PINS)
    assert superb_score({"up": {"uar": 0.8}, "two": {"f1": 0.5, "cer": None}}, pins) == (
        pytest.approx(1000), ["up"],
    )  # fmt: skip
    assert superb_score({}, pins) == (None, [])


def test_hubert_base_is_near_its_place_on_the_leaderboard() -> None:
    values = {"phone": {"cer": 0.0541}, "asr": {"wer": 0.0642}, "keyword": {"accuracy": 0.9630},
              "speaker_id": {"accuracy": 0.8142}, "speaker_verification": {"eer": 0.0511},
              "diarization": {"der": 0.0588}, "intent": {"exact_match": 0.9834},
              "slots": {"slots.superb_slot_type_f1": 0.8853, "slots.superb_slot_value_cer": 0.2520},
              "emotion": {"accuracy": 0.6492}}  # fmt: skip
    score, tasks = superb_score(values, pins_of(yaml.safe_load(FILE.read_text())))
    assert 930 < score < 960 and len(tasks) == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "want name"),
        (PINS | {"tasks": {}}, "found tasks"),
        ({"name": "n", "tasks": {}}, r"\['name', 'tasks'\]"),
        (PINS | {"tasks": {"x": {"uar": [0.5]}}}, "x: uar"),
        (PINS | {"tasks": {"x": [0.5, 1.0]}}, r"x: \[0.5"),
        (PINS | {"tasks": {"x": {"uar": [0.5, 0.5]}}}, "two different"),
    ],
)
def test_mistakes_are_named(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pins_of(values)
