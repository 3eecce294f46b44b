"""Pronunciation by a recogniser's posteriors and by a trained head, on tones for phones."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.bin import finetune
from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.data.fields import cut_rows
from speechssl.data.label_store import LabelStore

ROOT = Path(__file__).parents[2]
TONES = {"a": 300.0, "b": 700.0, "c": 1300.0, "d": 2100.0, "e": 3400.0, "f": 5500.0}
LOGMEL = ["--encoder", "speechssl.encoders.log_mel.LogMelConfig", "--encoder.mel_bins", "20",
          "--encoder.deltas", "0"]  # fmt: skip
TRAIN = ["--train.device", "cpu", "--train.tensorboard", "false", "--train.log_every", "20",
         "--train.learning_rate", "2e-2", "--data.num_workers", "0", "--data.batch_seconds", "12",
         "--data.max_batch_seconds", "12", "--data.min_seconds", "0.1",
         "--data.max_seconds", "2"]  # fmt: skip


def write_cuts(folder: Path, split: str, count: int, seconds: float = 0.15) -> Path:
    """Words of two tones; the text has a letter for each."""
    random = np.random.default_rng(len(split))
    writer = JsonlWriter(folder / f"cuts_{split}.jsonl.gz")
    for number in range(count):
        phones = [str(random.choice(list(TONES)))]
        while len(phones) < 6:  # no tone twice in a row: their border could not be heard
            phones.append(str(random.choice([p for p in TONES if p != phones[-1]])))
        time = np.arange(round(16000 * seconds)) / 16000
        waves = [0.2 * np.sin(2 * np.pi * TONES[p] * time) for p in phones]
        wave = np.concatenate(waves) + 0.01 * random.standard_normal(len(phones) * len(time))
        path = folder / f"{split}{number}.wav"
        soundfile.write(path, wave, 16000)
        text = " ".join("".join(phones[i : i + 2]) for i in (0, 2, 4))
        custom = {"scores": [2.0, 0.0, 1.0, 2.0, 2.0, 0.0]}
        writer.write(cut_row(id=path.stem, audio=path, header=read_header(path), text=text,
                             custom=custom))  # fmt: skip
    writer.close()
    return folder / f"cuts_{split}.jsonl.gz"


def goodness(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["goodness.py", *map(str, words)])
    runpy.run_path(str(ROOT / "tools/goodness.py"), run_name="__main__")


def recogniser(folder: Path, cuts: Path, steps: int) -> Path:
    kind = "speechssl.heads.asr_ctc.CtcConfig"
    words = [*LOGMEL, *TRAIN, "--data.train", f"[{cuts}]", "--data.long", "drop", "--output",
             str(folder / "phones"), "--head", kind, "--head.freeze_encoder_steps", "-1",
             "--head.mask_probability", "0", "--head.dropout", "0", "--tokenizer.case", "keep",
             "--train.steps", str(steps)]  # fmt: skip
    assert finetune.main(words) == 0
    return folder / "phones"


def head(folder: Path, cuts: Path, labels: Path, steps: int) -> Path:
    phones = (labels / "phones.json").read_text()
    stores = f"{{asked: {labels}/asked, said: {labels}/said}}"
    words = [*LOGMEL, *TRAIN, "--data.train", f"[{cuts}]", "--data.labels", stores, "--output",
             str(folder / "head"), "--head", "speechssl.heads.pronounce.PronounceConfig",
             "--head.phones", phones, "--train.steps", str(steps)]  # fmt: skip
    assert finetune.main(words) == 0
    return folder / "head"


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_labels_are_the_phones_asked_for_where_they_are_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = write_cuts(tmp_path, "train", 4)
    model = recogniser(tmp_path, cuts, 2)
    given = ("--model", model, "--cuts", cuts)
    goodness(monkeypatch, *given, "--output", tmp_path / "gop")
    goodness(monkeypatch, *given, "--labels", "--output", tmp_path / "labels")
    phones = json.loads((tmp_path / "labels/phones.json").read_text())
    assert phones == sorted(TONES)
    asked, said = (LabelStore.open(tmp_path / "labels" / n) for n in ("asked", "said"))
    assert asked.frame_rate_hz == said.frame_rate_hz == 100 and asked.classes == 7
    for line in (tmp_path / "gop/gop.jsonl").read_text().splitlines():
        row = json.loads(line)
        places, grades = asked.frames(row["id"]), said.frames(row["id"])
        assert len(places) == 90
        # Runs of frames, in the order of the phones; equal ones may touch.
        kept = [i for i in range(90) if places[i] < 6 and (i == 0 or places[i] != places[i - 1])]
        runs = [phones[places[i]] for i in kept]
        assert [p for p, _ in itertools.groupby(runs)] == [
            p for p, _ in itertools.groupby(row["phones"])
        ]
        wanted = set(zip(row["phones"], row["said"], strict=True))
        assert {(phones[p], bool(g)) for p, g in zip(places, grades) if p < 6} <= wanted
    # Others than those that are there are refused, not mixed with them.
    with pytest.raises(ValueError, match="seed"):
        goodness(monkeypatch, *given, "--labels", "--seed", 1, "--output", tmp_path / "labels")
    # By human scores: three grades, and nothing is replaced.
    goodness(monkeypatch, *given, "--labels", "--scores", "scores", "--output", tmp_path / "human")
    assert LabelStore.open(tmp_path / "human/said").classes == 3
    with pytest.raises(SystemExit, match="found the score 2, want less than --grades 2"):
        goodness(monkeypatch, *given, "--labels", "--scores", "scores", "--grades", 2, "--output",
                 tmp_path / "few")  # fmt: skip


def test_a_phones_name_does_not_tell_whether_it_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frequent and rare phones are replacements as often as they are said."""
    cuts = write_cuts(tmp_path, "train", 60, seconds=0.03)
    rows = list(cut_rows([str(cuts)]))
    random = np.random.default_rng(0)
    writer = JsonlWriter(cuts)
    for row in rows:  # only the texts count here
        letters = random.choice(list("aaaaaaaabbbbccdef"), 6)
        row["supervisions"][0]["text"] = "".join(letters)
        writer.write(row)
    writer.close()
    names = runpy.run_path(str(ROOT / "tools/goodness.py"))
    tokens = SimpleNamespace(
        symbols=["", " ", *TONES], size=8, encode=lambda text: [2 + ord(x) - 97 for x in text]
    )
    model = SimpleNamespace(encoder=SimpleNamespace(frame_rate_hz=100), factor=1)
    asked_of = names["asked_of"]
    flat = {row["id"]: np.full((20, 8), -2.0) for row in rows}
    monkeypatch.setitem(asked_of.__globals__, "log_probs", lambda *_: flat.items())
    options = SimpleNamespace(cuts=[str(cuts)], scores=None, seed=0, replaced=0.5)
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for one in asked_of(model, tokens, options, []):
        for phone, said in zip(one.phones, one.said, strict=True):
            counts[said][phone] += 1
    shares = {k: {p: n / c.total() for p, n in c.items()} for k, c in counts.items()}
    assert counts[True].total() + counts[False].total() == 360
    # Expected are 0.30 and 0.28; drawn evenly, 0.11 and 0.15.
    assert shares[False]["a"] > 0.2 < shares[False]["b"] and shares[False]["f"] < 0.14


