from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data_corpus import Corpus, write_cuts

from speechssl.contract import Batch, Update
from speechssl.data import buffers, workers
from speechssl.data.buffers import Arena, ArenaView, Pool, SharedFile
from speechssl.data.config import DataConfig, MixingConfig
from speechssl.data.loader import open_source, read_all


def _config(corpus: Corpus, **changes: object) -> DataConfig:
    values = {
        "train": [corpus.path],
        "labels": corpus.labels,
        "batch_seconds": 12.0,
        "max_batch_seconds": 5.0,
        "max_seconds": 1.5,
        "window": 30,
        "mixing": MixingConfig(probability=0.5),
    }
    return DataConfig(**{**values, **changes})  # pyright: ignore


def _updates(config: DataConfig) -> Iterator[Update]:
    return open_source(config, hop_samples=320, split="train").updates()


def _tensors(batch: Batch) -> list[torch.Tensor]:
    small = [batch.wave_lengths, batch.seeds, *batch.targets.values()]
    return [batch.wave, *batch.views.values(), *small]


@pytest.mark.parametrize(("num_workers", "prefetch"), [(0, 2), (1, 1), (2, 2)])
def test_a_batch_that_is_held_is_never_written_over(
    corpus: Corpus, num_workers: int, prefetch: int
) -> None:
    config = _config(corpus, num_workers=num_workers, prefetch=prefetch)
    held, copies = [], []
    for update in itertools.islice(_updates(config), 40):
        found = [t for b in update.batches for t in _tensors(b)]
        held.append(found)
        copies.append([t.clone() for t in found])
    assert all(
        torch.equal(one, other)
        for some, others in zip(held, copies, strict=True)
        for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_part_of_a_batch_outlives_the_batch(corpus: Corpus, num_workers: int) -> None:
    config = _config(corpus, num_workers=num_workers, prefetch=1)
    parts, copies = [], []
    for at, update in enumerate(itertools.islice(_updates(config), 30)):
        batch = update.batches[0]
        # Every second batch is dropped whole, so that memory is used again at all.
        if at % 2:
            part = batch.views["mixed"].view(-1)[5:200]
            parts += [part, torch.from_numpy(batch.wave.numpy()[-1:, 3:90])]
            copies += [p.clone() for p in parts[-2:]]
    del update, batch
    gc.collect()
    assert all(torch.equal(one, other) for one, other in zip(parts, copies, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_are_dropped_lend_their_memory_to_later_ones(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    made = []

    def count(size: int) -> bytearray:
        made.append(size)
        return bytearray(size)

    monkeypatch.setattr(buffers, "bytearray", count, raising=False)
    config = _config(corpus, num_workers=num_workers, batch_seconds=9.0, max_seconds=3.0)
    updates = _updates(config)
    for _ in itertools.islice(updates, 30):
        pass
    before, asked = len(made), 0
    for update in itertools.islice(updates, 60):
        asked += sum(1 + ("mixed" in b.views) for b in update.batches)
    assert asked > 200 and len(made) - before < 0.1 * asked, (asked, len(made), before)


def test_a_pool_gives_memory_out_again_only_when_no_view_is_left() -> None:
    pool = Pool()
    array = pool.new(3, 1000)
    place = array.ctypes.data
    view = torch.from_numpy(array[1:])[:, 10:].numpy()
    del array
    other = pool.new(3, 1000)
    assert other.ctypes.data != place
    del view
    assert pool.new(3, 1000).ctypes.data == place


def test_a_pool_forgets_memory_of_sizes_that_are_no_longer_asked_for() -> None:
    pool = Pool(most=4)
    for size in range(1000, 200_000, 1000):
        pool.new(4, size)
    del size
    assert sum(len(memory) for memory in pool._free) < 4 * 4 * 200_000 * 1.25 * 4


def test_an_arena_grows_to_the_largest_task_and_then_no_more() -> None:
    file = SharedFile()
    arena, view = Arena(file), ArenaView(file)
    grown = []
    for turn in range(3):
        for rows, samples in ((2, 50_000), (4, 400_000), (0, 0), (3, 100_000)):
            arena.reset()
            arrays = [arena.new(rows, samples) for _ in range(3)]
            for i, array in enumerate(arrays):
                array[:] = turn + 10 * i + samples
            numbers = np.arange(7 * rows).reshape(rows, 7)
            place = arena.write(numbers)
            view.grow(arena.sizes)
            for i, array in enumerate(arrays):
                seen = view.array(arena.piece(array))
                assert seen.shape == (rows, samples) and (seen == turn + 10 * i + samples).all()
            assert np.array_equal(view.integers(place), numbers)
        grown.append(sum(arena.sizes))
    assert grown[0] == grown[1] == grown[2] < 2 * 4 * 3 * 4 * 400_000
    file.close()


def test_processes_started_anew_read_the_same(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = list(itertools.islice(_updates(_config(corpus, num_workers=1)), 3))
    monkeypatch.setattr(workers, "multiprocessing", multiprocessing.get_context("spawn"))
    spawned = list(itertools.islice(_updates(_config(corpus, num_workers=1)), 3))
    for one, other in zip(forked, spawned, strict=True):
        assert one.position == other.position
        for a, b in zip(one.batches, other.batches, strict=True):
            assert a.ids == b.ids
            assert all(map(torch.equal, _tensors(a), _tensors(b)))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's memfd_create")
def test_reading_processes_need_no_room_in_dev_shm(corpus: Corpus) -> None:
    updates = _updates(_config(corpus, num_workers=1))
    next(updates)
    (worker,) = multiprocessing.active_children()
    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "memfd:speechssl" in maps
    # Locks of a few bytes are there (of any process that has a progress bar).
    assert all("/dev/shm/sem." in line for line in maps.splitlines() if "/dev/shm" in line)
    updates.close()  # pyright: ignore


def test_a_killed_reading_process_ends_the_run_with_the_remedy(corpus: Corpus) -> None:
    updates = _updates(_config(corpus, num_workers=2))
    next(updates)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="num_workers: a reading process ended with exit code"):
        list(itertools.islice(updates, 20))
    assert not multiprocessing.active_children()


def test_an_error_in_a_reading_process_arrives_with_its_text(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(error: Exception) -> None:
        def read(*_: object) -> None:
            raise error

        monkeypatch.setattr(workers.Collator, "read", read)

    broken(ValueError("labels: found 3, want 4"))
    with pytest.raises(ValueError, match="found 3, want 4"):
        next(_updates(_config(corpus, num_workers=1)))
    broken(KeyError("absent"))
    with pytest.raises(RuntimeError, match="KeyError: 'absent'"):
        next(_updates(_config(corpus, num_workers=1)))


def test_unreadable_files_are_named_from_reading_processes_too(
    corpus: Corpus, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.flac"
    bad.write_bytes(b"no audio")
    cuts = [dict(c) for c in corpus.cuts[:6]]
    recording = dict(cuts[2]["recording"])
    recording["sources"] = [{"type": "file", "channels": [0], "source": str(bad)}]
    cuts[2]["recording"] = recording
    path = write_cuts(tmp_path / "cuts.jsonl.gz", cuts)
    found = read_all([path], max_batch_seconds=4.0, num_workers=2)
    rows = {n: b.wave[i, : b.wave_lengths[i]] for b in found for i, n in enumerate(b.ids)}
    assert sorted(rows) == [f"utt{i:02d}" for i in (0, 1, 3, 4, 5)]
    assert all(np.array_equal(wave, corpus.waves[name]) for name, wave in rows.items())
    assert len(found.skipped) == 1 and str(bad) in found.skipped[0]


def test_dropping_the_iterator_ends_the_processes(corpus: Corpus) -> None:
    updates = _updates(_config(corpus, num_workers=2))
    next(updates)
    assert len(multiprocessing.active_children()) == 2
    del updates
    gc.collect()
    assert not multiprocessing.active_children()


_PROGRAM = """
import multiprocessing, os, signal, sys
from speechssl.data.loader import read_all
batches = read_all([sys.argv[1]], max_batch_seconds=4.0, num_workers=2)
next(batches)
print(*[p.pid for p in multiprocessing.active_children()], flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_no_process_is_left_when_the_program_ends(corpus: Corpus, end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, corpus.path, end],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == (0 if end == "finished" else -signal.SIGKILL)
    left = [int(pid) for pid in done.stdout.split()]
    assert len(left) == 2
    for _ in range(100):
        left = [pid for pid in left if _runs(pid)]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"still running: {left}")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
