"""From an encoder's layers to the frames that a head reads: sums, concatenation, convolution.

Source: Yang et al. 2021 (SUPERB) for the weighted sum; Shih and Harwath 2024, "Interface Design
for Self-Supervised Speech Models", section 3, for others; Otake et al. 2023, "Parameter Efficient
Transfer Learning for Various Speech Processing Tasks", and their code, for layer adapters.

Shape legend: B utterances, T frames, K layers, D width of the encoder, G groups of channels,
R width of layer adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import EncoderOutput, padding_mask

InterfaceKind = Literal["sum", "grouped", "concat", "convolution", "adapted"]


class Interface(nn.Module):
    """EncoderOutput -> (B, T, output_size), zero on padding.

    normalise: bring each frame of each layer to mean 0 and variance 1 first, without parameters.
    A single layer is passed on so.
    parts: widths of the encoders that lie side by side; each is normalised by itself. Empty: one.
    """

    output_size: int

    def __init__(self, normalise: bool, parts: Sequence[int] = ()) -> None:
        super().__init__()
        self.normalise = normalise
        self.parts = tuple(parts)

    def forward(self, out: EncoderOutput) -> Tensor:
        x = self.join(out, out.layers)
        return x.masked_fill(padding_mask(out.lengths, x.shape[1])[..., None], 0)

    def join(self, out: EncoderOutput, layers: Sequence[int]) -> Tensor:
        """(B, T, output_size), anything on padding, of `layers`, as many as the interface has."""
        states = [self.read(out, n) for n in layers]
        return states[0] if len(states) == 1 else self.mix(states)

    def read(self, out: EncoderOutput, layer: int) -> Tensor:
        """(B, T, D): one layer, normalised if that is asked for."""
        x = out.aligned(layer)
        if not self.normalise:
            return x
        if len(self.parts) < 2:
            return F.layer_norm(x, x.shape[-1:])
        blocks = x.split(self.parts, -1)
        return torch.cat([F.layer_norm(b, b.shape[-1:]) for b in blocks], -1)

    def mix(self, states: Sequence[Tensor]) -> Tensor:
        """K tensors (B, T, D) -> (B, T, output_size)."""
        raise NotImplementedError

    def shares(self) -> list[float]:
        """Weight of each layer, adding up to 1; empty where layers have no single one."""
        return []


class LayerSum(Interface):
    """The sum over softmax(w)_l N(h_l), the same as `speechssl.Featurizer`'s: K parameters.

    groups: so many blocks of neighbouring channels have weights of their own, K G in all; with D
        groups each dimension has. w starts at 0, all layers alike. Several parts, and no groups:
        each part has weights of its own.
    """

    def __init__(
        self,
        count: int,
        normalise: bool,
        dim: int = 0,
        groups: int = 1,
        parts: Sequence[int] = (),
    ) -> None:
        super().__init__(normalise, parts)
        if groups > 1 and dim % groups:
            raise ValueError(f"groups: found {groups}, want a divisor of the encoder's width {dim}")
        self.output_size = dim
        self.groups = groups
        columns = groups if groups > 1 else max(1, len(self.parts))
        shape = (count,) if columns == 1 else (count, columns)
        self.weights = nn.Parameter(torch.zeros(shape)) if count > 1 else None

    def mix(self, states: Sequence[Tensor]) -> Tensor:
        assert self.weights is not None
        shares = self.weights.softmax(0)
        if self.groups > 1:
            shares = shares.repeat_interleave(states[0].shape[-1] // self.groups, 1)
        elif shares.ndim > 1:
            shares = torch.cat([s.expand(-1, n) for s, n in zip(shares.split(1, 1), self.parts)], 1)
        return torch.stack([w * h for w, h in zip(shares, states, strict=True)]).sum(0)

    def shares(self) -> list[float]:
        """Of groups and parts the mean."""
        if self.weights is None:
            return [1.0]
        shares = self.weights.detach().softmax(0)
        return shares.reshape(len(shares), -1).mean(1).tolist()


class LayerConcat(Interface):
    """All layers side by side, projected to D: K D D + D parameters."""

    def __init__(self, count: int, normalise: bool, dim: int, parts: Sequence[int] = ()) -> None:
        super().__init__(normalise, parts)
        self.output_size = dim
        self.projection = nn.Linear(count * dim, dim)

    def mix(self, states: Sequence[Tensor]) -> Tensor:
        return self.projection(torch.cat(list(states), -1))


class LayerConvolution(Interface):
    """Convolutions along the axis of layers, floor(log_3 K) of them, each followed by ReLU.

    Kernel 5, stride 3, padding 2: 13 layers become 5, then 2; 25 become 9, then 3. The last
    convolution has floor(D / layers left) channels, and all of them together are the frame: 768
    for Base, but 1023 for Large.
    Differs: two layers still get one convolution, where the formula says none.
    """

    def __init__(self, count: int, normalise: bool, dim: int, parts: Sequence[int] = ()) -> None:
        super().__init__(normalise, parts)
        depth, power = 0, 3
        while power <= count:
            depth, power = depth + 1, 3 * power
        depth = max(1, depth)
        left = count
        for _ in range(depth):
            left = (left - 1) // 3 + 1
        self.output_size = left * (dim // left)
        widths = [dim] * depth + [dim // left]
        self.convs = nn.ModuleList(
            nn.Conv1d(widths[i], widths[i + 1], 5, stride=3, padding=2) for i in range(depth)
        )

    def mix(self, states: Sequence[Tensor]) -> Tensor:
        x = torch.stack(list(states), -1)  # (B, T, D, K)
        frames = x.shape[:2]
        x = x.flatten(0, 1)
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.transpose(1, 2).reshape(*frames, -1)


class AdaptedSum(LayerSum):
    """The sum over softmax(w)_l LayerNorm(GELU(A_l N(h_l) + b_l)): K (D R + 3 R + 1) parameters.

    Each layer has an adapter and a norm of its own, so a head sees more of each than its share.
    Published on the output of every block with R = 512: 4.74 M for Base (layers 1 to 12).
    """

    def __init__(
        self, count: int, normalise: bool, dim: int, width: int, parts: Sequence[int] = ()
    ) -> None:
        super().__init__(count, normalise, width)
        self.parts = tuple(parts)  # each is normalised by itself, and weighed with the others
        self.adapters = nn.ModuleList(nn.Linear(dim, width) for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))

    def mix(self, states: Sequence[Tensor]) -> Tensor:
        adapted = [
            norm(F.gelu(adapter(h)))
            for norm, adapter, h in zip(self.norms, self.adapters, states, strict=True)
        ]
        return super().mix(adapted)


def build_interface(
    kind: InterfaceKind,
    count: int,
    dim: int,
    *,
    normalise: bool,
    groups: int = 1,
    width: int = 512,
    parts: Sequence[int] = (),
) -> Interface:
    """The interface to `count` layers of width `dim`; one layer needs, and learns, none.

    width: of kind adapted. parts: `Encoder.part_dims`; empty: one.
    Raises `ValueError` for kind grouped without groups, groups that do not divide `dim`, or a width
    below 1.
    """
    if width < 1:
        raise ValueError(f"interface_dim: found {width}, want 1 or more")
    if (kind == "grouped") != (groups > 1):
        raise ValueError(
            f"interface, groups: found {kind} with {groups}, want two groups or more with grouped, "
            "and 1 with any other"
        )
    if count == 1:
        return LayerSum(1, normalise, dim, parts=parts)
    if kind == "concat":
        return LayerConcat(count, normalise, dim, parts)
    if kind == "convolution":
        return LayerConvolution(count, normalise, dim, parts)
    if kind == "adapted":
        return AdaptedSum(count, normalise, dim, width, parts)
    return LayerSum(count, normalise, dim, groups, parts)
