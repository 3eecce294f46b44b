"""Pronunciation by a trained head: for each phone that may be asked, whether a frame says it well.

Source: Sancinetti et al. 2022, "A transfer learning approach for pronunciation scoring": one binary
output per phone on the frames of an acoustic model, of which only that of the phone that was asked
for learns in a frame; a phone's score is its output's mean over the frames aligned to it.
Differs: on the layers' sum of an upstream; grades between right and wrong are soft targets; frames
count alike, not phones.

Targets "asked" and "said", labels of frames as `tools/goodness.py --labels` writes them: the place
of the phone asked for in `phones`, one behind the last where none is, and how well it was said.

Shape legend: B utterances, L samples, T frames, P phones.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss, padding_mask
from speechssl.heads.frames import FramesConfig, FramesHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class PronounceConfig(FramesConfig):
    phones: list[str] = dataclasses.field(default_factory=list)
    """Names of the phones in the order of the outputs and of the labels."""
    grades: int = 2
    """How many grades the labels have, from 0, wrong, up."""
    hidden_dim: int = 0
    """Width of a layer below the outputs; 0: none."""
    dropout: float = 0.0
    """Dropout of what the outputs read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.phones)) != len(self.phones):
            raise ValueError(f"phones: found a name twice in {self.phones}, want each once")
        if self.grades < 2:
            raise ValueError(f"grades: found {self.grades}, want 2 or more")

    def build(self, encoder: Encoder) -> PronounceHead:
        return PronounceHead(self, encoder)


class PronounceHead(FramesHead):
    """Log-odds, for each phone, that a frame of it was said well."""

    config: PronounceConfig

    def __init__(self, config: PronounceConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if not config.phones:
            raise ValueError("phones: found none, want those of `tools/goodness.py --labels`")
        dim = config.hidden_dim or self.dim
        self.hidden = (
            nn.Sequential(nn.Linear(self.dim, dim), nn.LayerNorm(dim), nn.GELU())
            if config.hidden_dim
            else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(dim, len(config.phones))

    def forward(self, batch: Batch) -> Loss:
        odds, lengths = self.phone_log_odds(batch.wave, batch.wave_lengths)
        asked, said = (self._target(batch, name, odds.shape[1]) for name in ("asked", "said"))
        none = len(self.config.phones)
        if not asked.is_cuda and int(asked.max()) > none:
            raise ValueError(
                f"asked: found label {int(asked.max())}, want at most {none}, none of the "
                f"{none} phones; are these the labels of head.phones?"
            )
        valid = (asked >= 0) & (asked < none) & (said >= 0)
        valid &= ~padding_mask(lengths, odds.shape[1])
        own = odds.gather(2, asked.clamp(0, none - 1)[..., None])[..., 0]
        grade = said.clamp(min=0) / (self.config.grades - 1)
        losses = F.binary_cross_entropy_with_logits(own, grade, reduction="none")
        total, count = (losses * valid).sum(), valid.sum()
        right = ((own.detach() > 0) == (grade > 0.5)) & valid
        wrong = valid & (grade <= 0.5)
        logs = {
            "nats": (total.detach(), count),
            "accuracy": (right.sum(), count),
            "wrong_found": ((right & wrong).sum(), wrong.sum()),
        }
        return Loss(total, count, logs)

    def phone_log_odds(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) and (B,) samples -> (B, T, P) float32, and (B,) valid frames."""
        x, lengths = self.frames(wave, wave_lengths)
        return self.output(self.dropout(self.hidden(x))).float(), lengths

    def _target(self, batch: Batch, name: str, frames: int) -> Tensor:
        """(B, T) int64, -100 where there is none."""
        if name not in batch.targets:
            raise ValueError(
                f"{name}: found targets {sorted(batch.targets)}, want {name!r}; "
                f"`tools/goodness.py --labels` writes it, and data.labels.{name} names it"
            )
        found = batch.targets[name][:, :frames]
        return F.pad(found, (0, frames - found.shape[1]), value=-100)
