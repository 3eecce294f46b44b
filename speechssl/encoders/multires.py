"""The multi-resolution encoder of MR-HuBERT: an hourglass of Transformers at falling frame rates.

Shape legend: B utterances, T frames, D width, S stacks.
"""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor, nn

from speechssl.encoders.frame_encoder import FrameEncoder, FrameEncoderConfig
from speechssl.encoders.sampler import Sampler
from speechssl.nn.positions import PositionalConv
from speechssl.nn.transformer_layer import TransformerLayer


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiresConfig(FrameEncoderConfig):
    """The defaults are MR-HuBERT Base (20 and 40 ms); `large()` gives the other published size."""

    stacks: tuple[int, ...] = (4, 4, 4)
    """Layers of each stack: on the way down, at the lowest rate, on the way up. An odd number of
    stacks; 5 have three rates."""
    factors: tuple[int, ...] = (2,)
    """By how much the rate falls from each stack to the next on the way down."""
    simple_samplers: bool = False
    """One convolution in each sampler, not two (the paper's simple sampling)."""
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    pre_norm: bool = False
    """Layer norms before each block, and one behind each stack's last layer (Large)."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16

    def __post_init__(self) -> None:
        if len(self.stacks) % 2 == 0 or len(self.stacks) < 3 or min(self.stacks) < 1:
            raise ValueError(
                f"stacks: found {self.stacks}, want an odd number of stacks from 3 on, each of at "
                "least one layer"
            )
        if len(self.factors) != len(self.stacks) // 2 or min(self.factors) < 2:
            raise ValueError(
                f"factors: found {self.factors}, want {len(self.stacks) // 2} numbers from 2 on, "
                f"one for each change of rate on the way down {len(self.stacks)} stacks"
            )
        if self.dim % self.heads or self.dim % self.pos_conv_groups:
            raise ValueError(
                f"dim: found {self.dim}, want a multiple of heads ({self.heads}) and of "
                f"pos_conv_groups ({self.pos_conv_groups})"
            )

    def build(self) -> MultiresEncoder:
        return MultiresEncoder(self)

    @classmethod
    def large(cls, **changes: object) -> MultiresConfig:
        """MR-HuBERT Large."""
        values: dict[str, object] = {
            "front_norm": "layer",
            "normalize_wave": True,
            "stacks": (8, 8, 8),
            "dim": 1024,
            "ffn_dim": 4096,
            "heads": 16,
            "pre_norm": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "input_dropout": 0.0,
            "layerdrop": 0.0,
            "conv_gradient_scale": 1.0,
        }
        return cls(**(values | changes))  # pyright: ignore


class MultiresEncoder(FrameEncoder):
    """Stacks of layers with samplers between them, with every layer's output at its own rate.

    Layers are counted through all stacks. The last layer of a stack has the stack's norm behind it
    if the encoder is pre-norm, and the residual path added: the lowest stack's input, or the
    output of the stack of the same rate on the way down. `resolution_layers` names the last layer
    of each rate. At an odd number of frames a stack on the way up has one frame more than the one
    on the way down, which its attention sees and which is then cut off, as in the official code.

    Source: Shi et al., 2024 (MR-HuBERT), section 3.1; fairseq
    `models/multires_hubert/multires_hubert.py`.
    Differs: frame lengths are exact, and padding changes nothing (in official code it enters the
    norms of the samplers and of the front end).
    """

    config: MultiresConfig

    def __init__(self, config: MultiresConfig) -> None:
        super().__init__(config, config.dim, sum(config.stacks))
        self.pos_conv = PositionalConv(config.dim, config.pos_conv_kernel, config.pos_conv_groups)
        self.layers = nn.ModuleList(_layer(config) for _ in range(self.num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in config.stacks)
        simple = config.simple_samplers
        self.down = nn.ModuleList(Sampler(config.dim, 1, f, simple=simple) for f in config.factors)
        self.up = nn.ModuleList(
            Sampler(config.dim, f, 1, simple=simple) for f in reversed(config.factors)
        )
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def stack_strides(self) -> tuple[int, ...]:
        """For each stack, the frames of the first one that one of its frames stands for."""
        factors = self.config.factors
        down = [math.prod(factors[:i]) for i in range(len(factors) + 1)]
        return (*down, *reversed(down[:-1]))

    @property
    def layer_strides(self) -> tuple[int, ...]:
        pairs = zip(self.config.stacks, self.stack_strides, strict=True)
        return (1, *(stride for count, stride in pairs for _ in range(count)))

    @property
    def resolution_layers(self) -> dict[int, int]:
        """Stride -> the last layer at it, from the highest rate to the lowest."""
        last = {stride: number for number, stride in enumerate(self.layer_strides)}
        return {stride: last[stride] for stride in sorted(last)}

    def _input(
        self,
        front: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        channel_mask: Tensor | None,
    ) -> Tensor:
        """The first stack's input (B, T, D): layer 0."""
        x = super()._input(front, padding, mask, channel_mask)
        x = x + self.pos_conv(x)
        return x if self.config.pre_norm else self.norms[0](x)

    def _transform(
        self, x: Tensor, keep: Tensor | None, wanted: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        states, number, last = {0: x}, 0, max(wanted)
        dropped = self._dropped_layers()
        lowest = len(self.config.factors)
        padding = None if keep is None else ~keep
        residuals: list[tuple[Tensor, Tensor | None]] = []
        for stack, count in enumerate(self.config.stacks):
            if number >= last:
                break
            if stack > 0:
                sampler = self.down[stack - 1] if stack <= lowest else self.up[stack - lowest - 1]
                x, padding = sampler(x, padding)
            keep = None if padding is None else ~padding
            # What is added behind the stack. On the way up it may have one frame fewer, each
            # utterance for itself: what follows has its padding.
            around = x if stack == lowest else None
            if stack > lowest:
                around, padding = residuals.pop()
            frames = x.shape[1] if around is None else around.shape[1]
            if stack > 0 and not self.config.pre_norm:
                x = self.norms[stack](x)
            x = self._drop(x, self.config.dropout)
            end = number + count
            while number < min(end, last):
                number += 1
                if number not in dropped:
                    x = self._run(self.layers[number - 1], x, keep, None)
                if number == end:
                    x = self._leave(stack, x, around)
                if number in wanted:
                    states[number] = x[:, :frames]
            if stack < lowest:
                residuals.append((x, padding))
        return tuple(states[i] for i in wanted)

    def _leave(self, stack: int, x: Tensor, around: Tensor | None) -> Tensor:
        """What a stack's last layer gave, normed and with the residual path added."""
        if self.config.pre_norm:
            x = self.norms[stack](x)
        return x if around is None else x[:, : around.shape[1]] + around


def _layer(config: MultiresConfig) -> TransformerLayer:
    return TransformerLayer(
        config.dim,
        config.ffn_dim,
        config.heads,
        pre_norm=config.pre_norm,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
    )
