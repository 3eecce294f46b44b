"""`speechssl bench`: lists and runs what tools/bench holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechssl.bin import bench


def test_benchmarks_are_listed_with_what_they_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: speechssl bench" in shown and "  startup" in shown and "  extract" in shown
    assert all(text for text in bench.benchmarks(bench.folder()).values())


def test_a_benchmark_runs_with_its_options_and_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.py").write_text('"""Measure one."""\nimport sys\nsys.exit(len(sys.argv))\n')
    (tmp_path / "_shared.py").write_text("")
    monkeypatch.setattr(bench, "folder", lambda: tmp_path)
    assert bench.benchmarks(tmp_path) == {"one": "Measure one."}
    assert bench.main(["one", "--a", "b"]) == 3


def test_an_unknown_name_and_an_absent_folder_are_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["nothing"]) == 2
    assert "want one of: " in capsys.readouterr().err
    monkeypatch.setattr(bench, "folder", lambda: tmp_path / "absent")
    assert bench.main(["extract"]) == 2
    assert "want a checkout of the source" in capsys.readouterr().err
