from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.bin.shard import main
from speechssl.data.config import DataConfig
from speechssl.data.index import CutIndex
from speechssl.data.label_store import LabelWriter
from speechssl.data.loader import open_source, read_all


@pytest.fixture
def cuts(tmp_path: Path) -> Path:
    """30 cuts, each from 0.2 s on in its recording of 1 to 2 s; and one without a file."""
    draw = np.random.default_rng(0)
    path = tmp_path / "cuts_a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(31):
            seconds = 1.0 + (i % 11) / 10
            name = tmp_path / f"{i}.flac"
            if i < 30:
                wave = 0.1 * draw.standard_normal(round(seconds * 16000))
                soundfile.write(name, wave, 16000, subtype="PCM_16")
            source = {"type": "file", "channels": [0], "source": str(name)}
            recording = {
                "id": f"r{i}",
                "sources": [source],
                "sampling_rate": 16000,
                "num_samples": round(seconds * 16000),
                "duration": seconds,
                "channel_ids": [0],
            }
            text = {"id": f"s{i}", "recording_id": f"r{i}", "start": 0.0, "duration": 0.5}
            cut = {"id": f"c{i}", "start": 0.2, "duration": round(seconds - 0.2, 1), "channel": 0}
            cut |= {"supervisions": [{**text, "text": f"T {i}"}], "recording": recording}
            file.write(json.dumps({**cut, "type": "MonoCut"}) + "\n")
    return path


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_a_shar_folder_reads_bitwise_as_the_cuts_it_was_made_of(
    cuts: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "shar"
    argv = ["--cuts", str(cuts), "--output", str(output), "--shard_size", "7", "--format", kind]
    assert main(argv) == 0
    assert "left out c30: " in capsys.readouterr().out
    assert len(list(output.glob("*.tar"))) == 5
    plain = {b.ids[0]: b.wave for b in read_all([str(cuts)], max_batch_seconds=0.1)}
    packed = {b.ids[0]: b.wave for b in read_all([str(output)], max_batch_seconds=0.1)}
    assert plain.keys() == packed.keys() and len(plain) == 30
    assert all(np.array_equal(plain[name], packed[name]) for name in plain)
    record = CutIndex(output)[4]
    assert (record.id, record.recording_id, record.text) == ("c4", "r4", "T 4")
    assert main(argv) == 0
    assert "complete already" in capsys.readouterr().out


def test_training_on_shards_finds_the_labels_of_the_whole_recordings(
    cuts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shar"
    assert main(["--cuts", str(cuts), "--output", str(output), "--shard_size", "10"]) == 0
    writer = LabelWriter(tmp_path / "km", {"classes": 200, "frame_rate_hz": 50})
    for i in range(30):
        writer.add(f"r{i}", np.arange(round((1.0 + (i % 11) / 10) * 50)))
    writer.finish()
    config = DataConfig(
        train=[str(output)], labels={"km": str(tmp_path / "km")}, batch_seconds=20, num_workers=0
    )
    update = next(open_source(config, hop_samples=320, split="train").updates())
    assert not update.skipped
    for batch in update.batches:
        assert (batch.targets["km"][:, 0] == 10).all()


def test_lhotse_itself_reads_the_shards(cuts: Path, tmp_path: Path) -> None:
    from lhotse import CutSet

    output = tmp_path / "shar"
    assert main(["--cuts", str(cuts), "--output", str(output), "--shard_size", "10"]) == 0
    found = list(CutSet.from_shar(in_dir=output))
    assert len(found) == 30 and found[3].supervisions[0].text == "T 3"
    assert found[3].load_audio().shape == (1, found[3].num_samples)


def test_too_many_unreadable_cuts_leave_nothing_behind(
    cuts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(10):
        (tmp_path / f"{i}.flac").unlink()
    assert main(["--cuts", str(cuts), "--output", str(tmp_path / "shar")]) == 1
    assert "11 of 31" in capsys.readouterr().err
    assert not list(tmp_path.glob("shar*"))
