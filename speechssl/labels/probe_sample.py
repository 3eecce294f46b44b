"""What probes look at: some speakers' utterances, frames of every layer, and a mean per utterance.

One pass over the manifests chooses the utterances, and a second one reads them. Memory depends on
the options alone, not on the length of the corpus.

Shape legend: N frames, U utterances, T frames of one utterance, D width of a layer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.contract import Batch
from speechssl.labels import quality as q
from speechssl.labels.features import LogMelFeatures
from speechssl.labels.measure import alignments
from speechssl.labels.reservoir import FrameReservoir

Layers = Callable[[Batch], list[list[Tensor]]]
"""Per layer, one (T_i, D) tensor per utterance."""


@dataclasses.dataclass(frozen=True)
class ProbeCut:
    """An utterance to probe.

    group: its speaker, or its own id where the speaker is not known. items: (start, end, phone).
    row: the cut as plain values.
    """

    id: str
    speaker: str | None
    items: tuple[tuple[float, float, str], ...]
    row: dict[str, Any]

    @property
    def group(self) -> str:
        return self.id if self.speaker is None else self.speaker


@dataclasses.dataclass(frozen=True)
class ProbeSample:
    """Frames (N, D) of each layer, all of the same moments, and means (U, D) over utterances.

    mel: (N, 80) log-mel of those moments. keys: (N,) random numbers, rising. phones: (N,), -1
    where there is none. cuts: (N,) and utterances: (U,) places in the list of cuts. seen: frames
    that there were.
    """

    frames: list[Tensor]
    mel: Tensor
    keys: np.ndarray
    phones: np.ndarray
    cuts: np.ndarray
    means: list[Tensor]
    utterances: np.ndarray
    seen: int


def choose_cuts(
    paths: Sequence[str], alignment: str, *, speakers: int, utterances: int, seed: int
) -> list[ProbeCut]:
    """At most `utterances` of each of at most `speakers` speakers, by hashes; ordered by id.

    An utterance whose speaker is not known counts as a speaker. The choice depends neither on the
    order of the cuts nor on how they are spread over the manifests.
    Raises ValueError for a manifest that is absent or a Shar folder.
    """
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(
                f"cuts: found no file {path}, want a cuts_*.jsonl.gz (alignments and speakers are "
                "read from it, so a Shar folder does not do)"
            )
    groups: dict[str, list[tuple[int, str, int, ProbeCut]]] = {}
    worst: tuple[int, str] | None = None
    for number, (cut, items) in enumerate(alignments(paths, alignment)):
        speaker = next((s.speaker for s in cut.supervisions if s.speaker), None)
        name = str(cut.id if speaker is None else speaker)
        rank = (_key(seed, name), name)
        if name not in groups:
            if worst is not None and rank > worst:
                continue
            groups[name] = []
            if len(groups) > speakers:
                assert worst is not None
                del groups[worst[1]]
            if len(groups) == speakers:
                worst = max((_key(seed, g), g) for g in groups)
        kept = groups[name]
        # A heap of negated keys: the first is the one to give up.
        found = ProbeCut(cut.id, speaker, tuple(items), cut.to_dict())
        entry = (-_key(seed, cut.id), cut.id, number, found)
        if len(kept) < utterances:
            heapq.heappush(kept, entry)
        elif entry[:2] > kept[0][:2]:
            heapq.heapreplace(kept, entry)
    chosen = sorted((cut for kept in groups.values() for *_, cut in kept), key=lambda c: c.id)
    for one, two in itertools.pairwise(chosen):
        if one.id == two.id:
            raise ValueError(f"cuts: found the id {one.id} twice, want each once")
    return chosen


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def read_sample(
    batches: Iterable[Batch],
    layers: Layers,
    cuts: Sequence[ProbeCut],
    phone_table: q.PhoneTable,
    *,
    dim: int,
    count: int,
    frame_rate_hz: float,
    window_seconds: float,
    sample_frames: int,
    seed: int,
    progress: Callable[[float, int], None],
    device: torch.device | str = "cpu",
    take: Callable[[int, list[Tensor]], None] | None = None,
) -> ProbeSample:
    """One pass: features of `count` layers of width `dim`, log-mel beside them.

    Equal keys: every layer keeps the same frames. take: called with the place of each utterance
    and its (T, D) frames of each layer.
    Raises ValueError if there is no frame at all.
    """
    place = {cut.id: i for i, cut in enumerate(cuts)}
    mel = LogMelFeatures(device)
    reservoirs = [FrameReservoir(sample_frames, dim, seed=seed) for _ in range(count)]
    # Beside log-mel: the phone, and the place of the cut.
    beside = FrameReservoir(sample_frames, mel.dim + 2, seed=seed)
    means: list[dict[int, Tensor]] = [{} for _ in range(count)]
    for batch in batches:
        if not batch.filler:
            found = layers(batch)
            columns = []
            for name, frames, bands in zip(batch.ids, found[0], mel(batch)):
                at, total = place[name], len(frames)
                intervals = phone_table.intervals(cuts[at].items)
                phones = q.phone_frames(intervals, total, frame_rate_hz, window_seconds)
                columns.append(_columns(bands, phones, at, frame_rate_hz, window_seconds))
            if take is not None:
                for name, *rows in zip(batch.ids, *found):
                    take(place[name], rows)
            beside.add(batch.ids, columns)
            for reservoir, pooled, layer in zip(reservoirs, means, found):
                reservoir.add(batch.ids, layer)
                for name, frames in zip(batch.ids, layer):
                    if len(frames):
                        pooled[place[name]] = frames.mean(0).cpu()
        progress(float(batch.wave_lengths.sum()) / 16000, len(batch))
    others, keys = beside.sample()
    if not len(others):
        raise ValueError("cuts: found no frame, want utterances that can be read and are not empty")
    utterances = sorted(means[0])
    return ProbeSample(
        frames=[reservoir.sample()[0] for reservoir in reservoirs],
        mel=others[:, :-2].contiguous(),
        keys=keys,
        phones=others[:, -2].numpy().astype(np.int64),
        cuts=others[:, -1].numpy().astype(np.int64),
        means=[torch.stack([pooled[u] for u in utterances]) for pooled in means],
        utterances=np.array(utterances, dtype=np.int64),
        seen=beside.seen,
    )


def _columns(
    bands: Tensor, phones: np.ndarray, at: int, frame_rate_hz: float, window_seconds: float
) -> Tensor:
    """(M, C) at 100 Hz -> (T, C + 2) at the frames of `phones`."""
    means = average_frames(bands.cpu(), len(phones), frame_rate_hz, window_seconds)
    number = torch.full((len(phones), 1), float(at))
    return torch.cat([means, torch.from_numpy(phones.astype(np.float32))[:, None], number], 1)


def average_frames(
    features: Tensor, count: int, frame_rate_hz: float, window_seconds: float
) -> Tensor:
    """(M, C) of Kaldi's framing at 100 Hz -> (count, C): means over the hop around each frame's
    centre, t / rate + window / 2; the nearest frame where none has its centre there."""
    if not count:
        return features.new_zeros(0, features.shape[1])
    if not len(features):
        raise ValueError(f"features: found no frame for {count} of the model's, want some")
    centres = np.arange(count) / frame_rate_hz + window_seconds / 2
    half = 0.5 / frame_rate_hz
    shift, middle = LogMelFeatures.frame_rate_hz, LogMelFeatures.window_seconds / 2
    # Rounding to a microframe: a frame at the edge belongs to the hop that it opens.
    first = np.ceil(np.round((centres - half - middle) * shift, 6)).astype(np.int64)
    end = np.ceil(np.round((centres + half - middle) * shift, 6)).astype(np.int64)
    first = first.clip(0, len(features) - 1)
    end = end.clip(first + 1, len(features))
    sums = torch.cat([features.new_zeros(1, features.shape[1]), features]).double().cumsum(0)
    lengths = torch.from_numpy(end - first)[:, None]
    return ((sums[torch.from_numpy(end)] - sums[torch.from_numpy(first)]) / lengths).float()
