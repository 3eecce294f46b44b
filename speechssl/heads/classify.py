"""One class per utterance: emotion, keyword, speaker, intent, language, sound, ...

Source: Yang et al. 2021 (SUPERB), section 3: layers' weighted sum, linear projection, mean over
frames, linear output, cross entropy. `pooling`, `hidden_layers` and `balanced` go beyond it.
Differs: the mean is over valid frames only (s3prl's old code had padding in some tasks), so that
no score depends on batches.

Shape legend: B utterances, L samples, T frames, D width, H width behind pooling, C classes.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss
from speechssl.heads.aggregate import PoolingKind, add_pooling, pool
from speechssl.heads.nested import narrowed, nested_widths
from speechssl.heads.utterance import UtteranceConfig, UtteranceHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(UtteranceConfig):
    projection_dim: int = 256
    """Width that each frame is projected to before pooling; 0: frames stay as they are."""
    pooling: PoolingKind = "mean"
    """mean of the frames; mean_std: with their deviation; attentive: both, weighed by channel;
    ecapa: ECAPA-TDNN; transformer: layers over the frames and a class token."""
    attention_dim: int = 128
    """Bottleneck of attentive pooling, and of ecapa's."""
    pooling_channels: int = 512
    """ecapa: width of its blocks."""
    pooling_dim: int = 192
    """ecapa: width of its vector."""
    pooling_layers: int = 2
    """transformer: how many; each as wide as the frames."""
    pooling_heads: int = 4
    """transformer: heads of each layer."""
    hidden_layers: int = 0
    """Layers between pooling and output."""
    hidden_dim: int = 256
    """Width of those layers."""
    dropout: float = 0.0
    """Dropout of the pooled vector and of each hidden layer, and inside pooling: transformer."""
    balanced: bool = False
    """Weigh each class in the loss by the inverse of its training utterances."""
    prefixes: list[int] = dataclasses.field(default_factory=list)
    """Widths, such as [48, 192]: so many first channels of the vector before the output have to
    tell the class too, by losses that are added (heads.nested); validation says how well."""

    def build(self, encoder: Encoder) -> ClassifyHead:
        return ClassifyHead(self, encoder)


class ClassifyHead(UtteranceHead):
    """Class probabilities of whole utterances."""

    config: ClassifyConfig
    rarity: Tensor

    def __init__(self, config: ClassifyConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if config.balanced and 0 in (config.class_counts or [0]):
            raise ValueError(
                f"balanced: found class_counts {config.class_counts}, want the training utterances "
                "of each class, all above 0; `speechssl finetune` fills them in"
            )
        dim = config.projection_dim or self.dim
        self.projection = nn.Linear(self.dim, dim) if config.projection_dim else nn.Identity()
        sizes = [add_pooling(self, config, dim)]
        sizes += [config.hidden_dim] * config.hidden_layers
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Dropout(config.dropout))
            for a, b in itertools.pairwise(sizes)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(sizes[-1], len(config.classes))
        self.widths = nested_widths(config.prefixes, sizes[-1])
        rarity = torch.ones(len(config.classes))
        if 0 not in (config.class_counts or [0]):
            counts = torch.tensor(config.class_counts, dtype=torch.float32)
            rarity = counts.sum() / (len(counts) * counts)  # 1 where all are as frequent
        self.register_buffer("rarity", rarity, persistent=False)

    def forward(self, batch: Batch) -> Loss:
        classes = self.targets(batch)
        x, lengths = self.frames(batch.wave, batch.wave_lengths)
        vectors = self.vectors(self.projection(x), lengths)
        found = self.class_loss(log_softmax(self.output(vectors)), classes)
        total, logs = found.total, dict(found.logs)
        for width in self.widths[:-1]:
            part = self.class_loss(log_softmax(narrowed(self.output, vectors, width)), classes)
            total = total + part.total
            logs |= {f"{name}_of_{width}": pair for name, pair in part.logs.items()}
        return Loss(total, found.count, logs)

    def class_loss(self, log_probs: Tensor, classes: Tensor) -> Loss:
        """(B, C) log-probabilities and (B,) classes -> cross entropy, a sum over utterances."""
        losses = F.nll_loss(log_probs, classes, reduction="none")
        right = log_probs.detach().argmax(-1) == classes
        rarity = self.rarity[classes]
        weights = rarity if self.config.balanced else torch.ones_like(rarity)
        number = torch.tensor(len(classes), device=losses.device)
        return Loss(
            (weights * losses).sum(),
            weights.sum(),
            {
                "nats": (losses.detach().sum(), number),
                "accuracy": (right.sum(), number),
                # The UAR, where classes are as frequent as in training.
                "balanced_accuracy": ((rarity * right).sum(), rarity.sum()),
            },
        )

    def class_log_probs(
        self, wave: Tensor, wave_lengths: Tensor, width: int | None = None
    ) -> Tensor:
        """(B, L) and (B,) samples -> (B, C) float32 log-probabilities of `config.classes`.

        width: of the vector's first channels alone; none: of all.
        """
        x, lengths = self.frames(wave, wave_lengths)
        vectors = self.vectors(self.projection(x), lengths)
        return log_softmax(narrowed(self.output, vectors, width or self.widths[-1]))

    def vectors(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) projected frames -> (B, H) what the output reads of each utterance."""
        x = self.dropout(pool(self, self.config, x, lengths))
        for layer in self.hidden:
            x = layer(x)
        return x


def log_softmax(logits: Tensor) -> Tensor:
    """Float32 log-probabilities, under autocast too."""
    with torch.autocast(logits.device.type, enabled=False):
        return logits.float().log_softmax(-1)
