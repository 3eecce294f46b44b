"""metrics.jsonl, skipped.txt, TensorBoard and the progress bar of a training run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl import dist
from speechssl.contract import Loss, Update


class Sums:
    """Named (sum, count) pairs, kept on the device in float64 and read seldom."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pairs: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, loss: Loss) -> None:
        self._add("loss", loss.total, loss.count)
        for name, (total, count) in loss.logs.items():
            self._add(name, total, count)

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        pair = torch.stack(
            [
                torch.as_tensor(x, device=self.device).double().detach().reshape(())
                for x in (total, count)
            ]
        )
        self.pairs[name] = self.pairs[name] + pair if name in self.pairs else pair

    def merge(self, other: Sums) -> None:
        for name, pair in other.pairs.items():
            self.pairs[name] = self.pairs[name] + pair if name in self.pairs else pair

    def values(self) -> dict[str, list[float]]:
        if not self.pairs:
            return {}
        rows = torch.stack(list(self.pairs.values())).tolist()
        return dict(zip(self.pairs, rows, strict=True))

    def load(self, values: Mapping[str, list[float]]) -> None:
        self.pairs = {
            k: torch.tensor(v, dtype=torch.float64, device=self.device) for k, v in values.items()
        }


def totals(per_rank: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """(sum, count) over all ranks, for each name that any rank has."""
    total: dict[str, list[float]] = {}
    for values in per_rank:
        for name, (add, count) in values.items():
            pair = total.setdefault(name, [0.0, 0.0])
            pair[0] += add
            pair[1] += count
    return total


def means(per_rank: list[dict[str, list[float]]]) -> dict[str, float]:
    """Sum / count over all ranks, for each name that any rank has."""
    return {name: s / c for name, (s, c) in totals(per_rank).items() if c}


class LineFile:
    """A file of lines that begin with, or hold, their step; rank 0 writes.

    Lines that cannot be written (a full disk) are kept and written with the next ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: list[str] = []

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will make again, and a torn last line."""
        if not dist.is_main() or not self.path.is_file():
            return
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1].splitlines()
        kept = [line for line in whole if self._step(line) <= step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self.path)

    @staticmethod
    def _step(line: str) -> int:
        return json.loads(line)["step"] if line.startswith("{") else int(line.split("\t")[0])

    def write(self, *lines: str) -> None:
        if not dist.is_main():
            return
        self.pending += lines
        if not self.pending:
            return
        text = "".join(line + "\n" for line in self.pending)
        size = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with open(self.path, "a") as stream:
                stream.write(text)
            self.pending = []
        except OSError as error:
            # A partial write must not be repeated.
            if self.path.is_file():
                with open(self.path, "r+") as stream:
                    stream.truncate(size)
            say(f"could not write {self.path}: {error}; trying again later")


def say(text: str) -> None:
    """One line on standard error, from rank 0, that does not tear a progress bar."""
    if dist.is_main():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)


class Progress:
    """A bar with rate and time left on a terminal; otherwise a line per logged step."""

    def __init__(self, total: int, done: int) -> None:
        from tqdm import tqdm

        terminal = dist.is_main() and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="upd", disable=not terminal)
        self.total = total

    def step(self) -> None:
        self.bar.update(1)

    def show(self, line: Mapping[str, Any]) -> None:
        figures = {k: v for k, v in line.items() if isinstance(v, float) and k not in TIMING}
        text = " ".join(f"{k} {v:.4g}" for k, v in figures.items())
        if not self.bar.disable and line["split"] == "train":
            self.bar.set_postfix_str(f"loss {line['loss']:.4g}", refresh=False)
            return
        rate = line.get("audio_s_per_s")
        left = line.get("update_seconds", 0.0) * (self.total - line["step"])
        pace = f" | {rate:.0f} s/s, {left / 60:.0f} min left" if rate is not None else ""
        say(f"{line['split']} {line['step']}/{self.total}: {text}{pace}")

    def close(self) -> None:
        self.bar.close()


TIMING = ("time", "audio_s_per_s", "update_seconds", "data_seconds", "memory_gb")
"""Fields of metrics.jsonl that differ between two runs of the same configuration."""


class Board:
    """TensorBoard events, or nothing where it is not wanted or not installed."""

    def __init__(self, folder: Path, wanted: bool, purge_step: int) -> None:
        self.writer: Any = None
        if not (wanted and dist.is_main()):
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            say(
                "no TensorBoard events: tensorboard is not installed "
                "(pip install 'speechssl[report]')"
            )
            return
        self.writer = SummaryWriter(str(folder), purge_step=purge_step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        if self.writer is None:
            return
        for name, value in line.items():
            if isinstance(value, float) and name != "time":
                try:
                    self.writer.add_scalar(f"{line['split']}/{name}", value, line["step"])
                except OSError as error:
                    say(f"could not write TensorBoard events: {error}")
                    self.writer = None
                    return

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process so far, on its accelerator or else of the host, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Clock:
    """Wall time since the last line, split into waiting for data and computing."""

    def __init__(self) -> None:
        self.start = self.mark = time.perf_counter()
        self.waited = 0.0
        self.updates = 0
        self.audio_seconds = 0.0

    def loaded(self) -> None:
        self.waited += time.perf_counter() - self.mark

    def updated(self, update: Update) -> None:
        samples = sum(int(b.wave_lengths.sum()) for b in update.batches if not b.filler)
        self.audio_seconds += samples / 16000 * dist.world_size()
        self.updates += 1
        self.mark = time.perf_counter()

    def read(self, device: torch.device) -> dict[str, float]:
        passed = max(time.perf_counter() - self.start, 1e-9)
        count = max(self.updates, 1)
        line = {
            "audio_s_per_s": self.audio_seconds / passed,
            "update_seconds": passed / count,
            "data_seconds": self.waited / count,
            "memory_gb": memory_gb(device),
            "time": time.time(),
        }
        self.__init__()
        return line
