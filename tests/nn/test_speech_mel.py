"""The mel definition of synthesis: librosa's, inert to padding, and refused if it differs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from speechssl.nn.speech_mel import SpeechMel, SpeechMelConfig, mel_filters, require_same_mel


@pytest.mark.parametrize(
    "config",
    [
        SpeechMelConfig(),
        SpeechMelConfig(sample_rate_hz=24000, hop=256, window=1024, low_hz=0.0, high_hz=12000.0),
    ],
)
def test_equal_to_librosa(config: SpeechMelConfig) -> None:
    librosa = pytest.importorskip("librosa")
    filters = librosa.filters.mel(
        sr=config.sample_rate_hz, n_fft=config.fft, n_mels=config.bins,
        fmin=config.low_hz, fmax=config.high_hz,
    )  # fmt: skip
    assert torch.allclose(mel_filters(config), torch.from_numpy(filters).T, atol=1e-8)
    wave = torch.randn(5003, generator=torch.Generator().manual_seed(1)) * 0.1
    wave[2000:4500] = 0  # silence of more than a window: the floor
    theirs = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=config.sample_rate_hz, n_fft=config.fft, hop_length=config.hop,
        win_length=config.window, n_mels=config.bins, fmin=config.low_hz, fmax=config.high_hz,
        pad_mode="constant", power=1.0,
    )  # fmt: skip
    mine, lengths = SpeechMel(config)(wave[None], torch.tensor([5003]))
    assert lengths.tolist() == [theirs.shape[1]] == [5003 // config.hop + 1]
    theirs = torch.from_numpy(theirs).T.clamp(min=config.floor).log()
    assert mine.min() == pytest.approx(config.silence)
    assert torch.allclose(mine[0], theirs, atol=2e-3)
    assert (mine[0] - theirs).abs().mean() < 1e-5


@pytest.mark.parametrize("length", [0, 1, 159, 160, 161, 3200])
def test_padding_is_inert_whatever_it_holds(length: int) -> None:
    mel = SpeechMel()
    wave = torch.randn(2, 4000, generator=torch.Generator().manual_seed(length))
    lengths = torch.tensor([length, 4000])
    both, frames = mel(wave, lengths)
    alone, _ = mel(wave[:1, :length], lengths[:1]) if length else (None, None)
    assert frames.tolist() == [length // 160 + 1, 26] == mel.frame_lengths(lengths).tolist()
    if alone is not None:
        assert alone.shape[1] == frames[0]
        assert torch.allclose(both[0, : frames[0]], alone[0], atol=1e-6)
    assert (both[0, frames[0] :] == both.new_tensor(mel.config.silence)).all()


def test_gradient_is_finite_in_silence_and_reaches_sound() -> None:
    wave = torch.zeros(1, 3200)
    wave[0, 1600:] = torch.sin(torch.arange(1600) * 0.3)
    wave.requires_grad_()
    log_mel, _ = SpeechMel()(wave, torch.tensor([3200]))
    log_mel.sum().backward()
    assert wave.grad is not None and wave.grad.isfinite().all()
    assert wave.grad[0, 1600:].abs().max() > 0


def test_a_definition_survives_json_and_another_is_refused_by_field() -> None:
    config = SpeechMelConfig(low_hz=80)
    again = SpeechMelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.hash == config.hash == SpeechMelConfig().hash
    require_same_mel(again, config, "model A")
    other = dataclasses.replace(config, hop=200, floor=1e-4)
    assert other.hash != config.hash
    with pytest.raises(
        ValueError, match=r"model A .*hop: found 200, want 160; floor: found 0\.0001"
    ):
        require_same_mel(other, config, "model A")
    with pytest.raises(ValueError, match="found fields"):
        SpeechMelConfig.from_dict({"hop": 160})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"hop": 0}, "want 0 < hop"),
        ({"window": 2048}, "want 0 < hop"),
        ({"high_hz": 8001.0}, "half the sampling rate"),
        ({"bins": 0}, "at least one bin"),
    ],
)
def test_definitions_that_cannot_be(values: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SpeechMelConfig(**values)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"want \(B, L\) and \(B,\)"):
        SpeechMel()(torch.zeros(1, 2, 100), torch.tensor([100]))
    with pytest.raises(ValueError, match=r"want \(B, L\) and \(B,\)"):
        SpeechMel()(torch.zeros(2, 100), torch.tensor([100]))
