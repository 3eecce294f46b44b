"""HuBERT: predict the cluster of masked frames from the visible ones.

Source: Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked
Prediction of Hidden Units", sections II-B to II-D; fairseq `models/hubert/hubert.py`,
`criterions/hubert_criterion.py`.

Differs:
- Masked rows are not cut to equal counts (see `speechssl.nn.masking`).
- The feature penalty weighs each utterance's mean square by its own masked count; the reference
  takes the mean over the padded batch times the batch's count. For one utterance both agree.
- Codeword tables have one row per class; fairseq prepends 4 special symbols (row = label + 4).
- Logits are one product of normalised matrices; the reference builds (K, M, F) cosines.

Shape legend: B utterances, T frames, D encoder width, M masked frames, K classes, F codeword width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import IGNORE, Batch, EncoderOutput, Loss, Objective
from speechssl.nn.frame_masks import masked_frames

Labels = dict[str, Tensor]
Logs = dict[str, tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubertConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain."""
    classes: dict[str, int]
    """Name of each frame-label target -> its number of classes; several sets are summed."""
    final_dim: int = 256
    """Width of codewords: 256 Base, 768 Large, 1024 XLarge."""
    codeword_init: Literal["uniform", "normal"] = "uniform"
    """uniform: U[0, 1) as published, so that codewords start close together (cosines of about
    0.75) and need thousands of updates to part; normal: apart from the start, for short runs."""
    temperature: float = 0.1
    """Cosines are divided by this."""
    mask_probability: float = 0.8
    """Span starts per frame times the span: 0.8 masks about 57 % of the frames."""
    mask_span: int = 10
    """Frames per span."""
    mask_min_spans: int = 2
    """Least number of spans of an utterance."""
    feature_penalty: float = 10.0
    """Weight of the mean square of the front end's output."""
    unmasked_weight: float = 0.0
    """Weight of the cross entropy of unmasked frames; the paper's alpha of 1 is 0 here."""
    log_unmasked: bool = False
    """Also compute and log the accuracy on unmasked frames."""

    def __post_init__(self) -> None:
        if not self.classes or min(self.classes.values()) < 2:
            raise ValueError(
                f"classes: found {self.classes}, want at least one target with 2 classes or more, "
                "such as {km: 100}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature: found {self.temperature}, want more than 0")

    def build(self) -> Hubert:
        return Hubert(self)


class CosineHead(nn.Module):
    """Cosine similarity of projected features to K codewords, over a temperature."""

    def __init__(
        self, dim: int, classes: int, final_dim: int, temperature: float, init: str = "uniform"
    ) -> None:
        super().__init__()
        self.project = nn.Linear(dim, final_dim)
        draw = torch.rand if init == "uniform" else torch.randn
        self.codewords = nn.Parameter(draw(classes, final_dim))
        self.temperature = temperature

    def forward(self, x_MD: Tensor) -> Tensor:
        """(M, D) -> (M, K) float32 logits, also under autocast."""
        projected = self.project(x_MD)
        with torch.autocast(x_MD.device.type, enabled=False):
            x_MF = F.normalize(projected.float(), dim=-1)
            e_KF = F.normalize(self.codewords.float(), dim=-1)
            return x_MF @ e_KF.T / self.temperature


