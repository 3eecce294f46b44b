"""data2vec: from masked input, predict what an averaged copy of the encoder makes of all of it.

Source: Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech,
Vision and Language", section 3; fairseq `examples/data2vec/models/data2vec_audio.py`.

Differs:
- Statistics of the instance norm are those of valid frames; the reference lets padding in.
- Masked rows are not cut to equal counts (see `speechssl.nn.masking`).
- The collapse detector looks at the whole update over all ranks and raises with its reason.

Shape legend: B utterances, T frames, D encoder width, M masked frames, K target layers.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, Loss, Objective
from speechssl.nn import collapse
from speechssl.nn.ema import EmaTeacher, linear_then_hold
from speechssl.nn.frame_masks import masked_frames
from speechssl.nn.log_mel import normalise_frames
from speechssl.nn.update_sums import UpdateSums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2vecConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain."""
    target_layers: int = 8
    """K: how many of the teacher's last layers are averaged to the target."""
    mask_probability: float = 0.65
    """Span starts per frame times the span."""
    mask_span: int = 10
    """Frames per span."""
    mask_min_spans: int = 2
    """Least number of spans of an utterance."""
    ema_start: float = 0.999
    """The teacher's decay at the first update."""
    ema_end: float = 0.9999
    """Its decay from update `ema_steps` on."""
    ema_steps: int = 30_000
    """Updates over which the decay grows, along a line."""
    smooth_l1: float = 0.0
    """Beta of a smooth L1 loss; 0: squared error."""
    collapse_after: int = 5000
    """Raise from this update on if targets or predictions hardly vary; 0: never."""
    least_target_deviation: float = 0.1
    """Mean over channels of the targets' standard deviation over frames that counts as sound."""
    least_prediction_deviation: float = 0.01
    """The same for predictions."""

    def build(self) -> Data2vec:
        return Data2vec(self)


class Data2vec(Objective):
    """Regression of averaged, normalised feed-forward outputs of an EMA teacher."""

    def __init__(self, config: Data2vecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        dim, layers = self.encoder.dim, self.encoder.num_layers
        if not 1 <= config.target_layers <= layers:
            raise ValueError(
                f"target_layers: found {config.target_layers}, want 1 to {layers}, the encoder's"
            )
        self.head = nn.Linear(dim, dim)
        self.teacher = EmaTeacher(self.encoder, self.averaged())
        self.sums = UpdateSums(target=(2, dim), prediction=(2, dim), count=())

    def forward(self, batch: Batch) -> Loss:
        config = self.config
        mask, valid = masked_frames(
            self.encoder,
            batch,
            probability=config.mask_probability,
            span=config.mask_span,
            min_spans=config.mask_min_spans,
        )
        out = self.encoder(batch.wave, batch.wave_lengths, mask=mask, layers=[-1])
        y_BTD = self.targets(batch, out.front, ~valid)
        loss = self.regress(out.last, y_BTD, mask, valid, batch)
        return watched(loss, out.front, valid)

    def regress(
        self, x_BTD: Tensor, y_BTD: Tensor, mask: Tensor, valid: Tensor, batch: Batch
    ) -> Loss:
        """Distance of predictions from targets at masked frames."""
        config = self.config
        x_MD, y_MD = self.head(x_BTD[mask]).float(), y_BTD[mask]
        if config.smooth_l1 > 0:
            error = F.smooth_l1_loss(x_MD, y_MD, beta=config.smooth_l1, reduction="sum")
        else:
            error = (x_MD - y_MD).square().sum()
        total = error / self.encoder.dim**0.5
        count = mask.sum()
        target, prediction = _moments(y_MD), _moments(x_MD)
        if not batch.filler:
            self.sums.add(target=target, prediction=prediction, count=count)
        logs = {
            "regression": (total.detach(), count),
            "target_deviation": (collapse.spread(target[0], target[1], count) * count, count),
            "prediction_deviation": (
                collapse.spread(prediction[0], prediction[1], count) * count,
                count,
            ),
            "masked_fraction": (count, valid.sum()),
        }
        return Loss(total, count, logs)

    def averaged(self) -> tuple[str, ...]:
        """How the names of the parameters that the teacher averages begin; the rest it copies."""
        return "layers.", "layer_norm."

    def targets(self, batch: Batch, front: Tensor, padding: Tensor) -> Tensor:
        """(B, T, D) float32: mean over K layers of instance-normed feed-forward outputs."""
        outputs = self.teacher.feed_forward_outputs(
            batch.wave, batch.wave_lengths, front, self.config.target_layers
        )
        return torch.stack([normalise_frames(y.float(), padding) for y in outputs]).mean(0)

    def ema_decay(self, step: int) -> float:
        """Decay of update number `step`, 1 for the first."""
        c = self.config
        return linear_then_hold(c.ema_start, c.ema_end, c.ema_steps, step - 1)

    def after_update(self, step: int) -> None:
        super().after_update(step)
        self.teacher.update(self.encoder, self.ema_decay(step))
        if collapse.due(step, self.config.collapse_after):
            sums = self.sums.take()
            for name in ("target", "prediction"):
                found = collapse.spread(sums[name][0], sums[name][1], sums["count"])
                least = getattr(self.config, f"least_{name}_deviation")
                collapse.require(
                    f"{name} deviation", found, least, step, f"all {name}s are nearly the same"
                )


def watched(loss: Loss, front: Tensor, valid: Tensor) -> Loss:
    """`loss` that also logs how much the (B, T, C) front end varies over time: one that gives all
    frames the same shows in no other figure."""
    pair = collapse.deviation_over_time(front, valid)
    return dataclasses.replace(loss, logs=dict(loss.logs) | {"front_deviation": pair})


@torch.no_grad()
def _moments(x_MD: Tensor) -> Tensor:
    """(2, D): sums over frames of the values and of their squares."""
    return torch.stack([x_MD.sum(0), x_MD.square().sum(0)])
