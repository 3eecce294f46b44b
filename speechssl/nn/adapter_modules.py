"""What can be attached to a Transformer layer: bottlenecks, low-rank changes, shifts, prefixes.

Each module acts through hooks that it registers itself (`attach`), and starts so that no output
changes, bit for bit: what it adds begins with a factor of zero.

Shape legend: B utterances, T frames, D width, H heads, E = D / H, R bottleneck or rank, P vectors.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from speechssl.nn.attention import attention
from speechssl.nn.transformer_layer import TransformerLayer


class LowRankOptions(Protocol):
    """The options of `AdapterConfig` that `LowRank` reads."""

    dim: int
    alpha: float | None
    dropout: float


class Bottleneck(nn.Module):
    """Behind a sublayer, before its residual sum: y + up(f(down(y))), (B, T, D) -> same.

    Source: Houlsby et al. 2019, figure 2, with f = gelu; 2 D R + R + D parameters.
    """

    def __init__(self, dim: int, inner: int, activation: str = "gelu") -> None:
        super().__init__()
        self.activation = {"gelu": F.gelu, "relu": F.relu}[activation]
        self.down = nn.Linear(dim, inner)
        self.up = nn.Linear(inner, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        return y + self.up(self.activation(self.down(y)))

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        return [module.register_forward_hook(self._hook)]

    def _hook(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self(output)


class ConvBottleneck(nn.Module):
    """A bottleneck that sees neighbouring frames: y + up(gelu(conv(down(y)))), (B, T, D) -> same.

    conv is depthwise over `kernel` frames, with zeros beyond the utterance, so that padding
    changes nothing: 2 D R + R + D + R (kernel + 1) parameters.
    Source: after the convolutional adapters of Li et al. 2023 (SURE) and Chen et al. 2023
    (CHAPTER). Differs: one depthwise convolution in place of several full ones.
    """

    def __init__(self, dim: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, inner)
        self.conv = nn.Conv1d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        self.up = nn.Linear(inner, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self._keep: list[Tensor | None] = []

    def forward(self, y: Tensor, keep: Tensor | None) -> Tensor:
        """keep: (B, T) True on valid frames, None if all are."""
        x = self.down(y)
        if keep is not None:
            x = x.masked_fill(~keep[..., None], 0)
        return y + self.up(F.gelu(self.conv(x.transpose(1, 2)).transpose(1, 2)))

    def attach(self, layer: TransformerLayer) -> list[RemovableHandle]:
        """Behind the feed-forward block; which frames are valid, the layer alone is told."""
        return [
            layer.register_forward_pre_hook(self._note),
            layer.fc2.register_forward_hook(self._hook),
        ]

    def _note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._keep = [inputs[1] if len(inputs) > 1 else None]

    def _hook(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Taken away at once: a copy of the model must not find tensors of a forward pass.
        return self(output, self._keep.pop())


class Shift(nn.Module):
    """Behind the feed-forward block: y + (a . y + c) v, (B, T, D) -> same.

    Source: Fu et al. 2022 (AdapterBias), section 3.2; 2 D + 1 parameters.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(dim, 1)
        self.vector = nn.Parameter(torch.zeros(dim))

    def forward(self, y: Tensor) -> Tensor:
        return y + self.weigh(y) * self.vector

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        return [module.register_forward_hook(self._hook)]

    def _hook(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self(output)


class Prefix(nn.Module):
    """Learnt keys and values that every frame attends to: 2 P D parameters.

    Source: Li and Liang 2021 (prefix tuning), as written by He et al. 2022, section 3.1.
    Differs: the softmax over the prefix is one of its own, and its outcome is added, where the
    published one shares the softmax with the frames. So values of zero change nothing, and an
    utterance's length does not dilute the prefix.
    """

    def __init__(self, dim: int, heads: int, count: int) -> None:
        super().__init__()
        self.heads = heads
        self.keys = nn.Parameter(torch.randn(count, dim))
        self.values = nn.Parameter(torch.zeros(count, dim))
        self._queries: list[Tensor] = []

    def forward(self, queries: Tensor) -> Tensor:
        """(B, T, D) queries of all heads -> (B, T, D), to be added before the output projection."""
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for x in (queries, self.keys[None], self.values[None])
        )
        batch = len(q)
        k, v = k.to(q.dtype).expand(batch, -1, -1, -1), v.to(q.dtype).expand(batch, -1, -1, -1)
        return attention(q, k, v, None, 0.0).transpose(1, 2).flatten(2)

    def attach(self, layer: TransformerLayer) -> list[RemovableHandle]:
        return [
            layer.attention.qkv.register_forward_hook(self._note),
            layer.attention.out.register_forward_pre_hook(self._hook),
        ]

    def _note(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._queries = [output[..., : output.shape[-1] // 3]]

    def _hook(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + self(self._queries.pop()),)


class LowRank(nn.Module):
    """Change of some output slices of a linear layer by products of rank R.

    slices: name -> (first output, behind the last). Source: Hu et al. 2022 (LoRA), section 4.1;
    R (inputs + outputs) parameters each.
    """

    def __init__(
        self, linear: nn.Linear, slices: dict[str, tuple[int, int]], options: LowRankOptions
    ) -> None:
        super().__init__()
        self.slices = dict(slices)
        self.scale = 1.0 if options.alpha is None else options.alpha / options.dim
        self.dropout = options.dropout
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, (begin, end) in slices.items():
            down = torch.empty(options.dim, linear.in_features, device=linear.weight.device)
            self.down[name] = nn.Parameter(nn.init.kaiming_uniform_(down, a=5**0.5))
            self.up[name] = nn.Parameter(down.new_zeros(end - begin, options.dim))

    def attach(self, linear: nn.Linear) -> list[RemovableHandle]:
        return [linear.register_forward_hook(self._hook)]

    def _hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = F.dropout(inputs[0], self.dropout, self.training)
        parts, at = [], 0
        for name, (begin, end) in sorted(self.slices.items(), key=lambda item: item[1]):
            parts.append(output[..., at:begin])
            change = F.linear(F.linear(x, self.down[name]), self.up[name])
            parts.append(output[..., begin:end] + self.scale * change)
            at = end
        return torch.cat([*parts, output[..., at:]], -1)

    @torch.no_grad()
    def merge_into(self, linear: nn.Linear) -> None:
        """Add the change to the layer's own weight, and be nothing from then on."""
        for name, (begin, end) in self.slices.items():
            linear.weight[begin:end] += self.scale * (self.up[name] @ self.down[name])
            self.up[name].zero_()
