"""Extractors: Kaldi's MFCC, padding inert, long audio in pieces, right frame counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.contract import Batch, Encoder, EncoderOutput
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.labels.features import (
    EncoderFeatures,
    LogMelFeatures,
    MfccFeatures,
    deltas,
    weights_hash,
)

TINY = TransformerConfig(front_dim=16, layers=3, dim=32, ffn_dim=48, heads=4, front_norm="layer")


def batch_of(*waves: Tensor) -> Batch:
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(padded, waves):
        row[: len(wave)] = wave
    ids = tuple(f"u{i}" for i in range(len(waves)))
    return Batch(padded, lengths, {}, {}, torch.zeros(len(waves), dtype=torch.int64), ids)


def extractors() -> list:
    return [
        MfccFeatures(),
        LogMelFeatures(),
        EncoderFeatures(TINY.build(), 2),
        MfccFeatures(cmvn=True),
    ]


@pytest.mark.parametrize("index", range(4))
def test_features_are_those_of_the_utterance_alone(index: int) -> None:
    extractor = extractors()[index]
    waves = [0.3 * torch.randn(n) for n in (9000, 16000, 4321)]
    together = extractor(batch_of(*waves))
    hop = round(16000 / extractor.frame_rate_hz)
    for wave, found in zip(waves, together):
        assert found.shape == ((len(wave) - 400) // hop + 1, extractor.dim)
        alone = extractor(batch_of(wave))[0]
        assert torch.allclose(found, alone, atol=2e-4)


@pytest.mark.parametrize("index", range(4))
def test_audio_below_one_window_has_no_frames_and_breaks_no_batch(index: int) -> None:
    extractor = extractors()[index]
    assert [len(f) for f in extractor(batch_of(torch.randn(399), torch.randn(800)))] == [0, 2] or (
        extractor.frame_rate_hz == 100
    )
    lengths = [len(f) for f in extractor(batch_of(torch.randn(10), torch.randn(399)))]
    assert lengths == [0, 0]


def test_mfcc_agrees_with_a_direct_computation() -> None:
    wave = 0.1 * torch.randn(4000)
    found = MfccFeatures()(batch_of(wave))[0][:, :13].numpy()
    frame = wave[160 * 5 : 160 * 5 + 400].double().numpy()
    frame = frame - frame.mean()
    frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
    frame *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frame, 512)) ** 2

    def mel(hz: float | np.ndarray) -> np.ndarray:
        return 1127.0 * np.log(1.0 + np.asarray(hz) / 700.0)

    edges = np.linspace(mel(20.0), mel(8000.0), 25)
    bins = mel(np.arange(257) * 16000 / 512)
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    logs = np.log(np.maximum(0, np.minimum(rising, falling)) @ power)
    angles = np.pi / 23 * (np.arange(23)[:, None] + 0.5) * np.arange(13)
    cepstra = logs @ (np.cos(angles) * np.sqrt(2 / 23))
    cepstra[0] /= np.sqrt(2)
    cepstra *= 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    assert np.allclose(found[5], cepstra, atol=2e-3)


def test_normalised_features_know_neither_loudness_nor_channel() -> None:
    wave = 0.1 * torch.randn(16000) * torch.linspace(0.2, 2, 16000)
    filtered = 0.3 * (wave + 0.6 * torch.nn.functional.pad(wave, (1, 0))[:-1])
    for make in (MfccFeatures, LogMelFeatures):
        plain, other = make()(batch_of(wave, filtered))
        assert (plain - other)[:, :13].abs().mean() > 0.5
        plain, other = make(cmvn=True)(batch_of(wave, filtered))
        assert torch.allclose(plain[:, :13].mean(0), torch.zeros(13), atol=1e-4)
        assert torch.allclose(plain[:, :13].var(0, correction=0), torch.ones(13), atol=1e-3)
        assert (plain - other).abs().mean() < 0.1


def test_deltas_of_a_ramp_are_its_slope_inside_and_less_at_the_edges() -> None:
    ramp = 3.0 * torch.arange(10.0)[None, :, None]
    found = deltas(torch.cat([ramp, ramp]), torch.tensor([10, 6]))[:, :, 0]
    assert torch.allclose(found[0, 2:8], torch.tensor(3.0))
    assert torch.allclose(found[1, 2:4], torch.tensor(3.0))
    # Frame 0 sees itself repeated: (1 (x1 - x0) + 2 (x2 - x0)) / 10 = 0.5 slopes.
    assert float(found[0, 0]) == pytest.approx(1.5) and float(found[1, 5]) == pytest.approx(1.5)


def test_long_audio_in_pieces_has_every_frame_in_place() -> None:
    encoder = TINY.build().eval()
    wave = 0.3 * torch.randn(16000 * 6)
    whole = EncoderFeatures(encoder, 0)(batch_of(wave))[0]
    pieces = EncoderFeatures(encoder, 0, max_chunk_seconds=1.0)
    found = pieces(batch_of(wave, wave[:30000]))
    assert [len(f) for f in found] == [(len(wave) - 400) // 320 + 1, (30000 - 400) // 320 + 1]
    # Each piece is the encoder on its own samples, to the sample.
    frames = pieces._chunk_frames
    part = wave[frames * 320 : (2 * frames - 1) * 320 + 400]
    with torch.inference_mode():
        alone = encoder(part[None], torch.tensor([len(part)]), layers=(0,)).hidden[0][0]
    assert torch.allclose(found[0][frames : 2 * frames], alone, atol=1e-5)
    assert len(whole) == len(found[0])


class Counting(Encoder):
    """Records which layers are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.num_layers, self.hop_samples = 4, 6, 320
        self.asked: list = []

    def forward(self, wave, wave_lengths, *, mask=None, channel_mask=None, layers=None):
        assert not self.training and mask is None and channel_mask is None
        self.asked.append(layers)
        frames = self.frame_lengths(wave_lengths)
        states = tuple(torch.full((len(wave), int(frames.max()), 4), float(n)) for n in layers)
        return EncoderOutput(states, tuple(layers), frames, 50.0)


