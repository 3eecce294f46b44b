"""Vocoders: shapes, padding, chunks, silence, bad input; gradients reach every parameter."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.nn.speech_mel import SpeechMel, SpeechMelConfig
from speechssl.vocoder.base import Vocoder
from speechssl.vocoder.config import HifiganConfig, SpectralConfig

SPECTRAL = SpectralConfig(dim=16, hidden_dim=32, blocks=2, kernel=5)
HIFIGAN = HifiganConfig(channels=16, kernels=[3, 5], dilations=[1, 2])
KINDS = pytest.mark.parametrize("config", [SPECTRAL, HIFIGAN], ids=["spectral", "hifigan"])


def vocoder_of(config: SpectralConfig | HifiganConfig) -> Vocoder:
    torch.manual_seed(1)
    vocoder = config.build(SpeechMelConfig())
    with torch.no_grad():  # as after some training: no output is small by initialisation
        for name, parameter in vocoder.named_parameters():
            if parameter.ndim == 1 or "original0" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    return vocoder


def log_mels(frames: int, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return -5 + 2 * torch.randn(rows, frames, 80, generator=generator)


@KINDS
def test_a_wave_has_a_hop_between_two_frames(config) -> None:
    vocoder = vocoder_of(config)
    for frames in (1, 2, 9):
        wave = vocoder.decode(log_mels(frames))
        assert wave.shape == (1, (frames - 1) * 160) and wave.isfinite().all()


@KINDS
def test_padding_is_inert_whatever_it_holds(config) -> None:
    vocoder, x, lengths = vocoder_of(config), log_mels(60, 2), torch.tensor([60, 23])
    alone = vocoder.decode(x[1:, :23])
    x[1, 23:] = 3.0
    together = vocoder.decode(x, lengths)
    assert (together[1, : 22 * 160] - alone[0]).abs().max() < 1e-5 * alone.abs().max()
    assert not together[1, 22 * 160 :].any()
    assert together.abs().max() < 1  # clipping hid nothing


@KINDS
def test_chunks_make_the_same_wave_and_reach_is_not_too_short(config) -> None:
    vocoder = vocoder_of(config)
    x, lengths = log_mels(70, 2), torch.tensor([70, 31])
    whole = vocoder.decode(x, lengths)
    for chunk in (17, 40, 69):
        pieces = vocoder.decode(x, lengths, chunk_frames=chunk)
        assert (pieces - whole).abs().max() < 1e-5 * whole.abs().max()
    vocoder.reach = 0
    pieces = vocoder.decode(x, lengths, chunk_frames=17)
    assert (pieces - whole).abs().max() > 1e-3 * whole.abs().max()


@KINDS
def test_a_sample_depends_on_frames_within_reach_only(config) -> None:
    vocoder = vocoder_of(config).double()
    x = log_mels(120).double()
    other = x.clone()
    other[:, 60] += 1
    lengths = torch.tensor([120])
    with torch.no_grad():
        changed = (vocoder(x, lengths) - vocoder(other, lengths)).abs()[0] > 1e-13
    frames = changed.nonzero().flatten() / 160
    assert 60 - vocoder.reach <= frames.min() and frames.max() <= 60 + vocoder.reach
    assert frames.min() < 60 - vocoder.reach + 3  # nor is it wastefully long


@KINDS
def test_the_gradient_reaches_every_parameter(config) -> None:
    vocoder = vocoder_of(config)
    vocoder(log_mels(30), torch.tensor([30])).square().sum().backward()
    without = [n for n, p in vocoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_true_magnitude_and_phase_give_the_wave_through_the_spectral_head() -> None:
    vocoder = vocoder_of(SPECTRAL)
    wave = 0.1 * torch.randn(1, 3200)
    spectrum = torch.stft(
        wave, 640, 160, window=torch.hann_window(640), pad_mode="constant", return_complex=True
    ).transpose(1, 2)
    log_mel, lengths = vocoder.mel(wave, torch.tensor([3200]))
    envelope = log_mel @ vocoder.spread + vocoder.offset
    answer = torch.cat([spectrum.abs().log() - envelope, spectrum.angle()], -1)
    vocoder.head.forward = lambda _: answer  # a network that knows
    assert (vocoder(log_mel, lengths) - wave).abs().max() < 1e-5


def test_the_spectral_vocoder_knows_loudness_before_training() -> None:
    """Noise comes out as loud as it went in, and silence is silence."""
    vocoder = SPECTRAL.build(SpeechMelConfig())
    for level in (0.003, 0.1):
        wave = level * torch.randn(1, 16000)
        again, _ = vocoder.mel(vocoder.decode(vocoder.mel(wave, torch.tensor([16000]))[0]),
                               torch.tensor([16000]))  # fmt: skip
        log_mel, _ = vocoder.mel(wave, torch.tensor([16000]))
        assert abs((again - log_mel)[:, 5:-5].mean()) < 1.5
    silence = torch.full((1, 50, 80), math.log(1e-5))
    assert vocoder.decode(silence).abs().max() < 1e-3


@KINDS
def test_the_loudest_and_the_impossible_never_give_what_is_not_a_number(config) -> None:
    vocoder = vocoder_of(config)
    for level in (-1e4, 50.0, 1e30):
        wave = vocoder.decode(torch.full((1, 20, 80), level))
        assert wave.isfinite().all() and wave.abs().max() <= 1
    with pytest.raises(ValueError, match="not finite in utterance 0"):
        vocoder.decode(torch.full((1, 20, 80), torch.nan))
    with pytest.raises(ValueError, match=r"want \(B, T, 80\)"):
        vocoder.decode(torch.zeros(20, 80))
    with pytest.raises(ValueError, match="chunk_frames: found 0"):
        vocoder.decode(torch.zeros(1, 20, 80), chunk_frames=0)


def test_sizes_that_make_no_hifigan_are_named() -> None:
    mel = SpeechMelConfig()
    for wrong, text in (
        ({"rates": [8, 8, 2, 2]}, "whose product is 256, want 160"),
        ({"channels": 20}, "want a multiple of 16"),
        ({"kernels": [4]}, "want odd kernels"),
    ):
        with pytest.raises(ValueError, match=text):
            HifiganConfig(**wrong).build(mel)
    assert HifiganConfig(channels=16, rates=[8, 8, 2, 2]).build(SpeechMelConfig(hop=256)).reach > 9


def test_the_default_sizes_are_those_stated() -> None:
    def parameters(config) -> float:
        return sum(p.numel() for p in config.build(SpeechMelConfig()).parameters()) / 1e6

    assert 1.4 < parameters(SpectralConfig()) < 1.7
    assert 0.8 < parameters(HifiganConfig()) < 1.1  # V2 has 0.92 M for hop 256


def test_a_vocoders_mel_is_the_shared_one() -> None:
    vocoder = vocoder_of(SPECTRAL)
    assert isinstance(vocoder.mel, SpeechMel) and vocoder.mel.config == SpeechMelConfig()
