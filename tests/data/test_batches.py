from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from data_corpus import Corpus, make_cut, write_cuts

from speechssl.contract import Batch, Update
from speechssl.data import loader
from speechssl.data.config import DataConfig, MixingConfig
from speechssl.data.label_store import LabelWriter
from speechssl.data.loader import open_source, read_all
from speechssl.data.sampler import padded_samples
from speechssl.data.text import tokenizer_from_texts


def _config(corpus: Corpus, **changes: object) -> DataConfig:
    values = {
        "train": [corpus.path],
        "valid": [corpus.path],
        "labels": corpus.labels,
        "batch_seconds": 12.0,
        "max_batch_seconds": 5.0,
        "max_seconds": 1.5,
        "window": 30,
        "num_workers": 0,
        "mixing": MixingConfig(probability=0.5),
    }
    return DataConfig(**{**values, **changes})  # pyright: ignore


def _take(config: DataConfig, count: int, position: object = None) -> list[Update]:
    source = open_source(config, hop_samples=320, split="train")
    return list(itertools.islice(source.updates(position), count))  # pyright: ignore


def _same_batch(one: Batch, other: Batch) -> bool:
    return (
        one.ids == other.ids
        and torch.equal(one.wave, other.wave)
        and torch.equal(one.wave_lengths, other.wave_lengths)
        and torch.equal(one.seeds, other.seeds)
        and all(torch.equal(one.targets[k], other.targets[k]) for k in one.targets)
        and all(torch.equal(one.views[k], other.views[k]) for k in one.views)
    )


def _same_update(one: Update, other: Update) -> bool:
    return (
        one.position == other.position
        and len(one.batches) == len(other.batches)
        and all(map(_same_batch, one.batches, other.batches))
    )


