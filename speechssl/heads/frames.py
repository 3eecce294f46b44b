"""What heads share: what of the encoder learns, which layers they read, how these are joined.

Shape legend: B utterances, L samples, T frames, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from speechssl.config import HeadConfig
from speechssl.contract import Encoder, Objective
from speechssl.encoders.conformer import ConformerEncoder
from speechssl.encoders.transformer import TransformerEncoder
from speechssl.heads.interfaces import InterfaceKind, build_interface
from speechssl.nn.adapters import AdapterConfig, attach

HeadT = TypeVar("HeadT", bound="FramesHead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramesConfig(HeadConfig):
    layer: int | None = None
    """Encoder layer that is read, -1 the last; none: all, joined as `interface` says."""
    layers: list[int] = dataclasses.field(default_factory=list)
    """Without `layer`: those that are joined, such as [4, 5, 6]; empty: all of them."""
    interface: InterfaceKind = "sum"
    """sum: a learnt weighted sum; grouped: one for each of `groups` blocks of channels; concat:
    side by side and projected; convolution: hierarchical, along the layers; adapted: a sum of
    layers behind an adapter of each."""
    groups: int = 1
    """grouped: how many; as many as the encoder is wide: each dimension has weights of its own."""
    interface_dim: int = 512
    """adapted: width that each layer is brought to."""
    normalise_layers: bool = True
    """Bring each frame of each layer to mean 0 and variance 1 first (not in SUPERB)."""
    freeze_encoder_steps: int = -1
    """Optimiser updates during which only the head learns; -1: always. A frozen encoder runs in
    eval mode, without dropout and layerdrop."""
    freeze_front_end: bool = False
    """Never train the encoder's front end."""
    freeze_layers: int = 0
    """Never train so many of the encoder's first layers, nor what leads to them or all share; 0:
    all of them learn."""
    adapters: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    """What learns inside an encoder that is otherwise frozen; it then runs in training mode."""

    def __post_init__(self) -> None:
        if self.layers and self.layer is not None:
            raise ValueError(
                f"layer, layers: found {self.layer} and {self.layers}, want one of them: a single "
                "layer, or several that are joined"
            )
        if self.adapters.kind != "none" and self.freeze_encoder_steps >= 0:
            raise ValueError(
                f"adapters.kind: found {self.adapters.kind} with freeze_encoder_steps "
                f"{self.freeze_encoder_steps}, want -1: the encoder's own weights stay as they are"
            )


class EncoderHead(Objective):
    """A head on an encoder of which, by `config`, nothing, adapters or all learns.

    config has freeze_encoder_steps, freeze_front_end, freeze_layers and adapters, as
    `FramesConfig`.
    """

    def __init__(self, config: Any, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        if config.freeze_front_end:
            _front_end(encoder).requires_grad_(False)
        if config.freeze_layers:
            for parameter in _first_layers(encoder, config.freeze_layers):
                parameter.requires_grad_(False)
        if config.freeze_encoder_steps < 0:
            encoder.requires_grad_(False)
        if config.adapters.kind != "none":
            # What is drawn behind it is the same with and without adapters.
            with torch.random.fork_rng(devices=[]):
                self.adapters = attach(encoder, config.adapters)

    def encoder_is_frozen(self) -> bool:
        """Whether no gradient is wanted of the encoder, adapters included, in this update."""
        steps = self.config.freeze_encoder_steps
        if steps < 0:
            return self.config.adapters.kind == "none"
        # Without frozen steps nothing waits for the device here.
        return steps > 0 and int(self.step) < steps


class FramesHead(EncoderHead):
    """An encoder, and the layers that are read of it."""

    def __init__(self, config: FramesConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.layers = layer_numbers(config.layer, encoder.num_layers, config.layers)
        self.layer_sum = build_interface(
            config.interface,
            len(self.layers),
            encoder.dim,
            normalise=config.normalise_layers,
            groups=config.groups,
            width=config.interface_dim,
            parts=encoder.part_dims,
        )
        self.dim = self.layer_sum.output_size

    def frames(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) and (B,) samples -> the layers joined, (B, T, dim), and (B,) valid frames."""
        grad = torch.is_grad_enabled() and not self.encoder_is_frozen()
        with torch.set_grad_enabled(grad):
            out = self.encoder(wave, wave_lengths, layers=self.layers)
        return self.layer_sum(out), out.lengths

    def train(self: HeadT, mode: bool = True) -> HeadT:
        super().train(mode)
        if mode and self.encoder_is_frozen():
            self.encoder.eval()
        return self


def layer_numbers(layer: int | None, count: int, chosen: Sequence[int] = ()) -> list[int]:
    """The layers that `layer` means of an encoder with layers 0 to `count`, in ascending order;
    none: those `chosen`, or all of them."""
    if layer is None and chosen:
        found = sorted(layer_numbers(n, count)[0] for n in chosen)
        if len(set(found)) < len(found):
            raise ValueError(f"layers: found {list(chosen)}, want each of 0 to {count} once")
        return found
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


def _first_layers(encoder: Encoder, count: int) -> list[nn.Parameter]:
    """What the first `count` layers learn, and all that leads to them."""
    known = isinstance(encoder, TransformerEncoder | ConformerEncoder)
    if not known or not 0 < count <= encoder.num_layers:
        raise ValueError(
            f"freeze_layers: found {count} with a {type(encoder).__name__} of {encoder.num_layers} "
            "layers, want at most as many of a TransformerEncoder or ConformerEncoder, or 0"
        )
    behind = [*encoder.layers[count:]]
    if getattr(encoder.config, "pre_norm", True):  # else its norm is that of the input
        behind.append(encoder.layer_norm)
    learning = {id(p) for module in behind for p in module.parameters()}
    return [p for p in encoder.parameters() if id(p) not in learning]
