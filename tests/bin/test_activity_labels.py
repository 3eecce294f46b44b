"""Frame labels of active speakers from supervisions, and a diarization head that learns of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.bin import finetune
from speechssl.bin.activity_labels import activity, recordings, with_activity
from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.data.config import DataConfig
from speechssl.data.label_store import LabelStore
from speechssl.heads.diarize import DiarizeConfig

TURNS = [("b", 0.0, 0.6), ("a", 0.4, 0.5), ("b", 0.8, 0.2)]


def write_cuts(folder: Path, count: int, turns: list[Any] = TURNS) -> str:
    writer = JsonlWriter(folder / "cuts.jsonl.gz")
    for i in range(count):
        path = folder / f"u{i}.wav"
        soundfile.write(path, 0.1 * np.random.default_rng(i).standard_normal(16000), 16000)
        row = cut_row(id=f"u{i}", audio=path, header=read_header(path))
        row["supervisions"] = [
            {"id": f"u{i}-{n}", "recording_id": f"u{i}", "start": start, "duration": seconds,
             "channel": 0} | ({} if who is None else {"speaker": who})
            for n, (who, start, seconds) in enumerate(turns)
        ]  # fmt: skip
        writer.write(row)
    writer.close()
    return str(folder / "cuts.jsonl.gz")


def test_bits_follow_the_turns(tmp_path: Path) -> None:
    data = DataConfig(train=[write_cuts(tmp_path, 2)])
    filled = with_activity(str(tmp_path / "run"), data, DiarizeConfig(speakers=2))
    store = LabelStore.open(filled.labels["activity"])
    labels = store.window("u1", 0, 100, 160)
    assert len(store) == 2 and (labels[:40] == 1).all() and (labels[40:60] == 3).all()
    assert (labels[60:80] == 2).all() and (labels[80:90] == 3).all() and (labels[90:] == 1).all()
    again = with_activity(str(tmp_path / "run"), data, DiarizeConfig(speakers=2))
    assert again == filled
    (tmp_path / "other").mkdir()
    other = DataConfig(train=[write_cuts(tmp_path / "other", 2, TURNS[:1])])
    with pytest.raises(ValueError, match="found digest"):
        with_activity(str(tmp_path / "run"), other, DiarizeConfig(speakers=2))
    named = DataConfig(train=data.train, labels={"activity": "mine"})
    assert with_activity(str(tmp_path / "new"), named, DiarizeConfig()) == named


def test_cuts_of_one_recording_count_in_its_own_time() -> None:
    recording = {"id": "r", "duration": 10.0}
    cuts = [{"id": f"c{i}", "start": 5.0 * i, "duration": 5.0, "recording": recording,
             "supervisions": [{"start": 1.0, "duration": 2.0, "speaker": who}]}
            for i, who in enumerate("xy")]  # fmt: skip
    (found,) = recordings(cuts).values()
    bits = activity("r", *found, 2)
    assert len(bits) == 1000 and (bits[100:300] == 1).all() and (bits[600:800] == 2).all()
    assert bits.sum() == 200 + 2 * 200
    with pytest.raises(ValueError, match="found 1, want at least 2, the speakers of 'r'"):
        activity("r", *found, 1)


def test_a_turn_without_speaker_is_named(tmp_path: Path) -> None:
    data = DataConfig(train=[write_cuts(tmp_path, 1, [(None, 0.0, 0.5)])])
    with pytest.raises(ValueError, match="without one in the cut 'u0'"):
        with_activity(str(tmp_path / "run"), data, DiarizeConfig())


def test_a_head_learns_of_supervisions_alone(tmp_path: Path) -> None:
    cuts = write_cuts(tmp_path, 4)
    words = ["--encoder", "speechssl.encoders.log_mel.LogMelConfig", "--encoder.mel_bins", "10",
             "--head", "speechssl.heads.diarize.DiarizeConfig", "--head.hidden_dim", "8",
             "--data.train", f"[{cuts}]", "--data.valid", f"[{cuts}]", "--data.batch_seconds", "4",
             "--data.max_batch_seconds", "4", "--data.max_seconds", "2", "--data.num_workers", "0",
             "--train.steps", "2", "--train.device", "cpu", "--train.tensorboard", "false",
             "--train.best_metric", "der", "--cache", str(tmp_path / "features"),
             "--output", str(tmp_path / "run")]  # fmt: skip
    assert finetune.main(words) == 0
    assert (tmp_path / "run/model.json").is_file()
