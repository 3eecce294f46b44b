"""Run an encoder over any audio: features of each utterance, in the given order, in flat memory.

Utterances are read ahead by threads, gathered up to a window of some minutes, sorted by length
within it and computed in batches that cost least, padding and calls together. Padding is inert by
the encoder's contract, so features do not depend on what else was in the batch.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from speechssl.hub.audio import AudioItem, Wave, forget, on_disk, to_wave
from speechssl.hub.chunks import Geometry, Piece, batches, cut

Forward = Callable[[Tensor, Tensor], Mapping[int, Tensor]]
"""(wave (B, L), lengths (B,)) -> key -> (B, T, D)."""
OnError = Callable[[str, ValueError], None]
LARGE_BYTES = 2**26
"""Features of one utterance and layer above this lie on disk until they are written."""
HELD_BYTES = 2**29
"""Features of a window, unless its seconds are given."""
BATCH_SECONDS = {"cpu": 20.0, "cuda": 80.0}
"""Padded audio of one batch, unless given. On a CPU larger ones take memory and save no time."""
BATCH_COST_SECONDS = {"cpu": 1.0, "cuda": 20.0}
"""Audio that could be computed in the time that a batch costs beyond its samples: reading the
weights, starting the kernels. Measured for HuBERT Base on a CPU; an estimate for GPUs."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Frame features of one utterance.

    id: its path, its number in the list, or its cut id.
    hidden: layer number -> (T, D) float32; layer 0 is the transformer's input, i the output of
        layer i. Of a multi-resolution encoder, layers of a lower rate have their frames repeated.
    frame_rate_hz, hop_samples, field_samples, sample_rate_hz: frame t is computed from samples
        [t * hop, t * hop + field) of the wave at sample_rate_hz (plus the encoder's context).
    num_samples: of the wave at sample_rate_hz.
    """

    id: str
    hidden: Mapping[int, np.ndarray]
    frame_rate_hz: float
    sample_rate_hz: int
    hop_samples: int
    field_samples: int
    num_samples: int

    @property
    def num_frames(self) -> int:
        return next(iter(self.hidden.values())).shape[0]

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate_hz

    @property
    def starts(self) -> np.ndarray:
        """(T,) seconds at which each frame's receptive field starts."""
        return np.arange(self.num_frames) * (self.hop_samples / self.sample_rate_hz)

    @property
    def times(self) -> np.ndarray:
        """(T,) seconds of the middle of each frame's receptive field."""
        return self.starts + self.field_samples / (2 * self.sample_rate_hz)

    def weighted(self, weights: Mapping[int, float]) -> np.ndarray:
        """(T, D) sum over layers by `weights` (layer -> weight), which are scaled to sum to 1."""
        total = float(sum(weights.values()))
        absent = sorted(set(weights) - set(self.hidden))
        if absent or not total > 0:
            raise ValueError(
                f"weights: found layers {sorted(weights)} of sum {total}, want a positive sum over "
                f"layers among those extracted: {sorted(self.hidden)}"
            )
        parts = [self.hidden[k] * np.float32(w / total) for k, w in weights.items()]
        return np.sum(parts, axis=0, dtype=np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to compute at a time.

    batch_seconds: padded audio of one batch; None: 20 on a CPU, 80 on a GPU.
    chunk_seconds: longer utterances are computed in windows of this length.
    overlap_seconds: context dropped at each inner border of such a window.
    window_seconds: audio held, with its features, to be sorted by length; None: as much as 512 MiB
        of features belong to, at most 400.
    readers: threads that read and resample.
    in_order: give results in the order of the items; else as soon as they are computed.
    """

    batch_seconds: float | None = None
    chunk_seconds: float = 40.0
    overlap_seconds: float = 4.0
    window_seconds: float | None = None
    readers: int = 2
    in_order: bool = True

    def __post_init__(self) -> None:
        given = [s for s in (self.batch_seconds, self.window_seconds) if s is not None]
        if any(not s > 0 for s in given) or self.readers < 1:
            raise ValueError(
                f"found batch_seconds {self.batch_seconds}, window_seconds {self.window_seconds}, "
                f"readers {self.readers}; want all positive"
            )
        if not 0 <= 2 * self.overlap_seconds < self.chunk_seconds:
            raise ValueError(
                f"overlap_seconds: found {self.overlap_seconds}, want at least 0 and less than "
                f"half of chunk_seconds ({self.chunk_seconds})"
            )


@dataclasses.dataclass(frozen=True)
class Result:
    """What `run` yields for one item: key -> (T, D) float32, and the wave's samples."""

    item: AudioItem
    frames: Mapping[int, np.ndarray]
    num_samples: int


def run(
    items: Iterable[AudioItem],
    forward: Forward,
    geometry: Geometry,
    plan: Plan,
    *,
    device: torch.device,
    on_error: OnError | None = None,
    bytes_per_second: float = 0.0,
) -> Iterator[Result]:
    """Compute `forward` over all items; yields one result per item, in order.

    bytes_per_second: of results.
    on_error: called with the id and the error of an item that cannot be read or is too short,
        which is then left out; None: the error is raised.
    """
    rate = geometry.sample_rate_hz
    held = plan.window_seconds or min(400.0, HELD_BYTES / max(1.0, bytes_per_second))
    largest = plan.batch_seconds or BATCH_SECONDS.get(device.type, BATCH_SECONDS["cuda"])
    waves = _read(items, geometry, plan.readers, on_error)
    for window in _windows(waves, round(held * rate)):
        yield from _run_window(window, forward, geometry, plan, round(largest * rate), device)


def _read(
    items: Iterable[AudioItem], geometry: Geometry, readers: int, on_error: OnError | None
) -> Iterator[tuple[AudioItem, Wave]]:
    """Waves in the order of their items; `2 * readers` of them are under way ahead."""

    def read(item: AudioItem) -> Wave:
        if item.done_samples is not None:
            return np.broadcast_to(np.zeros(1, np.float32), item.done_samples)
        samples, rate = item.read()
        wave = to_wave(samples, rate, want_rate=geometry.sample_rate_hz, name=item.id)
        if len(wave) < geometry.field_samples:
            raise ValueError(
                f"{item.id}: found {len(wave)} samples at {geometry.sample_rate_hz} Hz, want at "
                f"least {geometry.field_samples}, the receptive field of one frame"
            )
        return wave

    def finish(item: AudioItem, future: Future[Wave]) -> Iterator[tuple[AudioItem, Wave]]:
        try:
            yield item, future.result()
        except ValueError as error:
            if on_error is None:
                raise
            on_error(item.id, error)

    with ThreadPoolExecutor(readers) as pool:
        ahead: deque[tuple[AudioItem, Future[Wave]]] = deque()
        try:
            for item in items:
                ahead.append((item, pool.submit(read, item)))
                if len(ahead) > 2 * readers:
                    yield from finish(*ahead.popleft())
            while ahead:
                yield from finish(*ahead.popleft())
        finally:
            for _, future in ahead:
                future.cancel()


def _windows(
    waves: Iterable[tuple[AudioItem, Wave]], max_samples: int
) -> Iterator[list[tuple[AudioItem, Wave]]]:
    window: list[tuple[AudioItem, Wave]] = []
    held = 0
    for item, wave in waves:
        window.append((item, wave))
        held += len(wave)
        if held >= max_samples:
            yield window
            window, held = [], 0
    if window:
        yield window


def _run_window(
    window: Sequence[tuple[AudioItem, Wave]],
    forward: Forward,
    geometry: Geometry,
    plan: Plan,
    max_samples: int,
    device: torch.device,
) -> Iterator[Result]:
    rate = geometry.sample_rate_hz
    frames = geometry.frames(round(plan.chunk_seconds * rate))
    overlap = round(plan.overlap_seconds * rate / geometry.hop_samples)
    if 2 * overlap + geometry.stride > frames:
        raise ValueError(
            f"chunk_seconds: found {plan.chunk_seconds} ({frames} frames), want more than twice "
            f"the overlap ({overlap} frames)"
        )
    pieces = [
        piece
        for number, (_, wave) in enumerate(window)
        for piece in cut(number, len(wave), geometry, frames, overlap)
    ]
    results: list[dict[int, np.ndarray]] = [{} for _ in window]
    waiting = np.bincount([p.item for p in pieces], minlength=len(window))
    given = {i for i, (item, _) in enumerate(window) if item.done_samples is not None}
    cost = BATCH_COST_SECONDS.get(device.type, BATCH_COST_SECONDS["cuda"])
    for group in batches(pieces, max_samples, round(cost * rate)):
        if all(piece.item in given for piece in group):
            continue  # all of it is done: none is read or computed
        for piece, parts in zip(group, _run_batch(window, group, forward, device), strict=True):
            if piece.item in given:
                continue
            total = geometry.frames(len(window[piece.item][1]))
            for key, part in parts.items():
                if piece.count == total:
                    results[piece.item][key] = part
                    continue
                if key not in results[piece.item]:
                    results[piece.item][key] = _room((total, part.shape[1]))
                whole = results[piece.item][key]
                whole[piece.first : piece.first + piece.count] = part
                forget(whole)
            waiting[piece.item] -= 1
        for number, (item, wave) in enumerate(window):
            if number in given:
                continue
            if waiting[number] == 0:
                yield Result(item, results[number], len(wave))
                results[number] = {}
                given.add(number)
            elif plan.in_order:
                break


def _room(shape: tuple[int, int]) -> np.ndarray:
    """An array for the features of a long utterance: on disk where it would fill the memory."""
    return on_disk(shape) if 4 * shape[0] * shape[1] > LARGE_BYTES else np.empty(shape, np.float32)


def _run_batch(
    window: Sequence[tuple[AudioItem, Wave]],
    group: Sequence[Piece],
    forward: Forward,
    device: torch.device,
) -> Iterator[dict[int, np.ndarray]]:
    longest = max(p.size for p in group)
    wave = torch.zeros(len(group), longest, pin_memory=device.type == "cuda")
    for row, piece in enumerate(group):
        if window[piece.item][0].done_samples is not None:
            continue  # silence in its place
        wave[row, : piece.size] = torch.from_numpy(window[piece.item][1][piece.start : piece.stop])
        forget(window[piece.item][1])
    lengths = torch.tensor([p.size for p in group])
    with torch.inference_mode():
        outputs = forward(wave.to(device, non_blocking=True), lengths.to(device, non_blocking=True))
        outputs = {k: v.float().cpu().numpy() for k, v in outputs.items()}
    for row, piece in enumerate(group):
        parts = {k: v[row, piece.keep : piece.keep + piece.count] for k, v in outputs.items()}
        for key, part in parts.items():
            if len(part) != piece.count:
                raise ValueError(
                    f"{window[piece.item][0].id}: layer {key} has {outputs[key].shape[1]} frames "
                    f"for {longest} samples, want at least {piece.keep + piece.count}"
                )
        yield {k: v.copy() for k, v in parts.items()}
