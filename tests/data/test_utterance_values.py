"""Label stores with several integers per utterance, such as the posterior of its topics."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from data_corpus import Corpus

from speechssl.data import loader
from speechssl.data.config import DataConfig
from speechssl.data.label_store import LabelStore, LabelWriter
from speechssl.data.loader import open_source

META = {"classes": 65536, "frame_rate_hz": 0, "values": 4}


@pytest.fixture(scope="module")
def values(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("values")
    draw = np.random.default_rng(0)
    given = {name: draw.integers(0, 65536, 4) for name in corpus.waves}
    writer = LabelWriter(folder, META)
    for name, row in given.items():
        writer.add(name, row)
    writer.finish()
    return folder, given


def _config(corpus: Corpus, folder: Path, workers: int) -> DataConfig:
    return DataConfig(
        train=[corpus.path], valid=[corpus.path], labels={"km": corpus.labels["km"],
        "share": str(folder)}, batch_seconds=12.0, max_batch_seconds=5.0, max_seconds=1.5,
        window=30, num_workers=workers,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_the_values_of_its_utterances(
    corpus: Corpus, values: tuple[Path, dict], workers: int
) -> None:
    folder, given = values
    source = open_source(_config(corpus, folder, workers), hop_samples=320, split="train")
    seen = set()
    for update in itertools.islice(source.updates(), 12):
        for batch in update.batches:
            rows = batch.targets["share"]
            assert rows.shape == (len(batch), 4) and rows.dtype == torch.int64
            for name, row in zip(batch.ids, rows, strict=True):
                assert np.array_equal(row.numpy(), given[name])
                seen.add(name)
    assert len(seen) > 20


def test_a_filler_has_as_many_values(
    corpus: Corpus, values: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.dist, "world_size", lambda: 7)
    shapes = set()
    for rank in range(7):
        monkeypatch.setattr(loader.dist, "rank", lambda rank=rank: rank)
        source = open_source(_config(corpus, values[0], 0), hop_samples=320, split="valid")
        shapes |= {b.targets["share"].shape for b in source.one_pass() if b.filler}
    assert shapes == {(1, 4)}


def test_another_number_of_values_is_refused(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path, META)
    with pytest.raises(ValueError, match="found 3, want 4 per utterance"):
        writer.add("a", [1, 2, 3])
    writer.add("a", [1, 2, 3, 4])
    writer.finish()
    store = LabelStore.open(tmp_path)
    assert store.values == 4 and store.frames("a").tolist() == [1, 2, 3, 4]
