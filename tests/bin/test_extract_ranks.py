"""`speechssl extract` under torchrun: two processes write what one writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from extract_corpus import digests, make_cuts, make_files, make_model

from speechssl.bin import cluster
from speechssl.bin.extract import main
from speechssl.data.label_store import LabelStore
from speechssl.hub.store import read_index
from speechssl.hub.units import read_units

TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
    "--rdzv-endpoint=localhost:0", "-m", "speechssl.bin.extract",
)  # fmt: skip


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a model and 20 cuts, one of them unreadable."""
    folder = tmp_path_factory.mktemp("ranks")
    files = make_files(folder / "audio", 20)
    cuts = make_cuts(folder / "cuts.jsonl.gz", files)
    fit = ["--cuts", f"[{cuts}]", "--model", make_model(folder / "model"), "--layer", 1]
    words = ["fit", *fit, "--classes", 10, "--output", folder / "km"]
    assert cluster.main([str(w) for w in words]) == 0
    files[3].write_bytes(b"")
    return ["--cuts", f"[{cuts}]", "--model", str(folder / "model")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["npy", "shar", "labels", "jsonl"])
def test_two_processes_write_what_one_writes(common: list[str], tmp_path: Path, form: str) -> None:
    words = [*common, "--format", form, "--device", "cpu"]
    if form in ("labels", "jsonl"):
        words += ["--clusters", str(Path(common[-1]).parent / "km")]
    else:
        words += ["--layers", "[0,2]"] + ["--shard_size", "6"] * (form == "shar")
    done = subprocess.run(
        [*TORCHRUN, *words, "--output", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "19 utterances" in done.stdout and done.stdout.count("RTF") == 1
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "skipped.txt").read_text() == (two / "skipped.txt").read_text()
    if form == "shar":
        assert digests(one) == digests(two)
        return
    if form == "labels":
        first, second = LabelStore.open(one), LabelStore.open(two)
        assert sorted(first.ids()) == sorted(second.ids()) and len(first) == 19
        assert all(np.array_equal(first.frames(n), second.frames(n)) for n in first.ids())
        counts = [json.loads((f / "apply.json").read_text())["frames"] for f in (one, two)]
        assert counts[0] == counts[1] > 0
        return
    if form == "jsonl":
        found = [{x["id"]: x["units"] for x in read_units(f)} for f in (one, two)]
        assert found[0] == found[1] and len(found[0]) == 19
        return
    lines = [sorted(read_index(f), key=lambda x: (x["id"], x["layer"])) for f in (one, two)]
    assert lines[0] == lines[1] and len(lines[0]) == 38
    for line in lines[0]:
        arrays = [np.load(f / line["file"]) for f in (one, two)]
        assert np.abs(arrays[0] - arrays[1]).max() < 1e-5
