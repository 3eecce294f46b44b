"""Small heads of further tasks, and batches for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from utterance_heads import ENCODER, batch

from speechssl.contract import Batch, Encoder
from speechssl.heads.diarize import DiarizeConfig
from speechssl.heads.frames import FramesConfig, FramesHead
from speechssl.heads.pronounce import PronounceConfig
from speechssl.heads.regress import RegressConfig
from speechssl.heads.separate import SeparateConfig
from speechssl.heads.slots import SlotsConfig

SLOTS = {"slots": ["a", "b"], "values": [["x", "y", "z"], ["none", "p"]]}
NUMBERS = {"dimensions": ["a", "b"], "lows": [0.0, -5.0], "highs": [1.0, 5.0],
           "means": [0.4, 1.0], "deviations": [0.2, 2.0]}  # fmt: skip

KINDS: list[tuple[type[FramesConfig], dict[str, Any]]] = [
    (DiarizeConfig, {"hidden_dim": 16}),
    (DiarizeConfig, {"hidden_dim": 12, "speakers": 3, "bidirectional": True, "layer": -1}),
    (SlotsConfig, {**SLOTS, "projection_dim": 12}),
    (RegressConfig, {**NUMBERS, "projection_dim": 12, "pooling": "mean_std"}),
    (RegressConfig, {**NUMBERS, "projection_dim": 0, "loss": "mse"}),
    (RegressConfig, {**NUMBERS, "projection_dim": 16, "pooling": "transformer"}),
    (PronounceConfig, {"phones": ["a", "b", "c"], "hidden_dim": 12}),
    (PronounceConfig, {"phones": ["a", "b"], "grades": 3, "layer": -1}),
    (SeparateConfig, {"hidden_dim": 12, "hidden_layers": 1}),
    (SeparateConfig, {"hidden_dim": 12, "dropout": 0.0, "hidden_layers": 2, "sources": 2}),
]


def kind_name(kind: tuple[type[FramesConfig], dict[str, Any]]) -> str:
    options = [f"{k}={v}" for k, v in kind[1].items() if not isinstance(v, list)]
    return "-".join([kind[0].__name__.removesuffix("Config"), *options])


def build(
    kind: tuple[type[FramesConfig], dict[str, Any]], encoder: Encoder | None = None, **changes: Any
) -> FramesHead:
    """A head that trains its encoder too, unless `changes` say otherwise."""
    torch.manual_seed(3)
    config = kind[0](**({"freeze_encoder_steps": 0} | kind[1] | changes))
    return config.build(ENCODER.build() if encoder is None else encoder)  # pyright: ignore


def task_batch(head: FramesHead) -> Batch:
    """Targets of every task for utterances of different lengths; -100 behind their frames."""
    data = batch()
    random = torch.Generator().manual_seed(9)
    frames = -(-data.wave_lengths // head.encoder.hop_samples)
    speakers = getattr(head.config, "speakers", 2)
    activity = torch.randint(2**speakers, (3, int(frames.max())), generator=random)
    behind = torch.arange(activity.shape[1])[None] >= frames[:, None]
    # Two phones of three, or none; every fifth frame has none.
    asked = torch.arange(activity.shape[1]).expand(3, -1) % 5 // 2
    asked = asked + (asked == 2) * (len(getattr(head.config, "phones", "")) - 2)
    said = torch.randint(getattr(head.config, "grades", 2), asked.shape, generator=random)
    targets = {
        "activity": activity.masked_fill(behind, -100),
        "asked": asked.masked_fill(behind, -100),
        "said": said.masked_fill(behind, -100),
        "slots": torch.tensor([[0, 1], [2, 0], [1, 1]]),
        "values": torch.tensor([[60000, 10000], [20000, 30000], [100, 65535]]),
    }
    added = 0.5 * torch.randn(data.wave.shape, generator=random)
    beyond = torch.arange(data.wave.shape[1])[None] >= data.wave_lengths[:, None]
    mixed = data.wave + added.masked_fill(beyond, 0)
    return dataclasses.replace(data, targets=targets, views={"mixed": mixed})


def one(whole: Batch, i: int) -> Batch:
    length = int(whole.wave_lengths[i])
    return dataclasses.replace(
        whole,
        wave=whole.wave[i : i + 1, :length],
        wave_lengths=whole.wave_lengths[i : i + 1],
        targets={k: v[i : i + 1] for k, v in whole.targets.items()},
        views={k: v[i : i + 1, :length] for k, v in whole.views.items()},
        seeds=whole.seeds[i : i + 1],
        ids=whole.ids[i : i + 1],
    )
