"""Building blocks against plain torch (and lhotse): same values, same gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from speechssl.nn.attention import BiasGate, SelfAttention, plain_attention
from speechssl.nn.linear import Linear
from speechssl.nn.log_mel import LogMel, normalise_frames
from speechssl.nn.positions import PositionalConv, RelativeBias, expand_offsets, relative_bucket
from speechssl.nn.strided_conv import gelu_conv
from speechssl.nn.wave_front import WaveFrontEnd


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (10, 5), (3, 1), (7, 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [5, 96])
def test_strided_convolution_equals_conv1d(
    kernel: int, stride: int, bias: bool, width: int
) -> None:
    x = torch.randn(40 * stride, width, requires_grad=True)
    weight = torch.randn(7, width, kernel, requires_grad=True)
    b = torch.randn(7, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, b) if t is not None]
    ours = gelu_conv(x, weight, b, stride)
    padded = F.pad(F.gelu(x).t()[None], (0, kernel - stride))
    theirs = F.conv1d(padded, weight, b, stride=stride)[0].t()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    d = torch.randn_like(ours)
    for a, c in zip(torch.autograd.grad(ours, inputs, d), torch.autograd.grad(theirs, inputs, d)):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_equals_torch(bias: bool) -> None:
    ours = Linear(80, 96, bias=bias)
    x = torch.randn(3, 50, 80, requires_grad=True)
    y = F.linear(x, ours.weight, ours.bias)
    inputs = [x, *ours.parameters()]
    d = torch.randn_like(y)
    torch.testing.assert_close(ours(x), y, rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours(x), inputs, d), torch.autograd.grad(y, inputs, d)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_folded_group_norm_equals_group_norm_and_its_gradients() -> None:
    front = WaveFrontEnd((10, 3), (5, 2), 8, norm="group", bias=False)
    wave = torch.randn(2, 2000) + 0.3
    lengths = torch.tensor([2000, 2000])
    first, second = front.layers
    x = F.conv1d(wave[:, None], first.weight, stride=5)
    x = F.gelu(F.group_norm(x, 8, first.norm.weight, first.norm.bias))
    want = F.gelu(F.conv1d(x, second.weight, stride=2)).transpose(1, 2)
    got = front(wave, lengths, False)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    d = torch.randn_like(want)
    inputs = list(front.parameters())
    for a, b in zip(torch.autograd.grad(got, inputs, d), torch.autograd.grad(want, inputs, d)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_positional_weight_is_normed_over_channels_for_each_tap() -> None:
    conv = PositionalConv(32, 8, 4)
    torch.nn.init.uniform_(conv.g, 0.5, 2.0)
    assert conv.g.shape == (1, 1, 8)
    torch.testing.assert_close(conv.weight().norm(dim=(0, 1)), conv.g[0, 0])
    x = torch.randn(2, 21, 32)
    want = F.conv1d(x.transpose(1, 2), conv.weight(), conv.bias, padding=4, groups=4)[..., :21]
    torch.testing.assert_close(conv(x), F.gelu(want).transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "kernel"), [(4, 32), (8, 12), (12, 16), (12, 128), (48, 128)])
def test_the_positional_convolution_is_right_in_bfloat16(width: int, kernel: int) -> None:
    # torch's own convolution is not, on CPUs with AMX, for all but the last of these.
    conv = PositionalConv(width * 4, kernel, 4)
    torch.nn.init.uniform_(conv.v)
    x = torch.randn(2, 90, width * 4)
    want = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = conv(x).float()
    assert (got - want).norm() < 0.01 * want.norm()
    want.square().mean().backward()
    grads = [p.grad.clone() for p in conv.parameters() if p.grad is not None]
    conv.zero_grad()
    got.square().mean().backward()
    for a, b in zip(grads, [p.grad for p in conv.parameters()]):
        assert b is not None and (a - b).norm() < 0.02 * a.norm()


def test_masked_frames_are_normalised_by_what_the_others_have() -> None:
    x, lengths = 3 + torch.randn(4, 9, 5), [9, 6, 4, 9]
    padding = torch.arange(9) >= torch.tensor(lengths)[:, None]
    masked = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    masked[2], masked[3] = True, False
    got = normalise_frames(x, padding, masked)
    for i, length in enumerate(lengths):
        counted = x[i, :length] if masked[i, :length].all() else x[i, ~padding[i] & ~masked[i]]
        deviation = (counted.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(got[i, :length], (x[i, :length] - counted.mean(0)) / deviation)
        assert not got[i, length:].any()
    torch.testing.assert_close(got[2:], normalise_frames(x, padding)[2:])


def test_buckets_are_those_of_wavlm() -> None:
    offsets = torch.tensor([0, 1, -1, 79, -79, 80, 800, -800, 5000])
    buckets = relative_bucket(offsets, 320, 800).tolist()
    assert buckets == [0, 161, 1, 239, 79, 240, 319, 159, 319]
    spread = relative_bucket(torch.arange(0, 2000), 320, 800)
    assert (spread[1:].diff() >= 0).all()
    step = 80 + math.floor(math.log(200 / 80) / math.log(10) * 80)
    assert int(relative_bucket(torch.tensor(-200), 320, 800)) == step


def test_the_gate_of_zero_weights_is_exactly_1_75() -> None:
    gate = BiasGate(32, 4)
    torch.nn.init.zeros_(gate.projection.weight)
    torch.nn.init.zeros_(gate.projection.bias)
    assert torch.equal(gate(torch.randn(2, 5, 32)), torch.full((2, 4, 5), 1.75))


def test_offsets_expand_to_key_minus_query() -> None:
    bias = RelativeBias(8, 16, 2)
    per_offset = bias(5)
    full = expand_offsets(per_offset)
    for query in range(5):
        for key in range(5):
            bucket = relative_bucket(torch.tensor(key - query), 8, 16)
            assert torch.equal(full[:, query, key], bias.table[bucket])


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_equals_the_materialised_bias() -> None:
    x = torch.randn(2, 9, 32)
    keep = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    bias = RelativeBias(8, 16, 4)
    plain = SelfAttention(32, 4, dropout=0.0, gated=True, kernel="sdpa").eval()
    flex = SelfAttention(32, 4, dropout=0.0, gated=True, kernel="flex").eval()
    flex.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for mask in (None, keep):
            want = plain(x, mask, bias(9))
            torch.testing.assert_close(flex(x, mask, bias(9)), want, rtol=1e-4, atol=1e-5)


def test_log_mel_equals_kaldis_filterbank() -> None:
    lhotse = pytest.importorskip("lhotse.features.kaldi.layers")
    theirs = lhotse.Wav2LogFilterBank(
        num_filters=80,
        snip_edges=True,
        low_freq=20.0,
        high_freq=0.0,
        use_energy=False,
        torchaudio_compatible_mel_scale=True,
    )
    wave = 0.1 * torch.randn(2, 5000)
    want, got = theirs(wave), LogMel(80)(wave)
    assert got.shape == want.shape == (2, (5000 - 400) // 160 + 1, 80)
    assert (got - want).abs().max() < 2e-3


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_plain_attention_equals_the_fused_kernel_and_its_gradients(kind: str) -> None:
    q, k, v = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(3))
    mask = None
    if kind != "none":
        keep = torch.arange(9) < torch.tensor([[9], [5]])
        mask = keep[:, None, None, :]
    if kind == "additive":
        mask = torch.randn(2, 3, 9, 9).masked_fill(~mask, float("-inf"))
    results = []
    for attend in (plain_attention, F.scaled_dot_product_attention):
        y = attend(q, k, v, attn_mask=mask, dropout_p=0.0)
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for ours, fused in zip(*results, strict=True):
        assert torch.allclose(ours, fused, atol=1e-5)
