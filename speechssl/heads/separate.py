"""Speech enhancement and separation: masks on the mixture's spectrum, from an encoder's frames.

Source: Tsai et al. 2022 (SUPERB-SG), sections 3.4 and 3.5: three bidirectional LSTMs on the
encoder's frames, non-negative phase-sensitive masks, squared error under the best order of
sources; Erdogan et al. 2015 for the masks; Le Roux et al. 2019 for SI-SDR.
Differs: the transform is zero-padded by half a window instead of mirrored, so that an utterance's
spectrum does not depend on its padding; its frames take the encoder's frame at the same time,
whatever the encoder's rate.

The data path's own mixing makes the training mixtures, or reads a corpus's own (`data.mixtures`):
the view "mixed" is what is heard, the wave what is wanted, and their difference the second source.

Shape legend: B utterances, L samples, T encoder frames, F frames of the transform, K bins,
S sources.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss, padding_mask
from speechssl.heads.frames import FramesConfig, FramesHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparateConfig(FramesConfig):
    sources: int = 1
    """1: speech without what was added to it; 2: both speakers."""
    fft_samples: int = 512
    """Window of the transform."""
    shift_samples: int = 320
    """Samples between its frames; at most three quarters of the window, which fades at its ends."""
    hidden_dim: int = 896
    """Width of the LSTMs, in each direction."""
    hidden_layers: int = 3
    """How many of them lie upon each other."""
    dropout: float = 0.5
    """Dropout between them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sources not in (1, 2):
            raise ValueError(f"sources: found {self.sources}, want 1 (enhancement) or 2")
        if not 0 < self.shift_samples <= 0.75 * self.fft_samples:
            raise ValueError(
                f"shift_samples: found {self.shift_samples}, want more than 0 and at most three "
                f"quarters of fft_samples, {self.fft_samples}"
            )

    def build(self, encoder: Encoder) -> SeparateHead:
        return SeparateHead(self, encoder)


