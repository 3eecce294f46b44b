"""What heads on several layers share: which layers they read, how they add them up, freezing.

Shape legend: B utterances, L samples, T frames, D width.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import HeadConfig
from speechssl.contract import Encoder, EncoderOutput, Objective, padding_mask
from speechssl.nn.adapters import AdapterConfig, attach

HeadT = TypeVar("HeadT", bound="FramesHead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramesConfig(HeadConfig):
    layer: int | None = None
    """Encoder layer that is read, -1 the last; none: a learnt weighted sum of all."""
    normalise_layers: bool = True
    """Bring each frame of each layer to mean 0 and variance 1 before the sum (not in SUPERB)."""
    freeze_encoder_steps: int = -1
    """Optimiser updates during which only the head learns; -1: always. A frozen encoder runs in
    eval mode, without dropout and layerdrop."""
    freeze_front_end: bool = False
    """Never train the encoder's front end."""
    adapters: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    """What learns inside an encoder that is otherwise frozen; it then runs in training mode."""

    def __post_init__(self) -> None:
        if self.adapters.kind != "none" and self.freeze_encoder_steps >= 0:
            raise ValueError(
                f"adapters.kind: found {self.adapters.kind} with freeze_encoder_steps "
                f"{self.freeze_encoder_steps}, want -1: the encoder's own weights stay as they are"
            )


class LayerSum(nn.Module):
    """EncoderOutput -> (B, T, D), zero on padding: the sum over softmax(w)_l N(h_l).

    N is the parameter-free layer norm, or the identity. One layer is passed on as N gives it.
    Source: Yang et al. 2021 (SUPERB); the same sum as `speechssl.Featurizer`'s.
    """

    def __init__(self, count: int, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.weights = nn.Parameter(torch.zeros(count)) if count > 1 else None

    def forward(self, out: EncoderOutput) -> Tensor:
        states = [out.aligned(n) for n in out.layers]
        if self.normalise:
            states = [F.layer_norm(h, h.shape[-1:]) for h in states]
        if self.weights is None:
            x = states[0]
        else:
            shares = self.weights.softmax(0)
            x = torch.stack([w * h for w, h in zip(shares, states, strict=True)]).sum(0)
        return x.masked_fill(padding_mask(out.lengths, x.shape[1])[..., None], 0)


class FramesHead(Objective):
    """An encoder, and the layers that are read of it."""

    def __init__(self, config: FramesConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config: FramesConfig = config
        self.encoder = encoder
        self.layers = _layer_numbers(config.layer, encoder.num_layers)
        self.layer_sum = LayerSum(len(self.layers), config.normalise_layers)
        if config.freeze_front_end:
            _front_end(encoder).requires_grad_(False)
        if config.freeze_encoder_steps < 0:
            encoder.requires_grad_(False)
        if config.adapters.kind != "none":
            self.adapters = attach(encoder, config.adapters)

    def frames(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) and (B,) samples -> the layers' sum (B, T, D) and (B,) valid frames."""
        grad = torch.is_grad_enabled() and not self.encoder_is_frozen()
        with torch.set_grad_enabled(grad):
            out = self.encoder(wave, wave_lengths, layers=self.layers)
        return self.layer_sum(out), out.lengths

    def encoder_is_frozen(self) -> bool:
        steps = self.config.freeze_encoder_steps
        if steps < 0:
            return self.config.adapters.kind == "none"
        # Without frozen steps nothing waits for the device here.
        return steps > 0 and int(self.step) < steps

    def train(self: HeadT, mode: bool = True) -> HeadT:
        super().train(mode)
        if mode and self.encoder_is_frozen():
            self.encoder.eval()
        return self


def _layer_numbers(layer: int | None, count: int) -> list[int]:
    if layer is None:
        return list(range(count + 1))
    if not -1 <= layer <= count:
        raise ValueError(
            f"layer: found {layer}, want 0 to {count}, -1 for the last, or none for the sum of all"
        )
    return [count if layer == -1 else layer]


def _front_end(encoder: Encoder) -> nn.Module:
    front = getattr(encoder, "front", None)
    if not isinstance(front, nn.Module):
        raise ValueError(
            f"freeze_front_end: found no module `front` in {type(encoder).__name__}, want one, or "
            "freeze_front_end: false"
        )
    return front
