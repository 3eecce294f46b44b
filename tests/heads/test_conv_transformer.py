"""The recogniser's Transformer: frames that come out, positions, and the published convolutions."""

from __future__ import annotations

import math

import pytest
import torch

from speechssl.heads.conv_transformer import ConvTransformer, sinusoids


def network(stride: int = 2, layers: int = 2) -> ConvTransformer:
    torch.manual_seed(0)
    return ConvTransformer(10, 16, layers, 4, stride, 0.0)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_as_many_frames_come_out_as_it_says_whatever_lies_on_padding(stride: int) -> None:
    model = network(stride)
    lengths = torch.tensor([37, 8, 1])
    x = torch.randn(3, 37, 10)
    together, left = model(x, lengths), model.shorter(lengths)
    assert together.shape == (3, math.ceil(37 / stride), 16)
    assert left.tolist() == [math.ceil(n / stride) for n in lengths.tolist()]
    for i, (n, m) in enumerate(zip(lengths.tolist(), left.tolist(), strict=True)):
        alone = model(x[i : i + 1, :n], lengths[i : i + 1])
        assert alone.shape[1] == m
        assert (alone[0] - together[i, :m]).abs().max() < 1e-5
        x[i, n:] = float("nan")
    again = model(x, lengths)
    assert all(torch.equal(again[i, :m], together[i, :m]) for i, m in enumerate(left.tolist()))


def test_inner_frames_are_those_of_convolutions_without_padding() -> None:
    """ESPnet's convolutions have none: theirs begin one frame later, and see the same."""
    model, x = network(), torch.randn(1, 31, 10)
    y = x[:, None]
    for conv, stride in zip(model.convs, (2, 1), strict=True):
        y = torch.relu(torch.conv2d(y, conv.weight, conv.bias, stride))
    theirs = model.join(y.transpose(1, 2).flatten(2))[0]  # (31 - 1) // 2 - 2 frames
    assert theirs.shape == (13, 16)
    seen = {}
    model.join.register_forward_hook(lambda m, i, o: seen.update(joined=o))
    model(x[:, 1:], torch.tensor([30]))
    # The first convolution's first frame sees a zero here, and so two of the second's.
    assert (seen["joined"][0, 2:-1] - theirs[1:]).abs().max() < 1e-5


def test_positions_are_sines_and_cosines() -> None:
    found = sinusoids(50, 6, torch.device("cpu"))
    for t in (0, 1, 49):
        angles = [t / 10000 ** (2 * i / 6) for i in range(3)]
        expected = [f(a) for a in angles for f in (math.sin, math.cos)]
        assert found[t].tolist() == pytest.approx(expected, abs=1e-5)


def test_order_matters_through_positions_alone() -> None:
    """Between equal frames nothing but their positions differs."""
    model = network(1)
    x = torch.ones(1, 30, 10)
    out = model(x, torch.tensor([30]))[0]
    assert (out[10] - out[11]).abs().max() > 1e-3


def test_gradient_reaches_all_parameters() -> None:
    model = network()
    (model(torch.randn(2, 20, 10), torch.tensor([20, 13])) * torch.randn(16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
