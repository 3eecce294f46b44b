"""UniSpeech: wav2vec 2.0 together with CTC on labels, whose frames are partly quantised ones.

Source: Wang et al. 2021, "UniSpeech: Unified Speech Representation Learning with Labeled and
Unlabeled Data", section 3; its official code on fairseq, `models/unispeech` and
`criterions/wav2vec_mtl.py`.

Differs: as `speechssl.objectives.wav2vec2`, from which the contrast is; and
- Frames are replaced by draws of each utterance's seed, in training and validation alike.
- An utterance without tokens, or with more than its frames can hold, has no CTC term. So
  unlabelled speech may be mixed in, with the empty text as its transcript.

Shape legend: B utterances, T frames, D encoder width, F final width, N quantised frames, R replaced
frames, U tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput
from speechssl.nn.ctc import alignable, ctc_sum, text_targets
from speechssl.nn.draws import random_uniform
from speechssl.nn.gumbel import Quantised
from speechssl.objectives.hubert import Logs
from speechssl.objectives.wav2vec2 import Wav2vec2, Wav2vec2Config

_REPLACED = 71
"""Stream of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniSpeechConfig(Wav2vec2Config):
    """As wav2vec 2.0 Large, with the labelled term. Give data.tokenizer, with phones or letters."""

    vocab_size: int
    """Tokens, the blank (id 0) included: the tokenizer's size."""
    ctc_weight: float = 0.5
    """Share alpha of CTC in the total; the contrast and its companions have 1 - alpha."""
    replace_probability: float = 0.5
    """Share of frames whose context vector CTC reads the quantised one in place of."""
    final_dropout: float = 0.1
    """Dropout of what CTC reads."""
    final_dim: int = 768
    gumbel_end: float = 0.1
    quantiser_dropout: float = 0.0
    feature_penalty: float = 0.0
    mask_probability: float = 0.5

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ValueError(
                f"vocab_size: found {self.vocab_size}, want the tokenizer's size (2 or more, the "
                "blank included)"
            )
        for name in ("ctc_weight", "replace_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 0 to 1")

    def build(self) -> UniSpeech:
        return UniSpeech(self)


class UniSpeech(Wav2vec2):
    """Contrast of quantised frames, and CTC on frames of both kinds."""

    config: UniSpeechConfig

    def __init__(self, config: UniSpeechConfig) -> None:
        super().__init__(config)
        self.project_replaced = nn.Linear(config.final_dim, self.encoder.dim)
        self.dropout = nn.Dropout(config.final_dropout)
        self.output = nn.Linear(self.encoder.dim, config.vocab_size)

    def replaced_frames(self, batch: Batch, valid: Tensor) -> Tensor:
        """(B, T) bool: frames whose quantised vector CTC reads."""
        dice = random_uniform(batch.seeds.to(valid.device), _REPLACED, valid.shape[1])
        return (dice < self.config.replace_probability) & valid

    def quantised_frames(self, batch: Batch, mask: Tensor, valid: Tensor) -> Tensor:
        return mask | self.replaced_frames(batch, valid)

    def finish(
        self,
        total: Tensor,
        batch: Batch,
        out: EncoderOutput,
        mask: Tensor,
        chosen: Tensor,
        found: Quantised,
        logs: Logs,
    ) -> Tensor:
        tokens_BU, token_lengths = text_targets(batch, self.config.vocab_size)
        replaced = self.replaced_frames(batch, ~out.padding_mask)
        log_probs = self.log_probs(out.last, replaced, found.vectors[replaced[chosen]])
        labelled = token_lengths > 0
        fits = labelled & alignable(tokens_BU, token_lengths, out.lengths)
        ctc = ctc_sum(log_probs, tokens_BU, out.lengths, token_lengths, fits)
        logs["ctc_nats"] = (ctc.detach(), (token_lengths * fits).sum())
        logs["unalignable"] = ((labelled & ~fits).sum(), labelled.sum())
        alpha = self.config.ctc_weight
        return (1 - alpha) * total + alpha * ctc

    def log_probs(self, x_BTD: Tensor, replaced: Tensor, vectors_RF: Tensor) -> Tensor:
        """(B, T, V) float32 of context vectors, at replaced frames of quantised ones."""
        quantised = self.project_replaced(self.project_target(vectors_RF)).to(x_BTD.dtype)
        x_BTD = x_BTD.masked_scatter(replaced[..., None], quantised)
        logits = self.output(self.dropout(x_BTD))
        with torch.autocast(logits.device.type, enabled=False):
            return logits.float().log_softmax(-1)
