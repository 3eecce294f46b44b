"""How many seconds of audio fit in one micro-batch: measured, by training on copies of a batch."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from speechssl import dist
from speechssl.contract import Batch, Objective
from speechssl.train.precision import autocast

HEADROOM = 0.9
"""Share of the memory to plan for: fragmentation and longer targets take the rest."""


def tile(batch: Batch, times: int) -> Batch:
    """The utterances of `batch`, `times` over."""

    def again(x: Tensor) -> Tensor:
        return x.repeat(times, *[1] * (x.ndim - 1))

    return dataclasses.replace(
        batch,
        wave=again(batch.wave),
        wave_lengths=again(batch.wave_lengths),
        targets={k: again(v) for k, v in batch.targets.items()},
        views={k: again(v) for k, v in batch.views.items()},
        seeds=again(batch.seeds),
        ids=batch.ids * times,
    )


def padded_seconds(batch: Batch) -> float:
    return batch.wave.numel() / 16000


def largest_batch_seconds(
    objective: Objective,
    batch: Batch,
    *,
    limit_seconds: float,
    precision: str = "fp32",
    memory_gb: float | None = None,
) -> float:
    """Largest padded seconds, up to `limit_seconds`, whose forward and backward pass fit.

    batch: a micro-batch of the longest utterances, copies of which are tried. `objective` must be
    on its device; its weights and buffers are left as they were. On a GPU a batch fits if it does
    not run out of memory. On a CPU the growth of the resident set is measured and kept below
    `memory_gb` (default: what the machine has available); there nothing larger is tried once
    the line through the measurements says that it will not fit.

    Raises `ValueError` if not even `batch` fits.
    """
    device = next(objective.parameters()).device
    buffers = {k: v.clone() for k, v in objective.named_buffers()}
    fits = (
        _cuda_fits(objective, batch, precision)
        if device.type == "cuda"
        else _cpu_fits(objective, batch, precision, memory_gb or available_memory_gb())
    )
    try:
        most = max(1, int(limit_seconds // padded_seconds(batch)))
        times = _search(fits, most)
    finally:
        for name, buffer in objective.named_buffers():
            buffer.copy_(buffers[name])
        objective.zero_grad(set_to_none=True)
    if times == 0:
        raise ValueError(
            f"batch: {padded_seconds(batch):.1f} s of audio do not fit in memory, want a smaller "
            "data.max_seconds, activation checkpointing, or bf16"
        )
    times = int(dist.broadcast_object(min(dist.gather_objects(times))))
    return times * padded_seconds(batch)


def _search(fits: Callable[[int], bool], most: int) -> int:
    """Largest n in 0..most with fits(n), if fits is monotone: doubling, then bisection."""
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, bad * 2
    bad = min(bad, most + 1)
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _train_once(objective: Objective, batch: Batch, precision: str) -> None:
    device = next(objective.parameters()).device
    objective.train()
    with autocast(precision, device.type):
        loss = objective(batch.to(device))
    loss.total.backward()
    objective.zero_grad(set_to_none=True)


def _cuda_fits(objective: Objective, batch: Batch, precision: str) -> Callable[[int], bool]:
    device = next(objective.parameters()).device
    # Gradients and Adam's two moments will lie beside the activations.
    weights = sum(p.numel() * 4 for p in objective.parameters() if p.requires_grad)

    def fits(times: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _train_once(objective, tile(batch, times), precision)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            objective.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_allocated(device) + 3 * weights < HEADROOM * total

    return fits


def _cpu_fits(
    objective: Objective, batch: Batch, precision: str, memory_gb: float
) -> Callable[[int], bool]:
    weights = sum(p.numel() * 4 for p in objective.parameters() if p.requires_grad)
    room = HEADROOM * memory_gb * 1e9 - 3 * weights
    start = resident_bytes()
    used: dict[int, float] = {}

    def expected(times: int) -> float:
        if len(used) < 2:
            return times * max((b / n for n, b in used.items()), default=0.0)
        (n1, b1), (n2, b2) = sorted(used.items())[-2:]
        return b2 + (times - n2) * max(b2 - b1, 0.0) / (n2 - n1)

    def fits(times: int) -> bool:
        # Trying and failing would take the whole machine into swap.
        if expected(times) > room:
            return False
        gc.collect()
        peak = _peak_bytes_during(lambda: _train_once(objective, tile(batch, times), precision))
        used[times] = max(peak - start, *used.values(), 0.0) if used else max(peak - start, 0.0)
        return used[times] <= room

    return fits


def _peak_bytes_during(work: Callable[[], None]) -> float:
    """Largest resident set seen while `work` runs, sampled every 2 ms."""
    import threading

    peak, done = resident_bytes(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peak, resident_bytes())


def resident_bytes() -> float:
    """Resident set of this process; where /proc is absent, its peak so far."""
    status = Path("/proc/self/statm")
    if status.is_file():
        import resource

        return int(status.read_text().split()[1]) * resource.getpagesize()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory_gb() -> float:
    """Memory that new work may take: what /proc/meminfo says, or half of the physical memory."""
    import os

    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e9
