"""Back from spectra to waves: perfect of true spectra; Griffin-Lim of mels alone."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.nn.inverse_stft import InverseStft
from speechssl.nn.mel_inverse import GriffinLim, MelInverse, spread_bands
from speechssl.nn.speech_mel import SpeechMel, SpeechMelConfig


def speechlike(samples: int = 6400, seed: int = 0) -> torch.Tensor:
    """Harmonics of a gliding tone with some noise, (1, samples)."""
    time = torch.arange(samples) / 16000
    phase = 2 * math.pi * (120 * time + 40 * time.square())
    tone = sum(torch.sin(k * phase) / k for k in range(1, 12))
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return (0.1 * tone + 0.005 * noise)[None]


@pytest.mark.parametrize(
    ("fft", "window", "hop"), [(1024, 640, 160), (640, 640, 160), (64, 48, 20)]
)
def test_a_true_spectrum_gives_its_wave_back(fft: int, window: int, hop: int) -> None:
    wave = speechlike(hop * 20).double()
    spectrum = torch.stft(
        wave, fft, hop, window, torch.hann_window(window).double(), center=True,
        pad_mode="constant", return_complex=True,
    )  # fmt: skip
    back = InverseStft(fft, window, hop).double()(spectrum.transpose(1, 2))
    assert back.shape == wave.shape
    assert (back - wave).abs().max() < 1e-12


def test_frames_behind_an_utterance_change_nothing() -> None:
    istft = InverseStft(1024, 640, 160)
    spectrum = torch.randn(2, 21, 513, dtype=torch.complex64)
    both = istft(spectrum, torch.tensor([9, 21]))
    alone = istft(spectrum[:1, :9], torch.tensor([9]))
    assert torch.allclose(both[0, : 8 * 160], alone[0], atol=1e-6)
    assert not both[0, 8 * 160 :].any()
    assert torch.allclose(istft(spectrum)[1], both[1], atol=1e-6)
    assert istft(spectrum[:, :1]).shape == (2, 0)


def test_the_inverse_has_the_mel_it_was_asked_for_and_no_negative() -> None:
    mel = SpeechMel()
    log_mel, _ = mel(speechlike(), torch.tensor([6400]))
    magnitude = MelInverse(mel.config)(log_mel)
    assert magnitude.min() >= 0 and magnitude.isfinite().all()
    again = mel.of_magnitude(magnitude)
    assert (again - log_mel).abs().mean() < 0.03
    untouched = mel.filters.sum(1) == 0
    assert untouched.any() and not magnitude[..., untouched].any()


def test_the_envelope_of_a_flat_spectrum_is_flat() -> None:
    mel = SpeechMel()
    log_mel = mel.of_magnitude(torch.full((1, 513), 3.0))
    for fft in (1024, 640):
        spread, offset = spread_bands(mel.config, fft)
        envelope = (log_mel @ spread + offset).exp()
        assert torch.allclose(envelope, torch.full((1, fft // 2 + 1), 3.0), rtol=1e-4)


def test_griffin_lim_gives_a_wave_of_nearly_the_same_mel() -> None:
    vocoder = GriffinLim()
    wave = speechlike(16000)
    log_mel, lengths = vocoder.mel(wave, torch.tensor([16000]))
    errors = []
    for iterations in (1, 48):
        vocoder.iterations = iterations
        back = vocoder.decode(log_mel, lengths)
        assert back.shape == (1, 16000)
        errors.append((vocoder.mel(back, torch.tensor([16000]))[0] - log_mel).abs().mean())
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.25


def test_phases_to_start_from_are_used() -> None:
    """From those of the wave itself, hardly anything is left to do."""
    vocoder = GriffinLim(iterations=1, chunk_frames=60)  # in pieces
    wave = speechlike(16000)
    log_mel, lengths = vocoder.mel(wave.repeat(2, 1), torch.tensor([16000, 8000]))
    start = wave.repeat(2, 1)
    start[1, 8000:] = 0
    errors = []
    for first in (None, start):
        again, _ = vocoder.mel(vocoder.decode(log_mel, lengths, first), torch.tensor([16000, 8000]))
        errors.append((again - log_mel).abs().mean((1, 2)))
    assert (errors[1] < 0.4 * errors[0]).all()
    with pytest.raises(ValueError, match=r"start: found shape \(2, 15999\), want \(2, 16000\)"):
        vocoder.decode(log_mel, lengths, start[:, 1:])


def test_griffin_lim_of_a_batch_is_that_of_each_utterance() -> None:
    vocoder = GriffinLim(iterations=3)
    log_mel, lengths = vocoder.mel(speechlike(8000).repeat(2, 1), torch.tensor([3200, 8000]))
    both = vocoder.decode(log_mel, lengths)
    alone = vocoder.decode(log_mel[:1, :21], lengths[:1])
    assert torch.equal(both[0, :3200], alone[0]) and not both[0, 3200:].any()
    log_mel[0, 21:] = torch.nan  # whatever stands behind the end
    assert torch.equal(vocoder.decode(log_mel, lengths), both)


def test_griffin_lim_cuts_long_ones_where_they_are_quiet() -> None:
    wave = speechlike(32000)
    wave[:, 14000:16500] *= 1e-4
    vocoder = GriffinLim(iterations=32, chunk_frames=110)
    log_mel, lengths = vocoder.mel(wave, torch.tensor([32000]))
    back = vocoder.decode(log_mel, lengths)
    assert back.shape == (1, 32000)
    error = (vocoder.mel(back, torch.tensor([32000]))[0] - log_mel).abs().mean()
    assert error < 0.4


def test_silence_stays_silent_and_loud_is_clipped() -> None:
    vocoder = GriffinLim(iterations=4)
    silence = torch.full((1, 30, 80), vocoder.mel.config.silence)
    assert vocoder.decode(silence).abs().max() < 1e-4
    assert vocoder.decode(silence + 15).abs().max() == 1.0
    assert vocoder.decode(silence + 500).isfinite().all()
    assert vocoder.decode(silence[:, :1]).shape == (1, 0)


def test_bad_input_is_named() -> None:
    vocoder = GriffinLim(SpeechMelConfig())
    with pytest.raises(ValueError, match=r"want \(B, T, 80\)"):
        vocoder.decode(torch.zeros(1, 10, 40))
    with pytest.raises(ValueError, match="not finite in utterance 1"):
        vocoder.decode(torch.stack([torch.zeros(9, 80), torch.full((9, 80), torch.inf)]))
    with pytest.raises(ValueError, match="want one of 1 to 9"):
        vocoder.decode(torch.zeros(1, 9, 80), torch.tensor([10]))
    with pytest.raises(ValueError, match="want at least 1"):
        GriffinLim(iterations=0)
    with pytest.raises(ValueError, match="at least 2 hops"):
        InverseStft(512, 100, 60)
