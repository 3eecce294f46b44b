"""One class per utterance, learnt together with what is said and with further fields.

Such as emotion, the transcript by CTC, and the speaker's gender: the tasks share the encoder, or
what learns of it, and the projection of frames; each has one linear output of its own. An
utterance that lacks the class, a field or the transcript does not count in that term.

Source: Cai et al. 2021, "Speech Emotion Recognition with Multi-task Learning": cross entropy of
the class on the mean of wav2vec 2.0's last frames, plus alpha = 0.1 (0.01 for a model that was
fine-tuned on 960 h) times CTC on the same frames.
Differs: the loss is a sum over utterances, each with CE + alpha * -log p(transcript), so that it
does not depend on the batch; the released code adds a mean of CE over the micro-batch and, by the
default of its library, a sum of CTC, which doubles alpha in its micro-batches of two. The mean
over frames leaves out padding. An utterance with more tokens than frames is left out of the CTC
term, and counted in the log as `unalignable`. Further fields are not in the paper.

Shape legend: B utterances, L samples, T frames, D width, N further fields, U tokens.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss
from speechssl.heads.asr_ctc import token_errors
from speechssl.heads.classify import ClassifyConfig, ClassifyHead, log_softmax
from speechssl.nn.ctc import alignable, ctc_sum, text_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskConfig(ClassifyConfig):
    needs_classes: ClassVar[bool] = False  # they are filled in with the further fields
    text_weight: float = 0.1
    """alpha: weight of CTC's nats per utterance beside the class's; 0: no transcripts."""
    vocab_size: int = 0
    """Tokens including the blank, id 0; fine-tuning fills it in from the tokenizer."""
    further: list[str] = dataclasses.field(default_factory=list)
    """Other fields of the manifest that are learnt too: [gender]."""
    further_weights: list[float] = dataclasses.field(default_factory=list)
    """Weight of the cross entropy of each; empty: 1."""
    further_values: list[list[str]] = dataclasses.field(default_factory=list)
    """Values of each in the order of its outputs; fine-tuning takes those of the training cuts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_weight < 0:
            raise ValueError(f"text_weight: found {self.text_weight}, want 0 or more")
        if self.prefixes:
            raise ValueError(
                f"prefixes: found {self.prefixes} with several tasks, want none, or the class "
                "alone (heads.classify.ClassifyConfig)"
            )
        if len({self.field, *self.further}) <= len(self.further):
            raise ValueError(
                f"further: found {self.further} beside the field {self.field!r}, want each once"
            )
        weights = self.further_weights
        if weights and (len(weights) != len(self.further) or min(weights) <= 0):
            raise ValueError(
                f"further_weights: found {weights} for {self.further}, want a number above 0 for "
                "each, or none"
            )

    @property
    def needs_text(self) -> bool:
        """Whether a tokenizer has to be made."""
        return self.text_weight > 0

    def build(self, encoder: Encoder) -> MultitaskHead:
        return MultitaskHead(self, encoder)


