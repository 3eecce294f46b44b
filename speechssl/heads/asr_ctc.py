"""Speech recognition by connectionist temporal classification on an encoder.

Source: Graves et al. 2006 (CTC); Baevski et al. 2020, section 4.3 and appendix B, and Hsu et al.
2021, section III-B, for fine-tuning (frozen steps, masking of frames and channels); Lee and
Watanabe 2021 for the intermediate losses. SUPERB's heads (Yang et al. 2021) on a frozen encoder's
weighted_layers: projection_dim 1024, hidden blstm, hidden_dim 1024, hidden_layers 2, dropout 0.2
with spec_augment for letters; projection_dim 256 alone for phones. ML-SUPERB's (Shi et al. 2023):
projection_dim 80, hidden transformer, hidden_dim 256, hidden_layers 2, dropout 0.1, with
spec_augment of 10 stretches (frame_share 0.05) and 2 of up to 27 channels (time_warp 5), and
upsample 2 where transcripts are too long for 25 frames per second.
Differs: the loss is normalised by the number of target tokens instead of utterances or padded
batches, so that batch shape does not matter. An utterance with more tokens than frames can never
be aligned: it is left out of sum and count, and counted in the log as `unalignable`.

Shape legend: B utterances, T encoder frames, D width, S = T * `factor` (over the stride of
hidden layers), U tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import HeadConfig
from speechssl.contract import Batch, Encoder, Loss, padding_mask
from speechssl.heads.conv_transformer import ConvTransformer
from speechssl.heads.frames import EncoderHead, layer_numbers
from speechssl.heads.interfaces import InterfaceKind, build_interface
from speechssl.nn.adapters import AdapterConfig
from speechssl.nn.ctc import BLANK, alignable, ctc_sum, text_targets
from speechssl.nn.log_mel import normalise_frames
from speechssl.nn.masking import channel_mask, span_mask
from speechssl.nn.spec_augment import SpecAugmentConfig, spec_augment

LEAST_RATE_HZ = 50
"""Frames per second that `upsample: 0` reaches: those of HuBERT."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtcConfig(HeadConfig):
    vocab_size: int = 0
    """Tokens including the blank, id 0; fine-tuning fills it in from the tokenizer."""
    layer: int = -1
    """Encoder layer that is read; -1 is the last."""
    weighted_layers: bool = False
    """Read a learnt weighted sum of all layers instead (for frozen encoders)."""
    layers: list[int] = dataclasses.field(default_factory=list)
    """weighted_layers: which, such as [4, 5, 6]; empty: all of them."""
    interface: InterfaceKind = "sum"
    """How weighted_layers joins them: sum, grouped, concat, convolution or adapted
    (heads.interfaces)."""
    groups: int = 1
    """grouped: blocks of channels with weights of their own."""
    interface_dim: int = 512
    """adapted: width that each layer is brought to."""
    normalise_layers: bool = False
    """Bring each frame that is read to mean 0 and variance 1 first (not in SUPERB)."""
    standardise: bool = False
    """Then bring each channel to mean 0 and variance 1 over the utterance, of which frames masked
    in training do not count. A linear output layer learns from any encoder's channels alike then,
    however far from 0 they lie (not in SUPERB)."""
    upsample: int = 1
    """Output frames per encoder frame; 2 for encoders of 25 frames per second. 0: as many as make
    50 frames per second or more, of any encoder."""
    spec_augment: SpecAugmentConfig = dataclasses.field(default_factory=SpecAugmentConfig)
    """What of the frames that are read is set to 0 in training. It acts behind the encoder, so that
    a frozen one's features may be kept."""
    projection_dim: int = 0
    """Width that each frame is projected to first, without anything behind it; 0: none."""
    hidden: Literal["none", "mlp", "blstm", "transformer"] = "none"
    """Layers between encoder, or projection, and output; transformer: two convolutions that shorten
    the frames, and Transformer layers."""
    hidden_dim: int = 512
    """Width of those layers."""
    hidden_layers: int = 1
    """How many of them."""
    hidden_heads: int = 8
    """transformer: heads of each layer."""
    hidden_stride: int = 2
    """transformer: frames that become one output frame: 1, 2 or 4."""
    dropout: float = 0.1
    """Dropout before the output layer, and between hidden layers."""
    mask_probability: float = 0.5
    """Frame masking in training, of the encoder's input: span starts per frame times the span."""
    mask_span: int = 10
    """Frames per span."""
    channel_mask_probability: float = 0.0
    """Channel masking in training, over the encoder's width."""
    channel_mask_span: int = 64
    """Channels per span."""
    freeze_encoder_steps: int = 0
    """Optimiser updates during which only the head learns; -1: always, and then the encoder runs in
    eval mode, without dropout and layerdrop."""
    freeze_front_end: bool = False
    """Never train the encoder's front end, as published for pretrained ones."""
    freeze_layers: int = 0
    """Never train so many of the encoder's first layers, nor what leads to them or all share; 0:
    all of them learn."""
    intermediate_layers: list[int] = dataclasses.field(default_factory=list)
    """Layers that get a CTC loss of their own through the same output layer."""
    intermediate_weight: float = 0.3
    """Share of the mean intermediate loss in the total."""
    adapters: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    """What learns inside an encoder that is otherwise frozen; it then runs in training mode."""

    def __post_init__(self) -> None:
        if self.upsample < 0:
            raise ValueError(f"upsample: found {self.upsample}, want 1 or more, or 0")
        if self.projection_dim < 0:
            raise ValueError(f"projection_dim: found {self.projection_dim}, want 0 or more")
        if not 0 <= self.intermediate_weight < 1:
            raise ValueError(f"intermediate_weight: found {self.intermediate_weight}, want [0, 1)")
        if self.intermediate_layers and self.hidden != "none":
            raise ValueError(
                f"intermediate_layers: found {self.intermediate_layers} with hidden="
                f"{self.hidden!r}, want hidden='none': the output layer reads encoder layers"
            )
        if self.interface != "sum" and (not self.weighted_layers or self.intermediate_layers):
            raise ValueError(
                f"interface: found {self.interface!r}, want weighted_layers: true with it, and no "
                "intermediate_layers: it reads all layers, and may be of another width"
            )
        if self.layers and not self.weighted_layers:
            raise ValueError(
                f"layers: found {self.layers}, want weighted_layers: true with them, or `layer`"
            )
        if self.adapters.kind != "none" and self.freeze_encoder_steps >= 0:
            raise ValueError(
                f"adapters.kind: found {self.adapters.kind} with freeze_encoder_steps "
                f"{self.freeze_encoder_steps}, want -1: the encoder's own weights stay as they are"
            )

    def build(self, encoder: Encoder) -> CtcHead:
        return CtcHead(self, encoder)


