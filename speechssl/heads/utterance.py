"""What heads of one class per utterance share: which layers they read, classes, freezing.

Shape legend: B utterances, L samples, T frames, D width, C classes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import HeadConfig
from speechssl.contract import Batch, Encoder, EncoderOutput, Objective, padding_mask
from speechssl.nn.adapters import AdapterConfig, attach


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtteranceConfig(HeadConfig):
    field: str = ""
    """Field of the manifest that holds the class: emotion, speaker, label, intent, language, ..."""
    classes: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes in the order of the outputs; empty: fine-tuning takes all values that
    the training cuts have, sorted."""
    class_counts: list[int] = dataclasses.field(default_factory=list)
    """Training utterances of each class; fine-tuning fills them in."""
    layer: int | None = None
    """Encoder layer that is read, -1 the last; none: a learnt weighted sum of all."""
    normalise_layers: bool = True
    """Bring each frame of each layer to mean 0 and variance 1 before the sum (not in SUPERB)."""
    freeze_encoder_steps: int = -1
    """Optimiser updates during which only the head learns; -1: always. A frozen encoder runs in
    eval mode, without dropout and layerdrop."""
    freeze_front_end: bool = False
    """Never train the encoder's front end."""
    adapters: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    """What learns inside an encoder that is otherwise frozen; it then runs in training mode."""

    def __post_init__(self) -> None:
        if self.adapters.kind != "none" and self.freeze_encoder_steps >= 0:
            raise ValueError(
                f"adapters.kind: found {self.adapters.kind} with freeze_encoder_steps "
                f"{self.freeze_encoder_steps}, want -1: the encoder's own weights stay as they are"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: found a name twice in {self.classes}, want each once")
        if self.class_counts and len(self.class_counts) != len(self.classes):
            raise ValueError(
                f"class_counts: found {len(self.class_counts)} for {len(self.classes)} classes, "
                "want one of each class, or none: fine-tuning fills them in"
            )


class LayerSum(nn.Module):
    """EncoderOutput -> (B, T, D), zero on padding: the sum over softmax(w)_l N(h_l).

    N is the parameter-free layer norm, or the identity. One layer is passed on as N gives it.
    Source: Yang et al. 2021 (SUPERB); the same sum as `speechssl.Featurizer`'s.
    """

    def __init__(self, count: int, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.weights = nn.Parameter(torch.zeros(count)) if count > 1 else None

    def forward(self, out: EncoderOutput) -> Tensor:
        states = [out.aligned(n) for n in out.layers]
        if self.normalise:
            states = [F.layer_norm(h, h.shape[-1:]) for h in states]
        if self.weights is None:
            x = states[0]
        else:
            shares = self.weights.softmax(0)
            x = torch.stack([w * h for w, h in zip(shares, states, strict=True)]).sum(0)
        return x.masked_fill(padding_mask(out.lengths, x.shape[1])[..., None], 0)


class UtteranceHead(Objective):
    """An encoder, the layers that are read of it, and targets "classes" (B,) of the batch."""

    def __init__(self, config: UtteranceConfig, encoder: Encoder) -> None:
        super().__init__()
        if len(config.classes) < 2:
            raise ValueError(
                f"classes: found {config.classes}, want two or more; `speechssl finetune` takes "
                "them from head.field of the training cuts"
            )
        self.config: UtteranceConfig = config
        self.encoder = encoder
        self.layers = _layer_numbers(config.layer, encoder.num_layers)
        self.layer_sum = LayerSum(len(self.layers), config.normalise_layers)
        if config.freeze_front_end:
            _front_end(encoder).requires_grad_(False)
        if config.freeze_encoder_steps < 0:
            encoder.requires_grad_(False)
        if config.adapters.kind != "none":
            self.adapters = attach(encoder, config.adapters)

    def frames(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) and (B,) samples -> the layers' sum (B, T, D) and (B,) valid frames."""
        grad = torch.is_grad_enabled() and not self.encoder_is_frozen()
        with torch.set_grad_enabled(grad):
            out = self.encoder(wave, wave_lengths, layers=self.layers)
        return self.layer_sum(out), out.lengths

    def encoder_is_frozen(self) -> bool:
        steps = self.config.freeze_encoder_steps
        if steps < 0:
            return self.config.adapters.kind == "none"
        # Without frozen steps nothing waits for the device here.
        return steps > 0 and int(self.step) < steps

    def train(self, mode: bool = True) -> UtteranceHead:
        super().train(mode)
        if mode and self.encoder_is_frozen():
            self.encoder.eval()
        return self

    def targets(self, batch: Batch) -> Tensor:
        """(B,) int64 classes of a batch; raises `ValueError` if there are none, or others."""
        if "classes" not in batch.targets:
            raise ValueError(
                f"classes: found targets {sorted(batch.targets)}, want 'classes'; `speechssl "
                "finetune` makes them of head.field; data.classes names their label store"
            )
        classes = batch.targets["classes"]
        count = len(self.config.classes)
        if not classes.is_cuda and len(classes):
            low, high = int(classes.min()), int(classes.max())
            if low < 0 or high >= count:
                raise ValueError(
                    f"classes: found {low} to {high}, want 0 to {count - 1}; are these the labels "
                    "that the head was made with?"
                )
        return classes


def _layer_numbers(layer: int | None, count: int) -> list[int]:
    if layer is None:
        return list(range(count + 1))
    if not -1 <= layer <= count:
        raise ValueError(
            f"layer: found {layer}, want 0 to {count}, -1 for the last, or none for the sum of all"
        )
    return [count if layer == -1 else layer]


def _front_end(encoder: Encoder) -> nn.Module:
    front = getattr(encoder, "front", None)
    if not isinstance(front, nn.Module):
        raise ValueError(
            f"freeze_front_end: found no module `front` in {type(encoder).__name__}, want one, or "
            "freeze_front_end: false"
        )
    return front
