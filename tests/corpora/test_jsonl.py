"""Corpora with a manifest.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, validate

from speechssl.corpora.arpabet import LETTERS
from speechssl.corpora.jsonl import Config, prepare


def _corpus(parent: Path, name: str, rows: list[dict]) -> Path:
    folder = parent / name
    (folder / "audio").mkdir(parents=True)
    lines = []
    for row in rows:
        audio = f"audio/{row['id']}.flac"
        soundfile.write(folder / audio, np.full(8000, 0.1, np.float32), 16000)
        lines.append(json.dumps({"audio": audio, "split": "train", **row}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _cuts(paths: dict[str, Path], split: str) -> list:
    return list(CutSet.from_file(paths[split]))


def test_rows_become_cuts_with_every_other_field_in_custom(tmp_path: Path) -> None:
    extra = {"emotion": "fear", "slots": {"size": "small"}, "label": 0, "age": None}
    row = {"id": "u1", "speaker": 7, "text": "hi", "gender": "female", "language": "en", **extra}
    _corpus(tmp_path, "c", [{**row, "speaker": "7"}, {"id": "u2", "text": None, "split": "test"}])
    paths = prepare(Config(source=[str(tmp_path / "c")], output=str(tmp_path / "out")))
    (cut,) = _cuts(paths, "train")
    validate(cut)
    only = cut.supervisions[0]
    assert (cut.id, only.speaker, only.text) == ("c-u1", "c-7", "hi")
    assert only.custom == {"corpus": "c", "emotion": "fear", "slots": {"size": "small"}, "label": 0}
    assert Path(cut.recording.sources[0].source).is_absolute()
    assert _cuts(paths, "test")[0].supervisions[0].text is None


def test_equal_ids_of_two_corpora_stay_apart_by_their_prefix(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        _corpus(tmp_path, name, [{"id": "a", "speaker": "s"}])
    config = Config(source=str(tmp_path), only=["one", "two"], output=str(tmp_path / "out"))
    cuts = _cuts(prepare(config), "train")
    assert [cut.id for cut in cuts] == ["one-a", "two-a"]
    assert len({cut.supervisions[0].speaker for cut in cuts}) == 2


def test_duplicate_ids_are_an_error_naming_both_files(tmp_path: Path) -> None:
    _corpus(tmp_path, "one", [{"id": "a"}])
    _corpus(tmp_path, "two", [{"id": "a"}])
    config = Config(source=str(tmp_path), output=str(tmp_path / "out"), prefix_ids=False)
    with pytest.raises(ValueError, match=r"'a' twice, for .*one/audio/a\.flac.*two/audio/a\.flac"):
        prepare(config)


def test_missing_and_unreadable_files_are_left_out_and_listed(tmp_path: Path) -> None:
    folder = _corpus(tmp_path, "c", [{"id": f"u{i}"} for i in range(20)])
    (folder / "audio/u3.flac").unlink()
    (folder / "audio/u4.flac").write_bytes(b"not audio")
    (folder / "audio/u5.flac").write_bytes(b"")
    out = tmp_path / "out"
    config = Config(source=str(folder), output=str(out), max_missing_fraction=0.2)
    assert len(_cuts(prepare(config), "train")) == 17
    listed = (out / "missing.txt").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in listed] == ["u3.flac", "u4.flac", "u5.flac"]
    assert listed[0].endswith("\tmissing")


def test_too_many_missing_files_are_an_error_that_counts_them(tmp_path: Path) -> None:
    folder = _corpus(tmp_path, "c", [{"id": f"u{i}"} for i in range(4)])
    (folder / "audio/u3.flac").unlink()
    config = Config(source=str(folder), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"1 of 4 files.*u3\.flac: missing.*at most 10%"):
        prepare(config)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_an_unknown_corpus_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    _corpus(tmp_path, "one", [{"id": "a"}])
    config = Config(source=str(tmp_path), only=["onne"], output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"no corpus onne .*want some of"):
        prepare(config)


@pytest.mark.corpora
def test_the_real_corpora_become_valid_cuts(corpora_dir: Path, tmp_path: Path) -> None:
    names = ["an4", "coffee_intents", "ravdess", "librispeech_sample"]
    paths = prepare(Config(source=str(corpora_dir), only=names, output=str(tmp_path)))
    cuts = [cut for split in paths for cut in _cuts(paths, split)]
    assert len(cuts) == 1013 + 120 + 480 + 165
    for cut in cuts[::50]:
        validate(cut)
        assert cut.load_audio().shape == (1, cut.num_samples)


def test_phones_become_a_text_of_one_letter_each(tmp_path: Path) -> None:
    words = {"text": "it's fish", "phones": ["IH0_B T_I S_E", "F_B IH1_I SH_E"]}
    _corpus(tmp_path, "c", [{"id": "a", **words}])
    config = Config(source=str(tmp_path / "c"), output=str(tmp_path / "out"), phones="phones")
    (cut,) = _cuts(prepare(config), "train")
    first = cut.supervisions[0]
    assert first.text == "".join(LETTERS[p] for p in ["IH", "T", "S", "F", "IH", "SH"])
    assert first.custom["words"] == "it's fish"


@pytest.mark.parametrize(
    ("phones", "wanted"),
    [(["IH0_B QQ_E"], "found the phone 'QQ' in 'a'"), (None, "found 'None' in 'phones' of 'a'")],
)
def test_phones_that_are_none_are_an_error(
    phones: list[str] | None, wanted: str, tmp_path: Path
) -> None:
    _corpus(tmp_path, "c", [{"id": "a", "phones": phones}])
    config = Config(source=str(tmp_path / "c"), output=str(tmp_path / "out"), phones="phones")
    with pytest.raises(ValueError, match=wanted):
        prepare(config)