class Hubert(Objective):
    """Masked cross entropy over one or several sets of frame labels."""

    inner_layers: tuple[int, ...] = ()
    """Further layers that `inner_terms` reads."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.heads = self.classifiers(config.classes)

    def classifiers(self, names: Iterable[str]) -> nn.ModuleDict:
        """New classifiers of a layer's frames, one for each of these label sets."""
        config = self.config
        return nn.ModuleDict(
            {
                name: CosineHead(
                    self.encoder.dim,
                    config.classes[name],
                    config.final_dim,
                    config.temperature,
                    config.codeword_init,
                )
                for name in names
            }
        )

    def input_wave(self, batch: Batch) -> Tensor:
        """The (B, L) signal that the encoder reads."""
        return batch.wave

    def encode(self, batch: Batch, mask: Tensor) -> EncoderOutput:
        """Hidden states of masked input, of which the last is what predicts."""
        wave = self.input_wave(batch)
        return self.encoder(wave, batch.wave_lengths, mask=mask, layers=[*self.inner_layers, -1])

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        """What variants add to the sum, of the same count; they add to `logs`."""
        raise NotImplementedError

    def frame_mask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T) bool masked frames, and (B, T) bool valid frames."""
        return masked_frames(
            self.encoder,
            batch,
            probability=self.config.mask_probability,
            span=self.config.mask_span,
            min_spans=self.config.mask_min_spans,
        )

    def forward(self, batch: Batch) -> Loss:
        mask, valid = self.frame_mask(batch)
        labels = {name: self._labels(batch, name, mask) for name in self.heads}
        out = self.encode(batch, mask)

        labelled = torch.zeros_like(mask)
        for target in labels.values():
            labelled |= target != IGNORE
        scored = mask & labelled & valid
        masked = FrameScores(out.last[scored], scored)
        total = out.last.new_zeros((), dtype=torch.float32)
        for name, head in self.heads.items():
            total = total + masked.add(name, head, labels[name])
        count = scored.sum()
        logs = masked.logs("masked", count)
        logs["masked_fraction"] = (mask.sum(), valid.sum())
        if self.inner_layers:
            total = total + self.inner_terms(batch, out, labels, scored, logs)

        if self.config.unmasked_weight > 0 or self.config.log_unmasked:
            weight = self.config.unmasked_weight
            seen = ~mask & labelled & valid
            # Without weight it only serves the log: no graph is kept for it.
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                unmasked = FrameScores(out.last[seen], seen)
                extra = torch.stack([unmasked.add(n, h, labels[n]) for n, h in self.heads.items()])
            if weight > 0:
                total = total + weight * extra.sum()
                count = count + weight * seen.sum()
            logs |= {k: v for k, v in unmasked.logs("unmasked", seen.sum()).items() if "acc" in k}

        if self.config.feature_penalty > 0 and out.front is not None:
            penalty = feature_penalty(out.front, valid, scored.sum(1))
            total = total + self.config.feature_penalty * penalty
            logs["feature_penalty"] = (penalty.detach(), scored.sum())
        return Loss(total, count, logs)

    def _labels(self, batch: Batch, name: str, mask: Tensor) -> Tensor:
        if name not in batch.targets:
            raise ValueError(
                f"labels: found targets {sorted(batch.targets)}, want {name!r}; name its label "
                f"store in data.labels, such as data.labels.{name}=exp/km1/labels"
            )
        target = batch.targets[name]
        # Labels cover every hop that has a sample; the last ones hold less than a whole frame.
        size, hop = mask.shape[1], self.encoder.hop_samples
        spare = -(-self.encoder.receptive_field_samples // hop)
        if target.ndim != 2 or not size <= target.shape[1] <= size + spare:
            raise ValueError(
                f"labels {name!r}: found shape {tuple(target.shape)}, want (B, T) with T from "
                f"{size} (the encoder's frames) to {size + spare}; the data's hop_samples must be "
                f"the encoder's, {hop}"
            )
        target = target[:, :size]
        # On a GPU the check would wait for the device at each step; there the loss asserts.
        if not target.is_cuda and target.numel() and int(target.max()) >= self.config.classes[name]:
            raise ValueError(
                f"labels {name!r}: found label {int(target.max())}, want fewer than "
                f"{self.config.classes[name]}, the classes that the objective was given"
            )
        return target


class FrameScores:
    """Cross entropy and hits of some frames under several heads."""

    def __init__(self, x_MD: Tensor, where: Tensor) -> None:
        self.x_MD = x_MD
        self.where = where
        self.sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, name: str, head: nn.Module, labels: Tensor) -> Tensor:
        """Sum of cross entropies in nats of the frames that have a label."""
        logits = head(self.x_MD)
        target = labels[self.where]
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        hits = (logits.detach().argmax(-1) == target).sum()
        self.sums[name] = (loss.detach(), hits, (target != IGNORE).sum())
        return loss

    def logs(self, kind: str, count: Tensor) -> Logs:
        loss = torch.stack([s[0] for s in self.sums.values()]).sum()
        hits = torch.stack([s[1] for s in self.sums.values()]).sum()
        scored = torch.stack([s[2] for s in self.sums.values()]).sum()
        logs = {
            "loss_nats": (loss, count),
            "loss_bits": (loss / math.log(2), count),
            f"{kind}_accuracy": (hits, scored),
        }
        if len(self.sums) > 1:
            for name, (set_loss, set_hits, set_count) in self.sums.items():
                logs[f"loss_nats_{name}"] = (set_loss, set_count)
                logs[f"{kind}_accuracy_{name}"] = (set_hits, set_count)
        return logs


def feature_penalty(front: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """Sum over utterances of weight times the mean square of its valid front-end output.

    front: (B, T, C). valid: (B, T) bool. weights: (B,), the masked count of each utterance.
    Scaling of the front end's gradient, if the encoder has it, lies before `front`, so that it
    scales this gradient too, as in the reference.
    """
    square = front.float().square().mean(-1).masked_fill(~valid, 0.0).sum(1)
    return (weights * square / valid.sum(1).clamp(min=1)).sum()