def test_a_heads_score_is_the_mean_of_its_own_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = write_cuts(tmp_path, "train", 4)
    model = recogniser(tmp_path, cuts, 2)
    given = ("--model", model, "--cuts", cuts)
    goodness(monkeypatch, *given, "--labels", "--output", tmp_path / "labels")
    trained = head(tmp_path, cuts, tmp_path / "labels", 2)
    goodness(monkeypatch, *given, "--head", trained, "--output", tmp_path / "gop")
    found = results(tmp_path / "gop")
    assert found["phones"] == 24 and found["decode"]["trained_head"] == str(trained)
    # Outputs of the 20 bands, and biases.
    assert found["decode"]["trainable_parameters"] == 6 * 20 + 6
    with pytest.raises(SystemExit, match="no head of pronunciation"):
        goodness(monkeypatch, *given, "--head", model, "--output", tmp_path / "x")


@pytest.mark.slow
def test_a_recogniser_and_a_head_tell_tones_that_were_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = write_cuts(tmp_path, "train", 40), write_cuts(tmp_path, "test", 12)
    model = recogniser(tmp_path, train, 150)
    given = ("--model", model, "--cuts")
    goodness(monkeypatch, *given, test, "--output", tmp_path / "gop")
    # Not all: one that is said beside it may be taken for the one that was asked.
    assert results(tmp_path / "gop")["auc"] > 0.8
    goodness(monkeypatch, *given, train, "--labels", "--output", tmp_path / "labels")
    trained = head(tmp_path, train, tmp_path / "labels", 150)
    goodness(monkeypatch, *given, test, "--head", trained, "--output", tmp_path / "head_gop")
    assert results(tmp_path / "head_gop")["auc"] > 0.8
