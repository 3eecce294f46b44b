"""Waves in, waves of another voice out: what `speechssl convert-voice` does between files.

Long waves are cut into pieces that overlap, on the frames of both encoder and mel; pieces of all
waves go through the model in padded batches, and their spectrograms are joined again before the
vocoder. Nothing depends on what else is in a batch.

Shape legend: L samples, T mel frames, F mel bins, D width of the encoder, E of embeddings.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from speechssl.hub.chunks import Geometry

SILENT_PEAK = 3e-4
"""A wave that is never louder than this, -70 dB of full scale, becomes silence: a model of speech
would make up something."""
BATCH_COST_SECONDS = 1.0
"""Audio that could be converted in the time that a batch costs beyond its samples."""
PROSODY_SECONDS, PROSODY_OVERLAP_SECONDS = 20.0, 0.2


@dataclasses.dataclass(frozen=True)
class Target:
    """Who is to be heard.

    embedding: (E,), for any-to-any. pitch: mean and deviation of log F0, where the model is told
    F0. frames: (N, D) of the target's recordings, for kNN-VC. name: for the records.
    """

    name: str | None = None
    embedding: Tensor | None = None
    pitch: tuple[float, float] | None = None
    frames: Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to compute at a time: see the options of `speechssl convert-voice`."""

    batch_seconds: float = 60.0
    chunk_seconds: float = 20.0
    overlap_seconds: float = 2.0
    knn_k: int = 4
    seed: int = 0


