from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_corpus import make_cut, write_cuts

from speechssl.data.index import CutIndex, CutIndices, ensure_index


def _cuts(count: int, prefix: str = "c") -> list[dict]:
    return [make_cut(f"{prefix}{i}", f"/a/{i}.flac", 1.0 + i / 10, f"T{i}") for i in range(count)]


def test_records_hold_what_reading_needs(tmp_path: Path) -> None:
    cuts = _cuts(20)
    cuts[3]["start"], cuts[3]["duration"] = 0.25, 0.5
    index = CutIndex(write_cuts(tmp_path / "cuts_a.jsonl.gz", cuts))
    assert len(index) == 20 and index.num_samples[7] == round(1.7 * 16000)
    record = index[3]
    assert (record.id, record.path, record.text) == ("c3", "/a/3.flac", "T3")
    assert (record.start_sample, record.num_samples) == (4000, 8000)
    assert record.recording_duration == 1.3 and record.full is None
    assert pickle.loads(pickle.dumps(index))[19].id == "c19"


def test_manifests_that_lhotse_writes_are_read(tmp_path: Path) -> None:
    from lhotse import CutSet

    path = write_cuts(tmp_path / "cuts_a.jsonl.gz", _cuts(5))
    CutSet.from_file(path).to_eager().to_file(tmp_path / "cuts_b.jsonl.gz")
    assert [CutIndex(tmp_path / "cuts_b.jsonl.gz")[i] for i in range(5)] == [
        CutIndex(path)[i] for i in range(5)
    ]


def test_several_manifests_are_one_sequence(tmp_path: Path) -> None:
    paths = [
        write_cuts(tmp_path / f"cuts_{p}.jsonl.gz", _cuts(n, p))
        for p, n in (("a", 3), ("b", 0), ("c", 4))
    ]
    indices = CutIndices(paths)
    assert [indices[i].id for i in range(len(indices))] == [
        "a0",
        "a1",
        "a2",
        "c0",
        "c1",
        "c2",
        "c3",
    ]
    assert indices.num_samples(np.array([6, 0, 4])).tolist() == [20800, 16000, 17600]


def test_a_duplicate_id_is_named_with_both_lines(tmp_path: Path) -> None:
    cuts = [*_cuts(9), make_cut("c4", "/b.flac", 1.0)]
    with pytest.raises(ValueError, match="'c4' on line 5 and again on line 10"):
        CutIndex(write_cuts(tmp_path / "cuts_a.jsonl.gz", cuts))
    assert not list(tmp_path.glob("*.index"))


def test_a_duplicate_id_across_manifests_is_named_with_both_files(tmp_path: Path) -> None:
    one = write_cuts(tmp_path / "cuts_a.jsonl.gz", _cuts(5))
    other = write_cuts(tmp_path / "cuts_b.jsonl.gz", [*_cuts(9, "x"), *_cuts(1)])
    with pytest.raises(ValueError, match=r"'c0' in .*cuts_a.* and in .*cuts_b"):
        CutIndices([one, other])


def test_the_index_follows_the_manifest_and_is_not_built_twice(tmp_path: Path) -> None:
    path = tmp_path / "cuts_a.jsonl.gz"
    write_cuts(path, _cuts(5))
    folder = ensure_index(path)
    built = os.stat(folder / "records.jsonl").st_mtime_ns
    os.utime(path)
    assert os.stat(ensure_index(path) / "records.jsonl").st_mtime_ns == built
    write_cuts(path, _cuts(6))
    assert len(CutIndex(path)) == 6


def test_an_unwritable_place_gets_its_index_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(write_cuts(tmp_path / "cuts_a.jsonl.gz", _cuts(5)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert (tmp_path / "cache") in CutIndex(path).folder.parents
    assert CutIndex(path)[4].id == "c4"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{broken\n", "line"), ('{"a": 1}\n', "line 2"), ('{"id": "x", "type": "MonoCut"}\n', "'x'")],
)
def test_a_damaged_manifest_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cuts_a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(_cuts(1)[0]) + "\n" + text)
    with pytest.raises(ValueError, match=message):
        CutIndex(path)


def test_a_truncated_manifest_is_refused(tmp_path: Path) -> None:
    path = Path(write_cuts(tmp_path / "cuts_a.jsonl.gz", _cuts(500)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damage"):
        CutIndex(path)


def test_absent_cuts_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speechssl prepare"):
        CutIndex(tmp_path / "cuts_no.jsonl.gz")
    with pytest.raises(ValueError, match="Shar"):
        CutIndex(tmp_path)
