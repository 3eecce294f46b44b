"""The stand-in for a frozen encoder: what it says of frames, layers and padding."""

from __future__ import annotations

import pytest
import torch

from speechssl.encoders.cached import CachedEncoder
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig

SMALL = {"front_end": "log_mel", "front_norm": "layer", "front_dim": 16, "dim": 16, "ffn_dim": 16,
         "heads": 2, "pos_conv_kernel": 8, "pos_conv_groups": 2}  # fmt: skip
LENGTHS = torch.tensor([9000, 5000, 12000])


def both(config: object, layers: list[int]) -> tuple[object, CachedEncoder, torch.Tensor, object]:
    """An encoder's output, its stand-in, and the features as the stand-in's batch."""
    encoder = config.build().eval()
    wave = torch.randn(3, 12000)
    with torch.no_grad():
        out = encoder(wave, LENGTHS)
    states = torch.stack([out.aligned(n) for n in layers], 2)
    return out, CachedEncoder(encoder, layers), states.flatten(1), encoder


def test_it_gives_back_the_encoders_layers_frames_and_seconds() -> None:
    out, cached, batch, encoder = both(TransformerConfig(layers=2, **SMALL), [0, 1, 2])
    lengths = out.lengths * cached.hop_samples
    found = cached(batch, lengths, layers=[2, 0])
    assert found.layers == (2, 0) and torch.equal(found.lengths, out.lengths)
    valid = ~out.padding_mask
    for number in (0, 2):
        assert torch.equal(found.layer(number)[valid], out.layer(number)[valid])
        assert not found.layer(number)[~valid].any()
    assert cached(batch, lengths, layers=[-1]).layers == (2,)
    assert cached.frame_rate_hz == encoder.frame_rate_hz == found.frame_rate_hz
    assert int(lengths[0]) / cached.sample_rate_hz == pytest.approx(
        int(out.lengths[0]) / encoder.frame_rate_hz
    )
    assert torch.equal(cached.frame_lengths(lengths), out.lengths)


def test_what_stands_on_padding_does_not_matter() -> None:
    out, cached, batch, _ = both(TransformerConfig(layers=1, **SMALL), [0, 1])
    lengths = out.lengths * cached.hop_samples
    clean = cached(batch, lengths).hidden
    behind = torch.arange(batch.shape[1])[None] >= lengths[:, None]
    spoilt = cached(batch.masked_fill(behind, float("nan")), lengths).hidden
    assert all(torch.equal(a, b) for a, b in zip(clean, spoilt, strict=True))


def test_layers_of_lower_rates_come_on_one_time_axis() -> None:
    config = MultiresConfig(stacks=(1, 1, 1), **SMALL)
    out, cached, batch, encoder = both(config, [0, 1, 2, 3])
    found = cached(batch, out.lengths * cached.hop_samples)
    assert max(encoder.layer_strides) == 2 and set(cached.layer_strides) == {1}
    for number in found.layers:
        row = out.aligned(number)[2, : int(out.lengths[2])]
        assert torch.equal(found.aligned(number)[2, : len(row)], row)


def test_masks_and_layers_that_are_not_there_are_refused() -> None:
    out, cached, batch, _ = both(TransformerConfig(layers=2, **SMALL), [1])
    lengths = out.lengths * cached.hop_samples
    with pytest.raises(ValueError, match=r"found \[0, 2\], want some of those cached: \[1\]"):
        cached(batch, lengths)
    with pytest.raises(ValueError, match="acts inside the encoder"):
        cached(batch, lengths, layers=[1], mask=torch.zeros(3, 4, dtype=torch.bool))
