"""Which utterances form which update, and which rank reads them: plans, no audio.

An epoch is a pure function of (seed, epoch). Its cuts are shuffled by a permutation that takes
no memory, and cut into equal windows of about `window` cuts. Inside a window the cuts are sorted
by length (with noise) into quantiles; each update takes one group of neighbours from every
quantile, so that it holds the corpus's range of lengths (an unbiased gradient) while each group
is of like length (little padding). Only then is the update split into micro-batches, so the
utterances of an update depend on neither the ranks nor `max_batch_seconds`.

Differs from lhotse's DynamicBucketingSampler, which streams through a buffer and therefore must
replay an epoch to resume, and gives each rank its own batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from speechssl.data.config import DataConfig
from speechssl.data.draws import Permutation, mix, uniform
from speechssl.data.index import SAMPLE_RATE, CutIndices

_NOISE = 0.05  # of the length: enough that an utterance meets others in the next epoch
_MOST_PADDING = 4096  # samples
_SHAR_BLOCK = 64  # cuts read together, to keep a tar file's pages in use


@dataclasses.dataclass(frozen=True)
class Plan:
    """One update: all its cuts, and this rank's micro-batches of them.

    members: (N,) cut indices of the whole update, on every rank the same.
    batches: positions in `members` of each micro-batch of this rank.
    """

    epoch: int
    members: np.ndarray
    batches: tuple[tuple[int, ...], ...]
    position: Mapping[str, int]


def padded_samples(lengths: np.ndarray) -> np.ndarray:
    """Samples of each -> what a training batch of which it is the longest is padded to: the next
    of eight steps in an octave, and never more than 0.26 s further.

    Few different shapes are what a CPU needs, which makes its kernels anew for each: in bfloat16
    updates of small encoders take two thirds of the time so (tools/bench/RESULTS.md).
    """
    _, exponent = np.frexp(lengths)  # 2 ** (exponent - 1) <= length
    step = np.clip(2 ** exponent.astype(np.int64) // 16, 1, _MOST_PADDING)
    return -(-lengths // step) * step


def split_batches(
    lengths: Sequence[int], max_samples: int, world_size: int
) -> list[list[tuple[int, ...]]]:
    """Split utterances into micro-batches: per rank, an equal number of tuples of positions.

    A micro-batch holds neighbours in length, so that (utterances * longest) <= max_samples; there
    are as few as possible, rounded up to a multiple of the ranks, and of about equal cost. Where
    every utterance is a micro-batch already, empty ones fill the last round.

    Raises `ValueError` for fewer utterances than ranks.
    """
    if len(lengths) < world_size:
        raise ValueError(
            f"batch_seconds: found an update of {len(lengths)} utterances for {world_size} ranks, "
            "want at least one each; raise batch_seconds or start fewer ranks"
        )
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    ordered = [lengths[i] for i in order]
    groups = _even_groups(ordered, max_samples, world_size)
    groups.sort(key=lambda g: -ordered[g[0]] * (g[1] - g[0]) if g[1] > g[0] else 0)
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(world_size)]
    for at, (begin, end) in enumerate(groups):
        turn, place = divmod(at, world_size)
        # To and fro, so that no rank always gets the larger of each round.
        rank = place if turn % 2 == 0 else world_size - 1 - place
        ranks[rank].append(tuple(order[begin:end]))
    return ranks


def _greedy(ordered: Sequence[int], cap: int) -> list[tuple[int, int]]:
    groups, begin = [], 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or ordered[begin] * (end + 1 - begin) > cap:
            groups.append((begin, end))
            begin = end
    return groups


def _even_groups(ordered: Sequence[int], cap: int, multiple: int) -> list[tuple[int, int]]:
    """Ranges of a descending sequence: `_greedy` under the smallest cap that needs no more."""
    count = -(-len(_greedy(ordered, cap)) // multiple) * multiple
    low, high = ordered[-1], cap
    while high - low > max(1, high // 64):
        middle = (low + high) // 2
        if len(_greedy(ordered, middle)) <= count:
            high = middle
        else:
            low = middle
    groups = _greedy(ordered, high)
    while len(groups) % multiple:
        parted = [i for i, (b, e) in enumerate(groups) if e - b > 1]
        if not parted:
            groups.append((len(ordered), len(ordered)))
            continue
        at = max(parted, key=lambda i: ordered[groups[i][0]] * (groups[i][1] - groups[i][0]))
        begin, end = groups[at]
        groups[at : at + 1] = [(begin, (begin + end) // 2), ((begin + end) // 2, end)]
    return groups


class UpdateSampler:
    """Plans of updates without end, from any position at the cost of one window."""

    def __init__(
        self, cuts: CutIndices, config: DataConfig, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.cuts, self.config = cuts, config
        self.rank, self.world_size = rank, world_size
        self.max_samples = round(config.max_seconds * SAMPLE_RATE)
        self.min_samples = round(config.min_seconds * SAMPLE_RATE)
        self.crops = config.long == "crop" and config.tokenizer is None
        self.counts = self._count()
        if not self.counts["cuts"]:
            raise ValueError(
                f"train: found no cut of {config.min_seconds} to {config.max_seconds} s among "
                f"{len(cuts)}; change min_seconds, max_seconds or long"
            )
        self.windows = max(1, round(len(cuts) / config.window))
        self._block = _SHAR_BLOCK if cuts.is_shar and len(cuts) > 16 * _SHAR_BLOCK else 1
        self._stamp = mix(
            len(cuts),
            self.counts["samples"],
            config.seed,
            config.window,
            config.buckets,
            round(config.batch_seconds * 1000),
            self.min_samples,
            self.max_samples,
            int(self.crops),
        )
        self._cached: tuple[tuple[int, int], list[np.ndarray]] | None = None

    def _count(self, chunk: int = 1 << 20) -> dict[str, int]:
        """Cuts and samples in use, and how many are left out."""
        counts = {"cuts": 0, "samples": 0, "too_short": 0, "too_long": 0, "cropped": 0}
        for part in self.cuts.parts:
            for begin in range(0, len(part), chunk):
                lengths = np.asarray(part.num_samples[begin : begin + chunk], dtype=np.int64)
                short, long = lengths < self.min_samples, lengths > self.max_samples
                used = ~short if self.crops else ~(short | long)
                counts["too_short"] += int(short.sum())
                counts["cropped" if self.crops else "too_long"] += int(long.sum())
                counts["cuts"] += int(used.sum())
                counts["samples"] += int(np.minimum(lengths[used], self.max_samples).sum())
        return counts

    def lengths(self, members: np.ndarray) -> np.ndarray:
        """(N,) cut indices -> (N,) samples that reading yields, crops considered."""
        return np.minimum(self.cuts.num_samples(members), self.max_samples)

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """Cut indices of a window that are long and short enough to use."""
        size = len(self.cuts)
        blocks = -(-size // self._block)
        shuffle = Permutation(blocks, mix(self.config.seed, epoch, 1))
        begin = window * blocks // self.windows
        end = (window + 1) * blocks // self.windows
        first = shuffle(np.arange(begin, end)) * self._block
        members = (first[:, None] + np.arange(self._block)[None, :]).reshape(-1)
        members = members[members < size]
        lengths = self.cuts.num_samples(members)
        used = lengths >= self.min_samples
        if not self.crops:
            used &= lengths <= self.max_samples
        return members[used]

    def window_updates(self, epoch: int, window: int) -> list[np.ndarray]:
        """The cut indices of each update of a window."""
        if self._cached is not None and self._cached[0] == (epoch, window):
            return self._cached[1]
        members = self._window(epoch, window)
        updates: list[np.ndarray] = []
        if len(members):
            lengths = self.lengths(members)
            draw = np.random.Generator(np.random.Philox(mix(self.config.seed, epoch, window, 2)))
            noisy = lengths * (1 + _NOISE * (2 * draw.random(len(members)) - 1))
            order = np.argsort(noisy, kind="stable")
            members, lengths = members[order], lengths[order]
            wanted = lengths.sum() / (self.config.batch_seconds * SAMPLE_RATE)
            count = int(np.clip(round(wanted), 1, len(members)))
            buckets = min(self.config.buckets, max(1, len(members) // count))
            middle = np.cumsum(lengths) - lengths / 2
            group = np.floor(middle / lengths.sum() * count * buckets).astype(np.int64)
            edges = np.searchsorted(group, np.arange(count * buckets + 1))
            chosen = np.stack([draw.permutation(count) for _ in range(buckets)])
            chosen += count * np.arange(buckets)[:, None]
            for which in chosen.T:
                parts = [members[edges[g] : edges[g + 1]] for g in which]
                update = np.sort(np.concatenate(parts))
                if len(update):
                    updates.append(update)
        self._cached = ((epoch, window), updates)
        return updates

    def plans(self, position: Mapping[str, int] | None = None) -> Iterator[Plan]:
        """Plans from `position` (as in `Plan.position`), without end.

        Raises `ValueError` for a position of other cuts or options.
        """
        at = position or {"stamp": self._stamp, "epoch": 0, "window": 0, "update": 0}
        if at["stamp"] != self._stamp:
            raise ValueError(
                "position: found that of other training cuts or data options, want the same cuts, "
                "seed, batch_seconds, buckets, window, min_seconds, max_seconds and long as in "
                "the run that is resumed; give those, or start a new run from its weights"
            )
        epoch, window, update = at["epoch"], at["window"], at["update"]
        while True:
            updates = self.window_updates(epoch, window)
            while update < len(updates):
                members = updates[update]
                update += 1
                # Behind a window's last update stands the next window's first.
                behind = (epoch, window, update)
                if update == len(updates):
                    behind = (epoch, window + 1, 0)
                    if behind[1] == self.windows:
                        behind = (epoch + 1, 0, 0)
                yield self._plan(epoch, members, behind)
            window, update = window + 1, 0
            if window == self.windows:
                epoch, window = epoch + 1, 0

    def _plan(self, epoch: int, members: np.ndarray, behind: tuple[int, int, int]) -> Plan:
        cap = round(self.config.max_batch_seconds * SAMPLE_RATE)
        lengths = padded_samples(self.lengths(members))
        ranks = split_batches(lengths.tolist(), cap, self.world_size)
        names = ("epoch", "window", "update")
        position = {"stamp": self._stamp, **dict(zip(names, behind))}
        return Plan(epoch, members, tuple(ranks[self.rank]), position)


def crop_start(seed: int, num_samples: int, max_samples: int, hop_samples: int) -> int:
    """Start of a random crop, a multiple of `hop_samples`, so that frames and labels stay true."""
    places = max(0, num_samples - max_samples) // hop_samples + 1
    return int(uniform(seed, 1) * places) * hop_samples
