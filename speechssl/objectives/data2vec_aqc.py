"""data2vec-aqc: data2vec across an augmented and a clean view, with contrast of quantised frames.

Source: Lodagala, Ghosh and Umesh 2023, "data2vec-aqc: Search for the Right Teaching Assistant in
the Teacher-Student Training Setup", section 2; its official code on fairseq.

Differs:
- The augmented view is the data's ("mixed": speech, noise and reverberation of `data.mixing`).
- Negatives are clustered within their utterance, by vectors of both views; the paper clusters the
  batch, so that its loss depends on who is in it. The official code scales the cosines of a
  positive's cluster only if somewhere in the batch a negative equals its positive; here always, as
  in the paper. `as_released: true` does both as the official code.
- The diversity of codes (see `wav2vec2`) is that of both views; the official criterion's is of the
  clean view alone, as with `as_released`, and it adds ten times the mean square of the front end's
  output: `feature_penalty: 10`.
- Both contrasts have the same negatives, and both views the same Gumbel noise; the official code
  draws them anew.

Shape legend: B utterances, T frames, M packed masked frames, N masked frames of all utterances,
C front-end channels, D encoder width, F final width, G groups.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput, Loss
from speechssl.nn.contrastive import draw_negatives, info_nce
from speechssl.nn.cosine_clusters import cosine_clusters
from speechssl.nn.draws import random_gumbel
from speechssl.nn.frame_masks import masked_frames, pack
from speechssl.nn.gumbel import CodeUsage, GumbelQuantiser, annealed
from speechssl.nn.update_sums import UpdateSums
from speechssl.objectives.data2vec import Data2vec, Data2vecConfig, watched
from speechssl.objectives.hubert import feature_penalty
from speechssl.objectives.wavlm import VIEW

_NOISE, _NEGATIVES, _CLUSTERS = 51, 52, 53
"""Streams of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2vecAqcConfig(Data2vecConfig):
    """As data2vec, with the two contrastive terms."""

    final_dim: int = 256
    """Width in which contexts and quantised frames are compared."""
    groups: int = 2
    """Codebooks."""
    codes: int = 320
    """Codewords in each."""
    negatives: int = 100
    """Other masked frames that each is compared with."""
    temperature: float = 0.1
    """Cosines are divided by this."""
    contrast_weight: float = 0.5
    """Weight of each of the two terms."""
    cluster_frames: int = 16
    """Frames of an utterance per cluster of negatives."""
    cluster_scale: float = 0.3
    """Factor of the cosine of a negative in the positive's cluster; 1: no clustering. As published
    it also brings negative cosines nearer to 0, that is, raises them."""
    diversity_weight: float = 0.1
    """Weight of the share of codes that are not used."""
    gumbel_start: float = 2.0
    """Temperature of the Gumbel softmax at the first update."""
    gumbel_end: float = 0.5
    """Its least."""
    gumbel_factor: float = 0.999995
    """Its factor per update."""
    feature_penalty: float = 0.0
    """Weight of the mean square of the clean view's front-end output; 10 in the official code."""
    as_released: bool = False
    """As the official code: clusters of the whole micro-batch, whose factor counts only if one of
    its negatives equals its positive, and diversity of the clean view's codes. The loss of an
    utterance then depends on the others of its micro-batch."""

    def build(self) -> Data2vecAqc:
        return Data2vecAqc(self)


