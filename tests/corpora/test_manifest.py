"""Rows written without Lhotse are what Lhotse reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, validate

from speechssl.corpora.manifest import CutsWriter, cut_row, read_header, read_rows


def _row(folder: Path, id: str = "a", *, channels: int = 1) -> dict:
    path = folder / f"{id}.wav"
    soundfile.write(path, np.zeros((4321, channels), np.float32), 16000)
    return cut_row(
        id=id,
        audio=path,
        header=read_header(path),
        text="hello world",
        speaker="s1",
        language="en",
        custom={"emotion": "sad", "slots": {"city": "Rome"}},
        alignment={"word": [("hello", 0.0, 0.1), ("world", 0.1, 0.25)]},
    )


def test_a_row_survives_lhotse_unchanged(tmp_path: Path) -> None:
    row = _row(tmp_path)
    with CutsWriter(tmp_path) as writer:
        writer.add("train", row)
    cuts = CutSet.from_file(writer.paths["train"])
    cut = next(iter(cuts))
    validate(cut)
    assert cut.load_audio().shape == (1, 4321)
    supervision = cut.supervisions[0]
    assert supervision.custom["slots"] == {"city": "Rome"}
    assert [item.symbol for item in supervision.alignment["word"]] == ["hello", "world"]
    assert supervision.alignment["word"][1].end == pytest.approx(0.25)
    # Through JSON, since Lhotse's alignment items are tuples in memory.
    assert json.loads(json.dumps(cut.to_dict())) == row


def test_a_duplicate_id_is_an_error_that_names_both_files_and_leaves_no_manifest(
    tmp_path: Path,
) -> None:
    one, two = _row(tmp_path, "a"), _row(tmp_path, "b")
    two["id"] = "a"

    def write() -> None:
        with CutsWriter(tmp_path / "out") as writer:
            writer.add("train", one, origin="one.jsonl")
            writer.add("test", two, origin="two.jsonl")

    with pytest.raises(ValueError, match=r"'a' twice.*a\.wav.*b\.wav"):
        write()
    assert not list((tmp_path / "out").iterdir())


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    row = _row(tmp_path)
    contents = []
    for name in ("x", "y"):
        with CutsWriter(tmp_path / name) as writer:
            writer.add("train", row)
        contents.append(writer.paths["train"].read_bytes())
    assert contents[0] == contents[1]
    assert json.loads(gzip.decompress(contents[0])) == row


def test_broken_json_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": 1}\n\n{"id": \n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 3"):
        list(read_rows(path))
    with pytest.raises(ValueError, match="found no such file"):
        list(read_rows(tmp_path / "absent.jsonl"))
