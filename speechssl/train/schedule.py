"""Learning-rate schedules: pure functions of the step, so a resume needs no state of theirs."""

from __future__ import annotations

import math

from speechssl.train.config import TrainConfig


def rate_scale(config: TrainConfig, step: int) -> float:
    """Share of the peak learning rate for update number `step` (1 is the first update).

    Source: fairseq `polynomial_decay` (power 1), `cosine`, `tri_stage` schedulers.
    Differs: the warm-up reaches the peak at its last update, and the decay its end at the last
    update of the run, whatever the rounding of the fractions.
    """
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return config.initial_scale + (1 - config.initial_scale) * step / warmup
    if config.schedule == "constant":
        return 1.0
    hold = round(config.hold_fraction * config.steps) if config.schedule == "tri_stage" else 0
    decay = config.steps - warmup - hold
    past = min(max(step - warmup - hold, 0) / decay, 1.0) if decay > 0 else 0.0
    if config.schedule == "tri_stage":
        return config.final_scale**past
    if config.schedule == "cosine":
        past = (1 - math.cos(math.pi * past)) / 2
    return 1 - (1 - config.final_scale) * past


def ema_decay(decay: float, step: int) -> float:
    """Decay of the weight average at update `step`: short at first, so it forgets the start."""
    return min(decay, (1 + step) / (10 + step))
