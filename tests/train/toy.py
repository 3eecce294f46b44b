"""A small objective on generated waves, and a program that trains it; for tests in subprocesses.

`python toy.py OUTPUT [field=value ...]` trains a `ToyObjective`; under torchrun on many ranks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.contract import Batch, Loss, Objective, Update

WIDTH, HOP, CLASSES = 8, 40, 5


class ToyEncoder(nn.Module):
    def __init__(self, layers: int = 2, dropout: float = 0.0, layerdrop: float = 0.0) -> None:
        super().__init__()
        self.front = nn.Linear(HOP, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(dropout))
            for _ in range(layers)
        )
        self.layerdrop = layerdrop

    def forward(self, wave: Tensor) -> Tensor:
        x = self.front(wave.unfold(1, HOP, HOP))
        for layer in self.layers:
            if self.training and torch.rand(()) < self.layerdrop:
                continue
            x = x + layer(x)
        return x


class ToyObjective(Objective):
    """Predict each frame's label; loss summed over valid frames."""

    def __init__(self, **options: float) -> None:
        super().__init__()
        self.encoder = ToyEncoder(**options)
        self.project = nn.Linear(WIDTH, CLASSES)

    def forward(self, batch: Batch) -> Loss:
        logits = self.project(self.encoder(batch.wave)).float()
        label = batch.targets["label"]
        total = F.cross_entropy(
            logits.flatten(0, 1), label.flatten(), ignore_index=-100, reduction="sum"
        )
        count = (label != -100).sum()
        hits = (logits.argmax(-1) == label).sum()
        return Loss(total, count, {"accuracy": (hits, count)})


def utterance(number: int) -> tuple[Tensor, Tensor]:
    """Wave and frame labels of utterance `number`: a label is a tone's pitch."""
    generator = torch.Generator().manual_seed(number)
    frames = 5 + number % 7
    label = torch.randint(CLASSES, (frames,), generator=generator)
    phase = torch.arange(frames * HOP) / HOP
    wave = torch.sin(phase * (1 + label.repeat_interleave(HOP)) * 2)
    return wave + 0.1 * torch.randn(frames * HOP, generator=generator), label


def collate(numbers: list[int], pad_frames: int = 0) -> Batch:
    items = [utterance(n) for n in numbers]
    frames = max(len(label) for _, label in items) + pad_frames
    wave = torch.zeros(len(items), frames * HOP)
    label = torch.full((len(items), frames), -100)
    for i, (w, y) in enumerate(items):
        wave[i, : len(w)], label[i, : len(y)] = w, y
    lengths = torch.tensor([len(w) for w, _ in items])
    ids = tuple(f"utt{n}" for n in numbers)
    return Batch(wave, lengths, {"label": label}, {}, torch.tensor(numbers), ids)


class ToySource:
    """Updates of `size` utterances, cut into `parts` micro-batches per rank."""

    def __init__(
        self, size: int = 8, parts: int = 1, rank: int = 0, world: int = 1, corpus: int = 40
    ) -> None:
        self.size, self.parts, self.rank, self.world = size, parts, rank, world
        self.corpus = corpus

    def _numbers(self, update: int) -> list[int]:
        generator = torch.Generator().manual_seed(update)
        return torch.randperm(self.corpus, generator=generator)[: self.size].tolist()

    def updates(self, position: Mapping[str, int] | None = None) -> Iterator[Update]:
        number = position["update"] if position else 0
        while True:
            mine = self._numbers(number)[self.rank :: self.world]
            batches = [collate(mine[i :: self.parts]) for i in range(self.parts)]
            number += 1
            yield Update(tuple(batches), {"update": number, "epoch": number // 5})

    def one_pass(self) -> Iterator[Batch]:
        numbers = list(range(100, 112))[self.rank :: self.world]
        yield collate(numbers[:2])
        yield collate(numbers[2:])


def main() -> None:
    from speechssl import dist
    from speechssl.train.config import TrainConfig
    from speechssl.train.trainer import Trainer

    output = Path(sys.argv[1])
    options = {k: json.loads(v) for k, v in (x.split("=", 1) for x in sys.argv[2:])}
    model = {k: options.pop(k) for k in ("layers", "dropout", "layerdrop") if k in options}
    parts = options.pop("parts", 1)
    torch.manual_seed(0)
    dist.init("cpu")
    source = ToySource(parts=parts, rank=dist.rank(), world=dist.world_size())
    config = TrainConfig(**{"device": "cpu", "tensorboard": False, "learning_rate": 0.01} | options)
    trainer = Trainer(config, ToyObjective(**model), source, source, output)
    result = trainer.fit()
    state = trainer.export_state()
    if dist.is_main():
        from safetensors.torch import save_file

        save_file(state, output / "weights.safetensors")
    dist.shutdown()
    sys.exit(0 if result.finished else 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
