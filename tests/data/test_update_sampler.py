from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from data_corpus import Corpus, make_cut, write_cuts

from speechssl.data.config import DataConfig
from speechssl.data.draws import Permutation
from speechssl.data.index import CutIndices
from speechssl.data.sampler import UpdateSampler, split_batches

OPTIONS = {"batch_seconds": 12.0, "max_batch_seconds": 5.0, "max_seconds": 2.5, "window": 20}


def _sampler(corpus: Corpus, rank: int = 0, world_size: int = 1, **changes: object):
    config = DataConfig(train=[corpus.path], **{**OPTIONS, **changes})  # pyright: ignore
    return UpdateSampler(CutIndices(config.train), config, rank=rank, world_size=world_size)


def _epoch(sampler: UpdateSampler, epoch: int = 0) -> list:
    plans = sampler.plans({"stamp": sampler._stamp, "epoch": epoch, "window": 0, "update": 0})
    return list(itertools.takewhile(lambda p: p.epoch == epoch, plans))


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000, 4097])
def test_a_permutation_holds_every_element_once_and_follows_its_key(size: int) -> None:
    places = np.arange(size)
    one, other = Permutation(size, 1)(places), Permutation(size, 2)(places)
    assert np.array_equal(np.sort(one), places) and np.array_equal(np.sort(other), places)
    assert np.array_equal(Permutation(size, 1)(places[size // 2 :]), one[size // 2 :])
    if size > 60:
        assert (one == other).mean() < 0.1 and (one == places).mean() < 0.1


def test_every_cut_comes_once_per_epoch_and_in_another_order_in_the_next(corpus: Corpus) -> None:
    sampler = _sampler(corpus)
    orders = [np.concatenate([p.members for p in _epoch(sampler, e)]) for e in range(2)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(60))
    assert not np.array_equal(orders[0], orders[1])
    for plan in _epoch(sampler):
        assert sorted(itertools.chain(*plan.batches)) == list(range(len(plan.members)))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("max_batch_seconds", [2.5, 5.0, 30.0])
def test_an_update_holds_the_same_utterances_on_any_number_of_ranks(
    corpus: Corpus, world_size: int, max_batch_seconds: float
) -> None:
    alone = _epoch(_sampler(corpus))
    ranks = [
        _epoch(_sampler(corpus, r, world_size, max_batch_seconds=max_batch_seconds))
        for r in range(world_size)
    ]
    assert len(alone) == len(ranks[0]) > 5
    for plan, *shares in zip(alone, *ranks):
        for share in shares:
            assert np.array_equal(share.members, plan.members)
            assert len(share.batches) == len(shares[0].batches) > 0
        places = [p for share in shares for batch in share.batches for p in batch]
        assert sorted(places) == list(range(len(plan.members)))


def test_updates_are_near_the_wanted_seconds_and_batches_never_above(corpus: Corpus) -> None:
    sampler = _sampler(corpus)
    for plan in _epoch(sampler):
        lengths = sampler.lengths(plan.members)
        assert 0.6 * 12 < lengths.sum() / 16000 < 1.4 * 12
        for batch in plan.batches:
            assert len(batch) * max(lengths[list(batch)]) <= 5.0 * 16000


def test_a_resumed_sampler_continues_with_the_very_next_update(corpus: Corpus) -> None:
    plans = list(itertools.islice(_sampler(corpus).plans(), 25))
    assert plans[-1].epoch >= 2
    for at in range(24):
        after = next(_sampler(corpus).plans(plans[at].position))
        assert np.array_equal(after.members, plans[at + 1].members)
        assert (after.batches, after.epoch) == (plans[at + 1].batches, plans[at + 1].epoch)


def test_a_position_of_other_data_is_refused(corpus: Corpus) -> None:
    position = next(_sampler(corpus).plans()).position
    with pytest.raises(ValueError, match="position"):
        next(_sampler(corpus, seed=1).plans(position))
    with pytest.raises(ValueError, match="position"):
        next(_sampler(corpus, batch_seconds=13.0).plans(position))
    # The machine may be another one.
    next(_sampler(corpus, 1, 2, max_batch_seconds=9.0).plans(position))


def test_lengths_out_of_range_are_left_out_and_counted(corpus: Corpus) -> None:
    sampler = _sampler(corpus, min_seconds=1.0, long="drop")
    lengths = np.array([c["duration"] for c in corpus.cuts])
    used = np.flatnonzero((lengths >= 1.0) & (lengths <= 2.5))
    found = np.sort(np.concatenate([p.members for p in _epoch(sampler)]))
    assert np.array_equal(found, used)
    assert sampler.counts["too_short"] == (lengths < 1.0).sum() > 0
    assert sampler.counts["too_long"] == (lengths > 2.5).sum() > 0


def test_fewer_utterances_than_ranks_is_an_error_with_its_remedy() -> None:
    with pytest.raises(ValueError, match=r"2 utterances for 3 ranks.*raise batch_seconds"):
        split_batches([10, 20], 100, 3)


def test_micro_batches_are_few_even_and_little_padded() -> None:
    draw = np.random.default_rng(0)
    for world_size in (1, 2, 5):
        lengths = draw.integers(2_000, 15_000, 97).tolist()
        cap = 60_000
        ranks = split_batches(lengths, cap, world_size)
        batches = [b for rank in ranks for b in rank]
        costs = [len(b) * max(lengths[i] for i in b) for b in batches]
        assert max(costs) <= cap and len({len(r) for r in ranks}) == 1
        assert len(batches) < 1.25 * sum(lengths) / cap + world_size
        assert sum(costs) < 1.12 * sum(lengths)
        totals = [sum(len(b) * max(lengths[i] for i in b) for b in r) for r in ranks]
        assert max(totals) < 1.25 * min(totals)


def test_planning_holds_nothing_that_grows_with_the_corpus(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for count in (2_000, 20_000):
        cuts = [make_cut(f"c{i}", "/nowhere.flac", 1.0 + i % 10) for i in range(count)]
        path = write_cuts(tmp_path / f"cuts_{count}.jsonl.gz", cuts)
        CutIndices([path])
        del cuts
        tracemalloc.start()
        config = DataConfig(train=[path], window=1000)
        sampler = UpdateSampler(CutIndices([path]), config)
        next(sampler.plans({"stamp": sampler._stamp, "epoch": 3, "window": 1, "update": 2}))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        peaks.append(held)
    assert peaks[1] < 1.2 * peaks[0] + 10_000
