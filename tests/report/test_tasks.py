"""Classifications and speaker verification in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_page import _check

from speechssl.report.page import render
from speechssl.report.read import find_experiments
from speechssl.report.tasks import confusions, tasks
from speechssl.score.classification import Prediction, classification_results
from speechssl.score.verification import verification_results

EMOTIONS = ["angry <&", "calm", "sad"]


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    predictions = [
        Prediction(str(i), EMOTIONS[i % 3], random.choice(EMOTIONS), f"s{i % 4}") for i in range(60)
    ]
    scores = np.concatenate([random.standard_normal(50) + 2, random.standard_normal(200)])
    is_target = np.arange(250) < 50
    sides = [f"s{i % 5}" for i in range(250)], [f"s{i % 7}" for i in range(250)]
    verified = verification_results(scores, is_target, *sides)
    plain = verification_results(scores, is_target)
    plain.pop("det")
    results = {
        "emotion": classification_results(predictions, EMOTIONS),
        "speaker": verified | {"cosine": plain, "cohort": 10, "top": 5},
    }
    for name, found in results.items():
        folder = tmp_path / "exp" / name / "test"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(found))
        (folder / "decode.json").write_text(json.dumps({"field": name}))
        (folder.parent / "config.yaml").write_text("head: {class_path: x.ClassifyConfig}\n")
    return tmp_path / "exp"


def test_figures_confusions_and_curve_are_shown(exp: Path) -> None:
    experiments = find_experiments([exp])
    page = render(experiments, "now")
    _check(page)
    emotion, speaker = (
        json.loads((exp / n / "test/results.json").read_text()) for n in ("emotion", "speaker")
    )
    assert f"UAR <b>{100 * emotion['uar']:.2f} %</b>" in page
    assert f"EER <b>{100 * speaker['eer']:.2f} %</b>" in page
    assert f"{100 * emotion['macro_f1']:.2f} %" in page and "angry &lt;&amp;" in page
    assert page.count("<td>AS-norm</td>") == page.count("<td>cosine</td>") == 1
    assert "DET curve" in page and "nothing was decoded" in page  # no recogniser here


def test_every_count_of_the_confusions_is_in_its_cell(exp: Path) -> None:
    results = json.loads((exp / "emotion/test/results.json").read_text())
    text = confusions(results)
    for row in results["confusion"]:
        assert all(f">{n or ''}</td>" in text for n in row)
    many = {"classes": [str(i) for i in range(50)], "confusion": np.eye(50).tolist()}
    assert confusions(many) == ""


def test_further_tasks_have_a_row_of_figures(tmp_path: Path) -> None:
    given = {"dia": {"der": 0.125, "jer": 0.25, "recordings": 3},
             "clean": {"si_sdr_db": 9.5, "si_sdr_improvement_db": 4.25, "utterances": 8},
             "age": {"ccc": 0.5, "utterances": 7}}  # fmt: skip
    for name, results in given.items():
        folder = tmp_path / "exp" / name / "test"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "decode.json").write_text(json.dumps({"utterances": 1}))
        (folder.parent / "config.yaml").write_text("head: {class_path: x.DiarizeConfig}\n")
    page = render(find_experiments([tmp_path / "exp"]), "now")
    _check(page)
    for text in ("DER 12.50 %, JER 25.00 %", "3 recordings", "CCC 0.500", "7 utterances",
                 "SI-SDR 9.500 dB, SI-SDR improvement 4.250 dB"):  # fmt: skip
        assert text in page


def test_nothing_scored_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert "no classification" in tasks(find_experiments([tmp_path]))
