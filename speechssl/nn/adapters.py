"""Parameter-efficient tuning of Transformer layers: adapters, LoRA, prefixes, biases, layer norms.

The new parameters belong to whoever calls `attach`, not to the encoder: they act through forward
hooks on its projections. So the encoder's own tensors, names and configuration stay those of the
pretrained model, and a checkpoint holds adapters apart from it. At the start nothing that is
attached changes an output, bit for bit.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn
from torch.utils.hooks import RemovableHandle

from speechssl.nn.adapter_modules import Bottleneck, ConvBottleneck, LowRank, Prefix, Shift
from speechssl.nn.transformer_layer import TransformerLayer

PARTS = ("q", "k", "v", "out", "fc1", "fc2")
FOLDABLE = ("lora", "bitfit", "layer_norm", "none")
"""Kinds whose changes an encoder's own tensors can hold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    kind: Literal[
        "none", "houlsby", "pfeiffer", "conv", "adapter_bias", "prefix", "lora", "bitfit",
        "layer_norm",
    ] = "none"  # fmt: skip
    """What learns inside a frozen encoder: nothing; bottlenecks behind both sublayers; one behind
    the feed-forward block; one with a convolution over frames; a shift along one vector, weighed by
    frame; vectors to attend to; low-rank changes of projections; all biases of its layers; their
    layer norms."""
    dim: int = 32
    """Width of a bottleneck, rank, or number of vectors of a prefix (usually 6)."""
    both: bool = True
    """houlsby: behind attention and feed-forward; false: behind feed-forward only."""
    kernel: int = 5
    """conv: frames that the convolution spans; odd."""
    projections: list[str] = dataclasses.field(default_factory=lambda: ["q", "v"])
    """lora: which of q, k, v, out, fc1, fc2 change."""
    alpha: float | None = None
    """lora: the change is scaled by alpha / rank; none: by 1."""
    dropout: float = 0.0
    """lora: dropout of what it reads."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"adapters.dim: found {self.dim}, want 1 or more")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"adapters.kernel: found {self.kernel}, want an odd number of frames")
        wrong = [p for p in self.projections if p not in PARTS]
        if wrong or not self.projections or len(set(self.projections)) < len(self.projections):
            raise ValueError(
                f"adapters.projections: found {self.projections}, want some of {', '.join(PARTS)}, "
                "each once"
            )


class Adapters(nn.Module):
    """What was attached to each Transformer layer of an encoder."""

    def __init__(self, layers: list[TransformerLayer], config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in layers)
        self._linears: list[tuple[LowRank, nn.Linear]] = []
        self._handles: list[RemovableHandle] = []
        for own, layer in zip(self.layers, layers, strict=True):
            if config.kind == "lora":
                self._add_low_rank(own, layer)
            else:
                self._add(own, layer)

    def _add(self, own: nn.Module, layer: TransformerLayer) -> None:
        """Modules of a layer, each with the place that it is attached to."""
        config, dim = self.config, layer.fc2.out_features
        added: dict[str, tuple[nn.Module, nn.Module]] = {}
        if config.kind == "houlsby":
            added["fc2"] = Bottleneck(dim, config.dim), layer.fc2
            if config.both:
                added["attention"] = Bottleneck(dim, config.dim), layer.attention
        elif config.kind == "pfeiffer":
            added["fc2"] = Bottleneck(dim, config.dim, "relu"), layer.fc2
        elif config.kind == "conv":
            added["fc2"] = ConvBottleneck(dim, config.dim, config.kernel), layer
        elif config.kind == "adapter_bias":
            added["fc2"] = Shift(dim), layer.fc2
        elif config.kind == "prefix":
            added["attention"] = Prefix(dim, layer.attention.heads, config.dim), layer
        for name, (module, place) in added.items():
            own[name] = module.to(layer.fc2.weight.device)  # pyright: ignore
            self._handles += own[name].attach(place)  # pyright: ignore

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
                self._handles += added.attach(linear)
                self._linears.append((added, linear))

    def fold(self) -> None:
        """Leave what was learnt in the encoder's own tensors, for use without this module.

        Raises `ValueError` for kinds that are no change of any tensor, such as houlsby.
        """
        if self.config.kind not in FOLDABLE:
            raise ValueError(
                f"adapters.kind: found {self.config.kind}, want {', '.join(FOLDABLE)}: the encoder "
                "alone, for export or as the start of another run, cannot hold what they add"
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
