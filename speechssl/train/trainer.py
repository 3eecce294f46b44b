"""The training loop: any objective or head, on one rank or many. Meant to be read and edited.

The gradient of an update is (sum of all totals) / (sum of all counts) over its micro-batches and
ranks. Random numbers are seeded anew for every micro-batch from (seed, update, micro-batch,
rank), so the random state of a run is one integer in the checkpoint, and a resumed run draws
what an uninterrupted one would have.

A run's folder: checkpoints/step_N, metrics.jsonl, skipped.txt (utterances that could not be
read), bad_updates.jsonl (updates refused, with the ids of their utterances), TensorBoard events.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechssl import dist
from speechssl.contract import Batch, BatchSource, Objective, Update
from speechssl.train import checkpoint, log, optim, parallel
from speechssl.train.config import TrainConfig
from speechssl.train.guard import Guard
from speechssl.train.schedule import ema_decay, rate_scale


@dataclasses.dataclass(frozen=True)
class FitResult:
    """How a run ended: `finished`, or stopped by `signal` with everything saved."""

    step: int
    finished: bool
    best: dict[str, float] | None
    signal: int = 0


def seed_all(*parts: int) -> None:
    """Seed python, numpy and torch from `parts`."""
    words = np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(2)
    number = int(words[0]) << 31 ^ int(words[1])
    random.seed(number)
    np.random.seed(int(words[0]))
    torch.manual_seed(number)


class Trainer:
    """Train `objective` on `train` in the folder `output`; resume what lies there."""

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        train: BatchSource,
        valid: BatchSource | None,
        output: str | Path,
    ) -> None:
        self.config = config
        self.objective = objective
        self.train = train
        self.valid = valid
        self.output = Path(output)
        self.device = dist.init(config.device)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        self.parallel = parallel.choose(config.parallel, objective)
        parallel.spread(objective, self.parallel, self.device)
        if config.compile:
            for block in objective.sharded() or (objective,):
                block.compile(dynamic=True)
        self.optimizer = optim.build_optimizer(config, objective)
        self.parameters: list[nn.Parameter] = [
            p for group in self.optimizer.param_groups for p in group["params"]
        ]
        self.average = optim.WeightAverage(objective) if config.ema_decay else None
        self.guard = Guard(config.spike_factor, config.spike_after)
        self.sums = log.Sums(self.device)
        self.metrics = log.LineFile(self.output / "metrics.jsonl")
        self.skip_list = log.LineFile(self.output / "skipped.txt")
        self.bad_list = log.LineFile(self.output / "bad_updates.jsonl")
        self.new_skips: list[str] = []
        # All of a run's progress: what a checkpoint holds besides tensors.
        self.step = 0
        self.attempt = 0
        self.position: dict[str, int] | None = None
        self.seen = {"utterances": 0.0, "audio_seconds": 0.0, "skipped": 0.0}
        self.best: dict[str, float] | None = None
        self.since_best = 0
        self.last: dict[str, float] = {}
        self.signal = 0
        self.stopping = False
        self.save_failed = False

    # --- the loop ---------------------------------------------------------------------------

    def fit(self) -> FitResult:
        """Train to the last step, or to a signal; both end with a checkpoint."""
        config = self.config
        self.resume()
        board = log.Board(self.output / "tensorboard", config.tensorboard, self.step)
        progress = log.Progress(config.steps, self.step)
        updates = self._pull() if self.step < config.steps else iter(())
        handlers = self._catch_signals()
        clock = log.Clock()
        stopped = False
        try:
            while self.step < config.steps and not stopped:
                update = self._next(updates)
                if update is None:
                    self._save(final=True)
                    break
                clock.loaded()
                sound = self._update(update)
                clock.updated(update)
                if not sound:
                    continue
                progress.step()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    self._report(self._train_line(clock), progress, board)
                better = False
                if self.valid and (last or _due(self.step, config.valid_every)):
                    line = {"step": self.step, "split": "valid", **self.validate()}
                    self._report(line, progress, board)
                    better = self._judge(line)
                    clock = log.Clock()
                stopped = self.stopping or self._stale()
                every = config.log_every if self.save_failed else config.save_every
                if last or stopped or better or _due(self.step, every):
                    self._save(final=last or stopped)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            progress.close()
            board.close()
        finished = self.step >= config.steps or not self.stopping
        return FitResult(self.step, finished, self.best, 0 if finished else self.signal)

    def _update(self, update: Update) -> bool:
        """One optimiser update; False if it was refused."""
        self.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = log.Sums(self.device)
        for i, batch in enumerate(update.batches):
            seed_all(self.config.seed, self.attempt, i, dist.rank())
            self._accumulate(batch, sums)
        self.attempt += 1
        self.position = dict(update.position)
        # Loss, count and whatever ranks must agree on travel in one sum.
        pair = sums.pairs.get("loss", torch.zeros(2, dtype=torch.float64, device=self.device))
        counted = [*self._audio(update), len(update.skipped), bool(self.signal)]
        agreed = dist.all_reduce_sum(torch.cat([pair, pair.new_tensor(counted)]))
        if self.parallel == "replicated":
            parallel.sum_gradients(self.parameters)
        norm = parallel.scale_and_clip(
            self.parameters,
            1 / agreed[1].clamp(min=1e-9),
            self.config.clip_norm,
            self.parallel == "fsdp2",
        )
        total, count, *seen, skipped, stop, norm = torch.cat(
            [agreed, norm.double().reshape(1)]
        ).tolist()
        self._count(update, seen, skipped, stop)
        loss = total / count if count else math.nan
        fault = self.guard.fault(loss, norm, count)
        if fault:
            self._refuse(update, fault)
            return False
        rate = self.config.learning_rate * rate_scale(self.config, self.step + 1)
        optim.set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.step += 1
        self.objective.after_update(self.step)
        if self.average and self.config.ema_decay:
            self.average.update(ema_decay(self.config.ema_decay, self.step))
        self.sums.merge(sums)
        self.last = {"lr": rate, "grad_norm": norm}
        return True

    def _accumulate(self, batch: Batch, sums: log.Sums) -> None:
        if batch.filler and dist.world_size() == 1:
            return
        with self._autocast():
            loss = self.objective(batch.to(self.device))
        if batch.filler:
            # Ranks must make equal numbers of passes; this one weighs nothing.
            (torch.nan_to_num(loss.total) * 0.0).backward()
            return
        if loss.total.requires_grad:
            loss.total.backward()
        sums.add(loss)

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _next(self, updates: Iterator[Update]) -> Update | None:
        """The next update; None if a signal to this only process took its readers down too."""
        try:
            return next(updates)
        except RuntimeError:
            if not self.signal or dist.world_size() > 1:
                raise
            self.stopping = True
            return None

    def _pull(self) -> Iterator[Update]:
        yield from self.train.updates(self.position)
        raise ValueError(
            "data: the training source ended, want an endless one; is the training set empty?"
        )

    # --- what the loop keeps count of -------------------------------------------------------

    def _audio(self, update: Update) -> tuple[float, float]:
        """Utterances and seconds of this rank's share."""
        rate = getattr(self.objective.encoder, "sample_rate_hz", 16000)
        real = [b for b in update.batches if not b.filler]
        samples = sum(int(b.wave_lengths.sum()) for b in real)
        return float(sum(len(b) for b in real)), samples / rate

    def _count(self, update: Update, seen: list[float], skipped: float, stop: float) -> None:
        self.seen["utterances"] += seen[0]
        self.seen["audio_seconds"] += seen[1]
        self.seen["skipped"] += skipped
        self.new_skips += [f"{self.step + 1}\t{text}" for text in update.skipped]
        if stop:
            # Any rank's signal stops all of them, behind the same update.
            self.stopping = True
            self.signal = self.signal or int(signal.SIGTERM)
        tried = self.seen["utterances"] + self.seen["skipped"]
        if tried >= 100 and self.seen["skipped"] > self.config.max_skip_fraction * tried:
            self._write_skips()
            raise ValueError(
                f"data: {self.seen['skipped']:.0f} of {tried:.0f} utterances could not be read, "
                f"want at most {self.config.max_skip_fraction:.0%} (train.max_skip_fraction); "
                f"they are listed in {self.skip_list.path}; `speechssl check` makes a clean "
                "manifest"
            )

    def _refuse(self, update: Update, why: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        ids = [list(b.ids) for b in update.batches]
        per_rank = dist.gather_objects(ids)
        line = {"step": self.step + 1, "attempt": self.attempt, "why": why, "ids": per_rank}
        self.bad_list.write(json.dumps(line))
        flat = [i for rank in per_rank for batch in rank for i in batch]
        some = ", ".join(flat[:5]) + (f" and {len(flat) - 5} more" if len(flat) > 5 else "")
        log.say(f"update {self.step + 1} skipped: {why}; utterances: {some}")
        if self.guard.bad_in_a_row >= self.config.max_bad_updates:
            raise ValueError(
                f"training: {self.guard.bad_in_a_row} updates in a row were refused, the last "
                f"because {why}; their utterances are in {self.bad_list.path}. The checkpoints "
                "are from before; try a lower train.learning_rate, or look at those utterances"
            )

    def _write_skips(self) -> None:
        gathered = dist.gather_objects(self.new_skips)
        self.skip_list.write(*(line for lines in gathered for line in lines))
        self.new_skips = []

    def _train_line(self, clock: log.Clock) -> dict[str, Any]:
        averages = log.means(dist.gather_objects(self.sums.values()))
        self.sums.pairs = {}
        self._write_skips()
        line: dict[str, Any] = {"step": self.step, "split": "train"}
        if self.position and "epoch" in self.position:
            line["epoch"] = self.position["epoch"]
        return line | averages | self.last | self.seen | clock.read(self.device)

    def _report(self, line: dict[str, Any], progress: log.Progress, board: log.Board) -> None:
        self.metrics.write(json.dumps(line))
        board.write(line)
        progress.show(line)

    # --- validation -------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means of loss and logs over one pass, with the averaged weights if there are any."""
        assert self.valid is not None
        self.objective.eval()
        sums = log.Sums(self.device)
        with self.average.in_place() if self.average else nullcontext():
            for i, (batch, counts) in enumerate(self._even(self.valid.one_pass())):
                if batch.filler and self.parallel != "fsdp2":
                    continue
                seed_all(self.config.seed, 0xA11, i, dist.rank())
                with self._autocast():
                    loss = self.objective(batch.to(self.device))
                if counts and not batch.filler:
                    sums.add(loss)
        self.objective.train()
        figures = log.means(dist.gather_objects(sums.values()))
        if not figures:
            raise ValueError("validation: nothing was scored; is the validation set empty?")
        return figures

    def _even(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Under FSDP2 all ranks must make equally many passes: the early ones repeat theirs."""
        if self.parallel != "fsdp2":
            yield from ((batch, True) for batch in batches)
            return
        last = None
        while True:
            batch = next(batches, None)
            any_left = torch.tensor(float(batch is not None), device=self.device)
            if not dist.all_reduce_sum(any_left).item():
                return
            last = last if batch is None else batch
            if last is None:
                raise ValueError("validation: a rank has no batch; want at least one per rank")
            yield last, batch is not None

    def _judge(self, line: dict[str, Any]) -> bool:
        """Whether this validation is the best so far."""
        name = self.config.best_metric
        if name not in line:
            known = ", ".join(k for k in line if k not in ("step", "split"))
            raise ValueError(f"train.best_metric: found {name!r}, want one of: {known}")
        value = line[name]
        sign = 1 if self.config.best_is == "lowest" else -1
        if self.best is None or sign * value < sign * self.best["value"]:
            self.best = {"step": self.step, "value": value}
            self.since_best = 0
            return True
        self.since_best += 1
        return False

    def _stale(self) -> bool:
        return 0 < self.config.stop_after <= self.since_best

    # --- checkpoints ------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model/{k}": v for k, v in self.objective.state_dict().items()}
        optimizer = optim.optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer/{k}": v for k, v in optimizer.items()}
        if self.average:
            tensors |= {f"average/{k}": v for k, v in self.average.tensors.items()}
        return tensors

    def save(self) -> None:
        """Write a checkpoint of this step and delete those that retention does not keep.

        Raises `checkpoint.CheckpointNotWritten` (a full disk); the older ones stay.
        """
        self._write_skips()
        state = {
            "step": self.step,
            "attempt": self.attempt,
            "positions": dist.gather_objects(self.position),
            "sums": dist.gather_objects(self.sums.values()),
            "seen": self.seen,
            "best": self.best,
            "since_best": self.since_best,
            "guard": self.guard.state(),
        }
        checkpoint.save(self.folder, self.step, self._tensors(), state)
        if dist.is_main():
            best = int(self.best["step"]) if self.best else None
            checkpoint.retain(self.folder, self.config.keep_checkpoints, best)

    @property
    def folder(self) -> Path:
        return self.output / "checkpoints"

    def _save(self, final: bool) -> None:
        """Save; a failure ends the run only at its end, since going on loses nothing."""
        try:
            self.save()
        except checkpoint.CheckpointNotWritten as error:
            if final:
                raise
            self.save_failed = True
            log.say(f"{error} Training goes on; it tries again in {self.config.log_every} updates.")
        else:
            self.save_failed = False

    def resume(self) -> None:
        """Continue from the newest checkpoint of `output`, if there is one."""
        if dist.is_main():
            self.output.mkdir(parents=True, exist_ok=True)
            checkpoint.sweep(self.folder)
        dist.barrier()
        found = checkpoint.steps(self.folder)
        newest = dist.broadcast_object(found[-1] if found else None)
        if newest is not None:
            self._load(checkpoint.Reader(self.folder / f"step_{newest}"))
            log.say(f"resuming from step {self.step} of {self.folder}")
        for file in (self.metrics, self.skip_list, self.bad_list):
            file.forget_after(self.step)

    def _load(self, reader: checkpoint.Reader) -> None:
        reader.read_into(self.objective.state_dict(), "model/")
        names = reader.names("optimizer/")
        reader.read_into(optim.empty_optimizer_state(self.optimizer, names), "optimizer/")
        if self.average:
            reader.read_into(self.average.tensors, "average/")
        state = reader.state
        self.step, self.attempt = state["step"], state["attempt"]
        self.seen, self.best = state["seen"], state["best"]
        self.since_best = state["since_best"]
        self.guard.load(state["guard"])
        positions, sums = state["positions"], state["sums"]
        if len(positions) == dist.world_size():
            self.position = positions[dist.rank()]
            self.sums.load(sums[dist.rank()])
        elif all(p == positions[0] for p in positions):
            self.position = positions[0]
            self.sums.load(log.totals(sums) if dist.is_main() else {})
        else:
            raise ValueError(
                f"{reader.path}: found {len(positions)} ranks at different places of the data, "
                f"want the same number of ranks to resume, not {dist.world_size()}"
            )

    def export_state(self, which: str = "last") -> dict[str, Tensor]:
        """Full weights and buffers on the CPU (a collective): averaged, if an average is kept.

        which: "last", or "best" to read those of the best validation.
        """
        if which == "best" and self.best and int(self.best["step"]) != self.step:
            return checkpoint.read_weights(self.folder / f"step_{int(self.best['step'])}")
        with self.average.in_place() if self.average else nullcontext():
            state = self.objective.state_dict()
            return {k: parallel.whole(v).cpu().clone() for k, v in state.items()}

    # --- signals and time -------------------------------------------------------------------

    def _catch_signals(self) -> dict[int, Any]:
        """SIGTERM and SIGINT end the run behind the current update; again, later, at once."""
        first = math.inf

        def note(number: int, _: Any) -> None:
            nonlocal first
            # A launcher passes on what the terminal has sent already: that is no second one.
            if time.monotonic() > first + 2.0:
                raise KeyboardInterrupt
            first = min(first, time.monotonic())
            self.signal = number

        try:
            return {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread, where signals do not arrive
            return {}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
