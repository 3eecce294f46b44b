"""Every objective there is, built small. A new one joins by existing: its config class is found
below `speechssl.objectives`; one that needs other arguments than DEFAULTS adds a line to SMALL."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SPEAKERS, TOPICS, VOCABULARY, make_batch, some

import speechssl.objectives
from speechssl.config import ObjectiveConfig
from speechssl.contract import Batch, Objective, Update
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.encoders.units import UnitTransformerConfig
from speechssl.encoders.vq_conv import VqConvConfig
from speechssl.train.config import TrainConfig
from speechssl.train.trainer import Trainer

CLASSES = {"km": 8}
ENCODER = TransformerConfig(
    front_end="log_mel",
    front_norm="layer",
    front_dim=32,
    layers=2,
    dim=32,
    ffn_dim=64,
    heads=4,
    pos_conv_kernel=16,
    pos_conv_groups=4,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layerdrop=0.0,
)
MULTIRES = MultiresConfig(
    **{k: v for k, v in vars(ENCODER).items() if k in {f.name for f in fields(MultiresConfig)}},
    stacks=(1, 1, 1),
)
_FRONT = {"front_end": "log_mel", "front_norm": "layer", "front_dim": 32, "layerdrop": 0.0}
VQ = VqConvConfig(**_FRONT, layers=2, dim=32, codes=8)
UNITS = UnitTransformerConfig(
    **({k: getattr(ENCODER, k) for k in vars(ENCODER)} | {"conv_gradient_scale": 0.0}),
    vocabulary=65,
    codes=8,
    quantised_dim=32,
)
DEFAULTS: dict[str, Any] = {"encoder": ENCODER, "classes": CLASSES, "final_dim": 32}
SMALL: dict[str, dict[str, Any]] = {
    "BestRQConfig": {"codes": 16, "codebooks": 2},
    "ContentVecConfig": {
        "contrast_layer": 1,
        "contrast_growth": 0.1,
        "negatives": 10,
        "speaker_layers": 1,
        "speaker_heads": 4,
        "speaker_ffn_dim": 64,
        "speaker_dropout": 0.0,
        "speaker_dim": 8,
        "speakers": SPEAKERS,
    },
    "Data2vec2Config": {
        "target_layers": 2,
        "masks": 3,
        "decoder_dim": 24,
        "decoder_groups": 4,
        "decoder_dropout": 0.0,
    },
    "Data2vecAqcConfig": {"target_layers": 2, "codes": 8, "negatives": 10, "cluster_frames": 8},
    "Data2vecConfig": {"target_layers": 2},
    "DinoSRConfig": {"target_layers": 2, "codes": 16},
    "DiscreteBertConfig": {"encoder": UNITS},
    "HubertopicConfig": {"topics": TOPICS, "topic_layer": 1, "topic_pooling": "token"},
    "IlsConfig": {"supervised_layers": (1,)},
    "MrHubertConfig": {"encoder": MULTIRES},
    "MrHubertopicConfig": {"encoder": MULTIRES, "topics": TOPICS, "topic_layer": 2},
    "NfaConfig": {"factors": 4, "factor_layer": 1},
    "SylberConfig": {"merge_threshold": (0.0, 0.3)},
    "UniSpeechConfig": {
        "vocab_size": VOCABULARY,
        "codes": 8,
        "negatives": 10,
        "final_dropout": 0.0,
    },
    "UniSpeechSatConfig": {"utterance_layer": 1, "codes": 8, "instances": 20},
    "VqWav2vecConfig": {"encoder": VQ},
    "W2vBertConfig": {
        "contrastive_layer": 1,
        "codes": 8,
        "negatives": 10,
        "quantiser_dropout": 0.0,
    },
    "Wav2vec2Config": {"codes": 8, "negatives": 10, "quantiser_dropout": 0.0},
    "Wav2vecAugConfig": {
        "codes": 8,
        "negatives": 10,
        "quantiser_dropout": 0.0,
        "projection_dim": 32,
    },
}
"""Config class name -> further arguments for a small one."""
FIXED_DEPTH: set[str] = {"W2vBertConfig"}
"""Objectives that refuse an encoder that drops layers."""
APART: dict[str, dict[str, Any]] = {"UniSpeechSatConfig": {"utterance_weight": 0.0}}
"""Objectives with a term between the utterances of a micro-batch, by design -> what leaves it out:
the rest is a sum over utterances."""


def _one_code(quantiser: Any) -> None:
    quantiser.logits.bias[:: quantiser.codes] = 1e4


COLLAPSE: dict[str, Callable[[Any], Any]] = {
    "BestRQConfig": lambda o: o.quantiser.projection.zero_(),
    "Data2vec2Config": lambda o: o.head.weight.zero_(),
    "Data2vecAqcConfig": lambda o: o.head.weight.zero_(),
    "Data2vecConfig": lambda o: o.head.weight.zero_(),
    "DinoSRConfig": lambda o: o.codebooks.sums[:, 1:].fill_(1e6),
    "DiscreteBertConfig": lambda o: o.encoder.unit_of.fill_(3),
    "IlsConfig": lambda o: o.inner_heads[0]["km"].project.weight.zero_(),
    "SylberConfig": lambda o: o.norms.add_(1e4),
    "TeraConfig": lambda o: o.head[-1].weight.zero_(),
    "UniSpeechConfig": lambda o: _one_code(o.quantiser),
    "UniSpeechSatConfig": lambda o: _one_code(o.quantiser),
    "VqWav2vecConfig": lambda o: _one_code(o.encoder.projection.quantiser),
    "W2vBertConfig": lambda o: _one_code(o.quantiser),
    "Wav2vec2Config": lambda o: _one_code(o.quantiser),
    "Wav2vecAugConfig": lambda o: _one_code(o.quantiser),
}
"""How to collapse each objective that detects it: all that has the option collapse_after."""


def _found() -> list[type[ObjectiveConfig]]:
    found = []
    for info in pkgutil.iter_modules(speechssl.objectives.__path__):
        module = importlib.import_module(f"speechssl.objectives.{info.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, ObjectiveConfig)
                and value is not ObjectiveConfig
                and value.__module__ == module.__name__
            ):
                found.append(value)
    return found


FOUND = _found()
every = pytest.mark.parametrize("kind", FOUND, ids=lambda k: k.__name__)


def build(kind: type[ObjectiveConfig], **changes: Any) -> Objective:
    torch.manual_seed(1)
    names = {f.name for f in dataclasses.fields(kind)}
    given = {k: v for k, v in DEFAULTS.items() if k in names}
    return kind(**(given | SMALL.get(kind.__name__, {}) | changes)).build()


def apart(kind: type[ObjectiveConfig]) -> dict[str, Any]:
    return APART.get(kind.__name__, {})


def batch_for(objective: Objective, seconds: tuple[float, ...] = (1.3, 0.81, 2.005)) -> Batch:
    # Whole tenths of a second would all end at the same share of an encoder's step.
    return make_batch(objective.encoder, seconds, CLASSES, views=["mixed"])


def trained(model: Any, updates: int = 3) -> dict[str, torch.Tensor]:
    """The model's state behind some updates."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(updates):
        optimiser.zero_grad()
        loss = model(batch_for(model))
        (loss.total / loss.count).backward()
        optimiser.step()
        model.after_update(step + 1)
    return {k: v.clone() for k, v in model.state_dict().items()}


