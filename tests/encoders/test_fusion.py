"""Several encoders as one: layers, rates, padding, and what heads make of their parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from speechssl.config import EncoderConfig, from_class_path, to_dict
from speechssl.contract import Batch, Encoder
from speechssl.encoders.cached import CachedEncoder
from speechssl.encoders.conformer import ConformerConfig
from speechssl.encoders.fusion import FusionConfig, FusionEncoder
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.heads.classify import ClassifyConfig
from speechssl.heads.interfaces import LayerSum, build_interface
from speechssl.hub.featurizer import Featurizer
from speechssl.nn.adapters import AdapterConfig

SMALL = {"front_dim": 16, "dim": 16, "ffn_dim": 24, "heads": 2, "pos_conv_kernel": 8,
         "pos_conv_groups": 2}  # fmt: skip
WAVE = TransformerConfig(layers=3, **SMALL)
MEL = LogMelConfig(mel_bins=10, deltas=0)
SLOW = TransformerConfig(
    layers=1, front_end="log_mel", front_norm="layer", mel_hop_samples=640, **SMALL
)
MULTIRES = MultiresConfig(stacks=(1, 1, 1), **SMALL)
CONFORMER = ConformerConfig.wav2vec2_large(
    layers=2, dim=16, ffn_dim=24, heads=2, front_dim=16, depthwise_kernel=3
)
SETS = {
    "wave and log-mel": [WAVE, MEL],
    "three rates": [WAVE, SLOW, MEL],
    "other families": [MULTIRES, CONFORMER],
}
LENGTHS = torch.tensor([16000, 4000, 9001])


def build(configs: list[EncoderConfig], seed: int = 0) -> FusionEncoder:
    torch.manual_seed(seed)
    return FusionConfig(parts=configs).build().eval()


def waves(padding: float = 0.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(3, 16000, generator=random)
    return wave.masked_fill(torch.arange(16000)[None] >= LENGTHS[:, None], padding)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("padding", [0.0, 5.0, float("nan")])
@torch.no_grad()
def test_padding_changes_no_frame_of_any_layer(name: str, padding: float) -> None:
    encoder, wave = build(SETS[name]), waves(padding)
    out = encoder(wave, LENGTHS)
    assert torch.equal(out.lengths, encoder.frame_lengths(LENGTHS))
    assert out.layers == tuple(range(encoder.num_layers + 1))
    assert all(h.shape == (3, int(out.lengths.max()), encoder.dim) for h in out.hidden)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = encoder(wave[row : row + 1, :length], LENGTHS[row : row + 1])
        for together, single in zip(out.hidden, alone.hidden):
            count = single.shape[1]
            assert (together[row, :count] - single[0]).abs().max() < 2e-5
            assert not together[row, count:].any()
    turned = encoder(wave.flip(0), LENGTHS.flip(0))
    for one, other in zip(out.hidden, turned.hidden):
        assert (one - other.flip(0)).abs().max() < 2e-5


@torch.no_grad()
def test_a_part_of_the_same_rate_and_window_comes_through_unchanged() -> None:
    encoder = build([WAVE, TransformerConfig(layers=2, **SMALL)])
    out = encoder(waves(), LENGTHS, layers=[0, 3, -1])
    assert out.layers == (0, 3, 3) and encoder.part_dims == (16, 16)
    assert encoder.part_layers(0) == (0, 1, 2, 3) and encoder.part_layers(1) == (0, 1, 1, 2)
    for part, layers in ((0, (0, 3)), (1, (0, 2))):
        own = encoder.parts[part](waves(), LENGTHS, layers=layers)
        valid = ~own.padding_mask
        for number, layer in zip((0, 3), layers):
            found = out.layer(number)[..., 16 * part : 16 * part + 16]
            assert torch.equal(found[valid], own.layer(layer)[valid])


class Clock(Encoder):
    """Frames that say where their centre is, in samples."""

    num_layers = 0
    dim = 1

    def __init__(self, hop: int, window: int) -> None:
        super().__init__()
        self.hop_samples, self.receptive_field_samples = hop, window
        self.config = MEL

    def forward(self, wave, wave_lengths, *, mask=None, channel_mask=None, layers=None):
        from speechssl.contract import EncoderOutput

        count = int(self.frame_lengths(torch.tensor(wave.shape[1])))
        times = torch.arange(count) * self.hop_samples + self.receptive_field_samples / 2
        x = times.double()[None, :, None].expand(len(wave), -1, 1)
        if mask is not None:
            x = x.masked_fill(mask[..., None], -1)
        lengths = self.frame_lengths(wave_lengths)
        return EncoderOutput((x,), (0,), lengths, self.frame_rate_hz)


def test_every_layer_of_every_part_is_in_some_layer() -> None:
    for deep in range(25):
        for shallow in range(deep + 1):
            parts = [Clock(320, 400), Clock(320, 400)]
            parts[0].num_layers, parts[1].num_layers = deep, shallow
            encoder = FusionEncoder(parts)
            layers = encoder.part_layers(1)
            assert encoder.part_layers(0) == tuple(range(deep + 1)) == tuple(range(len(layers)))
            assert set(layers) == set(range(shallow + 1)) and list(layers) == sorted(layers)


def test_frames_of_all_parts_are_of_the_same_time() -> None:
    """A triangle of a whole number of hops averages what grows evenly to its centre."""
    clocks = [Clock(160, 400), Clock(320, 400), Clock(640, 1360), Clock(80, 500)]
    encoder = FusionEncoder(clocks)
    assert encoder.hop_samples == 640 and encoder.receptive_field_samples == 1360
    lengths = torch.tensor([16000, 5000])
    out = encoder(torch.zeros(2, 16000), lengths)
    assert out.frame_rate_hz == 25
    for row, frames in enumerate(encoder.frame_lengths(lengths).tolist()):
        centres = torch.arange(frames) * 640.0 + 680
        found = out.last[row, :frames]
        assert (found[:, 2] == centres).all()
        inner = found[1:-1] - centres[1:-1, None]
        assert inner.abs().max() < 1e-9
        # At the ends one side of the triangle is cut off.
        assert (found - centres[:, None]).abs().max() < 320


def test_long_audio_may_be_cut_where_frames_of_all_parts_begin() -> None:
    assert set(build([WAVE, SLOW, MEL]).layer_strides) == {1}
    encoder = build([CONFORMER, MULTIRES])
    assert encoder.parts[1].layer_strides == encoder.layer_strides == (1, 1, 2, 1)  # pyright: ignore
    slow = FusionEncoder([build([MULTIRES, MEL]), Clock(640, 400)])
    assert set(slow.layer_strides) == {1}  # two frames at 320 samples are one at 640


def test_masked_frames_mask_the_nearest_of_each_part() -> None:
    encoder = FusionEncoder([Clock(160, 400), Clock(640, 1360)])
    lengths = torch.tensor([16000])
    mask = torch.zeros(1, int(encoder.frame_lengths(lengths)), dtype=torch.bool)
    mask[0, 5:8] = True
    wave = torch.zeros(1, 16000)
    clear, masked = (encoder(wave, lengths, mask=m).last[0] for m in (None, mask))
    assert (masked[5:8, 1] == -1).all() and torch.equal(masked[:5, 1], clear[:5, 1])
    assert torch.equal(masked[:4], clear[:4]) and torch.equal(masked[9:], clear[9:])
    assert (masked[6, 0] == -1).all() and (masked[5:8, 0] < clear[5:8, 0]).all()
    # Masks of channels are cut to the parts.
    fused = build([MEL, MEL])
    channels = torch.zeros(1, 20, dtype=torch.bool)
    channels[0, 13] = True
    out = fused(0.1 * torch.randn(1, 8000), torch.tensor([8000]), channel_mask=channels).last
    assert not out[..., 13].any() and out[..., 3].any()


def test_each_part_has_a_sum_of_layers_of_its_own_and_is_normalised_by_itself() -> None:
    encoder = build([WAVE, MEL, MULTIRES])
    with torch.no_grad():
        out = encoder(waves(), LENGTHS)
    count = encoder.num_layers + 1
    for normalise in (False, True):
        found = build_interface(
            "sum", count, encoder.dim, normalise=normalise, parts=encoder.part_dims
        )
        assert isinstance(found, LayerSum) and found.weights is not None
        assert found.weights.shape == (count, 3)
        nn.init.normal_(found.weights)
        joined = found(out)
        assert joined.shape[-1] == found.output_size == encoder.dim == 42
        valid, first = ~out.padding_mask, 0
        for part, width in enumerate(encoder.part_dims):
            states = [h[..., first : first + width] for h in out.hidden]
            states = [F.layer_norm(s, (width,)) for s in states] if normalise else states
            shares = found.weights[:, part].softmax(0)
            want = sum(w * s for w, s in zip(shares, states, strict=True))
            assert torch.allclose(joined[valid][:, first : first + width], want[valid], atol=1e-6)
            first += width
        assert sum(found.shares()) == pytest.approx(1)
        joined[valid].square().sum().backward()
        assert found.weights.grad is not None and bool((found.weights.grad != 0).any(0)[0])


def test_a_featurizer_normalises_each_part_by_itself() -> None:
    encoder = build([WAVE, MEL])
    found, lengths = Featurizer(encoder)(waves(), LENGTHS)
    plain = build_interface(
        "sum", encoder.num_layers + 1, encoder.dim, normalise=True, parts=encoder.part_dims
    )
    with torch.no_grad():
        out = encoder(waves(), LENGTHS)
    assert torch.equal(lengths, out.lengths)
    assert torch.allclose(found, plain(out), atol=1e-6)


HEADS = {
    "classify": ClassifyConfig(classes=["a", "b"], projection_dim=8),
    "convolution": ClassifyConfig(classes=["a", "b"], interface="convolution"),
    "concat": ClassifyConfig(classes=["a", "b"], interface="concat"),
    "last layer": ClassifyConfig(classes=["a", "b"], layer=-1),
    "adapters": ClassifyConfig(
        classes=["a", "b"], adapters=AdapterConfig(kind="lora", dim=2)
    ),
    "tuned": ClassifyConfig(classes=["a", "b"], freeze_encoder_steps=0, freeze_front_end=True),
    "ctc": CtcConfig(vocab_size=5, freeze_encoder_steps=0, mask_probability=0.3,
                     channel_mask_probability=0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_on_it(name: str) -> None:
    torch.manual_seed(0)
    head = HEADS[name].build(build([WAVE, MEL])).train()
    targets = {"classes": torch.tensor([0, 1, 0])}
    if name == "ctc":
        targets = {"text": torch.tensor([1, 2, 3, 1]), "text_lengths": torch.tensor([2, 1, 1])}
    batch = Batch(waves(), LENGTHS, targets, {}, torch.arange(3), ("a", "b", "c"))
    loss = head(batch)
    assert bool(loss.total.isfinite()) and float(loss.count) > 0
    loss.total.backward()
    learning = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(not n.startswith("encoder.") for n in learning)
    inside = {n for n in learning if n.startswith("encoder.")}
    assert bool(inside) == (name in ("tuned", "ctc"))
    if name == "tuned":
        assert not any(".front." in n for n in inside)
    if name == "adapters":
        assert any(n.startswith("adapters.") for n in learning)


@torch.no_grad()
def test_its_configuration_survives_and_a_cache_stands_in_for_it() -> None:
    config = FusionConfig(parts=SETS["three rates"])
    assert from_class_path(EncoderConfig, to_dict(config)) == config
    encoder = build(SETS["three rates"])
    assert encoder.config == config
    out = encoder(waves(), LENGTHS)
    cached = CachedEncoder(encoder, [0, 1, 2, 3])
    assert cached.part_dims == encoder.part_dims == (16, 16, 10)
    batch = torch.stack([out.aligned(n) for n in out.layers], 2).flatten(1)
    found = cached(batch, out.lengths * cached.hop_samples)
    assert all(torch.equal(a, b) for a, b in zip(found.hidden, out.hidden))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="found 1 encoders, want two"):
        FusionConfig(parts=[MEL])
    with pytest.raises(ValueError, match=r"hops of \[320, 480\] samples at \[16000\] Hz"):
        FusionEncoder([Clock(320, 400), Clock(480, 400)])
    encoder = build([WAVE, SLOW])
    short = torch.tensor([encoder.receptive_field_samples - 1])
    with pytest.raises(ValueError, match="drop shorter utterances"):
        encoder(torch.zeros(1, 16000), short)
    with pytest.raises(ValueError, match="layers: found"):
        encoder(torch.zeros(1, 16000), torch.tensor([16000]), layers=[4])
