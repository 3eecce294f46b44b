"""Learning-rate schedules: pure functions of the step, so a resume needs no state of theirs."""

from __future__ import annotations

import math

from speechssl.train.config import TrainConfig

TIMESCALE = 10.0
"""Steepness of the inverse square root cooldown: larger falls earlier."""


def rate_scale(config: TrainConfig, step: int) -> float:
    """Share of the peak learning rate for update number `step` (1 is the first update).

    Source: fairseq `polynomial_decay` (power 1), `cosine`, `tri_stage` schedulers; inverse_sqrt:
    Vaswani et al. 2017, "Attention Is All You Need", section 5.3; infinite:
    Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language
    Models", section 7.4; cyclic: Smith 2017, "Cyclical Learning Rates for Training Neural
    Networks", section 3.2 (triangular, triangular2); Desplanques et al. 2020 (ECAPA-TDNN).
    Differs: the warm-up reaches the peak at its last update, and the decay its end at the last
    update of the run, whatever the rounding of the fractions; so does a cycle at its last update.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return config.initial_scale + (1 - config.initial_scale) * step / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / step)
    if config.schedule == "cyclic":
        cycle, place = divmod(step, config.cycle_steps)
        height = config.cycle_decay**cycle * (1 - abs(2 * place / config.cycle_steps - 1))
        return config.final_scale + (1 - config.final_scale) * height
    if config.schedule == "infinite":
        return _infinite(config, step, warmup)
    hold = round(config.hold_fraction * config.steps) if config.schedule == "tri_stage" else 0
    decay = config.steps - warmup - hold
    past = min(max(step - warmup - hold, 0) / decay, 1.0) if decay > 0 else 0.0
    if config.schedule in ("tri_stage", "exponential"):
        return config.final_scale**past
    if config.schedule == "cosine":
        past = (1 - math.cos(math.pi * past)) / 2
    return 1 - (1 - config.final_scale) * past


def _infinite(config: TrainConfig, step: int, warmup: int) -> float:
    """Behind the warm-up: cooldown, constant rate, anneal. Only the anneal looks at the end."""
    annealed = step - (config.steps - config.anneal_steps)
    if annealed > 0:
        ratio = config.final_scale / config.constant_scale
        return config.constant_scale * ratio ** min(annealed / config.anneal_steps, 1.0)
    if step >= warmup + config.cooldown_steps:
        return config.constant_scale
    past = (step - warmup) / config.cooldown_steps
    if config.cooldown == "cosine":
        past = (1 - math.cos(math.pi * past)) / 2
    else:
        past = _fall(past) / _fall(1.0)
    return 1 - (1 - config.constant_scale) * past


def _fall(past: float) -> float:
    """How far an inverse square root has fallen from 1 at share `past` of its way."""
    return 1 - 1 / math.sqrt(1 + TIMESCALE * past)


def last_constant_step(config: TrainConfig) -> int | None:
    """The last update before an infinite schedule's anneal, from which a run may go on."""
    if config.schedule != "infinite" or not config.anneal_steps:
        return None
    return config.steps - config.anneal_steps or None


def ema_decay(decay: float, step: int) -> float:
    """Decay of the weight average at update `step`: short at first, so it forgets the start."""
    return min(decay, (1 + step) / (10 + step))
