"""A wave from a log-mel spectrogram without training: Griffin-Lim.

Shape legend: B utterances, T frames, M mel bins, K = fft / 2 + 1 frequencies, L samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.nn.draws import random_uniform
from speechssl.nn.inverse_stft import InverseStft
from speechssl.nn.speech_mel import SpeechMel, SpeechMelConfig, mel_filters

LOUDEST = 8.0
"""Log-mel that no wave in [-1, 1] reaches: a full-scale tone has about 3."""


def spread_bands(config: SpeechMelConfig, fft: int) -> tuple[Tensor, Tensor]:
    """Matrix (M, fft / 2 + 1) and offset (fft / 2 + 1,): log-mel to log-magnitude of an envelope.

    log_mel @ matrix + offset: the mean magnitude within each mel band, drawn as straight lines of
    its logarithm from the peak of one filter to the next, level beyond the outermost ones. For
    spectra of a window of `config.window` samples, whatever the `fft`.
    """
    filters = mel_filters(config).double()  # (K, M)
    step = config.sample_rate_hz / config.fft
    hz = torch.arange(len(filters), dtype=torch.float64) * step
    weight = filters.sum(0).clamp(min=1e-12)
    centres = (filters * hz[:, None]).sum(0) / weight
    wanted = torch.arange(fft // 2 + 1, dtype=torch.float64) * (config.sample_rate_hz / fft)
    if config.bins == 1:
        matrix = torch.ones(1, len(wanted), dtype=torch.float64)
    else:
        after = torch.searchsorted(centres, wanted).clamp(1, config.bins - 1)
        low, high = centres[after - 1], centres[after]
        share = ((wanted - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        matrix = torch.zeros(config.bins, len(wanted), dtype=torch.float64)
        columns = torch.arange(len(wanted))
        matrix[after - 1, columns] = 1 - share
        matrix[after, columns] = share
    return matrix.float(), (-weight.log() @ matrix).float()


class MelInverse(nn.Module):
    """log_mel (..., M) -> magnitude (..., K), never negative, whose mel is the given one.

    From the envelope of `spread_bands`, multiplicative updates towards the least squares of the
    mel magnitudes: Lee and Seung 2001, "Algorithms for Non-negative Matrix Factorization",
    theorem 1. Frequencies that no filter sees are 0.
    """

    filters: Tensor
    spread: Tensor
    offset: Tensor

    def __init__(self, config: SpeechMelConfig, updates: int = 30) -> None:
        super().__init__()
        self.updates = updates
        spread, offset = spread_bands(config, config.fft)
        filters = mel_filters(config)
        offset[filters.sum(1) == 0] = -torch.inf
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("spread", spread, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, log_mel: Tensor) -> Tensor:
        magnitude = (log_mel @ self.spread + self.offset).exp()
        wanted = log_mel.exp() @ self.filters.T
        for _ in range(self.updates):
            found = (magnitude @ self.filters) @ self.filters.T
            magnitude = magnitude * wanted / found.clamp(min=1e-20)
        return magnitude


class GriffinLim(nn.Module):
    """Phases found by going to and fro between spectrum and wave; needs no training.

    Source: Griffin and Lim 1984; with the momentum of Perraudin, Balazs and Søndergaard 2013,
    "A fast Griffin-Lim algorithm", algorithm 2. Ours in torch, not librosa's: batches whose
    padding is inert, and first phases that are the same in every call.

    A recording of more than `chunk_frames` is cut where it is quietest near the end of each
    chunk, since phases of two chunks do not fit together.
    """

    def __init__(
        self,
        config: SpeechMelConfig | None = None,
        *,
        iterations: int = 48,
        momentum: float = 0.99,
        chunk_frames: int = 3000,
    ) -> None:
        super().__init__()
        if iterations < 1 or not 0 <= momentum < 1 or chunk_frames < 4:
            raise ValueError(
                f"Griffin-Lim: found {iterations} iterations, momentum {momentum}, chunk_frames "
                f"{chunk_frames}, want at least 1, 0 to below 1, and at least 4"
            )
        self.iterations, self.momentum, self.chunk_frames = iterations, momentum, chunk_frames
        self.mel = SpeechMel(config)
        c = self.mel.config
        self.inverse = MelInverse(c)
        self.istft = InverseStft(c.fft, c.window, c.hop)

    @torch.no_grad()
    def decode(
        self, log_mel: Tensor, lengths: Tensor | None = None, start: Tensor | None = None
    ) -> Tensor:
        """log_mel (B, T, M), lengths (B,) frames -> wave (B, (T - 1) * hop) in [-1, 1].

        start: a wave of that shape whose phases are the first ones; None: random ones.
        Raises `ValueError` if a frame before an utterance's end is not finite, or `start` is of
        another shape.
        """
        log_mel, lengths = checked_mel(log_mel, lengths, self.mel.config)
        wave = log_mel.new_zeros(len(log_mel), (log_mel.shape[1] - 1) * self.mel.config.hop)
        if start is not None and start.shape != wave.shape:
            raise ValueError(
                f"start: found shape {tuple(start.shape)}, want {tuple(wave.shape)}, a wave with "
                "a hop between two frames"
            )
        for row, frames in enumerate(lengths.tolist()):
            size = (frames - 1) * self.mel.config.hop
            first = None if start is None else start[row, :size]
            wave[row, :size] = self._row(log_mel[row, :frames], first)
        return wave.clamp(-1, 1)

    def _row(self, log_mel: Tensor, first: Tensor | None) -> Tensor:
        """(n, M), ((n - 1) * hop,) -> ((n - 1) * hop,)"""
        hop = self.mel.config.hop

        def part(start: int, end: int) -> Tensor:
            known = None if first is None else first[start * hop : end * hop]
            return self._chunk(log_mel[start : end + 1], known)

        pieces, start, size = [], 0, self.chunk_frames
        while len(log_mel) - start > size + size // 4:
            # The frame at a cut is the last of one chunk and the first of the next.
            last = log_mel[start + size - size // 4 : start + size].mean(-1)
            end = start + size - size // 4 + int(last.argmin())
            pieces.append(part(start, end))
            start = end
        return torch.cat([*pieces, part(start, len(log_mel) - 1)])

    def _chunk(self, log_mel: Tensor, first: Tensor | None) -> Tensor:
        if len(log_mel) < 2:
            return log_mel.new_zeros(0)
        magnitude = self.inverse(log_mel)[None]
        if first is None:
            seed = torch.zeros(1, dtype=torch.int64, device=log_mel.device)
            angle = random_uniform(seed, 0, *magnitude.shape[1:]) * (2 * torch.pi)
        else:
            angle = self.mel.spectrum(first[None]).angle()
        spectrum = torch.polar(magnitude, angle)
        before = torch.zeros_like(spectrum)
        for _ in range(self.iterations):
            rebuilt = self.mel.spectrum(self.istft(spectrum))
            guess = rebuilt + self.momentum * (rebuilt - before)
            before = rebuilt
            spectrum = magnitude * guess / guess.abs().clamp(min=1e-12)
        return self.istft(spectrum)[0]


def checked_mel(
    log_mel: Tensor, lengths: Tensor | None, config: SpeechMelConfig
) -> tuple[Tensor, Tensor]:
    """float32 log-mel with `silence` behind each length, and the lengths (None: all frames).

    Values are kept between silence and LOUDEST, so that no magnitude overflows.
    Raises `ValueError` for another shape, lengths that are too long, and values not finite.
    """
    if log_mel.ndim != 3 or log_mel.shape[-1] != config.bins or not log_mel.shape[1]:
        raise ValueError(
            f"log-mel: found shape {tuple(log_mel.shape)}, want (B, T, {config.bins}) with at "
            "least one frame"
        )
    size = log_mel.shape[1]
    if lengths is None:
        lengths = torch.full((len(log_mel),), size, device=log_mel.device)
    if lengths.shape != log_mel.shape[:1] or (lengths > size).any() or (lengths < 1).any():
        raise ValueError(
            f"lengths: found {lengths.tolist()}, want one of 1 to {size} for each of "
            f"{len(log_mel)} utterances"
        )
    past = torch.arange(size, device=log_mel.device) >= lengths[:, None]
    log_mel = log_mel.float().masked_fill(past[..., None], config.silence)
    if not log_mel.isfinite().all():
        row = int((~log_mel.isfinite()).any(-1).any(-1).nonzero()[0])
        raise ValueError(
            f"log-mel: found values that are not finite in utterance {row}, want finite ones; the "
            "model that made them has diverged, or its input was not finite"
        )
    return log_mel.clamp(config.silence, LOUDEST), lengths
