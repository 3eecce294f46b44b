"""Interfaces between layers and heads: published sizes, formulas, limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from speechssl.contract import EncoderOutput
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.classify import ClassifyConfig
from speechssl.heads.interfaces import Interface, LayerSum, build_interface

KINDS = [("sum", 1), ("grouped", 2), ("grouped", 6), ("concat", 1), ("convolution", 1),
         ("adapted", 1)]  # fmt: skip
kinds = pytest.mark.parametrize(("kind", "groups"), KINDS)


def output(count: int = 4, dim: int = 6, lengths: tuple[int, ...] = (5, 3)) -> EncoderOutput:
    random = torch.Generator().manual_seed(count)
    states = tuple(torch.randn(2, 5, dim, generator=random) for _ in range(count))
    return EncoderOutput(states, tuple(range(count)), torch.tensor(lengths), 50.0)


def build(kind: str, groups: int, normalise: bool = False) -> Interface:
    torch.manual_seed(0)
    options = {"normalise": normalise, "groups": groups, "width": 5}
    found = build_interface(kind, 4, 6, **options)  # pyright: ignore
    for p in found.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return found


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Layers and width of Base and Large; the width that heads read; parameters.
@pytest.mark.parametrize(
    ("kind", "groups", "layers", "dim", "wide", "parameters"),
    [
        ("sum", 1, 13, 768, 768, 13),
        ("grouped", 12, 13, 768, 768, 13 * 12),
        ("grouped", 768, 13, 768, 768, 13 * 768),
        ("concat", 1, 13, 768, 768, 13 * 768 * 768 + 768),
        ("convolution", 1, 13, 768, 768, 5 * 768 * (768 + 384) + 768 + 384),
        ("convolution", 1, 25, 1024, 1023, 5 * 1024 * (1024 + 341) + 1024 + 341),
        ("convolution", 1, 2, 768, 768, 5 * 768 * 768 + 768),
        ("adapted", 1, 12, 768, 512, 12 * (768 * 512 + 3 * 512 + 1)),  # 4.74 M
        ("convolution", 1, 49, 768, 768, 5 * 768 * (2 * 768 + 384) + 2 * 768 + 384),
    ],
)
def test_sizes_are_those_published(
    kind: str, groups: int, layers: int, dim: int, wide: int, parameters: int
) -> None:
    with torch.device("meta"):
        found = build_interface(kind, layers, dim, normalise=True, groups=groups)  # pyright: ignore
        states = tuple(torch.empty(1, 3, dim) for _ in range(layers))
    assert size(found) == parameters
    assert found.mix(states).shape == (1, 3, wide) and found.output_size == wide


@kinds
def test_frames_are_apart_and_padding_is_zero(kind: str, groups: int) -> None:
    found, out = build(kind, groups), output()
    x = found(out)
    assert x.shape == (2, 5, found.output_size) and not x[1, 3:].any()
    alone = EncoderOutput(
        tuple(h[1:, 1:2] for h in out.hidden), out.layers, torch.tensor([1]), 50.0
    )
    assert torch.allclose(found(alone)[0, 0], x[1, 1], atol=1e-6)
    noisy = tuple(h.clone() for h in out.hidden)
    for h in noisy:
        h[1, 3:] = float("nan")
    other = found(EncoderOutput(noisy, out.layers, out.lengths, 50.0))
    assert torch.equal(other, x)


@kinds
def test_normalised_layers_may_be_of_any_size(kind: str, groups: int) -> None:
    found, out = build(kind, groups, normalise=True), output()
    louder = tuple((10.0**i) * h + 3 for i, h in enumerate(out.hidden))
    other = found(EncoderOutput(louder, out.layers, out.lengths, 50.0))
    assert torch.allclose(other, found(out), atol=1e-3)


def test_groups_are_blocks_of_channels_with_sums_of_their_own() -> None:
    found, out = build("grouped", 3), output(lengths=(5, 5))
    x = found(out)
    weights: Tensor = found.weights  # pyright: ignore
    for g in range(3):
        part = LayerSum(4, normalise=False, dim=2)
        part.weights.data.copy_(weights[:, g])
        states = tuple(h[..., 2 * g : 2 * g + 2] for h in out.hidden)
        block = EncoderOutput(states, out.layers, out.lengths, 50.0)
        assert torch.allclose(part(block), x[..., 2 * g : 2 * g + 2], atol=1e-6)
    assert sum(found.shares()) == pytest.approx(1.0) and len(found.shares()) == 4


def test_equal_weights_are_the_mean_whatever_the_groups() -> None:
    out = output(lengths=(5, 5))
    mean = torch.stack(out.hidden).mean(0)
    for groups in (2, 6):
        found = build_interface("grouped", 4, 6, normalise=False, groups=groups)
        assert torch.allclose(found(out), mean, atol=1e-6)


def test_concatenation_can_be_any_sum() -> None:
    found, out = build_interface("concat", 4, 6, normalise=False), output(lengths=(5, 5))
    found.projection.weight.data = torch.cat([c * torch.eye(6) for c in (0.0, 1.0, -2.0, 0.5)], 1)
    found.projection.bias.data.zero_()
    expected = out.hidden[1] - 2 * out.hidden[2] + 0.5 * out.hidden[3]
    assert torch.allclose(found(out), expected, atol=1e-6)


def test_the_convolution_sees_layers_as_its_axis() -> None:
    """Written out as products: output p of a stride-3 kernel 5 reads layers 3p - 2 to 3p + 2."""
    found, out = build("convolution", 1), output(lengths=(5, 5))
    (conv,) = found.convs
    x = torch.stack(out.hidden, 2)  # (B, T, K, D)
    rows = []
    for place in range(2):
        y = conv.bias.expand(2, 5, 3)
        for tap in range(5):
            layer = 3 * place + tap - 2
            if 0 <= layer < 4:
                y = y + x[:, :, layer] @ conv.weight[:, :, tap].T
        rows.append(y.relu())
    assert torch.allclose(found(out), torch.cat(rows, -1), atol=1e-5)


def test_adapted_layers_are_each_brought_to_one_width_and_size() -> None:
    found, out = build("adapted", 1), output(lengths=(5, 5))
    shares, expected = found.weights.softmax(0), 0.0
    for share, adapter, norm, h in zip(shares, found.adapters, found.norms, out.hidden):
        y = nn.functional.gelu(h @ adapter.weight.T + adapter.bias)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = expected + share * (y * norm.weight + norm.bias)
    x = found(out)
    assert torch.allclose(x, expected, atol=1e-5)
    assert found.shares() == pytest.approx(shares.tolist())
    x.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in found.parameters())


@pytest.mark.parametrize("kind", ["sum", "concat", "convolution", "adapted"])
def test_one_layer_is_passed_on(kind: str) -> None:
    found = build_interface(kind, 1, 6, normalise=False)  # pyright: ignore
    out = output(1, lengths=(5, 5))
    assert size(found) == 0 and torch.equal(found(out), out.hidden[0])
    assert found.shares() == [1.0]


def test_a_head_on_large_takes_the_odd_width() -> None:
    with torch.device("meta"):
        encoder = TransformerConfig(layers=24, dim=1024, ffn_dim=64, heads=16).build()
        head = ClassifyConfig(field="x", classes=["a", "b"], interface="convolution").build(encoder)
    assert head.projection.in_features == 1023


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="found grouped with 1"):
        build_interface("grouped", 4, 6, normalise=True)
    with pytest.raises(ValueError, match="found concat with 2"):
        build_interface("concat", 4, 6, normalise=True, groups=2)
    with pytest.raises(ValueError, match="interface_dim: found 0"):
        build_interface("adapted", 4, 6, normalise=True, width=0)
    with pytest.raises(ValueError, match="groups: found 4, want a divisor"):
        build_interface("grouped", 4, 6, normalise=True, groups=4)