def _rows(updates: list[Update]) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    rows = {}
    for update in updates:
        for batch in update.batches:
            for i, name in enumerate(() if batch.filler else batch.ids):
                length = int(batch.wave_lengths[i])
                frames = -(-length // 320)
                assert (name, int(batch.seeds[i])) not in rows
                rows[name, int(batch.seeds[i])] = {
                    "wave": batch.wave[i, :length].numpy(),
                    "mixed": batch.views["mixed"][i, :length].numpy(),
                    **{k: v[i].numpy()[:frames] for k, v in batch.targets.items() if v.ndim == 2},
                }
    return rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_source_yields_bitwise_the_same_next_batches(
    corpus: Corpus, num_workers: int
) -> None:
    whole = _take(_config(corpus), 20)
    assert whole[-1].position["epoch"] >= 1
    for at in (0, 5, 11):
        rest = _take(_config(corpus, num_workers=num_workers), 6, whole[at].position)
        assert all(map(_same_update, rest, whole[at + 1 : at + 7]))


def test_the_number_of_workers_changes_nothing(corpus: Corpus) -> None:
    alone = _take(_config(corpus), 15)
    for num_workers in (1, 3):
        found = _take(_config(corpus, num_workers=num_workers), 15)
        assert all(map(_same_update, found, alone))


def test_reading_leaves_the_training_s_random_state_alone(corpus: Corpus) -> None:
    before = torch.random.get_rng_state()
    _take(_config(corpus, num_workers=1), 3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("max_batch_seconds", [2.0, 20.0])
def test_two_ranks_read_together_what_one_rank_reads_crops_and_mixtures_included(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, max_batch_seconds: float
) -> None:
    alone = _rows(_take(_config(corpus), 10))
    both = {}
    for rank in range(2):
        monkeypatch.setattr(loader.dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loader.dist, "world_size", lambda: 2)
        share = _rows(_take(_config(corpus, max_batch_seconds=max_batch_seconds), 10))
        assert not both.keys() & share.keys()
        both |= share
    assert alone.keys() == both.keys()
    for key, row in alone.items():
        assert all(np.array_equal(row[name], both[key][name]) for name in row)


def test_crops_shift_labels_by_exactly_their_frames(corpus: Corpus) -> None:
    starts = []
    for (name, _), row in _rows(_take(_config(corpus), 20)).items():
        clean = corpus.waves[name]
        wave, start = row["wave"], 0
        places = np.flatnonzero(clean[: len(clean) - len(wave) + 1] == wave[0])
        start = next(p for p in places if np.array_equal(clean[p : p + len(wave)], wave))
        starts.append(start)
        assert start % 320 == 0
        shift = start // 320
        stored = int(len(clean) / 320)
        frames = np.arange(len(row["km"])) + shift
        assert np.array_equal(row["km"], np.where(frames < stored, frames, -100))
        # At 100 Hz a crop by 320 n samples shifts by 2 n labels, and a frame takes every second.
        stored = int(len(clean) / 160)
        assert np.array_equal(row["fine"], np.where(2 * frames < stored, 2 * frames, -100))
    assert len(set(starts)) > 10


def test_crops_start_where_labels_of_a_coarser_store_start(corpus: Corpus, tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "coarse", {"classes": 1000, "frame_rate_hz": 25})
    for name, wave in corpus.waves.items():
        writer.add(name, np.arange(-(-len(wave) // 640)))
    writer.finish()
    config = _config(corpus, labels={"coarse": str(tmp_path / "coarse")})
    cropped = 0
    for row in _rows(_take(config, 20)).values():
        labels = row["coarse"]
        cropped += int(labels[0] > 0)
        # At 25 Hz each label stands for two frames; no crop begins or goes on within one.
        assert np.array_equal(labels, labels[0] + np.arange(len(labels)) // 2)
    assert cropped > 10


def test_padding_is_zero_and_unlabelled_and_utterance_labels_are_single(corpus: Corpus) -> None:
    for update in _take(_config(corpus), 10):
        for batch in update.batches:
            longest = batch.wave_lengths.max().numpy()
            assert batch.wave.shape[1] == padded_samples(longest)
            for i, length in enumerate(batch.wave_lengths.tolist()):
                assert not batch.wave[i, length:].any()
                assert not batch.views["mixed"][i, length:].any()
                assert (batch.targets["km"][i, -(-length // 320) :] == -100).all()
                assert batch.targets["speaker"][i] == int(batch.ids[i][3:]) % 7


def test_training_batches_have_few_shapes_within_the_cap_and_a_pass_for_features_none_added(
    corpus: Corpus,
) -> None:
    lengths = np.arange(1, 300_000)
    padded = padded_samples(lengths)
    assert (lengths <= padded).all() and (padded < lengths + 4096).all()
    assert (padded <= 1.125 * lengths).all() and (padded_samples(padded) == padded).all()
    assert len(set(padded[8000:160_000].tolist())) < 50
    config = _config(corpus, max_batch_seconds=4.0)
    training = [b for update in _take(config, 10) for b in update.batches]
    training += open_source(config, hop_samples=320, split="valid").one_pass()
    assert all(b.wave.numel() <= 64000 for b in training if len(b) > 1)
    read = list(read_all([corpus.path], max_batch_seconds=4.0))
    assert all(b.wave.shape[1] == b.wave_lengths.max() for b in read)


def test_transcripts_become_ragged_ids_and_are_never_cropped(
    corpus: Corpus, tmp_path: Path
) -> None:
    tokenizer = tokenizer_from_texts(["A B AB"])
    tokenizer.save(tmp_path / "tokenizer.json")
    config = _config(corpus, tokenizer=str(tmp_path / "tokenizer.json"), mixing=None)
    lengths = {c["id"]: c["duration"] for c in corpus.cuts}
    for update in _take(config, 8):
        for batch in update.batches:
            assert batch.targets["text_lengths"].tolist() == [2] * len(batch)
            assert batch.targets["text"].tolist() == tokenizer.encode("AB") * len(batch)
            assert all(lengths[name] <= 1.5 for name in batch.ids)
    valid = open_source(config, hop_samples=320, split="valid")
    seen = [name for batch in valid.one_pass() for name in batch.ids]
    assert sorted(seen) == sorted(lengths)


def test_a_pass_is_the_same_every_time_and_holds_every_cut_once(corpus: Corpus) -> None:
    passes = []
    for num_workers in (0, 2):
        config = _config(corpus, num_workers=num_workers)
        source = open_source(config, hop_samples=320, split="valid")
        passes += [list(source.one_pass()), list(source.one_pass())]
    for other in passes[1:]:
        assert len(other) == len(passes[0]) and all(map(_same_batch, passes[0], other))
    names = [name for batch in passes[0] for name in batch.ids]
    assert sorted(names) == sorted(corpus.waves)
    for batch in passes[0]:
        for i, name in enumerate(batch.ids):
            clean = corpus.waves[name]
            start = max(0, len(clean) - 24000) // 2 // 320 * 320
            length = int(batch.wave_lengths[i])
            assert np.array_equal(batch.wave[i, :length], clean[start : start + length])


def test_ranks_make_equally_many_steps_in_a_pass(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.dist, "world_size", lambda: 7)
    shares = []
    for rank in range(7):
        monkeypatch.setattr(loader.dist, "rank", lambda rank=rank: rank)
        shares.append(list(open_source(_config(corpus), hop_samples=320, split="valid").one_pass()))
    assert len({len(s) for s in shares}) == 1
    batches = [b for share in shares for b in share]
    names = [name for b in batches if not b.filler for name in b.ids]
    assert sorted(names) == sorted(corpus.waves)
    fillers = [b for b in batches if b.filler]
    assert fillers and all((b.targets["km"] == -100).all() for b in fillers)


def test_read_all_yields_whole_utterances_and_counts_those_too_long(corpus: Corpus) -> None:
    batches = read_all([corpus.path], max_batch_seconds=6.0, max_seconds=2.0)
    seen = {}
    for batch in batches:
        assert batch.wave.numel() <= 6 * 16000 and not batch.targets
        for i, name in enumerate(batch.ids):
            seen[name] = batch.wave[i, : int(batch.wave_lengths[i])].numpy()
    short = {c["id"] for c in corpus.cuts if c["duration"] <= 2.0}
    assert seen.keys() == short and 0 < len(short) < 60
    assert {s.split(":")[0] for s in batches.skipped} == corpus.waves.keys() - short
    assert all(np.array_equal(wave, corpus.waves[name]) for name, wave in seen.items())


def test_shares_of_read_all_are_disjoint_and_complete(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.dist, "world_size", lambda: 3)
    names = []
    for rank in range(3):
        monkeypatch.setattr(loader.dist, "rank", lambda rank=rank: rank)
        names += [i for b in read_all([corpus.path], max_batch_seconds=6.0) for i in b.ids]
    assert sorted(names) == sorted(corpus.waves)


def test_wrong_options_name_the_field(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="max_batch_seconds"):
        _config(corpus, max_batch_seconds=1.0)
    with pytest.raises(ValueError, match=r"mixing\.noise_cuts"):
        MixingConfig(noise_probability=0.1)
    with pytest.raises(ValueError, match="no label store"):
        _take(_config(corpus, labels={"km": "/nowhere"}), 1)
    with pytest.raises(ValueError, match="want train for updates"):
        next(open_source(_config(corpus), hop_samples=320, split="valid").updates())


def test_batches_carry_only_what_the_contract_names(corpus: Corpus) -> None:
    batch = _take(_config(corpus), 1)[0].batches[0]
    assert batch.wave.dtype == torch.float32 and batch.wave_lengths.dtype == torch.int64
    assert batch.seeds.dtype == torch.int64 and (batch.seeds >= 0).all()
    assert all(t.dtype == torch.int64 for t in batch.targets.values())
    assert {f.name for f in dataclasses.fields(batch)} >= {"wave", "views", "filler"}


def test_a_speed_changes_length_by_its_factor_and_is_drawn_anew_in_each_epoch(
    corpus: Corpus,
) -> None:
    """The draw belongs to utterance and epoch; passes for validation are untouched."""
    changes = {"labels": {}, "mixing": None, "max_seconds": 5.0, "long": "drop"}
    plain = _config(corpus, **changes)
    fast = dataclasses.replace(plain, speeds=[0.9, 1.0, 1.1])
    lengths = {}
    for update in _take(plain, 3):
        for batch in update.batches:
            lengths |= dict(zip(batch.ids, batch.wave_lengths.tolist(), strict=True))
    found = set()
    for update, again in zip(_take(fast, 30), _take(fast, 30), strict=True):
        assert _same_update(update, again)
        for batch in update.batches:
            for name, length in zip(batch.ids, batch.wave_lengths.tolist(), strict=True):
                if name in lengths:
                    speed = round(lengths[name] / length, 2)
                    assert speed in (0.9, 1.0, 1.1)
                    found.add((name, speed))
    assert len({speed for _, speed in found}) == 3
    assert len(found) > len({name for name, _ in found})  # another one in another epoch
    source = open_source(fast, hop_samples=320, split="valid")
    for batch in source.one_pass():
        for name, length in zip(batch.ids, batch.wave_lengths.tolist(), strict=True):
            assert length == lengths.get(name, length)


def test_a_crop_is_a_part_of_the_recording_played_at_its_speed(corpus: Corpus) -> None:
    """As long as max_seconds at any speed; the target "speeds" says at which."""
    config = _config(corpus, labels={}, mixing=None, speeds=[0.9, 1.0, 1.1])
    starts, found = set(), set()
    for update in _take(config, 8):
        for batch in update.batches:
            for i, name in enumerate(batch.ids):
                speed = int(batch.targets["speeds"][i]) / 1000
                clean = corpus.waves[name]
                length = int(batch.wave_lengths[i])
                assert abs(length - min(24000, round(len(clean) / speed))) <= 1
                size = min(len(clean), round(24000 * speed))
                # Neighbouring places of the grid differ far more than this.
                errors = []
                for start in range(0, len(clean) - size + 1, 320):
                    want = soxr.resample(clean[start : start + size], 16000 * speed, 16000)
                    error = batch.wave[i, :length].numpy() - want[:length]
                    errors.append(np.abs(error).max())
                assert min(errors) < 1e-6
                starts.add(int(np.argmin(errors)))
                found.add((speed, size == len(clean)))
    assert found == {(s, whole) for s in (0.9, 1.0, 1.1) for whole in (False, True)}
    assert len(starts) > 10
    for batch in open_source(config, hop_samples=320, split="valid").one_pass():
        assert "speeds" not in batch.targets


@pytest.mark.parametrize("num_workers", [0, 2])
def test_mixtures_at_several_speeds_depend_on_neither_ranks_nor_workers(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """A partner that another rank reads has the speed that it has there."""
    changes = {"labels": {}, "speeds": [0.9, 1.0, 1.1], "mixing": MixingConfig(probability=1.0)}
    alone = _rows(_take(_config(corpus, **changes), 4))
    both = {}
    for rank in range(2):
        monkeypatch.setattr(loader.dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loader.dist, "world_size", lambda: 2)
        config = _config(corpus, **changes, max_batch_seconds=20.0, num_workers=num_workers)
        both |= _rows(_take(config, 4))
    assert alone.keys() == both.keys()
    mixed = 0
    for key, row in alone.items():
        assert np.array_equal(row["wave"], both[key]["wave"])
        assert np.array_equal(row["mixed"], both[key]["mixed"])
        mixed += not np.array_equal(row["wave"], row["mixed"])
    assert mixed > 0.9 * len(alone)


def test_a_filler_is_at_its_own_speed(corpus: Corpus, tmp_path: Path) -> None:
    cuts = [make_cut(f"gone{i}", tmp_path / f"{i}.flac", 1.0) for i in range(20)]
    gone = write_cuts(tmp_path / "cuts_train.jsonl.gz", cuts)
    config = _config(corpus, train=[gone], labels={}, speeds=[0.9, 1.1], max_unreadable=1.0)
    (update,) = _take(config, 1)
    assert all(b.filler and b.targets["speeds"].tolist() == [1000] for b in update.batches)


def test_speeds_are_refused_beside_frame_labels(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="speeds"):
        _config(corpus, mixing=None, speeds=[0.9])
