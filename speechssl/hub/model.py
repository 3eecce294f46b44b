"""`Model`: what `speechssl.load` returns; features and transcripts of any audio."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from speechssl.contract import Encoder
from speechssl.hub.audio import as_items
from speechssl.hub.chunks import Geometry
from speechssl.hub.extract import Features, OnError, Plan, run

LogProbs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(wave (B, L), lengths (B,)) -> ((B, T, V) log-probabilities, (B,) frames)."""
Decode = Callable[[Sequence[int]], str]


class Model:
    """An encoder, ready to use: eval mode, no gradients, any audio in, frame features out.

    encoder: the module itself, for those who want gradients.
    log_probs, decode: of a recogniser, else None; id 0 is the CTC blank unless `blank` says else.
    vocabulary: of a recogniser by letters, symbol -> id, "|" between words.
    provenance: what is known of the model's origin.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        name: str = "model",
        head: torch.nn.Module | None = None,
        log_probs: LogProbs | None = None,
        decode: Decode | None = None,
        blank: int = 0,
        vocabulary: Mapping[str, int] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.encoder = encoder.eval()
        self.head = None if head is None else head.eval()
        self.name = name
        self.provenance = dict(provenance or {})
        self.blank = blank
        self.vocabulary = vocabulary
        self._log_probs = log_probs
        self._decode = decode
        self._autocast: torch.dtype | None = None

    @property
    def num_layers(self) -> int:
        return self.encoder.num_layers

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def frame_rate_hz(self) -> float:
        return self.encoder.frame_rate_hz

    @property
    def sample_rate_hz(self) -> int:
        return self.encoder.sample_rate_hz

    @property
    def device(self) -> torch.device:
        tensors = itertools.chain(self.encoder.parameters(), self.encoder.buffers())
        return next(tensors, torch.empty(0)).device  # log-mel energies have none

    @property
    def geometry(self) -> Geometry:
        e = self.encoder
        stride = math.lcm(*e.layer_strides)
        return Geometry(e.sample_rate_hz, e.hop_samples, e.receptive_field_samples, stride)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Model:
        """Move to a device; dtype torch.bfloat16 computes in mixed precision, float32 in full.

        The weights stay float32, and so do features that are returned.
        """
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"dtype: found {dtype}, want torch.float32 or torch.bfloat16")
        if device is not None:
            self.encoder.to(device)
            if self.head is not None:
                self.head.to(device)
        if dtype is not None:
            self._autocast = None if dtype == torch.float32 else dtype
        return self

    def fold_adapters(self) -> None:
        """Leave in the encoder's own tensors what a head has tuned inside it, for use without it.

        Raises ValueError for adapters that are no change of any tensor, such as Houlsby's.
        """
        adapters: Any = getattr(self.head, "adapters", None)
        if adapters is not None:
            adapters.fold()

    def describe(self) -> str:
        """What the model is, its layers, and what each number means."""
        parameters = sum(p.numel() for p in self.encoder.parameters())
        kind = type(self.encoder).__name__
        lines = [
            f"{self.name}: {kind}, {parameters / 1e6:.1f} million parameters on {self.device}",
            f"layers 0 to {self.num_layers} of width {self.dim}: 0 is the transformer's input, "
            f"i the output of layer i, -1 the last ({self.num_layers})",
            f"{self.frame_rate_hz:g} frames per second: frame t sees samples "
            f"[{self.encoder.hop_samples} t, {self.encoder.hop_samples} t + "
            f"{self.encoder.receptive_field_samples}) at {self.sample_rate_hz} Hz",
            "recogniser: " + ("yes, see transcribe()" if self._log_probs else "none"),
        ]
        strides = self.encoder.layer_strides
        slow = ", ".join(f"{i}: {n}" for i, n in enumerate(strides) if n > 1)
        if slow:
            lines.insert(3, f"layers with frames that are repeated, and how often: {slow}")
        normalised = getattr(self.encoder.config, "normalize_wave", None)
        if normalised is not None:
            kind = "each brought to mean 0 and variance 1" if normalised else "taken as they are"
            lines.insert(3, f"waves: {kind}")
        left_out = self.provenance.get("left_out")
        if left_out:
            more = f" and {len(left_out) - 6} more" * (len(left_out) > 6)
            lines.append(f"left out of the checkpoint: {', '.join(left_out[:6])}{more}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.describe()

    def resolve_layers(self, layers: Sequence[int] | int | None) -> tuple[int, ...]:
        """Layer numbers from 0 to num_layers; None for all, negative ones count from the end."""
        count = self.num_layers
        if layers is None:
            return tuple(range(count + 1))
        asked = list(layers) if isinstance(layers, Iterable) else [layers]
        wrong = [a for a in asked if not isinstance(a, Integral) or not -count - 1 <= a <= count]
        if wrong or not asked:
            raise ValueError(
                f"layers: found {wrong or 'none'}, want numbers from 0 (the transformer's input) "
                f"to {count} (its last layer), or -1 to {-count - 1} counted from the end"
            )
        found = [int(a) + count + 1 if a < 0 else int(a) for a in asked]
        return tuple(dict.fromkeys(found))

    def extract(
        self,
        audio: Any,
        layers: Sequence[int] | int | None = None,
        *,
        rate: int | None = None,
        on_error: OnError | None = None,
        **plan: Any,
    ) -> list[Features]:
        """Frame features of each item, in order.

        audio: a path, an array or tensor (samples,) or (channels, samples) with its `rate`, a pair
            (array, rate), a cut of Lhotse's; or any iterable of these, such as a CutSet. Float
            samples have full scale 1; of integer ones the type gives the scale.
        layers: numbers from 0, the transformer's input, to `num_layers`; negative ones count from
            the end; None for all.
        rate: samples per second of the arrays that come without; files and cuts know theirs.
        on_error: called as on_error(id, error) for an item that cannot be read or is too short;
            it is then left out. Without it the error is raised.
        plan: fields of `hub.extract.Plan` (batch_seconds, chunk_seconds, overlap_seconds, ...).

        Utterances longer than chunk_seconds are computed in windows. Frame counts and times are
        those of the whole; values differ from a single pass in so far as attention and, in
        group-norm front ends, the normalisation see the window instead of the whole.
        """
        return list(self.extract_iter(audio, layers, rate=rate, on_error=on_error, **plan))

    def extract_iter(
        self,
        audio: Any,
        layers: Sequence[int] | int | None = None,
        *,
        rate: int | None = None,
        on_error: OnError | None = None,
        **plan: Any,
    ) -> Iterator[Features]:
        """As `extract`, one at a time, in memory that does not grow with the number of items."""
        wanted = self.resolve_layers(layers)

        def forward(wave: Tensor, lengths: Tensor) -> dict[int, Tensor]:
            with self._precision():
                output = self.encoder(wave, lengths, layers=wanted)
            return {layer: output.aligned(layer) for layer in wanted}

        geometry = self.geometry
        for result in run(
            as_items(audio, rate),
            forward,
            geometry,
            Plan(**plan),
            device=self.device,
            on_error=on_error,
            bytes_per_second=4 * self.dim * len(wanted) * self.frame_rate_hz,
        ):
            yield Features(
                id=result.item.id,
                hidden=result.frames,
                frame_rate_hz=self.frame_rate_hz,
                sample_rate_hz=geometry.sample_rate_hz,
                hop_samples=geometry.hop_samples,
                field_samples=geometry.field_samples,
                num_samples=result.num_samples,
            )

    def transcribe(
        self,
        audio: Any,
        *,
        rate: int | None = None,
        on_error: OnError | None = None,
        **plan: Any,
    ) -> list[str]:
        """Greedy CTC transcript of each item: best unit per frame, repeats joined, blanks dropped.

        audio, rate, on_error, plan: as of `extract`.
        `speechssl decode` searches with a lexicon and a language model.
        """
        log_probs, decode = self._log_probs, self._decode
        if log_probs is None or decode is None:
            raise ValueError(
                f"{self.name}: found no CTC head with a tokenizer, want a recogniser, as "
                "`speechssl finetune` makes it"
            )

        geometry = self.geometry

        def forward(wave: Tensor, lengths: Tensor) -> dict[int, Tensor]:
            with self._precision():
                scores, _ = log_probs(wave, lengths)
            # A head may give several output frames per encoder frame: (B, T * u) -> (B, T, u).
            best = scores.argmax(-1)
            return {0: best.reshape(len(best), geometry.frames(wave.shape[1]), -1)}

        results = run(
            as_items(audio, rate),
            forward,
            geometry,
            Plan(**plan),
            device=self.device,
            on_error=on_error,
        )
        return [decode(collapse(r.frames[0].reshape(-1).tolist(), self.blank)) for r in results]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._autocast)


def collapse(best: Sequence[float], blank: int) -> list[int]:
    """CTC's map from frames to units: join repeats, then drop blanks."""
    kept: list[int] = []
    before = blank
    for unit in map(int, best):
        if unit != before and unit != blank:
            kept.append(unit)
        before = unit
    return kept
