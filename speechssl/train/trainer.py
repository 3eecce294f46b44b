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
import math
import os
import random
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
from speechssl.train.front_rank import FrontRank
from speechssl.train.guard import Guard
from speechssl.train.journal import Journal
from speechssl.train.precision import autocast
from speechssl.train.run_state import RunState, Signals
from speechssl.train.schedule import ema_decay, last_constant_step, rate_scale

VALIDATION = 0xA11
"""Stands for the update's number in the seeds of validation."""


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
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))
    torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


class Trainer:
    """Train `objective` on `train` in the folder `output`; resume what lies there.

    front_rank: validation also reports the effective rank of the front end's frames.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        train: BatchSource,
        valid: BatchSource | None,
        output: str | Path,
        *,
        front_rank: bool = False,
    ) -> None:
        self.config = config
        self.objective = objective
        self.train = train
        self.valid = valid
        self.output = Path(output)
        self.front_rank = front_rank
        self.device = dist.init(config.device)
        if config.deterministic:
            # cuBLAS reads it when its first handle is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
        self.state = RunState()
        self.journal = Journal(config, self.output)
        self.signals = Signals()
        self.last: dict[str, float] = {}
        self.stopping = False
        self.save_failed = False

    # --- the loop ---------------------------------------------------------------------------

    def fit(self) -> FitResult:
        """Train to the last step, or to a signal; both end with a checkpoint. Of no steps at all:
        validate and save what was built."""
        resumed = self.resume()
        self.journal.open(self.state.step)
        try:
            with self.signals:
                if not self.config.steps and not resumed:
                    if self.valid:
                        self._validate_and_judge()
                    self._save(final=True)
                self._loop()
        finally:
            self.journal.close()
        finished = self.state.step >= self.config.steps or not self.stopping
        signal = 0 if finished else self.signals.number
        return FitResult(self.state.step, finished, self.state.best, signal)

    def _loop(self) -> None:
        config, state = self.config, self.state
        updates = self.train.updates(state.position)
        clock = log.Clock()
        stopped = self._stale()
        while state.step < config.steps and not stopped:
            update = self._next(updates)
            if update is None:
                return self._save(final=True)
            clock.loaded()
            sound = self._update(update)
            clock.updated(update)
            if not sound:
                continue
            self.journal.tick()
            last = state.step == config.steps
            if last or _due(state.step, config.log_every):
                self.journal.write(self._train_line(clock))
            better = False
            if self.valid and (last or _due(state.step, config.valid_every)):
                better = self._validate_and_judge()
                clock = log.Clock()
            stopped = self.stopping or self._stale()
            every = config.log_every if self.save_failed else config.save_every
            turning = state.step == last_constant_step(config)
            if last or stopped or better or turning or _due(state.step, every):
                self._save(final=last or stopped)

    def _update(self, update: Update) -> bool:
        """One optimiser update; False if it was refused."""
        state, config = self.state, self.config
        self.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = log.Sums(self.device)
        for i, batch in enumerate(update.batches):
            seed_all(config.seed, state.attempt, i, dist.rank())
            self._accumulate(batch, sums)
        state.attempt += 1
        state.position = dict(update.position)
        loss, count, norm = self._normalise(update, sums)
        fault = self.guard.fault(loss, norm, count)
        if fault:
            self.optimizer.zero_grad(set_to_none=True)
            self.journal.refuse(update, state.step + 1, state.attempt, fault, self.guard)
            return False
        rate = config.learning_rate * rate_scale(config, state.step + 1)
        optim.set_rate(self.optimizer, rate)
        self.optimizer.step()
        state.step += 1
        self.objective.after_update(state.step)
        if self.average and config.ema_decay:
            self.average.update(ema_decay(config.ema_decay, state.step))
        self.sums.merge(sums)
        self.last = {"lr": rate, "grad_norm": norm}
        return True

    def _accumulate(self, batch: Batch, sums: log.Sums) -> None:
        if batch.filler and dist.world_size() == 1:
            return
        with autocast(self.config.precision, self.device.type):
            loss = self.objective(batch.to(self.device))
        if batch.filler:
            # Ranks must make equal numbers of passes; this one weighs nothing.
            if loss.total.requires_grad:
                (torch.nan_to_num(loss.total) * 0.0).backward()
            return
        if loss.total.requires_grad:
            loss.total.backward()
        sums.add(loss)

    def _normalise(self, update: Update, sums: log.Sums) -> tuple[float, float, float]:
        """Sum gradients over ranks, divide by the global count, clip: (loss, count, norm).

        All that ranks must agree on travels in one sum, and is read from the device once.
        """
        pair = sums.pairs.get("loss", torch.zeros(2, dtype=torch.float64, device=self.device))
        own = [*self._audio(update), len(update.skipped), bool(self.signals.number)]
        agreed = dist.all_reduce_sum(torch.cat([pair, pair.new_tensor(own)]))
        if self.parallel == "replicated":
            parallel.sum_gradients(self.parameters)
        norm = parallel.scale_and_clip(
            self.parameters,
            1 / agreed[1].clamp(min=1e-9),
            self.config.clip_norm,
            self.parallel == "fsdp2",
        )
        figures = torch.cat([agreed, norm.double().reshape(1)]).tolist()
        total, count, utterances, seconds, skipped, signalled, last_norm = figures
        seen = self.state.seen
        seen["utterances"] += utterances
        seen["audio_seconds"] += seconds
        seen["skipped"] += skipped
        # Any rank's signal stops all of them, behind the same update.
        self.stopping = self.stopping or signalled > 0
        self.journal.note_skips(self.state.step + 1, update)
        self.journal.judge_skips(seen)
        return (total / count if count else math.nan), count, last_norm

    def _audio(self, update: Update) -> tuple[float, float]:
        """Utterances and seconds of this rank's share."""
        rate = getattr(self.objective.encoder, "sample_rate_hz", 16000)
        real = [b for b in update.batches if not b.filler]
        samples = sum(int(b.wave_lengths.sum()) for b in real)
        return float(sum(len(b) for b in real)), samples / rate

    def _next(self, updates: Iterator[Update]) -> Update | None:
        """The next update; None if a signal to this only process took its readers down too."""
        try:
            return next(updates)
        except StopIteration:
            raise ValueError(
                "data: the training source ended, want an endless one; is the training set empty?"
            ) from None
        except RuntimeError:
            if not self.signals.number or dist.world_size() > 1:
                raise
            self.stopping = True
            return None

    def _train_line(self, clock: log.Clock) -> dict[str, Any]:
        averages = log.means(dist.gather_objects(self.sums.values()))
        self.sums.pairs = {}
        self.journal.write_skips()
        line: dict[str, Any] = {"step": self.state.step, "split": "train"}
        if self.state.position and "epoch" in self.state.position:
            line["epoch"] = self.state.position["epoch"]
        return line | averages | self.last | self.state.seen | clock.read(self.device)

    # --- validation -------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means of loss and logs over one pass, with the averaged weights if there are any."""
        assert self.valid is not None
        self.objective.eval()
        sums, rank = log.Sums(self.device), FrontRank(self.device)
        watched = rank.watch(self.objective.encoder) if self.front_rank else nullcontext()
        with watched, self.average.in_place() if self.average else nullcontext():
            for i, (batch, counts) in enumerate(self._even(self.valid.one_pass())):
                if batch.filler and self.parallel != "fsdp2":
                    continue
                seed_all(self.config.seed, VALIDATION, i, dist.rank())
                rank.paused = batch.filler or not counts
                with autocast(self.config.precision, self.device.type):
                    loss = self.objective(batch.to(self.device))
                if counts and not batch.filler:
                    sums.add(loss)
        self.objective.train()
        figures = log.means(dist.gather_objects(sums.values()))
        if not figures:
            raise ValueError("validation: nothing was scored; is the validation set empty?")
        return {**self.objective.summary(figures), **(rank.figures() if self.front_rank else {})}

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

    def _validate_and_judge(self) -> bool:
        """Validate; whether it is among the best so far that are kept."""
        line = {"step": self.state.step, "split": "valid", **self.validate()}
        self.journal.write(line)
        name = self.config.best_metric
        if name not in line:
            known = ", ".join(k for k in line if k not in ("step", "split"))
            raise ValueError(f"train.best_metric: found {name!r}, want one of: {known}")
        return self.state.judge(float(line[name]), self.config.best_is, self.config.keep_best)

    def _stale(self) -> bool:
        return 0 < self.config.stop_after <= self.state.since_best

    # --- checkpoints ------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.output / "checkpoints"

    def save(self) -> None:
        """Write a checkpoint of this step and delete those that retention does not keep.

        Raises `checkpoint.CheckpointNotWritten` (a full disk); the older ones stay.
        """
        self.journal.write_skips()
        tensors = {f"model/{k}": v for k, v in self.objective.state_dict().items()}
        optimizer = optim.optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer/{k}": v for k, v in optimizer.items()}
        if self.average:
            tensors |= {f"average/{k}": v for k, v in self.average.tensors.items()}
        state = self.state.gather(self.sums) | {"guard": self.guard.state()}
        checkpoint.save(self.folder, self.state.step, tensors, state)
        if dist.is_main():
            best = [self.state.best] if self.state.best else []
            kept = {int(x["step"]) for x in [*best, *self.state.leaders]}
            before_anneal = last_constant_step(self.config)
            checkpoint.retain(self.folder, self.config.keep_checkpoints, *kept, before_anneal)

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

    def resume(self) -> bool:
        """Continue from the newest checkpoint of `output`; whether there is one."""
        if dist.is_main():
            self.output.mkdir(parents=True, exist_ok=True)
            checkpoint.sweep(self.folder)
        dist.barrier()
        found = checkpoint.steps(self.folder)
        newest = dist.broadcast_object(found[-1] if found else None)
        if newest is None:
            return False
        reader = checkpoint.Reader(self.folder / f"step_{newest}")
        reader.read_into(self.objective.state_dict(), "model/")
        names = reader.names("optimizer/")
        reader.read_into(optim.empty_optimizer_state(self.optimizer, names), "optimizer/")
        if self.average:
            reader.read_into(self.average.tensors, "average/")
        self.state = RunState.restore(reader.state, self.sums, str(reader.path))
        self.guard.load(reader.state["guard"])
        log.say(f"resuming from step {self.state.step} of {self.folder}")
        return True

    def export_state(self, which: str = "last") -> dict[str, Tensor]:
        """Full weights and buffers on the CPU (a collective): averaged, if an average is kept.

        which: "last"; "best" to read those of the best validation, if there was any; or "average",
        of the checkpoints that `train.keep_best` kept.
        """
        if which == "average":
            return checkpoint.read_average(self.folder)
        best = self.state.best
        if which == "best" and best and int(best["step"]) != self.state.step:
            return checkpoint.read_weights(self.folder / f"step_{int(best['step'])}")
        with self.average.in_place() if self.average else nullcontext():
            state = self.objective.state_dict()
            return {k: parallel.whole(v).cpu().clone() for k, v in state.items()}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
