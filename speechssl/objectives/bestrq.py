"""BEST-RQ: predict the codes that a random, frozen quantiser gives to masked frames of speech.

Source: Chiu et al. 2022, "Self-supervised Learning with Random-projection Quantizer for Speech
Recognition", section 3; Zhang et al. 2023 (USM), section 3.2, for several codebooks.

Differs:
- By default masked frames become the encoder's learnt mask vector, which any encoder has; the
  paper's noise in place of filterbank frames is `mask_with: noise`.
- Filterbank features are normalised per utterance over valid frames, always: without that nearly
  all frames take the same codes.
- Spans begin at encoder frames, as many of them as expected with a start at 1 % of the filterbank's
  frames, and at least one; the paper's begin at any filterbank frame. So an encoder frame is masked
  wholly or not at all.

Shape legend: B utterances, L samples, T encoder frames, S stacked mel frames, F mel bins, N masked
frames, C codebooks, V codes of each, P projected width, D encoder width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, EncoderOutput, Loss, Objective, padding_mask
from speechssl.nn import collapse
from speechssl.nn.altered_mel import altered_mel
from speechssl.nn.draws import random_normal
from speechssl.nn.frame_masks import masked_frames
from speechssl.nn.log_mel import SHIFT_SAMPLES, LogMel, mel_lengths, normalise_frames
from speechssl.nn.update_sums import UpdateSums

_NOISE = 41
"""Stream of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestRQConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain."""
    codebooks: int = 1
    """Quantisers, each with a classifier: 1 BEST-RQ, 16 USM."""
    codes: int = 8192
    """Codes of each."""
    code_dim: int = 16
    """Width in which features are compared with codes."""
    mel_bins: int = 80
    """Bins of the filterbank that is quantised."""
    mask_with: Literal["vector", "noise"] = "vector"
    """vector: the encoder's mask vector; noise: normal noise on the filterbank frames that a
    log-mel encoder reads, as published."""
    noise_deviation: float = 0.1
    """Deviation of that noise."""
    mask_probability: float = 0.4
    """Span starts per frame times the span: 0.4 masks about a third of the frames."""
    mask_span: int = 10
    """Frames per span: 10 are the published 400 ms at 25 frames per second."""
    mask_min_spans: int = 1
    """Least number of spans of an utterance."""
    collapse_after: int = 1000
    """Raise from this update on if most frames have the same few codes; 0: never."""
    least_perplexity: float = 4.0
    """Mean perplexity of the codebooks' codes that counts as sound."""

    def build(self) -> BestRQ:
        return BestRQ(self)


class RandomQuantiser(nn.Module):
    """Index of the code that is nearest to the randomly projected features; nothing is learnt."""

    projection: Tensor
    codewords: Tensor

    def __init__(self, dim: int, codebooks: int, codes: int, code_dim: int) -> None:
        super().__init__()
        projection = torch.empty(codebooks, dim, code_dim)
        for matrix in projection:
            nn.init.xavier_uniform_(matrix)
        self.register_buffer("projection", projection)
        self.register_buffer(
            "codewords", F.normalize(torch.randn(codebooks, codes, code_dim), dim=-1)
        )

    @torch.no_grad()
    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, C) indices. The scale of a frame does not matter."""
        with torch.autocast(x_ND.device.type, enabled=False):
            projected = torch.einsum("nd,cdp->cnp", x_ND.float(), self.projection)
            # Of unit vectors, the nearest is the one with the largest product; a frame's own
            # length then changes nothing.
            return (projected @ self.codewords.transpose(1, 2)).argmax(-1).T


class BestRQ(Objective):
    """Cross entropy over the codes of masked frames."""

    def __init__(self, config: BestRQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        if self.encoder.hop_samples % SHIFT_SAMPLES:
            raise ValueError(
                f"encoder: found a hop of {self.encoder.hop_samples} samples, want a multiple of "
                f"the filterbank's {SHIFT_SAMPLES}"
            )
        self.stack = self.encoder.hop_samples // SHIFT_SAMPLES
        self.log_mel = LogMel(config.mel_bins)
        self.quantiser = RandomQuantiser(
            self.stack * config.mel_bins, config.codebooks, config.codes, config.code_dim
        )
        self.head = nn.Linear(self.encoder.dim, config.codebooks * config.codes)
        if config.mask_with == "noise":
            cast(Any, self.encoder).mask_emb.requires_grad_(False)
        self.sums = UpdateSums(codes=(config.codebooks, config.codes))

    def forward(self, batch: Batch) -> Loss:
        config = self.config
        mask, valid = masked_frames(
            self.encoder,
            batch,
            probability=config.mask_probability,
            span=config.mask_span,
            min_spans=config.mask_min_spans,
        )
        codes_NC = self.quantiser(self.features(batch, mask.shape[1])[mask])
        out = self.encode(batch, mask)
        logits = self.head(out.last[mask]).float().unflatten(-1, (-1, config.codes))  # (N, C, V)
        total = F.cross_entropy(logits.flatten(0, 1), codes_NC.flatten(), reduction="sum")
        total = total / config.codebooks
        count = mask.sum()
        hits = (logits.detach().argmax(-1) == codes_NC).sum()
        used = torch.stack([torch.bincount(c, minlength=config.codes) for c in codes_NC.T])
        if not batch.filler:
            self.sums.add(codes=used)
        logs = {
            "loss_nats": (total.detach(), count),
            "masked_accuracy": (hits, count * config.codebooks),
            "code_perplexity": (collapse.perplexity(used).mean() * count, count),
            "masked_fraction": (count, valid.sum()),
        }
        return Loss(total, count, logs)

    def encode(self, batch: Batch, mask: Tensor) -> EncoderOutput:
        """The last layer of the masked batch."""
        wave, lengths, config = batch.wave, batch.wave_lengths, self.config
        if config.mask_with == "vector":
            return self.encoder(wave, lengths, mask=mask, layers=[-1])

        def alter(x: Tensor) -> Tensor:
            noise = random_normal(batch.seeds.to(x.device), _NOISE, *x.shape[1:])
            hidden = mask.repeat_interleave(self.stack, 1)[:, : x.shape[1]]
            # The last step of an utterance may lack mel frames, where padding stays 0.
            hidden = hidden & ~padding_mask(mel_lengths(batch.wave_lengths), x.shape[1])
            return torch.where(hidden[..., None], config.noise_deviation * noise, x)

        with altered_mel(self.encoder, alter):
            return self.encoder(wave, lengths, layers=[-1])

    @torch.no_grad()
    def features(self, batch: Batch, frames: int) -> Tensor:
        """(B, T, S * F): normalised log-mel frames that begin within each encoder frame's step.

        The last step of an utterance may lack some: they are 0, the mean.
        """
        mel = self.log_mel(batch.wave)
        mel = normalise_frames(mel, padding_mask(mel_lengths(batch.wave_lengths), mel.shape[1]))
        wanted = frames * self.stack
        mel = F.pad(mel, (0, 0, 0, max(wanted - mel.shape[1], 0)))[:, :wanted]
        return mel.unflatten(1, (frames, self.stack)).flatten(2)

    def after_update(self, step: int) -> None:
        super().after_update(step)
        if collapse.due(step, self.config.collapse_after):
            found = collapse.perplexity(self.sums.take()["codes"]).mean()
            because = "most frames have the same few codes; is the audio silent or constant?"
            collapse.require("code perplexity", found, self.config.least_perplexity, step, because)
