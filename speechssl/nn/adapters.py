"""Parameter-efficient tuning of Transformer layers: adapters, LoRA, prefixes, biases, layer norms.

The new parameters belong to whoever calls `attach`, not to the encoder: they act through forward
hooks on its projections. So the encoder's own tensors, names and configuration stay those of the
pretrained model, and a checkpoint holds adapters apart from it. At the start nothing that is
attached changes an output, bit for bit.

Several kinds may be attached at once (`also`): bottlenecks with layer norms or a prefix, say, as
Otake et al. 2023, "Parameter Efficient Transfer Learning for Various Speech Processing Tasks", join
their encoder adapters with the encoder's layer norms and with adapters of what a head reads
(interface `adapted` of `speechssl.heads.interfaces`).
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
class AdapterOptions:
    """One kind of what learns inside an encoder."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig(AdapterOptions):
    also: list[AdapterOptions] = dataclasses.field(default_factory=list)
    """Further kinds beside `kind`, each with its own options: [{kind: prefix, dim: 6}]. Where two
    act on one output, the one stated first acts first; lora before all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [o.kind for o in self.parts]
        if len(set(kinds)) < len(kinds) or (self.also and "none" in kinds):
            raise ValueError(
                f"adapters.also: found kinds {kinds}, want each once and none of them none"
            )

    @property
    def parts(self) -> list[AdapterOptions]:
        """All kinds in the order in which they are stated."""
        return [self, *self.also]


class Adapters(nn.Module):
    """What was attached to each Transformer layer of an encoder.

    The first kind's modules are named after their places (`fc2`), those of others after both
    (`lora_fc2`).
    """

    def __init__(self, layers: list[TransformerLayer], config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in layers)
        self._linears: list[tuple[LowRank, nn.Linear]] = []
        self._handles: list[RemovableHandle] = []
        # A change of a projection comes before what stands behind it.
        parts = sorted(config.parts, key=lambda o: o.kind != "lora")
        for own, layer in zip(self.layers, layers, strict=True):
            for options in parts:
                prefix = "" if options is config else f"{options.kind}_"
                if options.kind == "lora":
                    self._add_low_rank(own, layer, options, prefix)
                else:
                    self._add(own, layer, options, prefix)

    def _add(
        self, own: nn.Module, layer: TransformerLayer, config: AdapterOptions, prefix: str
    ) -> None:
        """Modules of a layer, each with the place that it is attached to."""
        dim = layer.fc2.out_features
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
            own[prefix + name] = module.to(layer.fc2.weight.device)  # pyright: ignore
            self._handles += own[prefix + name].attach(place)  # pyright: ignore

    def _add_low_rank(
        self, own: nn.Module, layer: TransformerLayer, config: AdapterOptions, prefix: str
    ) -> None:
        dim = layer.fc2.out_features
        linears = {"qkv": layer.attention.qkv, "out": layer.attention.out,
                   "fc1": layer.fc1, "fc2": layer.fc2}  # fmt: skip
        for name, linear in linears.items():
            slices = {name: (0, linear.out_features)}
            if name == "qkv":
                slices = {part: (i * dim, (i + 1) * dim) for i, part in enumerate("qkv")}
            slices = {k: v for k, v in slices.items() if k in config.projections}
            if slices:
                added = LowRank(linear, slices, config)
                own[prefix + name] = added  # pyright: ignore
                self._handles += added.attach(linear)
                self._linears.append((added, linear))

    def fold(self) -> None:
        """Leave what was learnt in the encoder's own tensors, for use without this module.

        Raises `ValueError` for kinds that are no change of any tensor, such as houlsby.
        """
        kinds = [o.kind for o in self.config.parts]
        if not set(kinds) <= set(FOLDABLE):
            raise ValueError(
                f"adapters.kind: found {', '.join(kinds)}, want {', '.join(FOLDABLE)}: the encoder "
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
    kinds = [o.kind for o in config.parts]
    for layer in layers:
        if "bitfit" in kinds:
            for name, parameter in layer.named_parameters():
                if name.endswith("bias"):
                    parameter.requires_grad_(True)
        if "layer_norm" in kinds:
            layer.attention_norm.requires_grad_(True)
            layer.ffn_norm.requires_grad_(True)
    return Adapters(layers, config)