class SeparateHead(FramesHead):
    """Waves of the sources of a mixture."""

    config: SeparateConfig
    window: Tensor

    def __init__(self, config: SeparateConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        layers = config.hidden_layers
        self.lstm = nn.LSTM(
            self.dim,
            config.hidden_dim,
            layers,
            batch_first=True,
            bidirectional=True,
            dropout=config.dropout if layers > 1 else 0.0,
        )
        bins = config.fft_samples // 2 + 1
        self.output = nn.Linear(2 * config.hidden_dim, config.sources * bins)
        window = torch.hann_window(config.fft_samples)
        self.register_buffer("window", window, persistent=False)

    def forward(self, batch: Batch) -> Loss:
        if "mixed" not in batch.views:
            raise ValueError(
                f"mixed: found views {sorted(batch.views)}, want 'mixed'; data.mixing makes it, "
                "with probability 1 and noise or other speech, and data.mixtures names ready ones"
            )
        mixed = batch.views["mixed"]
        waves = torch.stack([batch.wave, mixed - batch.wave][: self.config.sources], 1)
        heard, masks, lengths = self._masks(mixed, batch.wave_lengths)
        wanted = _phase_sensitive(self._spectrum(waves.flatten(0, 1)), heard, self.config.sources)
        found = masks * heard.abs()[:, None]
        valid = ~padding_mask(lengths, heard.shape[1])
        total, order = _permutation_free_squares(found, wanted, valid)
        count = valid.sum() * self.config.sources
        logs = {"squares": (total.detach(), count)}
        if not self.training:
            logs["si_sdr_improvement_db"] = self._improvement(batch, waves, masks, heard, order)
        return Loss(total, count, logs)

    def separate(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) mixtures and (B,) samples -> (B, L, S) float32 waves, and their lengths."""
        heard, masks, _ = self._masks(wave, wave_lengths)
        waves = self._waves(masks * heard[:, None], wave_lengths, wave.shape[1])
        return waves.transpose(1, 2), wave_lengths

    def _masks(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixture's spectrum (B, F, K) complex, masks (B, S, F, K) of 0 and more, frames (B,)."""
        beyond = padding_mask(wave_lengths, wave.shape[1])
        heard = self._spectrum(wave.masked_fill(beyond, 0))
        lengths = self._frames_of(wave_lengths)
        x, frames = self.frames(wave, wave_lengths)
        times = torch.arange(heard.shape[1], device=x.device) * self.config.shift_samples
        places = (times // self.encoder.hop_samples)[None].minimum(frames[:, None] - 1)
        x = x.float().gather(1, places[..., None].expand(-1, -1, x.shape[2]))
        # Packed, so that the backward direction starts at each utterance's own end.
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        masks = F.relu(self.output(y).float()).unflatten(2, (self.config.sources, -1))
        return heard, masks.transpose(1, 2), lengths

    def _frames_of(self, samples: Tensor) -> Tensor:
        """The last frame's centre lies behind the last sample: no edge of a window is alone."""
        shift = self.config.shift_samples
        return (samples + shift - 1) // shift + 1

    def _spectrum(self, wave: Tensor) -> Tensor:
        """(N, L) -> (N, F, K) complex; frame t is centred at sample t * shift_samples."""
        half = self.config.fft_samples // 2
        found = torch.stft(
            F.pad(wave.float(), (half, half + self.config.shift_samples)),
            self.config.fft_samples,
            self.config.shift_samples,
            window=self.window,
            center=False,
            return_complex=True,
        )
        return found.transpose(1, 2)

    def _waves(self, spectra: Tensor, wave_lengths: Tensor, size: int) -> Tensor:
        """(B, S, F, K) -> (B, S, size), zero behind each length."""
        found = spectra.new_zeros((*spectra.shape[:2], size), dtype=torch.float32)
        frames = self._frames_of(wave_lengths).tolist()
        for i, length in enumerate(wave_lengths.tolist()):
            # One by one: what overlaps at an utterance's end must not depend on the batch.
            found[i, :, :length] = torch.istft(
                spectra[i, :, : frames[i]].transpose(1, 2),
                self.config.fft_samples,
                self.config.shift_samples,
                window=self.window,
                center=True,
                length=length,
            )
        return found

    @torch.no_grad()
    def _improvement(
        self, batch: Batch, waves: Tensor, masks: Tensor, heard: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum over sources of SI-SDR behind minus SI-SDR before, where something was mixed."""
        lengths = batch.wave_lengths
        found = self._waves(masks * heard[:, None], lengths, waves.shape[2])
        total, number = waves.new_zeros(()), waves.new_zeros(())
        for i, length in enumerate(lengths.tolist()):
            mixed = batch.views["mixed"][i, :length]
            if torch.equal(mixed, batch.wave[i, :length]):
                continue
            for output, source in enumerate(order[i].tolist()):
                truth = waves[i, source, :length]
                total += si_sdr_db(found[i, output, :length], truth) - si_sdr_db(mixed, truth)
                number += 1
        return total, number


def si_sdr_db(found: Tensor, truth: Tensor) -> Tensor:
    """Scale-invariant ratio of signal to distortion of (L,) and (L,), in dB, at most 100."""
    found, truth = found - found.mean(), truth - truth.mean()
    part = truth * (found @ truth) / (truth @ truth).clamp(min=1e-10)
    ratio = part.square().sum() / (found - part).square().sum().clamp(min=1e-10)
    return (10 * ratio.clamp(min=1e-10).log10()).clamp(max=100.0)


def _phase_sensitive(truth: Tensor, heard: Tensor, sources: int) -> Tensor:
    """(B S, F, K) and (B, F, K) complex -> (B, S, F, K): the truth's part in phase, at least 0."""
    truth = truth.unflatten(0, (-1, sources))
    phase = torch.sgn(heard)[:, None]
    return (truth * phase.conj()).real.clamp(min=0)


def _permutation_free_squares(
    found: Tensor, wanted: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over frames and sources of squared errors, their mean over bins, under the best orders.

    found, wanted: (B, S, F, K); valid: (B, F). Returns the sum, and (B, S) which source each
    output stands for.
    """
    sources = found.shape[1]
    orders = torch.tensor(list(itertools.permutations(range(sources))), device=found.device)
    errors = (found[:, :, None] - wanted[:, None]).square().mean(-1)  # (B, S, S, F)
    costs = (errors * valid[:, None, None]).sum(-1)
    totals = costs[:, torch.arange(sources, device=found.device), orders].sum(-1)
    best = totals.min(1)
    return best.values.sum(), orders[best.indices]
