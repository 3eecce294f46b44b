"""Parameter-efficient tuning of Transformer layers: Houlsby adapters, LoRA, biases, layer norms.

The new parameters belong to whoever calls `attach`, not to the encoder: they act through forward
hooks on its projections. So the encoder's own tensors, names and configuration stay those of the
pretrained model, and a checkpoint holds adapters apart from it. At the start adapters and LoRA
change no output, bit for bit: their last projection is zero.

Shape legend: B utterances, T frames, D width, R bottleneck or rank.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from speechssl.nn.transformer_layer import TransformerLayer

PARTS = ("q", "k", "v", "out", "fc1", "fc2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    kind: Literal["none", "houlsby", "lora", "bitfit", "layer_norm"] = "none"
    """What learns inside a frozen encoder: nothing; bottlenecks behind sublayers; low-rank
    changes of projections; all biases of its layers; their layer norms."""
    dim: int = 32
    """Width R of a bottleneck, or rank."""
    both: bool = True
    """houlsby: behind attention and feed-forward; false: behind feed-forward only."""
    projections: list[str] = dataclasses.field(default_factory=lambda: ["q", "v"])
    """lora: which of q, k, v, out, fc1, fc2 change."""
    alpha: float | None = None
    """lora: the change is scaled by alpha / rank; none: by 1."""
    dropout: float = 0.0
    """lora: dropout of what it reads."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"adapters.dim: found {self.dim}, want 1 or more")
        wrong = [p for p in self.projections if p not in PARTS]
        if wrong or not self.projections or len(set(self.projections)) < len(self.projections):
            raise ValueError(
                f"adapters.projections: found {self.projections}, want some of {', '.join(PARTS)}, "
                "each once"
            )


class Bottleneck(nn.Module):
    """Behind a sublayer, before its residual sum: y + up(gelu(down(y))), (B, T, D) -> same.

    Source: Houlsby et al. 2019, figure 2; (2 D R + R + D) parameters.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, inner)
        self.up = nn.Linear(inner, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        return y + self.up(F.gelu(self.down(y)))

    def hook(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self(output)


class LowRank(nn.Module):
    """Change of some output slices of a linear layer by products of rank R.

    slices: name -> (first output, behind the last). Source: Hu et al. 2022 (LoRA), section 4.1;
    R (inputs + outputs) parameters each.
    """

    def __init__(
        self, linear: nn.Linear, slices: dict[str, tuple[int, int]], config: AdapterConfig
    ) -> None:
        super().__init__()
        self.slices = dict(slices)
        self.scale = 1.0 if config.alpha is None else config.alpha / config.dim
        self.dropout = config.dropout
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, (begin, end) in slices.items():
            down = torch.empty(config.dim, linear.in_features, device=linear.weight.device)
            self.down[name] = nn.Parameter(nn.init.kaiming_uniform_(down, a=5**0.5))
            self.up[name] = nn.Parameter(down.new_zeros(end - begin, config.dim))

    def hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
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


class Adapters(nn.Module):
    """What was attached to each Transformer layer of an encoder."""

    def __init__(self, layers: list[TransformerLayer], config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in layers)
        self._linears: list[tuple[LowRank, nn.Linear]] = []
        self._handles: list[RemovableHandle] = []
        for own, layer in zip(self.layers, layers, strict=True):
            if config.kind == "houlsby":
                self._add_bottlenecks(own, layer)
            elif config.kind == "lora":
                self._add_low_rank(own, layer)

    def _add_bottlenecks(self, own: nn.Module, layer: TransformerLayer) -> None:
        places: dict[str, nn.Module] = {"fc2": layer.fc2}
        if self.config.both:
            places["attention"] = layer.attention
        for name, place in places.items():
            added = Bottleneck(layer.fc2.out_features, self.config.dim).to(layer.fc2.weight.device)
            own[name] = added  # pyright: ignore
            self._handles.append(place.register_forward_hook(added.hook))

    def _add_low_rank(self, own: nn.Module, layer: TransformerLayer) -> None:
        dim = layer.fc2.out_features
        linears = {"qkv": layer.attention.qkv, "out": layer.attention.out,
                   "fc1": layer.fc1, "fc2": layer.fc2}  # fmt: skip
        for name, linear in linears.items():
            slices = {name: (0, linear.out_features)}
            if name == "qkv":
                slices = {part: (i * dim, (i + 1) * dim) for i, part in enumerate("qkv")}
            slices = {k: v for k, v in slices.items() if k in self.config.projections}
            if slices:
                added = LowRank(linear, slices, self.config)
                own[name] = added  # pyright: ignore
                self._handles.append(linear.register_forward_hook(added.hook))
                self._linears.append((added, linear))

    def fold(self) -> None:
        """Leave what was learnt in the encoder's own tensors, for use without this module.

        Raises `ValueError` for houlsby, whose bottlenecks are no change of any tensor.
        """
        if self.config.kind == "houlsby":
            raise ValueError(
                "adapters.kind: found houlsby, want lora, bitfit, layer_norm or none: the encoder "
                "alone, for export or as the start of another run, cannot hold bottlenecks"
            )
        for added, linear in self._linears:
            added.merge_into(linear)
        for handle in self._handles:
            handle.remove()


def attach(encoder: nn.Module, config: AdapterConfig) -> Adapters:
    """Freeze `encoder`, and let what `config` names learn in it.

    bitfit and layer_norm free parameters of the encoder itself; the module returned then has none.
    Raises `ValueError` for an encoder without `TransformerLayer`s, such as a Conformer.
    """
    encoder.requires_grad_(False)
    layers = [m for m in encoder.modules() if isinstance(m, TransformerLayer)]
    if not layers:
        raise ValueError(
            f"adapters.kind: found {config.kind} with a {type(encoder).__name__}, want an encoder "
            "of Transformer layers, or kind none"
        )
    for layer in layers:
        if config.kind == "bitfit":
            for name, parameter in layer.named_parameters():
                if name.endswith("bias"):
                    parameter.requires_grad_(True)
        elif config.kind == "layer_norm":
            layer.attention_norm.requires_grad_(True)
            layer.ffn_norm.requires_grad_(True)
    return Adapters(layers, config)
