"""A folder of audio files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, validate

from speechssl.corpora.audio_dir import Config, prepare


def _fill(folder: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 8000).astype(np.float32)
    for index in range(30):
        place = folder / f"spk{index % 10}" / "session"
        place.mkdir(parents=True, exist_ok=True)
        suffix = ("wav", "flac", "ogg", "mp3")[index % 4]
        soundfile.write(place / f"u{index}.{suffix}", noise, 16000)
    (folder / "spk0" / "notes.md").write_text("not audio")
    (folder / "spk0" / ".hidden.wav").write_text("not audio")


def test_every_format_is_found_and_decodes_and_speakers_never_cross_splits(tmp_path: Path) -> None:
    source = tmp_path / "voices"
    _fill(source)
    shares = {"valid_share": 0.3, "test_share": 0.3}
    paths = prepare(
        Config(source=str(source), output=str(tmp_path / "out"), speaker="top", **shares)
    )
    speakers = {}
    total = 0
    for split, path in paths.items():
        cuts = list(CutSet.from_file(path))
        total += len(cuts)
        speakers[split] = {cut.supervisions[0].speaker for cut in cuts}
        for cut in cuts:
            validate(cut)
            assert cut.load_audio().shape == (1, cut.num_samples)
    assert total == 30
    assert sum(map(len, speakers.values())) == len(set().union(*speakers.values())) == 10


def test_a_file_keeps_its_split_when_others_come(tmp_path: Path) -> None:
    source = tmp_path / "voices"
    _fill(source)

    def splits(out: str) -> dict[str, str]:
        config = Config(source=str(source), output=str(tmp_path / out), valid_share=0.4)
        return {
            cut.id: split for split, p in prepare(config).items() for cut in CutSet.from_file(p)
        }

    before = splits("one")
    soundfile.write(source / "more.wav", np.zeros(800), 16000)
    after = splits("two")
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_broken_files_are_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "voices"
    _fill(source)
    (source / "bad.wav").write_bytes(b"RIFF but no more")
    (source / "empty.flac").write_bytes(b"")
    out = tmp_path / "out"
    paths = prepare(Config(source=str(source), output=str(out), valid_share=0.0))
    assert len(list(CutSet.from_file(paths["train"]))) == 30
    listed = (out / "missing.txt").read_text()
    assert "bad.wav" in listed and "empty.flac" in listed and len(listed.splitlines()) == 2


def test_transcripts_beside_the_audio_are_taken_when_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "voices"
    _fill(source)
    (source / "spk0/session/u0.txt").write_text("hello  there\n")
    config = Config(
        source=str(source), output=str(tmp_path / "out"), text_beside=True, valid_share=0.0
    )
    texts = [cut.supervisions[0].text for cut in CutSet.from_file(prepare(config)["train"])]
    assert [text for text in texts if text] == ["hello there"]


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no audio"):
        prepare(Config(source=str(tmp_path), output=str(tmp_path / "out")))
