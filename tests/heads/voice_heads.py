"""Small heads of voice conversion, and batches of two voices for them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechssl.contract import Batch, Encoder
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.voice_convnext import VoiceConvNextConfig
from speechssl.heads.voice_mel import VoiceConfig, VoiceHead
from speechssl.heads.voice_taco2ar import VoiceTaco2ArConfig

SPEAKERS = ["ann", "bob"]
ENCODER = TransformerConfig(
    front_end="log_mel", front_norm="layer", front_dim=16, layers=2, dim=16, ffn_dim=32, heads=2,
    mel_hop_samples=320, pos_conv_kernel=16, pos_conv_groups=4, dropout=0.0, attention_dropout=0.0,
    input_dropout=0.0, layerdrop=0.0, conv_gradient_scale=1.0,
)  # fmt: skip
LOG_MEL = LogMelConfig(mel_bins=20, deltas=0)
SMALL: dict[type[VoiceConfig], dict[str, Any]] = {
    VoiceConvNextConfig: {"dim": 24, "hidden_dim": 48, "blocks": 2},
    VoiceTaco2ArConfig: {
        "conv_dim": 24, "conv_layers": 2, "blstm_dim": 12, "prenet_dim": 16, "lstm_dim": 32,
        "lstm_projection": 16, "conv_dropout": 0.0, "lstm_dropout": 0.0,
    },
}  # fmt: skip
TO_ANY: dict[str, Any] = {"embeddings": "exp/x", "classes": SPEAKERS, "embedding_dim": 6}
KINDS: list[tuple[type[VoiceConfig], dict[str, Any]]] = [
    (VoiceConvNextConfig, {}),
    (VoiceConvNextConfig, TO_ANY | {"pitch": True, "energy": True}),
    (VoiceConvNextConfig, TO_ANY | {"units": 9, "unit_dim": 16, "layer": 1, "pitch": True,
                                    "normalise_layers": False, "unit_embedding_dim": 8}),
    (VoiceTaco2ArConfig, {"layer": -1, "standardise": True}),
    (VoiceTaco2ArConfig, TO_ANY | {"energy": True}),
    (VoiceConvNextConfig, {"changed_voices": 0.6, "pitch": True}),
]  # fmt: skip
"""Every kind of head, by class and options."""


def kind_name(kind: tuple[type[VoiceConfig], dict[str, Any]]) -> str:
    named = {"embeddings": "any", "pitch": "pitch", "energy": "energy", "units": "units",
             "changed_voices": "changed"}  # fmt: skip
    options = [text for k, text in named.items() if kind[1].get(k)]
    return "-".join([kind[0].__name__.removesuffix("Config"), *options])


def build(
    kind: tuple[type[VoiceConfig], dict[str, Any]],
    encoder: Encoder | None = None,
    **changes: Any,
) -> VoiceHead:
    """A head with statistics, speakers and clusters; its encoder learns unless units forbid it."""
    torch.manual_seed(3)
    learning = -1 if kind[1].get("units") else 0
    config = kind[0](**({"freeze_encoder_steps": learning} | SMALL[kind[0]] | kind[1] | changes))
    encoder = ENCODER.build() if encoder is None else encoder
    head: Any = config.build(encoder)
    random = torch.Generator().manual_seed(7)
    head.take_mel_statistics(torch.full((80,), -6.0), torch.full((80,), 2.0))
    if config.embeddings:
        head.take_speakers(torch.randn(len(SPEAKERS), config.embedding_dim, generator=random))
    if config.units:
        centroids = torch.randn(config.units, config.unit_dim, generator=random)
        mapping = torch.eye(encoder.dim, config.unit_dim)
        head.units.take(centroids, torch.zeros(encoder.dim), mapping)
    return head


def batch(seconds: Sequence[float] = (0.5, 0.31, 0.7), seed: int = 0) -> Batch:
    """Speakers in turn: one speaks in low tones, the other in high ones."""
    waves = []
    for i, s in enumerate(seconds):
        random = torch.Generator().manual_seed(100 * seed + i)
        waves.append(tones(int(16000 * s), (120.0, 280.0)[i % 2], random))
    return Batch(
        wave=torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        wave_lengths=torch.tensor([len(w) for w in waves]),
        targets={"classes": torch.arange(len(waves)) % len(SPEAKERS)},
        views={},
        seeds=torch.arange(len(waves)) + 11,
        ids=tuple(f"u{i}" for i in range(len(waves))),
    )


def tones(samples: int, hz: float, random: torch.Generator) -> Tensor:
    """Harmonics of a wavering pitch that come and go, over some noise."""
    time = torch.arange(samples) / 16000
    f0 = hz * (1 + 0.1 * torch.sin(2 * math.pi * (3 * time + torch.rand(1, generator=random))))
    phase = 2 * math.pi * f0.cumsum(0) / 16000
    strength = 0.5 + 0.4 * torch.sin(2 * math.pi * (5 * time + torch.rand(1, generator=random)))
    wave = sum(torch.sin(k * phase) / k for k in range(1, 9))
    return 0.1 * strength * wave + 0.003 * torch.randn(samples, generator=random)


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


def embedding_of(head: VoiceHead, data: Batch) -> Tensor | None:
    """(B, E) of each utterance's own speaker, None for any-to-one."""
    return head.speakers[data.targets["classes"]] if head.speaker_dim else None
