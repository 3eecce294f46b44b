"""The files and the display of a run: what was measured, what was skipped, what was refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechssl import dist
from speechssl.contract import Update
from speechssl.train.config import TrainConfig
from speechssl.train.guard import Guard
from speechssl.train.log import Board, LineFile, Progress, say


class Journal:
    """Writes metrics.jsonl, skipped.txt, bad_updates.jsonl, TensorBoard events, progress."""

    def __init__(self, config: TrainConfig, output: Path) -> None:
        self.config = config
        self.output = output
        self.metrics = LineFile(output / "metrics.jsonl")
        self.skips = LineFile(output / "skipped.txt")
        self.refusals = LineFile(output / "bad_updates.jsonl")
        self.new_skips: list[str] = []
        self.board: Board | None = None
        self.bar: Progress | None = None

    def open(self, step: int) -> None:
        """Forget what lies behind `step`, and show progress from there."""
        for file in (self.metrics, self.skips, self.refusals):
            file.forget_after(step)
        self.board = Board(self.output / "tensorboard", self.config.tensorboard, step)
        self.bar = Progress(self.config.steps, step)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()

    def tick(self) -> None:
        if self.bar is not None:
            self.bar.step()

    def write(self, line: Mapping[str, Any]) -> None:
        """One line of figures: {"step", "split", name: value ...}."""
        self.metrics.write(json.dumps(line))
        if self.board is not None:
            self.board.write(line)
        if self.bar is not None:
            self.bar.show(line)

    def note_skips(self, step: int, update: Update) -> None:
        self.new_skips += [f"{step}\t{text}" for text in update.skipped]

    def write_skips(self) -> None:
        """Write the noted skips of all ranks (a collective)."""
        gathered = dist.gather_objects(self.new_skips)
        self.skips.write(*(line for lines in gathered for line in lines))
        self.new_skips = []

    def judge_skips(self, seen: Mapping[str, float]) -> None:
        """Raise `ValueError` when too large a share of the utterances could not be read."""
        tried = seen["utterances"] + seen["skipped"]
        most = self.config.max_skip_fraction
        if tried < 100 or seen["skipped"] <= most * tried:
            return
        self.write_skips()
        raise ValueError(
            f"data: {seen['skipped']:.0f} of {tried:.0f} utterances could not be read, want at "
            f"most {most:.0%} (train.max_skip_fraction); they are listed in {self.skips.path}; "
            "`speechssl check` makes a clean manifest"
        )

    def refuse(self, update: Update, step: int, attempt: int, why: str, guard: Guard) -> None:
        """Record a refused update with the ids of all ranks (a collective).

        Raises `ValueError` when there were too many in a row.
        """
        per_rank = dist.gather_objects([list(b.ids) for b in update.batches])
        line = {"step": step, "attempt": attempt, "why": why, "ids": per_rank}
        self.refusals.write(json.dumps(line))
        flat = [i for rank in per_rank for batch in rank for i in batch]
        some = ", ".join(flat[:5]) + (f" and {len(flat) - 5} more" if len(flat) > 5 else "")
        say(f"update {step} skipped: {why}; utterances: {some}")
        if guard.bad_in_a_row >= self.config.max_bad_updates:
            raise ValueError(
                f"training: {guard.bad_in_a_row} updates in a row were refused, the last because "
                f"{why}; their utterances are in {self.refusals.path}. The checkpoints are from "
                "before; try a lower train.learning_rate, or look at those utterances"
            )
