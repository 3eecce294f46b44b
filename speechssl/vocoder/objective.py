"""Training of a vocoder: give back the wave that a mel was made of; then, please discriminators.

Without critics it is an ordinary objective. With them, the trainer takes turns: `critic_loss`
teaches the critics, and `forward` the vocoder (`train.adversarial`).

Source: Yamamoto, Song and Kim 2020 (Parallel WaveGAN), section 2.2, for the spectra; Kong, Kim and
Bae 2020 (HiFi-GAN), section 2.4, and Siuzdak 2023 (Vocos), section 3.3, for the rest.
Differs: each term is a mean within its utterance, weighed by the utterance's length, so that batch
shape does not change the gradient; terms of discriminators are means over them, not sums; which
part of an utterance is judged is drawn from the utterance's seed.

Shape legend: B utterances, L samples, S samples of a segment.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, Loss, Objective, padding_mask
from speechssl.nn.draws import random_uniform
from speechssl.vocoder.base import Vocoder
from speechssl.vocoder.config import CriticConfig, ReconstructionConfig
from speechssl.vocoder.critics import Critics
from speechssl.vocoder.losses import (
    SpectraDistance,
    critic_terms,
    deception_terms,
    matching_terms,
    mel_distance,
)

_GAIN, _SEGMENT = 1, 2  # streams of an utterance's seed
LOUDEST = 0.99


class VocoderObjective(Objective):
    """Loss per hop of 10 ms; validation leaves the critics out, so that its figures compare."""

    def __init__(
        self, vocoder: Vocoder, loss: ReconstructionConfig, critic: CriticConfig | None = None
    ) -> None:
        super().__init__()
        self.vocoder = vocoder
        self.config = loss
        self.spectra = SpectraDistance(loss.windows)
        self.critic = Critics(critic) if critic else None

    @property
    def encoder(self) -> nn.Module:  # pyright: ignore
        """What the trainer asks for the sampling rate."""
        return self.vocoder

    def forward(self, batch: Batch) -> Loss:
        true, lengths = self.prepared(batch)
        log_mel, frames = self.vocoder.mel(true, lengths)
        made = self.vocoder(log_mel, frames)
        true = true[:, : made.shape[1]]
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.config.mel_weight:
            again, _ = self.vocoder.mel(made, lengths)
            terms["mel"] = (self.config.mel_weight, mel_distance(again, log_mel, frames))
        if self.config.stft_weight and self.config.windows:
            terms["stft"] = (self.config.stft_weight, self.spectra(made, true, lengths))
        if self.critic is not None and self.training:
            real, fake = self.segments(batch, lengths, true, made)
            with torch.no_grad():
                _, hidden = self.critic(real)
            scores, answers = self.critic(fake)
            c = self.critic.config
            terms["deception"] = (c.adversarial_weight, deception_terms(scores, c.kind))
            terms["matching"] = (c.matching_weight, matching_terms(hidden, answers))
        weighted = sum(weight * term for weight, term in terms.values())
        return self._loss(weighted, lengths, {k: term for k, (_, term) in terms.items()})  # pyright: ignore

    def critic_loss(self, batch: Batch) -> Loss:
        """What the critics minimise, of the vocoder as it is."""
        assert self.critic is not None
        with torch.no_grad():
            true, lengths = self.prepared(batch)
            made = self.vocoder(*self.vocoder.mel(true, lengths))
            real, fake = self.segments(batch, lengths, true[:, : made.shape[1]], made)
        (real_scores, _), (fake_scores, _) = self.critic(real), self.critic(fake)
        term = critic_terms(real_scores, fake_scores, self.critic.config.kind)
        logs = {
            "real": torch.stack([x.mean(1) for x in real_scores]).mean(0),
            "fake": torch.stack([x.mean(1) for x in fake_scores]).mean(0),
        }
        return self._loss(term, lengths, logs)

    def _loss(self, term: Tensor, lengths: Tensor, logs: dict[str, Tensor]) -> Loss:
        """(B,) terms per utterance -> their sum over hops."""
        hops = lengths // self.vocoder.mel.config.hop
        count = hops.sum()
        sums = {name: ((x.detach() * hops).sum(), count) for name, x in logs.items()}
        return Loss((term * hops).sum(), count, sums)

    @torch.no_grad()
    def prepared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Waves of whole hops, 0 behind their lengths, in training at a random loudness."""
        hop = self.vocoder.mel.config.hop
        lengths = batch.wave_lengths // hop * hop
        wave = batch.wave.masked_fill(padding_mask(lengths, batch.wave.shape[1]), 0)
        low, high = self.config.gain_db
        if self.training and (low, high) != (0, 0):
            share = random_uniform(batch.seeds, _GAIN, 1).to(wave.device)
            gain = 10 ** ((low + (high - low) * share) / 20)
            peak = wave.abs().amax(1, keepdim=True) if wave.shape[1] else torch.zeros_like(gain)
            wave = wave * torch.minimum(gain, LOUDEST / peak.clamp(min=1e-9))
        return wave, lengths

    def segments(
        self, batch: Batch, lengths: Tensor, true: Tensor, made: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same random segment (B, S) of both waves; zeros behind an utterance's end."""
        assert self.critic is not None
        rate = self.vocoder.sample_rate_hz
        size = max(round(self.critic.config.segment_seconds * rate), 1)
        room = (lengths.cpu() - size).clamp(min=0) + 1
        start = (random_uniform(batch.seeds, _SEGMENT, 1)[:, 0] * room).long()
        places = start.to(true.device)[:, None] + torch.arange(size, device=true.device)
        beyond = places >= lengths[:, None]
        places = places.clamp(max=max(true.shape[1] - 1, 0))
        real, fake = (x.gather(1, places).masked_fill(beyond, 0) for x in (true, made))
        return real, fake
