"""VoxCeleb1 in two folders and VoxCeleb2, on miniatures of the published layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_superb_corpora import rows, write_wave

from speechssl.corpora import voxceleb1, voxceleb2
from speechssl.data.fields import field_of


def make_voxceleb2(source: Path, speakers: int = 8, seconds: float = 1.2) -> None:
    for part, first in (("dev", 12), ("test", 8000)):
        for who in range(first, first + speakers):
            for take in range(6):
                name = f"id{who:05d}/video{take % 3}/0000{take}.wav"
                write_wave(source / part / "wav" / name, seconds + 0.05 * take)


def test_voxceleb2_has_its_parts_speakers_and_videos(tmp_path: Path) -> None:
    make_voxceleb2(tmp_path, speakers=2, seconds=0.1)
    given = {"source": str(tmp_path), "output": str(tmp_path / "out")}
    paths = voxceleb2.prepare(voxceleb2.Config(**given))
    assert list(paths) == ["dev"]
    found = rows(paths, "dev")
    assert len(found) == 12 and found[0]["id"] == "id00012/video0/00000.wav"
    assert {field_of(r, "speaker") for r in found} == {"id00012", "id00013"}
    assert {field_of(r, "video") for r in found} == {"video0", "video1", "video2"}
    both = voxceleb2.prepare(voxceleb2.Config(**given, parts=["dev", "test"]))
    assert {field_of(r, "speaker") for r in rows(both, "test")} == {"id08000", "id08001"}


def test_voxceleb2_as_it_is_published_is_to_be_decoded_first(tmp_path: Path) -> None:
    published = tmp_path / "dev/aac/id00012/video0/00001.m4a"
    published.parent.mkdir(parents=True)
    published.write_bytes(b"")
    given = {"source": str(tmp_path), "output": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"only \.m4a files in .*; decode each with ffmpeg"):
        voxceleb2.prepare(voxceleb2.Config(**given))
    with pytest.raises(ValueError, match=r"no recordings in .*/test"):
        voxceleb2.prepare(voxceleb2.Config(**given, parts=["test"]))
    with pytest.raises(ValueError, match="want dev, test or both"):
        voxceleb2.prepare(voxceleb2.Config(**given, parts=["train"]))


def test_voxceleb1_may_lie_in_two_folders(tmp_path: Path) -> None:
    names = {"dev": ("id10001", "id10002"), "test": ("id10270", "id10271")}
    for part, speakers in names.items():
        for who in speakers:
            for take in (1, 2):
                write_wave(tmp_path / part / "wav" / who / "abc" / f"0000{take}.wav", 0.1)
    one, two = (f"{who}/abc/00001.wav" for who in names["test"])
    (tmp_path / "veri_test2.txt").write_text(f"1 {one} {one}\n0 {one} {two}\n")
    every = [f"{who}/abc/00001.wav" for own in names.values() for who in own]
    (tmp_path / "list_test_all2.txt").write_text("".join(f"0 {one} {n}\n" for n in every))
    (tmp_path / "iden_split.txt").write_text(
        "".join(f"{i % 3 + 1} {n}\n" for i, n in enumerate(every))
    )
    given = {"source": str(tmp_path), "output": str(tmp_path / "out")}
    lists = {"task": "verification", "trials": str(tmp_path / "veri_test2.txt")}
    paths = voxceleb1.prepare(voxceleb1.Config(**given, **lists))
    speakers = {s: {field_of(r, "speaker") for r in rows(paths, s)} for s in ("train", "test")}
    assert speakers == {"train": set(names["dev"]), "test": set(names["test"])}
    lists["trials"] = str(tmp_path / "list_test_all2.txt")
    every_one = voxceleb1.prepare(voxceleb1.Config(**given, **lists))
    assert list(every_one) == ["test"] and len(rows(every_one, "test")) == 8
    known = voxceleb1.prepare(voxceleb1.Config(**given))
    assert sorted(known) == ["test", "train", "valid"] and len(rows(known, "train")) == 2
