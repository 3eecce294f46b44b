"""Lightweight and dynamic convolutions: brute force, padding, what they refuse."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.transformers_format import write_transformers
from speechssl.nn.light_conv import LightConv

LIGHT = TransformerConfig(
    front_end="light_wave", front_dim=16, light_heads=4, layers=1, dim=16, ffn_dim=16, heads=2,
    pos_conv_kernel=8, pos_conv_groups=4, dropout=0.0, attention_dropout=0.0, input_dropout=0.0,
    layerdrop=0.0,
)  # fmt: skip


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 1)])
def test_it_equals_brute_force_in_float64(dynamic: bool, kernel: int, stride: int) -> None:
    torch.manual_seed(2)
    conv = LightConv(6, kernel, 3, dynamic=dynamic, bias=True, norm=False)
    x = torch.randn(8, 6)
    found = conv(x, stride)
    h = torch.cat([torch.nn.functional.gelu(x.double()), torch.zeros(kernel, 6).double()])
    weight, bias = conv.mix.weight.double(), conv.mix.bias.double()
    assert found.shape == (8 // stride, 6)
    for m, row in enumerate(found.double()):
        window = h[m * stride : m * stride + kernel]
        expected = torch.zeros(6, dtype=torch.float64)
        for channel in range(6):
            head = channel // 2
            if dynamic:
                middle = window[(kernel - 1) // 2]
                maps = conv.taps.weight.double() @ middle + conv.taps.bias.double()
                logits = maps[head * kernel : (head + 1) * kernel]
            else:
                logits = conv.taps[head].double()
            share = [math.exp(v) for v in logits.tolist()]
            expected[channel] = sum(
                s / sum(share) * window[k, channel] for k, s in enumerate(share)
            )
        torch.testing.assert_close(row, weight @ expected + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_in_an_encoder_padding_is_inert_and_all_of_it_learns(dynamic: bool, norm: Any) -> None:
    torch.manual_seed(4)
    config = dataclasses.replace(LIGHT, front_norm=norm, light_dynamic=dynamic, conv_bias=True)
    model = config.build().eval()
    lengths = torch.tensor([3300, 2000, 400])
    wave = torch.randn(3, 3500)
    output = model(wave, lengths)
    assert output.lengths.tolist() == [(n - 400) // 320 + 1 for n in lengths.tolist()]
    for i, n in enumerate(lengths.tolist()):
        alone = model(wave[i : i + 1, :n], lengths[i : i + 1])
        for together, single in zip(output.hidden, alone.hidden):
            torch.testing.assert_close(together[i, : single.shape[1]], single[0])
    (output.last * torch.randn_like(output.last)).sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a norm over the utterance cancels, unless its folding drops it: no gradient.
    expected = {"mask_emb"} | ({"front.layers.0.bias"} if norm == "group" else set())
    assert set(still) == expected


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="light_heads: found 3, want a divisor of"):
        dataclasses.replace(LIGHT, light_heads=3).build()
    for number in (0, 7):
        with pytest.raises(ValueError, match=f"light_layers: found {number}, want 1 to 6"):
            dataclasses.replace(LIGHT, light_layers=number).build()
    model = LIGHT.build()
    with pytest.raises(ValueError, match="front_end: found light_wave, want wave"):
        write_transformers(tmp_path, LIGHT, model.state_dict())
