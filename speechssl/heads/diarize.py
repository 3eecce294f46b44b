"""Who speaks when: the activity of a fixed number of speakers in every frame.

Source: Yang et al. 2021 (SUPERB), speaker diarization: layers' weighted sum, one LSTM, a sigmoid
per speaker; Fujita et al. 2019 (EEND) for the permutation-invariant loss.
Differs: the loss is summed over frames and speakers and normalised by their number, so that
batch shape does not matter.

Shape legend: B utterances, L samples, T frames, S speakers.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss, padding_mask
from speechssl.heads.frames import FramesConfig, FramesHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiarizeConfig(FramesConfig):
    speakers: int = 2
    """Most speakers of a recording."""
    hidden_dim: int = 512
    """Width of the LSTM."""
    hidden_layers: int = 1
    """How many of them lie upon each other."""
    bidirectional: bool = False
    """Let it read backwards too; SUPERB's reads forwards only."""
    dropout: float = 0.0
    """Dropout before the output layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.speakers <= 5:
            raise ValueError(
                f"speakers: found {self.speakers}, want 1 to 5: the loss tries all their orders"
            )

    def build(self, encoder: Encoder) -> DiarizeHead:
        return DiarizeHead(self, encoder)


class DiarizeHead(FramesHead):
    """Probability of each speaker's activity; which speaker is which output, nobody says."""

    config: DiarizeConfig

    def __init__(self, config: DiarizeConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.lstm = nn.LSTM(
            self.dim,
            config.hidden_dim,
            config.hidden_layers,
            batch_first=True,
            bidirectional=config.bidirectional,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear((1 + config.bidirectional) * config.hidden_dim, config.speakers)

    def forward(self, batch: Batch) -> Loss:
        logits, lengths = self._logits(batch.wave, batch.wave_lengths)
        valid = ~padding_mask(lengths, logits.shape[1])
        truth = self._truth(batch, logits.shape[1])
        total, order = permutation_free_bce(logits, truth, valid)
        count = valid.sum() * self.config.speakers
        ordered = truth.gather(2, order[:, None].expand_as(truth)).bool()
        heard = (logits.detach() > 0) & valid[..., None]
        ordered = ordered & valid[..., None]
        spoken = ordered.sum((1, 2)).sum()
        errors = torch.maximum(ordered.sum(2), heard.sum(2)) - (ordered & heard).sum(2)
        # The DER of frames under the loss's own order, without collar.
        logs = {"bce": (total.detach(), count), "der": (errors.sum(), spoken)}
        return Loss(total, count, logs)

    def activities(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, S) float32 probabilities that each speaker is active, and (B,) valid frames."""
        logits, lengths = self._logits(wave, wave_lengths)
        return logits.sigmoid(), lengths

    def _logits(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.frames(wave, wave_lengths)
        # Packed, so that the backward direction starts at each utterance's own end.
        packed = nn.utils.rnn.pack_padded_sequence(
            x.float(), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        found, _ = self.lstm(packed)
        y, _ = nn.utils.rnn.pad_packed_sequence(found, batch_first=True, total_length=x.shape[1])
        return self.output(self.dropout(y)).float(), lengths

    def _truth(self, batch: Batch, frames: int) -> Tensor:
        """(B, T, S) float32 of 0 and 1 from the bits of the target "activity"."""
        if "activity" not in batch.targets:
            raise ValueError(
                f"activity: found targets {sorted(batch.targets)}, want 'activity': a label store "
                "of frames in which bit s says that speaker s is active; `speechssl finetune` "
                "makes one of the supervisions' times, or data.labels.activity names it"
            )
        bits = batch.targets["activity"][:, :frames].clamp(min=0)
        if not bits.is_cuda and int(bits.max()) >= 2**self.config.speakers:
            raise ValueError(
                f"activity: found label {int(bits.max())}, want less than "
                f"{2**self.config.speakers} with {self.config.speakers} speakers"
            )
        places = torch.arange(self.config.speakers, device=bits.device)
        return ((bits[..., None] >> places) & 1).float()


def permutation_free_bce(logits: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of binary cross entropies under each utterance's best order of speakers.

    logits, truth: (B, T, S); valid: (B, T) bool. Returns the scalar sum, and (B, S) which true
    speaker each output stands for.
    """
    speakers = logits.shape[2]
    orders = torch.tensor(list(itertools.permutations(range(speakers))), device=logits.device)
    # Outputs along one axis, true speakers along the other: all orders are sums of its entries.
    pairs = F.binary_cross_entropy_with_logits(
        logits[..., None].expand(-1, -1, -1, speakers),
        truth[:, :, None].expand(-1, -1, speakers, -1),
        reduction="none",
    )
    costs = (pairs * valid[..., None, None]).sum(1)  # (B, S, S)
    totals = costs[:, torch.arange(speakers, device=logits.device), orders].sum(-1)
    best = totals.min(1)
    return best.values.sum(), orders[best.indices]
