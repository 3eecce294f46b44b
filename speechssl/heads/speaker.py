"""Speaker embeddings: a network on an encoder's layers, trained to tell speakers apart by angle.

Verification needs the embeddings only: `speechssl decode` writes them, `speechssl score --trials`
compares them. Source: Yang et al. 2021 (SUPERB, x-vector), Chen et al. 2022 (WavLM, ECAPA-TDNN on
the layers' weighted sum, appendix); Yamamoto et al. 2019 (copies at other speeds as other
speakers); `heads.margin` for the loss.

Shape legend: B utterances, L samples, E embedding width, C speakers.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from speechssl.contract import Batch, Encoder, Loss
from speechssl.heads.margin import AngularMargin
from speechssl.heads.nested import nested_widths
from speechssl.heads.speaker_nets import EcapaTdnn, Pooled, XVector
from speechssl.heads.utterance import UtteranceConfig, UtteranceHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakerConfig(UtteranceConfig):
    field: str = "speaker"
    """Field of the manifest that names the speaker."""
    network: Literal["ecapa", "xvector", "pooled"] = "ecapa"
    """Between encoder and embedding; pooled: attentive statistics and one linear layer."""
    channels: int = 512
    """Width of the network (ECAPA 512 or 1024; x-vector 512)."""
    embedding_dim: int = 192
    """Width of the embedding (ECAPA 192, x-vector 512)."""
    attention_dim: int = 128
    """Bottleneck of attentive pooling."""
    margin: float = 0.2
    """Angle in radians by which the own speaker has to be nearer; large-margin tuning takes 0.5."""
    margin_kind: Literal["angle", "cosine"] = "angle"
    """angle: AAM-softmax; cosine: AM-softmax, the margin taken off the cosine (SUPERB: 0.4)."""
    margin_steps: int = 0
    """Updates over which the margin grows from 0."""
    scale: float = 30.0
    """Factor of the cosines."""
    sub_centres: int = 1
    """Centres per speaker; several put up with mislabelled or varied recordings (usually 3)."""
    other_speeds: list[float] = dataclasses.field(default_factory=list)
    """Speeds at which a voice counts as another speaker, usually [0.9, 1.1]: each speaker has one
    more class for each. data.speeds are then these and 1, or none. Empty: a speaker is the same
    at any speed."""
    prefixes: list[int] = dataclasses.field(default_factory=list)
    """Widths, such as [12, 48]: so many first numbers of an embedding have to tell speakers apart
    too, by losses that are added (heads.nested). `speechssl score --dims 48` compares these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin < 1.5:
            raise ValueError(f"margin: found {self.margin}, want radians from 0 to below 1.5")
        for name in ("channels", "embedding_dim", "sub_centres", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, want more than 0")
        if len({1000, *self.thousandths}) <= len(self.other_speeds):
            raise ValueError(
                f"other_speeds: found {self.other_speeds}, want each once, and not 1: a speaker's "
                "own class is of that speed"
            )

    @property
    def thousandths(self) -> list[int]:
        """`other_speeds` as the target "speeds" has them."""
        return [round(1000 * speed) for speed in self.other_speeds]

    def build(self, encoder: Encoder) -> SpeakerHead:
        return SpeakerHead(self, encoder)


class SpeakerHead(UtteranceHead):
    """Embeddings whose cosine says whether two utterances are of one speaker.

    With `data.mixing` it learns from the view "mixed" (noise, rooms), and is validated on clean
    waves. With `other_speeds` class c + C k is speaker c at the k-th of them; validation is at
    speed 1, so its classes are the speakers' own, and embeddings know nothing of classes.
    """

    config: SpeakerConfig

    def __init__(self, config: SpeakerConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if config.network == "xvector":
            self.network = XVector(self.dim, config.channels, config.embedding_dim)
        elif config.network == "ecapa":
            self.network = EcapaTdnn(
                self.dim, config.channels, config.embedding_dim, config.attention_dim
            )
        else:
            self.network = Pooled(self.dim, config.embedding_dim, config.attention_dim)
        self.margin = AngularMargin(
            config.embedding_dim,
            len(config.classes) * (1 + len(config.other_speeds)),
            scale=config.scale,
            centres=config.sub_centres,
            kind=config.margin_kind,
        )
        self.widths = nested_widths(config.prefixes, config.embedding_dim)

    def forward(self, batch: Batch) -> Loss:
        speakers = self.targets(batch)
        wave = batch.views.get("mixed", batch.wave) if self.training else batch.wave
        embeddings = self.embed(wave, batch.wave_lengths)
        number = torch.tensor(len(speakers), device=embeddings.device)
        total, logs = embeddings.new_zeros(()), {}
        for width in reversed(self.widths):
            losses, cosines = self.margin(embeddings[:, :width], speakers, self.margin_now())
            right = (cosines.detach().argmax(-1) == speakers).sum()
            end = "" if width == self.widths[-1] else f"_of_{width}"
            logs |= {f"nats{end}": (losses.detach().sum(), number),
                     f"accuracy{end}": (right, number)}  # fmt: skip
            total = total + losses.sum()
        return Loss(total, number, logs)

    def targets(self, batch: Batch) -> Tensor:
        """(B,) int64 classes, of speakers at their speeds.

        Raises `ValueError` if there are none, or others, or a speed that is not known.
        """
        speakers = super().targets(batch)
        if not self.config.other_speeds or "speeds" not in batch.targets:
            return speakers
        speeds = batch.targets["speeds"]
        known = torch.tensor([1000, *self.config.thousandths], device=speeds.device)
        same = speeds[:, None] == known
        if not speeds.is_cuda and not bool(same.any(1).all()):
            found = sorted({s / 1000 for s in speeds.tolist()})
            raise ValueError(
                f"other_speeds: found speeds {found}, want some of 1 and "
                f"{self.config.other_speeds}; change data.speeds or other_speeds"
            )
        return speakers + len(self.config.classes) * same.long().argmax(1)

    def embed(self, wave: Tensor, wave_lengths: Tensor) -> Tensor:
        """(B, L) and (B,) samples -> (B, E) float32 embeddings, of any length."""
        x, lengths = self.frames(wave, wave_lengths)
        return self.network(x, lengths).float()

    def margin_now(self) -> float:
        """The margin at `step`."""
        if not self.config.margin_steps:
            return self.config.margin
        return self.config.margin * min(1.0, int(self.step) / self.config.margin_steps)
