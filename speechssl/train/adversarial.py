"""The trainer's loop with a second player: an objective whose critics learn between its updates.

Each update first teaches the critics on the update's batches, the rest of the model as it is;
then, the critics fixed, it is the trainer's own. One optimiser holds both players' state under
their names, and parameters without a gradient take no step, so checkpoints, exact resume, ranks
and schedules are the trainer's.

Source: Goodfellow et al. 2014, "Generative Adversarial Nets", algorithm 1 with k = 1; the critics
first, as HiFi-GAN's and Vocos' training has it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from speechssl import dist
from speechssl.contract import Batch, BatchSource, Loss, Objective, Update
from speechssl.train import log, optim, parallel
from speechssl.train.config import TrainConfig
from speechssl.train.precision import autocast
from speechssl.train.schedule import rate_scale
from speechssl.train.trainer import Trainer, seed_all

CRITIC = 0xC417
"""Tells the seeds of the critics' passes from those of the others."""


class Adversarial(Protocol):
    """What an objective must have besides `forward`, in which `critic` is fixed."""

    critic: nn.Module

    def critic_loss(self, batch: Batch) -> Loss:
        """What the critics minimise; its gradient reaches `critic` alone."""
        ...


class AdversarialTrainer(Trainer):
    """Train an `Adversarial` objective; the critics' figures are logged as `critic_*`.

    An update whose critic loss or gradient is not finite is made without their step.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        train: BatchSource,
        valid: BatchSource | None,
        output: str | Path,
    ) -> None:
        if not isinstance(getattr(objective, "critic", None), nn.Module):
            raise ValueError(
                f"objective: found {type(objective).__name__} without critics, want one that has "
                "them, or the plain trainer"
            )
        super().__init__(config, objective, train, valid, output)
        if self.parallel == "fsdp2":
            raise ValueError(
                "train.parallel: found fsdp2, want replicated: the two players are not sharded"
            )
        self.player = cast(Adversarial, objective)
        self.critic_parameters = list(self.player.critic.parameters())

    def _update(self, update: Update) -> bool:
        sums = self._teach_critics(update)
        self.player.critic.requires_grad_(False)
        try:
            sound = super()._update(update)
        finally:
            self.player.critic.requires_grad_(True)
        if sound:
            self.sums.merge(sums)
        return sound

    def _teach_critics(self, update: Update) -> log.Sums:
        """One step of the critics; their figures, by the names they are logged with."""
        config, state = self.config, self.state
        self.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = log.Sums(self.device)
        for i, batch in enumerate(update.batches):
            if batch.filler:
                continue
            seed_all(config.seed, state.attempt, i, dist.rank(), CRITIC)
            with autocast(config.precision, self.device.type):
                loss = self.player.critic_loss(batch.to(self.device))
            loss.total.backward()
            sums.add(loss)
        pair = sums.pairs.get("loss", torch.zeros(2, dtype=torch.float64, device=self.device))
        total, count = dist.all_reduce_sum(pair.clone())
        if self.parallel == "replicated":
            parallel.sum_gradients(self.critic_parameters)
        norm = parallel.scale_and_clip(
            self.critic_parameters, 1 / count.clamp(min=1e-9), config.clip_norm, False
        )
        if math.isfinite(total.item()) and math.isfinite(norm.item()):
            rate = config.learning_rate * rate_scale(config, state.step + 1)
            optim.set_rate(self.optimizer, rate)
            self.optimizer.step()
        sums.pairs = {f"critic_{name}": pair for name, pair in sums.pairs.items()}
        return sums
