"""Several classes per utterance: the slots of an intent, such as action, object and place.

Source: Yang et al. 2021 (SUPERB), intent classification: one linear output per slot, summed cross
entropies, right only if every slot is.

Shape legend: B utterances, L samples, N slots, C values of all slots together.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss
from speechssl.heads.pooled import PooledConfig, PooledHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotsConfig(PooledConfig):
    slots: list[str] = dataclasses.field(default_factory=list)
    """Fields of the manifest, one per slot: [slots.size, slots.drink]."""
    values: list[list[str]] = dataclasses.field(default_factory=list)
    """Values of each slot in the order of its outputs; fine-tuning takes those of the training
    cuts, and "none" where a cut lacks the field."""

    def build(self, encoder: Encoder) -> SlotsHead:
        return SlotsHead(self, encoder)


class SlotsHead(PooledHead):
    """Log-probabilities of every slot's values."""

    config: SlotsConfig

    def __init__(self, config: SlotsConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if not config.slots or len(config.values) != len(config.slots):
            raise ValueError(
                f"slots, values: found {config.slots} with {len(config.values)} lists of values, "
                "want fields of the manifest; `speechssl finetune` takes their values from the cuts"
            )
        if any(len(v) < 2 for v in config.values):
            few = [s for s, v in zip(config.slots, config.values) if len(v) < 2]
            raise ValueError(f"values: found fewer than two of {few}, want slots that differ")
        self.sizes = [len(v) for v in config.values]
        self.output = nn.Linear(self.pooled_dim, sum(self.sizes))

    def forward(self, batch: Batch) -> Loss:
        targets = self._targets(batch)
        parts = self._log_probs(batch.wave, batch.wave_lengths)
        count = torch.tensor(len(targets), device=targets.device)
        total = parts[0].new_zeros(())
        right = torch.ones_like(targets[:, 0], dtype=torch.bool)
        slots_right = torch.zeros_like(count)
        for part, target in zip(parts, targets.T, strict=True):
            # A value that training never showed is an error, and teaches nothing.
            known = target < part.shape[1]
            losses = F.nll_loss(part, target.clamp(max=part.shape[1] - 1), reduction="none")
            total = total + (losses * known).sum()
            hit = known & (part.detach().argmax(1) == target)
            right, slots_right = right & hit, slots_right + hit.sum()
        logs = {
            "nats": (total.detach(), count),
            "accuracy": (right.sum(), count),
            "slot_accuracy": (slots_right, count * len(parts)),
        }
        return Loss(total, count, logs)

    def slot_log_probs(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, None]:
        """(B, C) float32 log-probabilities, those of each slot adding up to 1 by themselves."""
        return torch.cat(self._log_probs(wave, wave_lengths), 1), None

    def _log_probs(self, wave: Tensor, wave_lengths: Tensor) -> list[Tensor]:
        logits = self.output(self.pooled(wave, wave_lengths))
        return [x.float().log_softmax(1) for x in logits.split(self.sizes, 1)]

    def _targets(self, batch: Batch) -> Tensor:
        """(B, N): of each slot the place of its value, or one behind the last if it is new."""
        if "slots" not in batch.targets:
            raise ValueError(
                f"slots: found targets {sorted(batch.targets)}, want 'slots'; `speechssl finetune` "
                "makes them of head.slots"
            )
        return batch.targets["slots"].reshape(len(batch), -1)