class Converter:
    """A head of voice conversion, a vocoder and a target: call it with waves.

    clock: seconds spent in the model ("model_s") and in the vocoder ("vocoder_s").
    Raises `ValueError` for a plan whose chunks are no longer than their overlaps.
    """

    def __init__(self, head: Any, vocoder: Any, target: Target, plan: Plan, device: Any) -> None:
        from speechssl.hub.chunks import Geometry

        self.head, self.vocoder = head.to(device).eval(), vocoder.to(device).eval()
        self.target, self.plan, self.device = target, plan, device
        self.clock = {"model_s": 0.0, "vocoder_s": 0.0}
        encoder, self.hop = head.encoder, head.config.mel.hop
        self.rate = encoder.sample_rate_hz
        step = math.lcm(encoder.hop_samples * math.lcm(*encoder.layer_strides), self.hop)
        # Mel frame t is centred at sample t * hop, so a wave of L samples has L // hop + 1.
        self.geometry: Geometry = Geometry(self.rate, self.hop, 0, step // self.hop)
        self.shortest = max(encoder.receptive_field_samples, 2 * self.hop)
        self.window = round(plan.chunk_seconds * self.rate) // self.hop
        self.overlap = round(plan.overlap_seconds * self.rate) // self.hop
        if 2 * self.overlap + self.geometry.stride > self.window:
            raise ValueError(
                f"chunk_seconds: found {plan.chunk_seconds}, want more than twice overlap_seconds "
                f"({plan.overlap_seconds}) and a frame"
            )

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(L,) float32 waves at the model's rate -> as many of the same lengths, in [-1, 1].

        Raises `ValueError` for a wave that is too short, and if the model gives values that are
        not finite.
        """
        import numpy as np

        for wave in waves:
            self.require_length(wave)
        heard = [i for i, wave in enumerate(waves) if not is_silent(wave)]
        start = time.perf_counter()
        mels = self.log_mels([waves[i] for i in heard])
        middle = time.perf_counter()
        found = [np.zeros(len(wave), np.float32) for wave in waves]
        for i, made in zip(heard, self._decode(mels), strict=True):
            found[i][: len(made)] = made  # what is left is less than a hop
        self.clock["model_s"] += middle - start
        self.clock["vocoder_s"] += time.perf_counter() - middle
        return found

    def require_length(self, wave: np.ndarray) -> None:
        """Raises `ValueError` for a (L,) wave that is too short for encoder or mel."""
        if len(wave) < self.shortest:
            raise ValueError(
                f"found {len(wave)} samples at {self.rate} Hz, want at least {self.shortest}"
            )

    def log_mels(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """(L,) waves -> (T, F) log-mel spectrograms in the target's voice, on the CPU."""
        import torch

        from speechssl.hub.chunks import batches, cut

        pieces = [
            piece
            for number, wave in enumerate(waves)
            for piece in cut(number, len(wave), self.geometry, self.window, self.overlap)
        ]
        said = [self._prosody(wave) for wave in waves]
        bins = self.head.config.mel.bins
        found = [torch.zeros(self.geometry.frames(len(wave)), bins) for wave in waves]
        largest = round(self.plan.batch_seconds * self.rate)
        for group in batches(pieces, largest, round(BATCH_COST_SECONDS * self.rate)):
            rows = self._run(waves, said, group)
            for piece, row in zip(group, rows, strict=True):
                part = row[piece.keep : piece.keep + piece.count]
                found[piece.item][piece.first : piece.first + piece.count] = part
        for number, row in enumerate(found):
            if not bool(torch.isfinite(row).all()):
                raise ValueError(f"wave {number}: found a spectrogram with NaN or infinite values")
        return found

    def _run(self, waves: Sequence[np.ndarray], said: Sequence[Any], group: Sequence[Any]) -> Any:
        """(B, T, F) of some pieces, on the CPU."""
        import torch

        wave = torch.zeros(len(group), max(p.size for p in group))
        for row, piece in zip(wave, group, strict=True):
            row[: piece.size] = torch.from_numpy(waves[piece.item][piece.start : piece.stop])
        lengths = torch.tensor([p.size for p in group])
        starts = torch.tensor([p.first - p.keep for p in group])
        with torch.inference_mode():
            rows, _ = self.head.convert(
                wave.to(self.device),
                lengths.to(self.device),
                embedding=self.target.embedding,
                said=self._prosody_of(said, group),
                replace=None if self.target.frames is None else self._nearest,
                seed=self.plan.seed,
                start=starts.to(self.device),
            )
        return rows.cpu()

    def _nearest(self, frames: Tensor, lengths: Tensor) -> Tensor:
        from speechssl.heads.voice_align import knn_frames

        assert self.target.frames is not None
        reference = self.target.frames.to(frames.device)
        found = frames.clone()
        for row, n in zip(found, lengths.tolist(), strict=True):
            row[:n] = knn_frames(row[:n], reference, self.plan.knn_k)
        return found

    def _decode(self, mels: Sequence[Tensor]) -> Iterator[np.ndarray]:
        """(T, F) spectrograms -> (T - 1) * hop samples each, in their order."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        largest = max(1, round(self.plan.batch_seconds * self.rate) // self.hop)
        order = sorted(range(len(mels)), key=lambda i: len(mels[i]))
        made: dict[int, np.ndarray] = {}
        while order:
            group = [order.pop()]
            while order and (len(group) + 1) * len(mels[group[0]]) <= largest:
                group.append(order.pop())
            lengths = torch.tensor([len(mels[i]) for i in group])
            padded = pad_sequence([mels[i] for i in group], batch_first=True)
            with torch.inference_mode():
                waves = self.vocoder.decode(padded.to(self.device), lengths.to(self.device)).cpu()
            for i, wave in zip(group, waves.numpy(), strict=True):
                made[i] = wave[: (len(mels[i]) - 1) * self.hop]
        yield from (made[i] for i in range(len(mels)))

    def _prosody(self, wave: np.ndarray) -> Any:
        """F0 moved to the target's range, and energy, of a whole wave: (T,) each; or None."""
        config = self.head.config
        if not (config.pitch or config.energy):
            return None
        from speechssl.heads.pitch import shift_pitch

        log_f0, voiced, energy = whole_prosody(wave, self.rate, self.hop)
        if config.pitch:
            assert self.target.pitch is not None
            log_f0, voiced = shift_pitch(log_f0, voiced, *self.target.pitch)
        return log_f0, voiced, energy

    def _prosody_of(self, said: Sequence[Any], group: Sequence[Any]) -> Any:
        """`Prosody` (B, T) of some pieces; None if the model is told none."""
        if said[group[0].item] is None:
            return None
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from speechssl.heads.pitch import Prosody

        columns = []
        for which in range(3):
            rows = []
            for piece in group:
                begin, count = piece.first - piece.keep, self.geometry.frames(piece.size)
                rows.append(said[piece.item][which][begin : begin + count])
            columns.append(pad_sequence(rows, batch_first=True).to(self.device))
        if self.target.pitch is None:
            return Prosody(*columns)
        own = torch.tensor(self.target.pitch, device=self.device).expand(len(group), 2)
        return Prosody(*columns, range=own)


def is_silent(wave: np.ndarray) -> bool:
    """Whether a wave is never louder than `SILENT_PEAK`."""
    return max(float(wave.max()), -float(wave.min())) <= SILENT_PEAK


def whole_prosody(wave: np.ndarray, rate: int, hop: int) -> tuple[Tensor, Tensor, Tensor]:
    """log F0, voicing and relative energy (T,) of a wave of any length, piece by piece."""
    import numpy as np
    import torch

    from speechssl.heads.pitch import log_energy, pitch
    from speechssl.hub.chunks import Geometry, cut

    geometry = Geometry(rate, hop, 0)
    window = round(PROSODY_SECONDS * rate) // hop
    overlap = round(PROSODY_OVERLAP_SECONDS * rate) // hop
    parts = []
    for piece in cut(0, len(wave), geometry, window, overlap):
        part = torch.from_numpy(np.ascontiguousarray(wave[piece.start : piece.stop]))[None]
        length = torch.tensor([piece.size])
        log_f0, voiced = pitch(part, length, hop)
        kept = slice(piece.keep, piece.keep + piece.count)
        parts.append((log_f0[0, kept], voiced[0, kept], log_energy(part, length, hop)[0, kept]))
    log_f0, voiced, energy = (torch.cat(column) for column in zip(*parts, strict=True))
    squares = sum(
        float(np.square(wave[i : i + 2**20], dtype=np.float64).sum())
        for i in range(0, len(wave), 2**20)
    )
    level = math.log(max(squares / len(wave), 1e-10)) / 2
    return log_f0, voiced, energy - level
