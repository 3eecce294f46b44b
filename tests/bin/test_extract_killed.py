"""kill -9 in the middle of an extraction: run again, it makes the same files, and none twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from extract_corpus import digests, make_cuts, make_files, make_model

from speechssl.hub.store import read_index

COUNT = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    make_model(folder / "model")
    make_cuts(folder / "cuts.jsonl.gz", make_files(folder / "audio", COUNT, (0.2, 0.8)))
    return folder


def _start(folder: Path, output: str, *more: str) -> subprocess.Popen[str]:
    words = ["--model", "model", "--cuts", "[cuts.jsonl.gz]", "--layers", "[0,2]",
             "--output", output, "--batch_seconds", "8", *more]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "speechssl.bin.extract", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return out


def _kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    while not ready():
        assert process.poll() is None, "the program ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [1, 3])
def test_npy_files_after_kills_are_those_of_a_run_without(folder: Path, kills: int) -> None:
    if not (folder / "whole").is_dir():
        assert f"{COUNT} utterances" in _finish(_start(folder, "whole"))
    output = folder / f"killed-{kills}"
    index, kept = output / "index.jsonl", {}
    for number in range(kills):
        mark = 2 * COUNT * (number + 1) // (kills + 1)
        _kill_when(_start(folder, output.name), lambda mark=mark: _lines(index) >= mark)
        whole = _lines(index) // 2
        assert whole < COUNT
        named = {x["file"] for x in read_index(output)}
        made = {str(p.relative_to(output)) for p in output.rglob("*.npy")}
        assert len(made - named) <= 2  # of the utterance that was being written
        assert named <= made
        kept |= {f: (output / f).stat().st_mtime_ns for f in named if f not in kept}
    out = _finish(_start(folder, output.name))
    found = re.search(rf"(\d+) of {COUNT} are there already", out)
    added = re.search(r"(\d+) utterances", out)
    assert found and added and 0 < whole - int(found[1]) + 1 <= 2
    assert int(found[1]) + int(added[1]) == COUNT
    assert digests(output) == digests(folder / "whole")
    # Nothing that was done was made again; but for the utterance whose lines were torn.
    again = [f for f, t in kept.items() if (output / f).stat().st_mtime_ns != t]
    assert len(again) <= 2 * kills and len(kept) >= COUNT - 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_complete_shards_survive_a_kill(folder: Path) -> None:
    options = ("--format", "shar", "--shard_size", "40")
    _finish(_start(folder, "whole-shar", *options))
    output = folder / "killed-shar"
    marks = output / "shards"
    _kill_when(
        _start(folder, output.name, *options),
        lambda: marks.is_dir() and len(list(marks.glob("*.json"))) >= 5,
    )
    complete = len(list(marks.glob("*.json")))
    kept = {
        p: p.stat().st_mtime_ns
        for p in (output / "shar").iterdir()
        if (marks / f"{p.name.split('.')[1]}.json").is_file()
    }
    assert complete < 13 and len(kept) == 3 * complete
    out = _finish(_start(folder, output.name, *options))
    assert f"{40 * complete} of {COUNT} are there already" in out
    assert f"{COUNT - 40 * complete} utterances" in out
    assert digests(output) == digests(folder / "whole-shar")
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
