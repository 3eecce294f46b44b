"""Classes of utterances on two ranks: what one rank learns and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_utterance_tasks import CLASSIFY, config, write_cuts

from speechssl.bin import decode, finetune
from speechssl.model_file import open_model


def torchrun(program: str, *words: str) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        "-m",
        f"speechssl.bin.{program}",
    ]
    done = subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_learn_and_answer_as_one(tmp_path: Path) -> None:
    splits = {"train": 36, "valid": 9, "test": 13}
    corpus = {s: write_cuts(tmp_path, s, [0, 3], n) for s, n in splits.items()}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    words = {
        n: config(corpus, tmp_path / n, CLASSIFY, steps=6, valid_every=3) for n in ("one", "two")
    }
    assert finetune.main(words["one"]) == 0
    torchrun("finetune", *words["two"])
    one, two = (open_model(tmp_path / n / "run").head.state_dict() for n in ("one", "two"))
    assert one.keys() == two.keys()
    for k in one:
        assert (one[k].double() - two[k].double()).abs().max() < 1e-4, k
    lines = [
        [json.loads(x) for x in (tmp_path / n / "run/metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    for a, b in zip(*lines, strict=True):
        assert a["accuracy"] == pytest.approx(b["accuracy"])
    more = ["--model", str(tmp_path / "one/run"), "--cuts", corpus["test"],
            "--max_batch_seconds", "1", "--device", "cpu", "--output"]  # fmt: skip
    assert decode.main([*more, str(tmp_path / "a")]) == 0
    torchrun("decode", *more, str(tmp_path / "b"))
    rows = [
        [json.loads(x) for x in (tmp_path / n / "predictions.jsonl").read_text().splitlines()]
        for n in ("a", "b")
    ]
    assert [r["id"] for r in rows[1]] == [f"test{i}" for i in range(13)]
    for a, b in zip(*rows, strict=True):
        assert a["hyp"] == b["hyp"] and a["ref"] == b["ref"]
        assert np.allclose(
            list(a["probabilities"].values()), list(b["probabilities"].values()), atol=1e-5
        )