class NoiseSource:
    """Updates of four noise utterances, cut into `parts` micro-batches, over `world` ranks."""

    def __init__(self, objective: Objective, parts: int = 1, rank: int = 0, world: int = 1) -> None:
        self.encoder = objective.encoder
        self.parts, self.rank, self.world = parts, rank, world

    def updates(self, position: Mapping[str, int] | None = None) -> Iterator[Update]:
        number = position["update"] if position else 0
        while True:
            number += 1
            whole = self.batch(number * 10)
            mine = range(self.rank * self.parts, (self.rank + 1) * self.parts)
            pieces = self.parts * self.world
            batches = [whole] if pieces == 1 else [piece(whole, i, pieces) for i in mine]
            yield Update(tuple(batches), {"update": number, "epoch": 0})

    def one_pass(self) -> Iterator[Batch]:
        yield self.batch(5)

    def batch(self, seed: int) -> Batch:
        return make_batch(self.encoder, (0.5, 0.9, 0.7, 0.6), CLASSES, seed=seed, views=["mixed"])


def piece(batch: Batch, i: int, pieces: int) -> Batch:
    """Utterances i, i + pieces, ... of `batch`, with no more padding than they need."""
    return some(batch, list(range(i, len(batch), pieces)))


def trainer(
    kind: type[ObjectiveConfig],
    output: Path,
    *,
    parts: int = 1,
    rank: int = 0,
    world: int = 1,
    encoder: dict[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    valid: bool = True,
    **options: Any,
) -> Trainer:
    base = SMALL.get(kind.__name__, {}).get("encoder", ENCODER)
    given = {"encoder": dataclasses.replace(base, **encoder)} if encoder else {}
    objective = build(kind, **given, **(changes or {}))
    source = NoiseSource(objective, parts, rank, world)
    short = {"device": "cpu", "tensorboard": False, "learning_rate": 1e-3, "warmup_fraction": 0.0,
             "schedule": "constant", "log_every": 1, "valid_every": 2}  # fmt: skip
    config = TrainConfig(**(short | options))
    return Trainer(config, objective, source, source if valid else None, output)
