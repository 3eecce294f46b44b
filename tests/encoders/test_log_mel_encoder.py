"""Log-mel as an encoder: what it computes, and that padding does not enter."""

from __future__ import annotations

import pytest
import torch

from speechssl.config import EncoderConfig, from_class_path, to_dict
from speechssl.encoders.log_mel import LogMelConfig, deltas
from speechssl.nn.log_mel import LogMel, normalise_frames


def test_it_is_the_filterbank_with_its_deltas_normalised() -> None:
    wave = 0.1 * torch.randn(1, 8000)
    encoder = LogMelConfig(mel_bins=23, normalise=True).build()
    out = encoder(wave, torch.tensor([8000]))
    mel = LogMel(23)(wave)
    first = deltas(mel, out.lengths)
    expected = torch.cat([mel, first, deltas(first, out.lengths)], -1)
    assert torch.allclose(out.layer(0), normalise_frames(expected, None), atol=1e-5)
    assert encoder.dim == 69 and encoder.num_layers == 0 and encoder.frame_rate_hz == 100
    assert not list(encoder.parameters()) and not encoder.state_dict()
    plain = LogMelConfig(mel_bins=23, deltas=0).build()
    assert torch.equal(plain(wave, torch.tensor([8000])).last, mel)


def test_deltas_of_a_line_are_its_slope_and_of_a_constant_zero() -> None:
    line = (0.25 * torch.arange(10.0))[None, :, None].expand(1, 10, 2)
    found = deltas(line, torch.tensor([10]))
    assert torch.allclose(found[:, 2:-2], torch.full((1, 6, 2), 0.25))
    assert not deltas(torch.ones(1, 4, 1), torch.tensor([4])).any()


def test_deltas_are_those_of_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    x = torch.randn(1, 30, 3)
    theirs = librosa.feature.delta(x[0].numpy().T, width=5, mode="nearest").T
    assert torch.allclose(deltas(x, torch.tensor([30]))[0], torch.from_numpy(theirs), atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("padding", [0.0, 5.0, float("nan")])
def test_padding_changes_no_frame(padding: float, normalise: bool) -> None:
    encoder = LogMelConfig(normalise=normalise).build()
    waves = [0.1 * torch.randn(n) for n in (16000, 4000, 400)]
    together = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=padding)
    out = encoder(together, torch.tensor([16000, 4000, 400]))
    assert out.lengths.tolist() == [98, 23, 1]
    for i, wave in enumerate(waves):
        alone = encoder(wave[None], torch.tensor([len(wave)])).last[0]
        assert (out.last[i, : len(alone)] - alone).abs().max() < 1e-5
        assert not out.last[i, len(alone) :].any()


def test_masked_frames_and_channels_are_zero() -> None:
    encoder = LogMelConfig(mel_bins=10, deltas=0).build()
    mask = torch.zeros(1, 98, dtype=torch.bool)
    mask[0, 3:7] = True
    channels = torch.zeros(1, 10, dtype=torch.bool)
    channels[0, 2] = True
    out = encoder(torch.randn(1, 16000), torch.tensor([16000]), mask=mask, channel_mask=channels)
    assert not out.last[0, 3:7].any() and not out.last[0, :, 2].any()
    assert out.last[0, 8, 3] != 0


def test_its_configuration_survives_and_mistakes_are_named() -> None:
    config = LogMelConfig(mel_bins=40)
    assert from_class_path(EncoderConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match="deltas"):
        LogMelConfig(deltas=3)
    encoder = config.build()
    with pytest.raises(ValueError, match="layers: found"):
        encoder(torch.zeros(1, 800), torch.tensor([800]), layers=[1])
    with pytest.raises(ValueError, match="one frame"):
        encoder(torch.zeros(1, 800), torch.tensor([399]))
