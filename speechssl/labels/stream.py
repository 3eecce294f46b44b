"""One pass over audio: features into a reservoir, or straight into labels; nothing is dumped.

Batches come from `speechssl.data.loader.read_all`; this module only needs an iterable of them.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from speechssl import dist
from speechssl.contract import Batch
from speechssl.data.label_store import LabelWriter
from speechssl.labels.codebook import Codebook
from speechssl.labels.features import EncoderFeatures, Extractor
from speechssl.labels.quality import count_runs
from speechssl.labels.reservoir import FrameReservoir


def say(text: str) -> None:
    """Print a line on stderr, on rank 0."""
    if dist.is_main():
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal; otherwise a line every minute."""

    def __init__(self, name: str, total: int | None = None) -> None:
        """total: utterances over all ranks."""
        self.name = name
        self.total = None if total is None else -(-total // dist.world_size())
        self.seconds, self.utterances = 0.0, 0

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        self.started = self.printed = time.monotonic()
        shown = dist.is_main() and sys.stderr.isatty()
        self.bar = tqdm(desc=self.name, total=self.total, unit="utt", disable=not shown)
        return self

    def __call__(self, seconds: float, utterances: int) -> None:
        self.seconds += seconds
        self.utterances += utterances
        now = time.monotonic()
        self.bar.set_postfix_str(f"{self._speed(now):.0f} x real time", refresh=False)
        self.bar.update(utterances)
        if self.bar.disable and now - self.printed > 60:
            self.printed = now
            self._line(now)

    def _speed(self, now: float) -> float:
        return self.seconds / max(now - self.started, 1e-9)

    def _line(self, now: float) -> None:
        done = f"{self.utterances}" + ("" if self.total is None else f" of about {self.total}")
        say(
            f"{self.name}: {done} utterances, {self.seconds / 3600:.2f} h of audio, "
            f"{self._speed(now):.0f} x real time on rank 0"
        )

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self._line(time.monotonic())


def sample_frames(
    batches: Iterable[Batch], extractor: Extractor, reservoir: FrameReservoir, progress: Progress
) -> None:
    """Offer every frame of this rank's batches to the reservoir."""
    for batch in batches:
        if not batch.filler:
            reservoir.add(batch.ids, extractor(batch))
        progress(*batch_size(batch))


def sample_layers(
    batches: Iterable[Batch],
    extractor: EncoderFeatures,
    reservoirs: Mapping[int, FrameReservoir],
    phones: Callable[[str, int], np.ndarray],
    progress: Progress,
) -> None:
    """Offer the frames of several layers, with each frame's phone as a further column.

    phones: (id, frames) -> (frames,) phone numbers, negative where there is none; such frames
    are not offered. Equal keys: every layer keeps the same frames.
    """
    for batch in batches:
        if not batch.filler:
            found = extractor.layers(batch, tuple(reservoirs))
            names = [phones(name, len(frames)) for name, frames in zip(batch.ids, found[0])]
            for reservoir, layer in zip(reservoirs.values(), found):
                reservoir.add(batch.ids, [_with_phone(f, p) for f, p in zip(layer, names)])
        progress(*batch_size(batch))


def _with_phone(frames: Tensor, phones: np.ndarray) -> Tensor:
    kept = torch.from_numpy(np.flatnonzero(phones >= 0))
    column = torch.from_numpy(phones.astype(np.float32))[kept, None]
    return torch.cat([frames.cpu()[kept], column], dim=1)


@dataclasses.dataclass
class LabelCounts:
    """What `write_labels` did on this rank."""

    utterances: int = 0
    already: int = 0
    frames: int = 0
    runs: int = 0
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, labels: np.ndarray) -> None:
        """Count an utterance's (T,) labels."""
        self.utterances += 1
        self.frames += len(labels)
        self.runs += count_runs(labels)
        self.counts += np.bincount(labels, minlength=len(self.counts))


def write_labels(
    batches: Iterable[Batch],
    extractor: Extractor,
    codebook: Codebook,
    writer: LabelWriter,
    device: torch.device | str,
    progress: Progress,
) -> LabelCounts:
    """Label every utterance that the writer does not have yet."""
    assign = codebook.assigner(device)
    done = LabelCounts(counts=np.zeros(codebook.classes, dtype=np.int64))
    for batch in batches:
        rows = [i for i, name in enumerate(batch.ids) if name not in writer]
        done.already += len(batch) - len(rows)
        if rows and not batch.filler:
            wanted = batch if len(rows) == len(batch) else select(batch, rows)
            for name, frames in zip(wanted.ids, extractor(wanted)):
                labels = assign(frames).cpu().numpy()
                writer.add(name, labels)
                done.add(labels)
        progress(*batch_size(batch))
    return done


def select(batch: Batch, rows: list[int]) -> Batch:
    """Some utterances of a batch; targets and views are left behind."""
    index = torch.tensor(rows)
    lengths = batch.wave_lengths[index]
    return Batch(
        wave=batch.wave[index, : int(lengths.max())],
        wave_lengths=lengths,
        targets={},
        views={},
        seeds=batch.seeds[index],
        ids=tuple(batch.ids[i] for i in rows),
    )


def batch_size(batch: Batch) -> tuple[float, int]:
    return float(batch.wave_lengths.sum()) / 16000, len(batch)
