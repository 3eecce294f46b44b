"""Options of a training run. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to optimise; what to optimise is the objective's or the head's own configuration."""

    steps: int = 10_000
    """Optimiser updates to make in all; 0: only validate and export the model as it is built, to
    compare with."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    schedule: Literal[
        "linear", "cosine", "exponential", "tri_stage", "inverse_sqrt", "constant", "cyclic",
        "infinite",
    ] = "linear"  # fmt: skip
    """Shape of the learning rate after its warm-up: linear, cosine or exponential decay to
    `final_scale` x peak at the last step; tri_stage: warm-up, hold, exponential decay;
    inverse_sqrt: peak x square root of warm-up / step (Noam); constant; cyclic: up and down from
    `final_scale` x peak in cycles of `cycle_steps`, without a warm-up; infinite: cooldown to a
    constant rate that further steps prolong, and a last anneal of `anneal_steps`, all counted in
    updates."""
    warmup_fraction: float = 0.08
    """Share of the steps that warm up linearly (HuBERT 0.08; tri_stage recipes 0.1)."""
    warmup_steps: int | None = None
    """Updates that warm up, in place of `warmup_fraction`; infinite needs it."""
    cooldown: Literal["cosine", "inverse_sqrt"] = "cosine"
    """infinite: shape of the way from the peak to the constant rate."""
    cooldown_steps: int = 0
    """infinite: updates of that way."""
    constant_scale: float = 0.5
    """infinite: the constant rate, as a share of the peak."""
    anneal_steps: int = 0
    """infinite: how many of the last updates decay exponentially to `final_scale`, for a model to
    use; the checkpoint before them is kept, and a run that is to go on starts from that one."""
    cycle_steps: int = 0
    """cyclic: updates of one cycle, half of which rise (ECAPA-TDNN: 130 000)."""
    cycle_decay: float = 0.5
    """cyclic: height of a cycle over that of the one before (triangular2: 0.5; triangular: 1)."""
    hold_fraction: float = 0.4
    """tri_stage: share of the steps at the peak (fairseq 0.4); the rest decays."""
    initial_scale: float = 0.0
    """The warm-up starts from this share of the peak (fairseq's tri_stage: 0.01)."""
    final_scale: float = 0.0
    """The decay ends at this share of the peak (fairseq's tri_stage: 0.05); cycles begin and end at
    it (ECAPA-TDNN: 1e-5)."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw: decay decoupled from the gradient, as fairseq's `adam` in truth has it;
    adam: decay added to the gradient (L2)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's decay rates."""
    eps: float = 1e-6
    """Adam's epsilon."""
    weight_decay: float = 0.01
    """Weight decay, per unit of learning rate."""
    decay_norms_and_biases: bool = True
    """False: no weight decay on one-dimensional parameters (fairseq decays all)."""
    encoder_rate_scale: float = 1.0
    """The encoder's learning rate relative to that of the other parameters."""
    clip_norm: float = 10.0
    """Largest norm of the gradient, which is per scored item; 0: do not clip."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: autocast of the forward pass; weights and optimiser stay in float32. auto: bf16 where
    the device has instructions for it, else fp32."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, for validation and export."""
    valid_every: int = 500
    """Updates between validations; 0: only after the last update."""
    save_every: int = 500
    """Updates between checkpoints; the last update is always saved."""
    log_every: int = 20
    """Updates between lines of metrics.jsonl."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, besides the best ones."""
    keep_best: int = 1
    """Checkpoints of the best validations to keep. `speechssl finetune --export average` gives the
    mean of their weights (ML-SUPERB: of 5)."""
    best_metric: str = "loss"
    """Validation figure that says which checkpoint is the best."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which end of `best_metric` is good."""
    stop_after: int = 0
    """End the run when this many validations in a row brought no better one; 0: never."""
    parallel: Literal["auto", "replicated", "fsdp2"] = "auto"
    """Over ranks: replicate the model, or shard it; auto shards above 300 M parameters."""
    compile: bool = False
    """Compile the blocks of the model with torch.compile."""
    seed: int = 0
    """Seed of initial weights, dropout and all that an objective draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    deterministic: bool = False
    """Only deterministic kernels on a GPU: slower, and bit-equal from run to run."""
    max_skip_fraction: float = 0.1
    """End the run when a larger share of the utterances cannot be read."""
    spike_factor: float = 10.0
    """Skip an update whose loss is this many deviations above its running mean; 0: never."""
    spike_after: int = 100
    """Updates that the running mean needs before it judges."""
    max_bad_updates: int = 10
    """End the run after this many skipped updates in a row (loss or gradient not finite,
    nothing scored, or a spike)."""
    tensorboard: bool = True
    """Also write TensorBoard events, where tensorboard is installed."""

    def __post_init__(self) -> None:
        for name in ("log_every", "save_every", "keep_checkpoints", "keep_best",
                     "max_bad_updates"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}: found {getattr(self, name)}, want at least 1")
        for name in ("steps", "valid_every", "clip_norm", "learning_rate", "stop_after",
                     "spike_factor", "cooldown_steps", "anneal_steps", "cycle_steps"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}: found {getattr(self, name)}, want 0 or more")
        used = self.warmup_fraction + (self.hold_fraction if self.schedule == "tri_stage" else 0)
        if self.warmup_fraction < 0 or self.hold_fraction < 0 or used > 1:
            raise ValueError(
                f"train.warmup_fraction, hold_fraction: found {self.warmup_fraction}, "
                f"{self.hold_fraction}, want shares of the steps that sum to at most 1"
            )
        if self.schedule in ("tri_stage", "exponential") and self.final_scale <= 0:
            raise ValueError(
                f"train.final_scale: found {self.final_scale}, want more than 0 for "
                f"{self.schedule}, whose decay is exponential; fairseq uses 0.05"
            )
        if self.warmup_steps is not None and not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"train.warmup_steps: found {self.warmup_steps}, want 0 to {self.steps} (steps)"
            )
        if self.schedule == "cyclic":
            self._check_cyclic()
        elif self.cycle_steps:
            raise ValueError(
                f"train.schedule: found {self.schedule} with cycle_steps {self.cycle_steps}, want "
                "cyclic, or cycle_steps 0"
            )
        if self.schedule == "infinite":
            self._check_infinite()
        elif self.anneal_steps or self.cooldown_steps:
            raise ValueError(
                f"train.schedule: found {self.schedule} with cooldown_steps {self.cooldown_steps} "
                f"and anneal_steps {self.anneal_steps}, want infinite, or neither of them"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"train.ema_decay: found {self.ema_decay}, want between 0 and 1")

    def _check_cyclic(self) -> None:
        if self.cycle_steps < 2:
            raise ValueError(
                f"train.cycle_steps: found {self.cycle_steps}, want 2 or more with schedule cyclic"
            )
        if self.cycle_decay <= 0 or not 0 <= self.final_scale < 1:
            raise ValueError(
                f"train.cycle_decay, final_scale: found {self.cycle_decay} and {self.final_scale}, "
                "want more than 0, and 0 to less than 1, with schedule cyclic"
            )
        warmup = self.warmup_steps
        if warmup or (warmup is None and self.warmup_fraction):
            raise ValueError(
                f"train.warmup_fraction, warmup_steps: found {self.warmup_fraction} and {warmup}, "
                "want warmup_fraction 0 with schedule cyclic: each of its cycles begins with a rise"
            )

    def _check_infinite(self) -> None:
        if self.warmup_steps is None:
            raise ValueError(
                "train.warmup_steps: found none, want a number of updates with schedule infinite: "
                "a share of the steps would change what is past when train.steps grows"
            )
        if not 0 < self.constant_scale <= 1:
            raise ValueError(
                f"train.constant_scale: found {self.constant_scale}, want more than 0, at most 1"
            )
        used = self.warmup_steps + self.cooldown_steps + self.anneal_steps
        if self.anneal_steps and used > self.steps:
            raise ValueError(
                f"train.anneal_steps: found {self.anneal_steps}, want at most what warm-up and "
                f"cooldown leave of train.steps, {used - self.anneal_steps} of {self.steps}"
            )
        if self.anneal_steps and not 0 < self.final_scale <= self.constant_scale:
            raise ValueError(
                f"train.final_scale: found {self.final_scale}, want more than 0 and at most "
                f"constant_scale, {self.constant_scale}, for an exponential anneal"
            )