class CtcHead(EncoderHead):
    """Letters or word pieces from an encoder's frames."""

    config: CtcConfig

    def __init__(self, config: CtcConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if config.vocab_size < 2:
            raise ValueError(
                f"vocab_size: found {config.vocab_size}, want the tokenizer's size (2 or more, "
                "the blank included)"
            )
        count = encoder.num_layers
        single = None if config.weighted_layers else config.layer
        self.layers = layer_numbers(single, count, config.layers)
        self.intermediate = [layer_numbers(n, count)[0] for n in config.intermediate_layers]
        self.layer_sum = build_interface(
            config.interface,
            len(self.layers),
            encoder.dim,
            normalise=config.normalise_layers,
            groups=config.groups,
            width=config.interface_dim,
            parts=encoder.part_dims,
        )
        dim = self.layer_sum.output_size
        if config.projection_dim:
            self.projection = nn.Linear(dim, config.projection_dim)
            dim = config.projection_dim
        # Output frames per encoder frame.
        self.factor = config.upsample or max(1, math.ceil(LEAST_RATE_HZ / encoder.frame_rate_hz))
        if self.factor > 1:
            self.upsample = nn.Linear(dim, dim * self.factor)
        if config.hidden == "mlp":
            self.hidden = _Mlp(dim, config.hidden_dim, config.hidden_layers, config.dropout)
            dim = config.hidden_dim
        elif config.hidden == "blstm":
            self.hidden = _Blstm(dim, config.hidden_dim, config.hidden_layers, config.dropout)
            dim = 2 * config.hidden_dim
        elif config.hidden == "transformer":
            self.hidden = ConvTransformer(
                dim, config.hidden_dim, config.hidden_layers, config.hidden_heads,
                config.hidden_stride, config.dropout,
            )  # fmt: skip
            dim = config.hidden_dim
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(dim, config.vocab_size)

    def train(self, mode: bool = True) -> CtcHead:
        super().train(mode)
        always = self.config.freeze_encoder_steps < 0
        if mode and always and self.config.adapters.kind == "none":
            self.encoder.eval()
        return self

    def forward(self, batch: Batch) -> Loss:
        tokens_BU, token_lengths = text_targets(batch, self.config.vocab_size)
        log_probs, lengths = self._all_log_probs(batch.wave, batch.wave_lengths, batch.seeds)
        fits = alignable(tokens_BU, token_lengths, lengths)
        losses = [ctc_sum(x, tokens_BU, lengths, token_lengths, fits) for x in log_probs]
        total = losses[0]
        if len(losses) > 1:
            weight = self.config.intermediate_weight
            total = (1 - weight) * total + weight * torch.stack(losses[1:]).mean()
        count = (token_lengths * fits).sum()
        logs = {
            "ctc_nats": (losses[0].detach(), count),
            "unalignable": ((~fits).sum(), torch.tensor(len(fits), device=fits.device)),
        }
        for number, loss in zip(self.intermediate, losses[1:]):  # none in eval mode
            logs[f"ctc_nats_layer_{number}"] = (loss.detach(), count)
        if not self.training:
            logs["cer"] = token_errors(log_probs[0], lengths, tokens_BU, token_lengths)
            # Near 1 where the head says nothing: the usual way for CTC to fail.
            best = log_probs[0].argmax(-1)
            blank = (best == BLANK) & ~padding_mask(lengths, best.shape[1])
            logs["blank_share"] = (blank.sum(), lengths.sum())
        return Loss(total, count, logs)

    def log_probs(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, V) float32 log-probabilities of tokens, and (B,) valid frames of them."""
        found, lengths = self._all_log_probs(wave, wave_lengths, None)
        return found[0], lengths

    def _all_log_probs(
        self, wave: Tensor, wave_lengths: Tensor, seeds: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Of the read layer first, then in training of each intermediate one."""
        masks = {}
        if self.training and seeds is not None:
            masks = self._masks(wave.shape[1], wave_lengths, seeds)
        intermediate = self.intermediate if self.training else []
        frozen = self.encoder_is_frozen()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            wanted = [*self.layers, *intermediate]
            out = self.encoder(wave, wave_lengths, layers=wanted, **masks)
        read = [self.layer_sum.join(out, self.layers)]
        read += [self.layer_sum.read(out, n) for n in intermediate]
        if self.config.standardise:
            padding = padding_mask(out.lengths, read[0].shape[1])
            # Masked frames, which only training has, would move the mean of all others.
            read = [normalise_frames(x, padding, masks.get("mask")) for x in read]
        if self.training and seeds is not None:
            augment = self.config.spec_augment
            read = [spec_augment(x, out.lengths, seeds, augment) for x in read]
        lengths = out.lengths * self.factor
        found = [self._classify(x, lengths) for x in read]
        if self.config.hidden == "transformer":
            lengths = self.hidden.shorter(lengths)
        return found, lengths

    def _classify(self, x_BTD: Tensor, lengths: Tensor) -> Tensor:
        x = self.projection(x_BTD) if self.config.projection_dim else x_BTD
        if self.factor > 1:
            # Each copy of a frame gets a learnt offset: plain copies could not differ.
            x = x.repeat_interleave(self.factor, dim=1) + self.upsample(x).view(
                x.shape[0], -1, x.shape[2]
            )
        if self.config.hidden != "none":
            x = self.hidden(x, lengths)
        logits = self.output(self.dropout(x))
        with torch.autocast(logits.device.type, enabled=False):
            return logits.float().log_softmax(-1)

    def _masks(self, samples: int, wave_lengths: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        config, masks = self.config, {}
        if config.mask_probability > 0:
            masks["mask"] = span_mask(
                self.encoder.frame_lengths(wave_lengths),
                seeds,
                probability=config.mask_probability,
                span=config.mask_span,
                size=int(self.encoder.frame_lengths(torch.tensor([samples]))),
            )
        if config.channel_mask_probability > 0:
            masks["channel_mask"] = channel_mask(
                seeds,
                self.encoder.dim,
                probability=config.channel_mask_probability,
                span=config.channel_mask_span,
            ).to(wave_lengths.device)
        return masks


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [dim] + [hidden_dim] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(F.gelu(norm(layer(x))))
        return x


class _Blstm(nn.Module):
    """Packed, so that the backward direction starts at each utterance's own end."""

    def __init__(self, dim: int, hidden_dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(
            dim, hidden_dim, layers, batch_first=True, bidirectional=True, dropout=between
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = self.lstm(packed)
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0]


def best_path(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """Most probable token of each frame, repeats merged, blanks removed: (B, S, V) -> B lists."""
    found = []
    for row, length in zip(log_probs.argmax(-1).tolist(), lengths.tolist(), strict=True):
        path = row[:length]
        found.append([x for x, before in zip(path, [BLANK, *path]) if x not in (before, BLANK)])
    return found


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Fewest substitutions, insertions and deletions that turn `a` into `b`."""
    target = np.asarray(b)
    steps = np.arange(len(target) + 1)
    row = steps.copy()
    for i, x in enumerate(a, start=1):
        best = np.empty_like(row)
        best[0] = i
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (target != x))
        # A run of insertions costs its length: minimum over all starts at once.
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def token_errors(
    log_probs: Tensor, lengths: Tensor, tokens_BU: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Edits from the best paths of (B, S, V) log_probs to the tokens, and the number of tokens."""
    errors = 0
    for hypothesis, row, length in zip(
        best_path(log_probs.detach(), lengths),
        tokens_BU.tolist(),
        token_lengths.tolist(),
        strict=True,
    ):
        errors += edit_distance(row[:length], hypothesis)
    return log_probs.new_tensor(float(errors)), token_lengths.sum()
