"""The Conformer encoder of w2v-BERT, BEST-RQ and wav2vec 2.0 Conformer.

Shape legend: B utterances, T frames, D width, H heads, E = D / H.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor, nn

from speechssl.encoders.conformer_layer import (
    ConformerLayer,
    relative_sinusoids,
    rotary_angles,
)
from speechssl.encoders.frame_encoder import FrameEncoder, FrameEncoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig(FrameEncoderConfig):
    """The defaults have the size of SpeechBrain's BEST-RQ, on filterbanks at 25 frames per second;
    `w2v_bert_xl()`, `w2v_bert_xxl()`, `bestrq()` and `wav2vec2_large()` give published sizes."""

    front_end: Literal["wave", "light_wave", "log_mel"] = "log_mel"
    front_norm: Literal["group", "layer"] = "layer"
    mel_hop_samples: int = 640
    conv_gradient_scale: float = 1.0
    layerdrop: float = 0.0
    layers: int = 12
    dim: int = 576
    ffn_dim: int = 2048
    heads: int = 8
    depthwise_kernel: int = 31
    """Frames that the depthwise convolution sees; odd."""
    conv_norm: Literal["layer", "group", "batch"] = "layer"
    """Norm behind the depthwise convolution. layer: over channels; group: over channels and valid
    frames of an utterance; batch: over the valid frames of a batch, as published."""
    positions: Literal["relative", "rotary", "rotary_input", "none"] = "relative"
    """relative: Transformer-XL's; rotary: of queries and keys; rotary_input: of the attention's
    input, as in published wav2vec 2.0 Conformers; none: only the convolutions know of order."""
    rotary_base: float = 10000.0
    activation: Literal["silu", "gelu"] = "silu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    weight_std: float = 0.02
    """Deviation of the initial weights of the layers' linear maps."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers: found {self.layers}, want at least 1")
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(
                f"dim: found {self.dim}, want an even multiple of heads ({self.heads})"
            )
        if self.depthwise_kernel % 2 == 0:
            raise ValueError(
                f"depthwise_kernel: found {self.depthwise_kernel}, want an odd number of frames"
            )
        if self.conv_norm == "batch" and self.checkpointing:
            raise ValueError(
                "checkpointing: found true with conv_norm batch, whose running averages would take "
                "each batch twice; want conv_norm layer or group, or checkpointing false"
            )

    def build(self) -> ConformerEncoder:
        return ConformerEncoder(self)

    @classmethod
    def w2v_bert_xl(cls, **changes: object) -> ConformerConfig:
        """w2v-BERT XL (0.6 B parameters): 12 layers for the contrast, 12 above it.

        Source: Chung et al., 2021 (w2v-BERT), section 3; Zhang et al., 2020 (Pushing the Limits of
        Semi-Supervised Learning), section 2.1, for the sizes and for leaving positions out.
        Differs: the front end has one-dimensional convolutions.
        """
        values: dict[str, object] = {
            "layers": 24,
            "dim": 1024,
            "ffn_dim": 4096,
            "depthwise_kernel": 5,
            "positions": "none",
        }
        return cls(**(values | changes))  # pyright: ignore

    @classmethod
    def w2v_bert_xxl(cls, **changes: object) -> ConformerConfig:
        """w2v-BERT XXL (1.0 B parameters): 12 layers for the contrast, 30 above it."""
        return cls.w2v_bert_xl(**({"layers": 42} | changes))

    @classmethod
    def bestrq(cls, **changes: object) -> ConformerConfig:
        """BEST-RQ (0.6 B parameters): the encoder of w2v-BERT XL.

        Source: Chiu et al., 2022 (BEST-RQ), section 4.
        """
        return cls.w2v_bert_xl(**changes)

    @classmethod
    def wav2vec2_large(cls, **changes: object) -> ConformerConfig:
        """fairseq's wav2vec 2.0 Conformer Large with relative positions on waves; `positions:
        rotary_input` is the other published one."""
        values: dict[str, object] = {
            "front_end": "wave",
            "conv_bias": True,
            "normalize_wave": True,
            "layers": 24,
            "dim": 1024,
            "ffn_dim": 4096,
            "heads": 16,
            "conv_norm": "batch",
        }
        return cls(**(values | changes))  # pyright: ignore


class ConformerEncoder(FrameEncoder):
    """wave -> front end -> projection -> mask -> Conformer layers, with every layer's output.

    Layer 0 is the projected and masked front end, before any position. The last layer has the
    encoder's own norm behind the layer's, as in wav2vec 2.0's Conformers.
    """

    config: ConformerConfig

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config, config.dim, config.layers)
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.dim)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.weight_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _transform(
        self, x: Tensor, keep: Tensor | None, wanted: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        states = {0: x}
        table = self._table(x)
        x = self._drop(x, self.config.dropout)
        dropped = self._dropped_layers()
        for number, layer in enumerate(self.layers, start=1):
            if number > max(wanted):
                break
            if number not in dropped:
                x = self._run(layer, x, keep, table)
            if number in wanted:
                states[number] = self.layer_norm(x) if number == self.num_layers else x
        return tuple(states[number] for number in wanted)

    def _table(self, x: Tensor) -> Tensor | None:
        """What tells the attention of all layers where frames are."""
        config, frames = self.config, x.shape[1]
        if config.positions == "none":
            return None
        if config.positions == "relative":
            return relative_sinusoids(frames, self.dim, x.device)
        return rotary_angles(frames, self.dim // config.heads, config.rotary_base, x.device)


def _layer(config: ConformerConfig) -> ConformerLayer:
    return ConformerLayer(
        config.dim,
        config.ffn_dim,
        config.heads,
        kernel=config.depthwise_kernel,
        positions=config.positions,
        norm=config.conv_norm,
        activation=config.activation,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
    )
