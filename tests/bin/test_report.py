"""`speechssl report`: folders first or by option, a page where it is asked for, clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechssl.bin.report import main


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    folder = tmp_path / "exp" / "a"
    folder.mkdir(parents=True)
    rows = [{"step": s, "split": "train", "loss": 1.0 / s, "lr": 1e-3} for s in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_the_page_lies_in_the_first_folder_or_where_it_is_asked_for(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(experiment)]) == 0
    assert "<h1>a</h1>" in (experiment / "report.html").read_text()
    assert main(["--experiments", f"[{experiment}]", "--output", str(tmp_path / "o/r.html")]) == 0
    assert (tmp_path / "o/r.html").is_file()
    assert "1 experiments" in capsys.readouterr().out


def test_a_report_does_not_disturb_the_next_one(experiment: Path) -> None:
    main([str(experiment)])
    first = (experiment / "report.html").read_text()
    main([str(experiment)])
    second = (experiment / "report.html").read_text()
    assert first.split("<nav>")[1] == second.split("<nav>")[1]


def test_wrong_folders_end_with_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert "found no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and "want folders" in capsys.readouterr().err
