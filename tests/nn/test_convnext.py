"""ConvNeXt over frames: its reach, its padding, its condition."""

from __future__ import annotations

import pytest
import torch

from speechssl.contract import padding_mask
from speechssl.nn.convnext import ConvNext, ConvNextBlock


def network(condition_dim: int = 0) -> ConvNext:
    return ConvNext(6, 8, 16, 3, 5, condition_dim=condition_dim).double()


def test_a_block_is_the_published_formula() -> None:
    block = ConvNextBlock(3, 5, 3, scale=0.5).double()
    x = torch.randn(1, 7, 3, dtype=torch.float64)
    kernel, bias = block.depthwise.weight[:, 0], block.depthwise.bias
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
    y = sum(padded[:, i : i + 7] * kernel[:, i] for i in range(3)) + bias
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    y = torch.nn.functional.gelu(y @ block.widen.weight.T + block.widen.bias)
    expected = x + 0.5 * (y @ block.narrow.weight.T + block.narrow.bias)
    assert torch.allclose(block(x), expected, atol=1e-12)


def test_padding_is_inert() -> None:
    model, x, lengths = network(), torch.randn(2, 40, 6).double(), torch.tensor([40, 23])
    padding = padding_mask(lengths, 40)[..., None]
    together = model(x.masked_fill(padding, 0), padding)
    alone = model(x[1:, :23])
    assert (together[1, :23] - alone[0]).abs().max() < 1e-12


def test_a_frame_sees_no_further_than_its_reach() -> None:
    model, x = network(), torch.randn(1, 60, 6).double()
    assert model.reach == 8
    other = x.clone()
    other[:, 30] += 1
    changed = (model(x) - model(other)).abs().amax((0, 2)).nonzero().flatten().tolist()
    assert changed == list(range(22, 39))


def test_a_condition_reaches_every_block_and_is_asked_for() -> None:
    model, x = network(condition_dim=4), torch.randn(2, 9, 6).double()
    one, other = torch.randn(2, 2, 4, dtype=torch.float64)
    assert (model(x, None, one) - model(x, None, other)).abs().min() > 0
    frames = one[:, None].expand(-1, 9, -1)
    assert torch.allclose(model(x, None, one), model(x, None, frames), atol=1e-12)
    model(x, None, one).sum().backward()
    assert all(block.condition.weight.grad.any() for block in model.blocks)
    with pytest.raises(ValueError, match="condition: found none"):
        model(x)


def test_sizes_that_make_no_network_are_named() -> None:
    with pytest.raises(ValueError, match="kernel: found 4"):
        ConvNextBlock(3, 5, 4)
    with pytest.raises(ValueError, match="want 1 or more"):
        ConvNext(6, 8, 16, 0)