class MultitaskHead(ClassifyHead):
    """`ClassifyHead` with linear outputs for further fields and for the tokens of each frame.

    The further fields are read where the class is, the tokens from the frames that are pooled,
    behind the same dropout. Without transcripts and further fields it is the classifier, bit for
    bit.
    """

    config: MultitaskConfig

    def __init__(self, config: MultitaskConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if len(config.further_values) != len(config.further):
            raise ValueError(
                f"further, further_values: found {config.further} with "
                f"{len(config.further_values)} lists of values, want one of each; `speechssl "
                "finetune` takes them from the training cuts"
            )
        few = [n for n, v in zip(config.further, config.further_values) if len(v) < 2]
        if few:
            raise ValueError(f"further: found fewer than two values of {few}, want ones to tell")
        if config.text_weight and config.vocab_size < 2:
            raise ValueError(
                f"vocab_size: found {config.vocab_size}, want the tokenizer's size (2 or more, the "
                "blank included), or text_weight 0"
            )
        width = self.output.in_features
        self.further = nn.ModuleList(nn.Linear(width, len(v)) for v in config.further_values)
        if config.text_weight:
            frame_width = config.projection_dim or self.dim
            self.text_output = nn.Linear(frame_width, config.vocab_size)
        self.weights = config.further_weights or [1.0] * len(config.further)

    def forward(self, batch: Batch) -> Loss:
        """Sum over utterances; `count` is that of the classifier, with utterances that lack the
        class counted as one each if another term has them."""
        places = self.targets(batch)
        x, lengths = self.frames(batch.wave, batch.wave_lengths)
        x = self.projection(x)
        vectors = self.vectors(x, lengths)
        known = places[:, 0] < len(self.config.classes)
        log_probs = log_softmax(self.output(vectors))
        found = self.class_loss(log_probs[known], places[known, 0])
        total, logs, counted = found.total, dict(found.logs), known
        for i, (name, output) in enumerate(zip(self.config.further, self.further, strict=True), 1):
            has = places[:, i] < output.out_features
            own, target = log_softmax(output(vectors))[has], places[has, i]
            loss = F.nll_loss(own, target, reduction="sum")
            right = (own.detach().argmax(-1) == target).sum()
            total = total + self.weights[i - 1] * loss
            logs |= {f"nats_{name}": (loss.detach(), has.sum()),
                     f"accuracy_{name}": (right, has.sum())}  # fmt: skip
            counted = counted | has
        if self.config.text_weight:
            loss, fits, of_text = self._text(batch, x, lengths)
            total = total + self.config.text_weight * loss
            logs |= of_text
            counted = counted | fits
        return Loss(total, found.count + (counted & ~known).sum(), logs)

    def _text(
        self, batch: Batch, x: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """CTC's nats, a sum over utterances; (B,) which of them have a part in it; logs."""
        tokens_BU, token_lengths = text_targets(batch, self.config.vocab_size)
        log_probs = log_softmax(self.text_output(self.dropout(x)))
        said = token_lengths > 0
        fits = said & alignable(tokens_BU, token_lengths, lengths)
        loss = ctc_sum(log_probs, tokens_BU, lengths, token_lengths, fits)
        logs = {
            "ctc_nats": (loss.detach(), (token_lengths * fits).sum()),
            "unalignable": ((said & ~fits).sum(), said.sum()),
        }
        if not self.training:
            logs["cer"] = token_errors(
                log_probs[said], lengths[said], tokens_BU[said], token_lengths[said]
            )
        return loss, fits, logs

    def targets(self, batch: Batch) -> Tensor:
        """(B, 1 + N): of the class and each further field the place of its value, or one behind
        the last if the utterance lacks it; raises `ValueError` if there are none, or others."""
        if "classes" not in batch.targets:
            raise ValueError(
                f"classes: found targets {sorted(batch.targets)}, want 'classes'; `speechssl "
                "finetune` makes them of head.field and head.further"
            )
        places = batch.targets["classes"].reshape(len(batch), -1)
        sizes = [len(v) for v in (self.config.classes, *self.config.further_values)]
        if places.shape[1] != len(sizes):
            raise ValueError(
                f"classes: found {places.shape[1]} labels per utterance, want {len(sizes)}: of "
                f"{[self.config.field, *self.config.further]}"
            )
        if not places.is_cuda:
            wrong = (places < 0) | (places > places.new_tensor(sizes))
            if wrong.any():
                raise ValueError(
                    f"classes: found {places[wrong.any(1)][0].tolist()}, want 0 to {sizes}, the "
                    "last where there is none; are these the labels that the head was made with?"
                )
        return places

    def joint_answers(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) and (B,) samples -> a row of each utterance, and (B,) valid entries of it.

        A row holds the log-probabilities of the classes, those of each further field's values,
        and, with transcripts, the most probable token of each frame.
        """
        x, lengths = self.frames(wave, wave_lengths)
        x = self.projection(x)
        vectors = self.vectors(x, lengths)
        parts = [log_softmax(output(vectors)) for output in (self.output, *self.further)]
        ends = torch.full_like(lengths, sum(p.shape[1] for p in parts))
        if self.config.text_weight:
            # Best tokens instead of log-probabilities: a corpus's answers are kept in memory.
            parts.append(self.text_output(self.dropout(x)).argmax(-1).float())
            ends = ends + lengths
        return torch.cat(parts, 1), ends