class Data2vecAqc(Data2vec):
    """Regression of the clean view's targets, and contrast of each view with the other."""

    config: Data2vecAqcConfig

    def __init__(self, config: Data2vecAqcConfig) -> None:
        super().__init__(config)
        channels = cast(Any, self.encoder).front_norm.normalized_shape[0]
        self.quantiser = GumbelQuantiser(channels, config.groups, config.codes, config.final_dim)
        self.project_context = nn.Linear(self.encoder.dim, config.final_dim)
        self.project_quantised = nn.Linear(config.final_dim, config.final_dim)
        self.usage = CodeUsage(config.groups, config.codes)
        self.code_sums = UpdateSums(probabilities=(config.groups, config.codes), count=())

    def forward(self, batch: Batch) -> Loss:
        config = self.config
        if VIEW not in batch.views:
            raise ValueError(
                f"batch: found views {sorted(batch.views)}, want {VIEW!r}; set data.mixing (such "
                "as data.mixing.probability=0.8)"
            )
        mask, valid = masked_frames(
            self.encoder,
            batch,
            probability=config.mask_probability,
            span=config.mask_span,
            min_spans=config.mask_min_spans,
        )
        lengths = batch.wave_lengths
        out = self.encoder(batch.views[VIEW], lengths, mask=mask, layers=[-1])
        clean = self.encoder(batch.wave, lengths, layers=[0]).front
        y_BTD = self.targets(batch, clean, ~valid)
        base = watched(self.regress(out.last, y_BTD, mask, valid, batch), out.front, valid)

        student, teacher, hits, p_NGV = self.contrast(out, clean, y_BTD, mask, batch)
        views = 1 if config.as_released else 2
        # Frames of all views, under the count of one.
        diversity = self.usage(p_NGV) / views
        if not batch.filler:
            self.code_sums.add(probabilities=p_NGV.sum(0), count=views * base.count)
        total = base.total + config.contrast_weight * (student + teacher)
        if config.feature_penalty > 0:
            total = total + config.feature_penalty * feature_penalty(clean, valid, mask.sum(1))
        logs = dict(base.logs) | {
            "contrast_nats_student": (student.detach(), base.count),
            "contrast_nats_teacher": (teacher.detach(), base.count),
            "contrast_accuracy": (hits, 2 * base.count),
            "diversity": (diversity.detach(), base.count),
        }
        return Loss(total + config.diversity_weight * diversity, base.count, logs)

    def contrast(
        self, out: EncoderOutput, clean: Tensor, y_BTD: Tensor, mask: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both sums of cross entropies, hits of both, and (2 N, G, V) probabilities of codes, or
        (N, G, V) of the clean view's.

        The student is compared with clean quantised frames, the teacher with augmented ones.
        """
        config = self.config
        clean_BMF, clean_codes, p_clean, packed = self.quantise(clean, mask, batch)
        mixed_BMF, mixed_codes, p_mixed, _ = self.quantise(out.front, mask, batch)
        negatives = draw_negatives(
            mask.sum(1), batch.seeds, config.negatives, packed.shape[1], _NEGATIVES
        )
        in_cluster = self.same_cluster(clean_BMF, mixed_BMF, packed, negatives, batch)
        found = []
        for x_BTD, target_BMF, codes, near in (
            (out.last, clean_BMF, clean_codes, in_cluster[0]),
            (y_BTD, mixed_BMF, mixed_codes, in_cluster[1]),
        ):
            context_BMF = self.project_context(pack(x_BTD, mask)[0])
            if config.as_released:
                near = near & _any_tie(codes, negatives, packed)
            factors = torch.where(near, config.cluster_scale, 1.0)
            found.append(
                info_nce(
                    context_BMF, target_BMF, packed, negatives, config.temperature, codes, factors
                )
            )
        (student, student_hits), (teacher, teacher_hits) = found
        p_NGV = p_clean if config.as_released else torch.cat([p_clean, p_mixed])
        return student, teacher, student_hits + teacher_hits, p_NGV

    def quantise(
        self, front: Tensor, mask: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, M, F) projected codewords, (B, M, G) codes, (N, G, V) probabilities, (B, M) valid.

        Both views get the same noise: equal views have equal codes.
        """
        config, noise = self.config, None
        x_BMC, packed = pack(cast(Any, self.encoder).front_norm(front), mask)
        if self.training:
            size = (packed.shape[1], config.groups, config.codes)
            noise = random_gumbel(batch.seeds.to(front.device), _NOISE, *size)[packed]
        found = self.quantiser(x_BMC[packed], self.gumbel_temperature(), noise)
        y_BMF = x_BMC.new_zeros(*packed.shape, config.final_dim, dtype=torch.float32)
        y_BMF[packed] = self.project_quantised(found.vectors).float()
        codes_BMG = found.codes.new_zeros(*packed.shape, config.groups)
        codes_BMG[packed] = found.codes
        return y_BMF, codes_BMG, found.probabilities, packed

    def same_cluster(
        self, clean: Tensor, mixed: Tensor, packed: Tensor, negatives: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """(B, M, negatives) bool of each view: the negative lies in the frame's own cluster."""
        both = torch.stack([clean, mixed], 2).flatten(1, 2)  # a row's valid vectors stand first
        valid = packed.repeat_interleave(2, 1)
        frames = self.encoder.frame_lengths(batch.wave_lengths)
        rows, seeds = valid, batch.seeds
        if self.config.as_released:  # all utterances in one row
            both, rows, seeds = both[valid][None], valid[valid][None], seeds[:1]
            frames = frames.max()[None]
        clusters = (frames // self.config.cluster_frames).clamp(min=2)
        index = cosine_clusters(both, rows, clusters, seeds, stream=_CLUSTERS)
        if self.config.as_released:
            index = index.new_zeros(valid.shape).masked_scatter(valid, index)
        clean_BM, mixed_BM = index.unflatten(1, (-1, 2)).unbind(2)
        found = []
        for own in (clean_BM, mixed_BM):
            other = own[:, None].expand(-1, own.shape[1], -1).gather(2, negatives)
            found.append(other == own[..., None])
        return found[0], found[1]

    def gumbel_temperature(self) -> Tensor:
        """Temperature of this update."""
        c = self.config
        return annealed(c.gumbel_start, c.gumbel_end, c.gumbel_factor, self.step)

    def after_update(self, step: int) -> None:
        super().after_update(step)
        sums = self.code_sums.take()
        self.usage.update(sums["probabilities"], sums["count"])


def _any_tie(codes_BMG: Tensor, negatives: Tensor, packed: Tensor) -> Tensor:
    """Whether any negative of the batch has the codes of its positive."""
    same = (codes_BMG[:, :, None] == codes_BMG[:, None, :]).all(-1).gather(2, negatives)
    has_others = packed.sum(1) > 1
    return (same & packed[..., None] & has_others[:, None, None]).any()
