"""Fields of manifests as classes: reading, and the label store made of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from data_corpus import Corpus

from speechssl.corpora import jsonl
from speechssl.data.config import DataConfig
from speechssl.data.fields import cut_rows, field_of, field_values, write_class_labels
from speechssl.data.label_store import LabelStore
from speechssl.data.loader import open_source


def write(path: Path, *cuts: dict[str, Any]) -> str:
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(c) + "\n" for c in cuts)
    return str(path)


def cut(name: str, **supervision: Any) -> dict[str, Any]:
    return {"id": name, "supervisions": [supervision] if supervision else []}


def test_a_field_is_looked_up_in_the_supervision_its_custom_and_the_cut_s() -> None:
    rich = cut("a", speaker="s1", custom={"emotion": "sad", "label": 0, "slots": {"size": "big"}})
    assert field_of(rich, "speaker") == "s1" and field_of(rich, "emotion") == "sad"
    assert field_of(rich, "label") == "0"
    assert field_of(rich, "slots.size") == "big" and field_of(rich, "slots") is None
    assert field_of(rich, "none") is None and field_of(rich, "slots.none") is None
    assert field_of({"id": "b", "custom": {"corpus": "x"}}, "corpus") == "x"
    assert field_of(cut("c"), "speaker") is None


def test_values_come_in_order_and_a_missing_one_is_named(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl.gz", cut("x", speaker="s2"), cut("y", speaker="s1"))
    two = write(tmp_path / "b.jsonl.gz", cut("z", language="en", custom={"age": 3}))
    assert list(field_values([one], "speaker").items()) == [("x", "s2"), ("y", "s1")]
    assert [c["id"] for c in cut_rows([one, two])] == ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"no 'speaker' in the cut 'z'.*age, language"):
        field_values([one, two], "speaker")
    with pytest.raises(ValueError, match=r"none\.jsonl"):
        field_values([str(tmp_path / "none.jsonl")], "speaker")


def test_labels_are_places_among_the_classes(tmp_path: Path) -> None:
    values = {"x": "sad", "y": "calm", "z": "sad"}
    write_class_labels(tmp_path / "s", values, ["calm", "sad"], "emotion")
    store = LabelStore.open(tmp_path / "s")
    assert [store.value(i) for i in values] == [1, 0, 1]
    assert store.frame_rate_hz == 0 and store.meta["class_names"] == ["calm", "sad"]
    before = (tmp_path / "s" / "meta.json").stat().st_mtime_ns
    write_class_labels(tmp_path / "s", values, ["calm", "sad"], "emotion")
    assert (tmp_path / "s" / "meta.json").stat().st_mtime_ns == before


def test_other_labels_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    write_class_labels(tmp_path / "s", {"x": "a", "y": "b"}, ["a", "b"], "f")
    with pytest.raises(ValueError, match="digest"):
        write_class_labels(tmp_path / "s", {"x": "b", "y": "b"}, ["a", "b"], "f")


def test_a_value_beside_the_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"emotion: found happy \(1 values\)"):
        write_class_labels(tmp_path / "s", {"x": "a", "y": "happy"}, ["a", "b"], "emotion")


def test_what_prepare_jsonl_keeps_of_a_real_row_is_found(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    corpus = tmp_path / "ravdess"
    corpus.mkdir()
    soundfile.write(corpus / "a.wav", [0.0] * 1600, 16000)
    row = {"id": "a", "audio": "a.wav", "speaker": "actor01", "emotion": "angry", "statement": 1,
           "gender": "male", "split": "train"}  # fmt: skip
    (corpus / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    jsonl.prepare(jsonl.Config(source=str(corpus), output=str(tmp_path / "cuts")))
    (found,) = cut_rows([str(tmp_path / "cuts/cuts_train.jsonl.gz")])
    wanted = {"speaker": "ravdess-actor01", "emotion": "angry", "statement": "1", "gender": "male",
              "corpus": "ravdess"}  # fmt: skip
    assert {k: field_of(found, k) for k in wanted} == wanted


def test_a_store_of_utterance_labels_becomes_the_target_classes_at_any_speed(
    corpus: Corpus,
) -> None:
    config = DataConfig(
        train=[corpus.path], classes=corpus.labels["speaker"], speeds=[0.9, 1.1],
        batch_seconds=6, max_batch_seconds=6, max_seconds=3, num_workers=0,
    )  # fmt: skip
    updates = open_source(config, hop_samples=320, split="train").updates()
    for batch in next(iter(updates)).batches:
        assert batch.targets["classes"].tolist() == [int(i[3:]) % 7 for i in batch.ids]


def test_labels_per_frame_are_no_classes(corpus: Corpus) -> None:
    config = DataConfig(train=[corpus.path], classes=corpus.labels["km"])
    with pytest.raises(ValueError, match="labels per frame"):
        open_source(config, hop_samples=320, split="train")
    with pytest.raises(ValueError, match="one of them"):
        DataConfig(labels={"classes": "a"}, classes="b")
