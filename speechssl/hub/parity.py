"""How far a model's hidden states are from those of transformers with the same weights."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.encoders.frame_encoder import normalise_wave
from speechssl.hub.export import transformer_encoder
from speechssl.hub.model import Model
from speechssl.hub.transformers_format import write_transformers

TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """Largest absolute differences, of hidden states that are about 1.

    differences: for each layer from 0, over waves of `samples`.
    scales: for each layer, the largest absolute value of the reference.
    """

    reference: str
    samples: tuple[int, ...]
    differences: tuple[float, ...]
    scales: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest difference, relative to its layer's scale where that is above 1."""
        pairs = zip(self.differences, self.scales, strict=True)
        return max(d / max(1.0, s) for d, s in pairs)

    @property
    def passed(self) -> bool:
        return self.worst < TOLERANCE

    def __str__(self) -> str:
        lines = [f"against {self.reference}, waves of {', '.join(map(str, self.samples))} samples"]
        for layer, (d, s) in enumerate(zip(self.differences, self.scales, strict=True)):
            lines.append(f"layer {layer:2d}: difference at most {d:.2e}, of values up to {s:.3g}")
        verdict = "equal" if self.passed else "DIFFERENT"
        return "\n".join([*lines, f"{verdict}: worst {self.worst:.2e}, tolerance {TOLERANCE:g}"])


def parity_report(
    model: Model,
    reference: str | Path | None = None,
    *,
    samples: Sequence[int] = (400, 16000, 37777),
) -> ParityReport:
    """Compare every layer with transformers, utterances alone.

    reference: a transformers folder of the same model; None: the model itself is written as one,
        which checks our computation, and the names it is written under.
    Raises `ValueError` if transformers is not installed or the models differ in kind.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("parity: needs transformers; pip install 'speechssl[hub]'") from None
    encoder: Any = transformer_encoder(model) if reference is None else model.encoder
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if reference is None else Path(reference)
        if reference is None:
            write_transformers(folder, encoder.config, encoder.state_dict())
        theirs: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    theirs = theirs.eval().to(model.device)
    differences, scales = [0.0] * (model.num_layers + 1), [0.0] * (model.num_layers + 1)
    generator = torch.Generator().manual_seed(0)
    for count in samples:
        wave = 0.1 * torch.randn(1, count, generator=generator).to(model.device)
        lengths = torch.tensor([count], device=model.device)
        with torch.no_grad():
            ours = encoder(wave, lengths).hidden
            # The normalisation is part of their feature extractor, not of their model.
            given = normalise_wave(wave, lengths) if encoder.config.normalize_wave else wave
            wanted = _their_states(theirs, given)
        if len(wanted) != len(ours):
            raise ValueError(f"parity: {folder} has {len(wanted)} layers, {model.name} {len(ours)}")
        for i, (a, b) in enumerate(zip(ours, wanted, strict=True)):
            differences[i] = max(differences[i], float((a - b).abs().max()))
            scales[i] = max(scales[i], float(b.abs().max()))
    name = f"transformers {transformers.__version__} {type(theirs).__name__}"
    return ParityReport(name, tuple(samples), tuple(differences), tuple(scales))


def _their_states(model: Any, wave: Tensor) -> tuple[Tensor, ...]:
    output = model(wave, output_hidden_states=True)
    # Some versions list the last layer of a pre-norm model before the encoder's norm.
    return (*output.hidden_states[:-1], output.last_hidden_state)
