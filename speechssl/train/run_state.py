"""What a run knows besides tensors, and the two ways it is told to stop."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Mapping
from typing import Any

from speechssl import dist
from speechssl.train.log import Sums, totals


@dataclasses.dataclass
class RunState:
    """Progress of a run; a checkpoint holds it as JSON.

    step: optimiser updates done. attempt: updates tried, those refused included; random numbers
    are drawn from it. position: of the data source on this rank. seen: utterances, seconds and
    skipped utterances of all ranks. best: {"step", "value"} of the best validation; leaders: of
    those that are kept, the best first; since_best: validations since the best.
    """

    step: int = 0
    attempt: int = 0
    position: Mapping[str, int] | None = None
    seen: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"utterances": 0.0, "audio_seconds": 0.0, "skipped": 0.0}
    )
    best: dict[str, float] | None = None
    leaders: list[dict[str, float]] = dataclasses.field(default_factory=list)
    since_best: int = 0

    def gather(self, sums: Sums) -> dict[str, Any]:
        """Plain values of all ranks (a collective), with what `sums` holds for the next line."""
        values = dataclasses.asdict(self)
        values.pop("position")
        values["positions"] = dist.gather_objects(self.position)
        values["sums"] = dist.gather_objects(sums.values())
        return values

    @classmethod
    def restore(cls, values: Mapping[str, Any], sums: Sums, source: str) -> RunState:
        """This rank's state of `gather`'s values, also on another number of ranks.

        Raises `ValueError` if the ranks differ in number and were at different places.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        state = cls(**{k: v for k, v in values.items() if k in names})
        positions, per_rank = values["positions"], values["sums"]
        if len(positions) == dist.world_size():
            state.position = positions[dist.rank()]
            sums.load(per_rank[dist.rank()])
        elif all(p == positions[0] for p in positions):
            state.position = positions[0]
            sums.load(totals(per_rank) if dist.is_main() else {})
        else:
            raise ValueError(
                f"{source}: found {len(positions)} ranks at different places of the data, want "
                f"the same number of ranks to resume, not {dist.world_size()}"
            )
        return state

    def judge(self, value: float, best_is: str, keep: int = 1) -> bool:
        """Note a validation figure; True if it is among the best `keep`. One that is NaN never is,
        and of equal ones the earlier is the better."""
        sign = 1 if best_is == "lowest" else -1
        self.since_best += 1
        if math.isnan(value):
            return False
        new = {"step": self.step, "value": value}
        # A checkpoint of before `leaders` were kept knows its best one alone.
        known = self.leaders or ([self.best] if self.best else [])
        self.leaders = sorted([*known, new], key=lambda x: sign * x["value"])[:keep]
        if self.leaders[0] is new:
            self.best, self.since_best = new, 0
        return any(x is new for x in self.leaders)


class Signals:
    """SIGTERM and SIGINT, noted while the context is open; a second one ends the run at once."""

    def __init__(self) -> None:
        self.number = 0
        self.first = math.inf
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._note)
        except ValueError:
            pass  # not the main thread, where signals do not arrive
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        # A launcher passes on what the terminal has sent already: that is no second one.
        if time.monotonic() > self.first + 2.0:
            raise KeyboardInterrupt
        self.first = min(self.first, time.monotonic())
        self.number = number
