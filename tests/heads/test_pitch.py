"""F0 and energy: tones in closed form, librosa's YIN, padding, what has no pitch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.heads.pitch import Prosody, level, log_energy, pitch, prosody, shift_pitch

RATE = 16000


def voice(f0: Tensor, harmonics: int = 8) -> Tensor:
    """A wave of harmonics whose strength falls by their number; f0: Hz at each sample."""
    phase = 2 * math.pi * (f0.double() / RATE).cumsum(0)
    wave = torch.stack([torch.sin(k * phase) / k for k in range(1, harmonics + 1)]).sum(0)
    return (0.1 * wave).float()


def of(wave: Tensor) -> tuple[Tensor, Tensor]:
    log_f0, voiced = pitch(wave[None], torch.tensor([len(wave)]))
    return log_f0[0], voiced[0]


@pytest.mark.parametrize("hz", [70.0, 110.0, 151.3, 220.0, 333.3, 450.0])
@pytest.mark.parametrize("harmonics", [1, 8])
def test_the_pitch_of_a_tone_is_found_within_half_a_percent(hz: float, harmonics: int) -> None:
    log_f0, voiced = of(voice(torch.full((RATE // 2,), hz), harmonics))
    assert len(log_f0) == RATE // 2 // 160 + 1
    inner = slice(4, -4)
    assert voiced[inner].all()
    assert (log_f0[inner].exp() / hz - 1).abs().max() < 5e-3


def test_a_glide_is_followed_as_by_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    f0 = torch.linspace(100, 300, RATE)
    wave = voice(f0)
    log_f0, voiced = of(wave)
    assert voiced[5:95].all()
    frames = log_f0[5:95].exp()
    assert (frames / f0[5 * 160 : 95 * 160 : 160] - 1).abs().max() < 0.02
    theirs = librosa.yin(wave.numpy(), fmin=60, fmax=500, sr=RATE, frame_length=1280,
                         hop_length=160, trough_threshold=0.15)  # fmt: skip
    assert np.abs(frames.numpy() / theirs[5:95] - 1).max() < 0.05


def test_noise_and_silence_have_no_pitch() -> None:
    random = torch.Generator().manual_seed(0)
    for wave in (0.1 * torch.randn(RATE, generator=random), torch.zeros(RATE)):
        log_f0, voiced = of(wave)
        assert voiced.float().mean() < 0.05 and (log_f0[~voiced] == 0).all()
        assert torch.isfinite(log_f0).all()


def test_gain_changes_no_pitch_and_no_relative_energy() -> None:
    wave = voice(torch.linspace(120, 180, 8000))[None]
    lengths = torch.tensor([8000])
    one, other = prosody(wave, lengths), prosody(0.1 * wave, lengths)
    assert torch.equal(one.voiced, other.voiced)
    assert torch.allclose(one.log_f0, other.log_f0, atol=1e-5)
    assert torch.allclose(one.energy, other.energy, atol=1e-4)


def test_a_contour_is_f0_within_the_speakers_range() -> None:
    log_f0 = torch.tensor([[5.0, 0.0, 5.2, 5.4], [4.6, 4.6, 0.0, 0.0]])
    voiced = log_f0 > 0
    energy = torch.zeros(2, 4)
    own = Prosody(log_f0, voiced, energy).contour()
    deviation = 0.2 * (2 / 3) ** 0.5
    expected = torch.tensor([-0.2 / deviation, 0.0, 0.0, 0.2 / deviation])
    assert torch.allclose(own[0], expected, atol=1e-4)
    assert torch.allclose(own[1], torch.zeros(4), atol=1e-3)  # a monotone, and unvoiced frames
    told = Prosody(log_f0, voiced, energy, range=torch.tensor([[5.2, 0.1], [4.5, 0.05]])).contour()
    assert torch.allclose(told, torch.tensor([[-2.0, 0, 0, 2], [2, 2, 0, 0]]), atol=1e-4)


def test_the_energy_of_a_constant_is_its_level() -> None:
    wave, lengths = torch.full((1, 4000), 0.5), torch.tensor([4000])
    assert torch.allclose(log_energy(wave, lengths)[0, 3:-3], torch.tensor(math.log(0.5)))
    assert float(level(wave, lengths)) == pytest.approx(math.log(0.5))


def test_padding_is_inert_and_pieces_are_those_of_the_whole() -> None:
    wave = voice(torch.linspace(100, 200, 16000)) + 0.01 * torch.randn(16000)
    both = torch.stack([wave, wave])
    both[1, 9000:] = float("nan")
    lengths = torch.tensor([16000, 9000])
    together = prosody(both, lengths)
    alone = prosody(wave[None, :9000], lengths[1:])
    assert torch.equal(together.voiced[1, :57], alone.voiced[0])
    assert not together.voiced[1, 57:].any()
    assert torch.allclose(together.log_f0[1, :57], alone.log_f0[0], atol=1e-5)
    assert torch.allclose(together.energy[1, :57], alone.energy[0], atol=1e-5)
    whole, _ = of(wave)
    piece, _ = of(wave[3200:12800])
    assert torch.allclose(whole[26:74], piece[6:54], atol=1e-5)


def test_a_melody_is_moved_to_another_range() -> None:
    f0, voiced = torch.tensor([4.5, 0.0, 4.7, 4.9]), torch.tensor([True, False, True, True])
    moved, same = shift_pitch(f0, voiced, 5.3, 0.4)
    assert torch.equal(same, voiced) and moved[1] == 0
    assert float(moved[voiced].mean()) == pytest.approx(5.3, abs=1e-6)
    assert float(moved[voiced].std(correction=0)) == pytest.approx(0.4, abs=1e-6)
    flat, _ = shift_pitch(torch.full((4,), 4.5), voiced, 5.3, 0.4)
    assert torch.allclose(flat[voiced], torch.tensor(5.3))
    silent, _ = shift_pitch(torch.zeros(4), torch.zeros(4, dtype=torch.bool), 5.3, 0.4)
    assert not silent.any()