def test_layers_of_a_lower_rate_are_repeated_also_over_pieces() -> None:
    encoder = MultiresConfig(
        front_dim=16, stacks=(1, 1, 1), dim=32, ffn_dim=48, heads=4, front_norm="layer"
    ).build()
    wave = 0.3 * torch.randn(16320)  # 50 frames
    whole = EncoderFeatures(encoder, 2)
    low, high = whole.layers(batch_of(wave, wave[:9000]), (2, 3))
    assert [x.shape for x in low] == [x.shape for x in high] == [(50, 32), (27, 32)]
    assert torch.equal(low[0][::2], low[0][1::2])
    assert torch.equal(low[1][0:26:2], low[1][1:26:2])
    assert not torch.equal(high[0][::2], high[0][1::2])
    pieces = EncoderFeatures(encoder, 2, max_chunk_seconds=0.22)(batch_of(wave))[0]  # 11: 10 frames
    assert pieces.shape == (50, 32)
    assert torch.equal(pieces[::2], pieces[1::2])


def test_only_the_wanted_layers_are_asked_for_in_eval_mode() -> None:
    encoder = Counting().train()
    extractor = EncoderFeatures(encoder, 4)
    assert float(extractor(batch_of(torch.randn(3200)))[0].mean()) == 4.0
    several = extractor.layers(batch_of(torch.randn(3200), torch.randn(200)), (1, 6))
    assert encoder.asked == [(4,), (1, 6)]
    assert [float(layer[0].mean()) for layer in several] == [1.0, 6.0]
    assert [len(layer[1]) for layer in several] == [0, 0]


def test_bf16_stays_near_and_returns_float32() -> None:
    encoder, batch = TINY.build(), batch_of(0.3 * torch.randn(8000))
    full = EncoderFeatures(encoder, 2)(batch)[0]
    half = EncoderFeatures(encoder, 2, bf16=True)(batch)[0]
    assert half.dtype == torch.float32
    assert float((full - half).norm() / full.norm()) < 0.05


def test_a_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer: found 9.*to 3"):
        EncoderFeatures(TINY.build(), 9)


def test_the_hash_of_weights_tells_models_apart() -> None:
    one, two = TINY.build(), TINY.build()
    two.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(two)
    with torch.no_grad():
        next(iter(two.parameters())).view(-1)[0] += 1e-3
    assert weights_hash(one) != weights_hash(two)
