"""Small heads of whole utterances on small encoders, and batches for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from speechssl.contract import Batch, Encoder
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.classify import ClassifyConfig
from speechssl.heads.speaker import SpeakerConfig
from speechssl.heads.utterance import UtteranceConfig, UtteranceHead

CLASSES = ["a", "b", "c", "d"]
ENCODER = TransformerConfig(
    front_end="log_mel", front_norm="layer", front_dim=32, layers=2, dim=32, ffn_dim=64, heads=4,
    pos_conv_kernel=16, pos_conv_groups=4, dropout=0.0, attention_dropout=0.0, input_dropout=0.0,
    layerdrop=0.0, conv_gradient_scale=1.0,
)  # fmt: skip
SMALL: dict[type[UtteranceConfig], dict[str, Any]] = {
    ClassifyConfig: {"projection_dim": 24, "attention_dim": 8, "hidden_dim": 20,
                     "pooling_channels": 16, "pooling_dim": 12},
    SpeakerConfig: {"channels": 16, "embedding_dim": 12, "attention_dim": 8},
}  # fmt: skip
KINDS: list[tuple[type[UtteranceConfig], dict[str, Any]]] = [
    (ClassifyConfig, {}),
    (ClassifyConfig, {"normalise_layers": False, "projection_dim": 0}),
    (ClassifyConfig, {"layer": -1, "pooling": "mean_std"}),
    (ClassifyConfig, {"pooling": "attentive", "hidden_layers": 2}),
    (ClassifyConfig, {"pooling": "ecapa"}),
    (ClassifyConfig, {"pooling": "transformer", "hidden_layers": 1}),
    (ClassifyConfig, {"balanced": True, "class_counts": [9, 3, 1, 7]}),
    (ClassifyConfig, {"interface": "grouped", "groups": 4}),
    (ClassifyConfig, {"interface": "concat", "projection_dim": 0}),
    (ClassifyConfig, {"interface": "convolution", "normalise_layers": False}),
    (SpeakerConfig, {"network": "pooled"}),
    (SpeakerConfig, {"network": "xvector", "sub_centres": 3}),
    (SpeakerConfig, {"network": "ecapa", "interface": "convolution"}),
    (SpeakerConfig, {"network": "ecapa", "layer": 1, "margin": 0.0}),
    (SpeakerConfig, {"network": "pooled", "prefixes": [4], "sub_centres": 2}),
    (ClassifyConfig, {"prefixes": [3, 8]}),
]
"""Every kind of head, by class and options."""


def kind_name(kind: tuple[type[UtteranceConfig], dict[str, Any]]) -> str:
    options = [f"{k}={v}" for k, v in kind[1].items()]
    return "-".join([kind[0].__name__.removesuffix("Config"), *options])


def build(
    kind: tuple[type[UtteranceConfig], dict[str, Any]],
    encoder: Encoder | None = None,
    **changes: Any,
) -> UtteranceHead:
    """A head that trains its encoder too, unless `changes` say otherwise."""
    torch.manual_seed(3)
    given = {"field": "x", "classes": CLASSES, "freeze_encoder_steps": 0}
    config = kind[0](**(given | SMALL[kind[0]] | kind[1] | changes))
    return config.build(ENCODER.build() if encoder is None else encoder)


def batch(seconds: Sequence[float] = (1.0, 0.6, 1.4), seed: int = 0) -> Batch:
    waves = []
    for i, s in enumerate(seconds):
        random = torch.Generator().manual_seed(100 * seed + i)
        waves.append(torch.randn(int(16000 * s), generator=random))
    return Batch(
        wave=torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        wave_lengths=torch.tensor([len(w) for w in waves]),
        targets={"classes": torch.arange(len(waves)) % len(CLASSES)},
        views={},
        seeds=torch.arange(len(waves)),
        ids=tuple(f"u{i}" for i in range(len(waves))),
    )


def one(whole: Batch, i: int) -> Batch:
    length = int(whole.wave_lengths[i])
    return dataclasses.replace(
        whole,
        wave=whole.wave[i : i + 1, :length],
        wave_lengths=whole.wave_lengths[i : i + 1],
        targets={"classes": whole.targets["classes"][i : i + 1]},
        seeds=whole.seeds[i : i + 1],
        ids=whole.ids[i : i + 1],
    )
