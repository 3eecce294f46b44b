"""Connectionist temporal classification, as sums over utterances.

Source: Graves et al. 2006.

Shape legend: B utterances, S output frames, U tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.contract import Batch

BLANK = 0


def text_targets(batch: Batch, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(B, U) tokens, 0 behind each length, and (B,) lengths of a batch's transcripts."""
    if "text" not in batch.targets or "text_lengths" not in batch.targets:
        raise ValueError(
            f"text: found targets {sorted(batch.targets)}, want 'text' and 'text_lengths'; "
            "set data.tokenizer to a tokenizer.json"
        )
    text, lengths = batch.targets["text"], batch.targets["text_lengths"]
    if not text.is_cuda and text.numel():
        low, high = int(text.min()), int(text.max())
        if low <= BLANK or high >= vocab_size:
            raise ValueError(
                f"text: found token ids {low} to {high}, want 1 to {vocab_size - 1}; is this the "
                "tokenizer that the head was made with?"
            )
    width = max(int(lengths.max()), 1)
    where = torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]
    padded = text.new_zeros(where.shape)
    padded[where] = text
    return padded, lengths


def alignable(tokens_BU: Tensor, token_lengths: Tensor, lengths: Tensor) -> Tensor:
    """(B,) bool: the frames suffice for the tokens, with a blank between equal ones."""
    repeats = torch.zeros_like(token_lengths)
    if tokens_BU.shape[1] > 1:
        same = tokens_BU[:, 1:] == tokens_BU[:, :-1]
        place = torch.arange(1, tokens_BU.shape[1], device=lengths.device)[None]
        repeats = (same & (place < token_lengths[:, None])).sum(1)
    return token_lengths + repeats <= lengths


def ctc_sum(
    log_probs: Tensor, tokens_BU: Tensor, lengths: Tensor, token_lengths: Tensor, fits: Tensor
) -> Tensor:
    """Sum over utterances of -log p(tokens), of those marked in `fits` (B,).

    log_probs: (B, S, V) float32, of which `lengths` (B,) frames count.
    """
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),
        tokens_BU,
        lengths,
        token_lengths,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    return torch.where(fits, losses, 0.0).sum()
