"""`speechssl score` reads hyp.jsonl and writes results.json and alignments.txt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechssl.bin.score import main


def write_hypotheses(folder: Path) -> None:
    rows = [
        {"id": "a", "ref": "THE CAT SAT", "hyp": "the cat sat", "duration": 1.5, "speaker": "s1"},
        {"id": "b", "ref": "on the mat", "hyp": "on mat", "duration": 3.0, "speaker": "s2"},
    ]
    (folder / "hyp.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_results_and_alignments_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hypotheses(tmp_path)
    (tmp_path / "decode.json").write_text('{"method": "greedy", "timing": {"rtf": 0.1}}')
    assert main(["--decode", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["wer"] == pytest.approx(1 / 6) and results["errors"] == 1
    assert results["decode"] == {"method": "greedy"}
    assert results["normalisation"]["name"] == "basic"
    assert results["worst"][0]["id"] == "b"
    assert results["command"].startswith("speechssl score --decode")
    assert "THE" in (tmp_path / "alignments.txt").read_text()
    assert "16.67 %" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.tmp"))


def test_languages_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": "a", "ref": "abcd", "hyp": "abcd", "language": "fi"},
        {"id": "b", "ref": "ab cd", "hyp": "ab xy", "language": "sv"},
        {"id": "c", "ref": "ab", "hyp": "ab", "language": "et"},
    ]
    (tmp_path / "hyp.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["--decode", str(tmp_path), "--worst_languages", "1"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["over_languages"]["worst"] == ["sv"]
    assert results["over_languages"]["worst_cer"] == pytest.approx(0.4)
    shown = capsys.readouterr().out
    assert "3 languages, each alike: CER 13.33 %" in shown and "of the 1 worst 40.00 %" in shown
    assert main(["--decode", str(tmp_path), "--worst_languages", "0"]) == 2
    write_hypotheses(tmp_path)
    assert main(["--decode", str(tmp_path)]) == 0
    assert "over_languages" not in json.loads((tmp_path / "results.json").read_text())


def test_the_same_decoding_gives_the_same_bytes(tmp_path: Path) -> None:
    write_hypotheses(tmp_path)
    main(["--decode", str(tmp_path)])
    first = (tmp_path / "results.json").read_bytes()
    main(["--decode", str(tmp_path)])
    assert (tmp_path / "results.json").read_bytes() == first


def test_normalisation_can_be_turned_off(tmp_path: Path) -> None:
    write_hypotheses(tmp_path)
    main(["--decode", str(tmp_path), "--normalisation", "none"])
    assert json.loads((tmp_path / "results.json").read_text())["errors"] == 4


def test_what_is_missing_or_broken_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--decode", str(tmp_path)]) == 2
    assert "hyp.jsonl" in capsys.readouterr().err
    (tmp_path / "hyp.jsonl").write_text('{"id": "a", "ref": "x"}\n')
    assert main(["--decode", str(tmp_path)]) == 2
    assert "hyp.jsonl:1" in capsys.readouterr().err
