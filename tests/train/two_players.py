"""A small objective with critics, and a program that trains it; for tests in subprocesses.

`python two_players.py OUTPUT` trains it for some updates; under torchrun on many ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from toy import ToyObjective, ToySource

from speechssl.contract import Batch, Loss


class TwoPlayers(ToyObjective):
    """The toy, whose logits moreover are to look to a critic as one-hot labels do."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        self.broken = broken
        self.fixed: list[bool] = []

    def forward(self, batch: Batch) -> Loss:
        loss = super().forward(batch)
        if self.training:
            self.fixed.append(not any(p.requires_grad for p in self.critic.parameters()))
        fake = self.project(self.encoder(batch.wave)).softmax(-1)
        scores = self.critic(fake)[..., 0][batch.targets["label"] != -100]
        return Loss(loss.total - 0.1 * scores.sum(), loss.count, loss.logs)

    def critic_loss(self, batch: Batch) -> Loss:
        label = batch.targets["label"]
        with torch.no_grad():
            fake = self.project(self.encoder(batch.wave)).softmax(-1)
        real = nn.functional.one_hot(label.clamp(min=0), 5).float()
        scores = (self.critic(fake) - self.critic(real))[..., 0][label != -100]
        total = (scores + scores.square()).sum() * (torch.nan if self.broken else 1)
        return Loss(total, (label != -100).sum(), {})


def main() -> None:
    from safetensors.torch import save_file

    from speechssl import dist
    from speechssl.train.adversarial import AdversarialTrainer
    from speechssl.train.config import TrainConfig

    output = Path(sys.argv[1])
    torch.manual_seed(0)
    dist.init("cpu")
    source = ToySource(rank=dist.rank(), world=dist.world_size())
    config = TrainConfig(device="cpu", tensorboard=False, learning_rate=0.01, steps=6, log_every=2)
    trainer = AdversarialTrainer(config, TwoPlayers(), source, None, output)
    trainer.fit()
    state = trainer.export_state()
    if dist.is_main():
        save_file(state, output / "weights.safetensors")
    dist.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
