"""`speechssl score` of further tasks, from files to results, and the targets of their heads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.bin import score
from speechssl.bin.utterance_labels import with_targets
from speechssl.data.config import DataConfig
from speechssl.data.label_store import LabelStore
from speechssl.heads.regress import STEPS, RegressConfig
from speechssl.heads.slots import SlotsConfig


def scored(folder: Path, name: str, rows: list[dict[str, Any]], *more: str) -> dict[str, Any]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score.main(["--decode", str(folder), *more]) == 0
    return json.loads((folder / "results.json").read_text())


def test_diarization_with_its_options(tmp_path: Path, capsys: Any) -> None:
    row = {"id": "a", "duration": 10.0, "ref": [["x", 0, 4], ["y", 3, 6]],
           "hyp": [["speaker0", 0, 3], ["speaker1", 4, 5], ["speaker0", 5, 8]]}  # fmt: skip
    found = scored(tmp_path, "segments.jsonl", [row])
    assert found["der"] == pytest.approx(5 / 7) and found["confusion"] == pytest.approx(1 / 7)
    assert "DER  71.43 %" in capsys.readouterr().out
    other = scored(tmp_path, "segments.jsonl", [row], "--overlap", "false", "--collar", "0.25")
    assert other["overlap_scored"] is False and other["collar_s"] == 0.25
    assert other["speaker_s"] == pytest.approx(2.5 + 1.5)
    (tmp_path / "segments.jsonl").write_text('{"id": "a", "duration": 1, "ref": [["x"]]}\n')
    assert score.main(["--decode", str(tmp_path)]) == 2
    assert "segments.jsonl:1" in capsys.readouterr().err


def test_slots_and_none_is_no_slot(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"id": "a", "ref": {"d": "latte", "s": "none"}, "hyp": {"d": "latte", "s": "none"}},
        {"id": "b", "ref": {"d": "mocha", "s": "big"}, "hyp": {"d": "latte", "s": "big"}},
    ]
    found = scored(tmp_path, "slots.jsonl", rows)
    assert found["exact_match"] == 0.5 and found["slot_f1"] == pytest.approx(2 / 3)
    assert "all slots right  50.00 %" in capsys.readouterr().out
    (tmp_path / "slots.jsonl").write_text('{"id": "a", "ref": {"d": "x"}, "hyp": {}}\n')
    assert score.main(["--decode", str(tmp_path)]) == 2
    assert "objects of the same names" in capsys.readouterr().err


def test_numbers(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"id": str(i), "ref": {"age": float(i), "mood": -i / 2}, "hyp": {"age": i, "mood": i / 2}}
        for i in range(4)
    ]
    found = scored(tmp_path, "values.jsonl", rows)
    assert found["by_dimension"]["age"]["ccc"] == 1.0
    assert found["by_dimension"]["mood"]["pearson"] == pytest.approx(-1.0)
    assert "CCC" in capsys.readouterr().out


def test_waves_are_read_and_put_in_order(tmp_path: Path, capsys: Any) -> None:
    random = np.random.default_rng(0)
    truth = 0.1 * random.standard_normal((2, 4000))
    (tmp_path / "audio").mkdir()
    names = ["one.wav", "two.wav", "mixed.wav", "audio/0.wav", "audio/1.wav"]
    for name, wave in zip(names, [*truth, truth.sum(0), *truth[::-1]], strict=True):
        soundfile.write(tmp_path / name, wave, 16000, subtype="FLOAT")
    row = {"id": "a", "mixture": str(tmp_path / "mixed.wav"), "estimates": names[3:],
           "sources": [str(tmp_path / n) for n in names[:2]]}  # fmt: skip
    found = scored(tmp_path, "estimates.jsonl", [row])
    assert found["si_sdr_db"] > 90 and found["sources"] == 2
    assert found["si_sdr_improvement_db"] > 80
    shown = capsys.readouterr().out
    assert "against the mixture" in shown and f"digest {found['test_digest']}" in shown
    (tmp_path / "estimates.jsonl").write_text(json.dumps(row | {"sources": None}) + "\n")
    assert score.main(["--decode", str(tmp_path)]) == 2
    assert "tools/make_mixtures.py" in capsys.readouterr().err


def test_waves_that_do_not_belong_together_are_refused(tmp_path: Path, capsys: Any) -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal((4000, 2))
    forms = {"one": (wave[:, 0], 16000), "slow": (wave[:, 0], 8000), "two": (wave, 16000),
             "part": (wave[:2000, 0], 16000)}  # fmt: skip
    for name, (samples, rate) in forms.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
    for name in ("slow", "two", "part"):
        row = {"id": "a", "mixture": str(tmp_path / "one.wav"), "estimates": ["one.wav"],
               "sources": [str(tmp_path / f"{name}.wav")]}  # fmt: skip
        (tmp_path / "estimates.jsonl").write_text(json.dumps(row) + "\n")
        assert score.main(["--decode", str(tmp_path)]) == 2
        shown = capsys.readouterr().err
        assert "estimates.jsonl:1" in shown and f"{name}.wav" in shown


def test_the_digest_is_of_the_test_and_of_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    waves = np.round(0.1 * 2**15 * random.standard_normal((3, 2000))) / 2**15
    for name, wave in zip("abc", waves, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="FLOAT")
        soundfile.write(tmp_path / f"{name}.flac", wave, 16000)

    def digest(*rows: tuple[str, str, str, str]) -> str:
        keys = ("id", "mixture", "source", "estimate")
        found = [dict(zip(keys, row, strict=True)) for row in rows]
        lines = [{"id": r["id"], "mixture": str(tmp_path / r["mixture"]),
                  "sources": [str(tmp_path / r["source"])], "estimates": [r["estimate"]]}
                 for r in found]  # fmt: skip
        return scored(tmp_path, "estimates.jsonl", lines)["test_digest"]

    first, second = ("x", "a.wav", "b.wav", "c.wav"), ("y", "b.wav", "a.wav", "c.wav")
    whole = digest(first, second)
    assert whole == digest(second, first)
    assert whole == digest((*first[:3], "a.wav"), second)  # another system's answer
    assert whole == digest(("x", "a.flac", "b.flac", "c.wav"), second)
    others = [
        digest(first),
        digest(first, ("z", *second[1:])),
        digest(("x", "c.wav", "b.wav", "c.wav"), second),
        digest(("x", "a.wav", "c.wav", "c.wav"), second),
    ]
    assert len({whole, *others}) == 5


def test_tags_of_a_transcript_are_slots(tmp_path: Path, capsys: Any) -> None:
    rows = [{"id": "a", "ref": "A <drink> LATTE </drink>", "hyp": "A <drink> latte </drink>"},
            {"id": "b", "ref": "<size> BIG </size>", "hyp": "big"}]  # fmt: skip
    found = scored(tmp_path, "hyp.jsonl", rows, "--tags", "true")
    assert found["slots"]["slot_precision"] == 1 and found["slots"]["slot_recall"] == 0.5
    assert "all slots right" in capsys.readouterr().out and "wer" in found


def cuts(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"{name}.jsonl.gz"
    with gzip.open(path, "wt") as out:
        for i, custom in enumerate(rows):
            out.write(json.dumps({"id": f"{name}{i}", "supervisions": [{"custom": custom}]}) + "\n")
    return str(path)


def test_slots_of_the_training_cuts_become_values(tmp_path: Path) -> None:
    train = cuts(tmp_path, "t", [{"s": {"a": "x"}, "b": "p"}, {"s": {"a": "y"}}, {"b": "q"}])
    valid = cuts(tmp_path, "v", [{"s": {"a": "z"}, "b": "q"}])
    data = DataConfig(train=[train], valid=[valid])
    for _ in range(2):  # a resumed run keeps the store
        filled, head = with_targets(str(tmp_path / "run"), data, SlotsConfig(slots=["s.a", "b"]))
    assert head.values == [["none", "x", "y"], ["none", "p", "q"]]
    store = LabelStore.open(filled.labels["slots"])
    assert [store.frames(i).tolist() for i in ("t0", "t1", "t2")] == [[1, 1], [2, 0], [0, 2]]
    assert store.frames("v0").tolist() == [3, 2]  # behind the last: never seen in training
    with pytest.raises(ValueError, match=r"\['nothing'\] in no training cut"):
        with_targets(str(tmp_path / "x"), data, SlotsConfig(slots=["b", "nothing"]))
    with pytest.raises(ValueError, match="slots: found none"):
        with_targets(str(tmp_path / "x"), data, SlotsConfig())


def test_numbers_become_places_between_the_least_and_the_largest(tmp_path: Path) -> None:
    train = cuts(tmp_path, "t", [{"age": 10}, {"age": "20.0"}, {"age": 30}])
    valid = cuts(tmp_path, "v", [{"age": 99}])
    data = DataConfig(train=[train], valid=[valid])
    filled, head = with_targets(str(tmp_path / "run"), data, RegressConfig(dimensions=["age"]))
    assert (head.lows, head.highs, head.means) == ([10.0], [30.0], [20.0])
    assert head.deviations == pytest.approx([(200 / 3) ** 0.5])
    store = LabelStore.open(filled.labels["values"])
    places = [store.frames(i).tolist() for i in ("t0", "t1", "t2", "v0")]
    assert places == [[0], [round(STEPS / 2)], [STEPS], [STEPS]]
    other = DataConfig(train=[cuts(tmp_path, "o", [{"age": 1}, {"age": "old"}])])
    with pytest.raises(ValueError, match=r"found \['old'\] of \['age'\] in the cut 'o1'"):
        with_targets(str(tmp_path / "x"), other, RegressConfig(dimensions=["age"]))
    none = DataConfig(train=[train], valid=[cuts(tmp_path, "n", [{"age": float("nan")}])])
    with pytest.raises(ValueError, match=r"found \['nan'\] of \['age'\] in the cut 'n0'"):
        with_targets(str(tmp_path / "x"), none, RegressConfig(dimensions=["age"]))
    alike = DataConfig(train=[cuts(tmp_path, "a", [{"age": 1, "size": 2}, {"age": 2, "size": 2}])])
    with pytest.raises(ValueError, match=r"found \['size'\] alike in all"):
        with_targets(str(tmp_path / "x"), alike, RegressConfig(dimensions=["age", "size"]))


def test_other_heads_are_left_as_they_are() -> None:
    data, head = DataConfig(), object()
    assert with_targets("x", data, head) == (data, head)
