"""The multi-resolution encoder: sizes, rates, padding, paths around stacks, samplers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import EncoderConfig, from_class_path, to_dict
from speechssl.contract import EncoderOutput
from speechssl.encoders.multires import MultiresConfig, MultiresEncoder
from speechssl.encoders.sampler import Sampler

SMALL: dict[str, Any] = {
    "stacks": (2, 1, 1),
    "dim": 32,
    "ffn_dim": 48,
    "heads": 4,
    "front_dim": 16,
    "pos_conv_kernel": 16,
    "pos_conv_groups": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "input_dropout": 0.0,
    "layerdrop": 0.0,
}
THREE: dict[str, Any] = {"stacks": (1, 2, 1, 1, 2), "factors": (2, 2)}


def small(**changes: Any) -> MultiresEncoder:
    model = MultiresConfig(**(SMALL | changes)).build()
    with torch.no_grad():  # norms start as identities, which would hide a forgotten one
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("config", "count"),
    [(MultiresConfig(), 96_740_224), (MultiresConfig.large(), 319_641_728)],
)
def test_published_sizes_have_their_published_parameter_count(
    config: MultiresConfig, count: int
) -> None:
    with torch.device("meta"):
        model = config.build()
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_configuration_survives_plain_values() -> None:
    config = MultiresConfig.large(**THREE)
    assert from_class_path(EncoderConfig, to_dict(config)) == config


def test_each_layer_tells_its_rate() -> None:
    model = small(**THREE).eval()
    assert model.layer_strides == (1, 1, 2, 2, 4, 2, 1, 1)
    assert model.resolution_layers == {1: 7, 2: 5, 4: 4}
    assert small(factors=(3,)).layer_strides == (1, 1, 1, 3, 1)
    wave, lengths = torch.randn(2, 5800), torch.tensor([5800, 3000])  # 17 and 9 frames
    with torch.no_grad():
        output = model(wave, lengths)
        assert output.rates_hz == (50.0, 50.0, 25.0, 25.0, 12.5, 25.0, 50.0, 50.0)
        sizes = [x.shape[1] for x in output.hidden]
        assert sizes == [17, 17, 9, 9, 5, 9, 17, 17]
        assert output.lengths_of(5).tolist() == [9, 5] and output.lengths_of(4).tolist() == [5, 3]
        some = model(wave, lengths, layers=[4, 2])
        assert some.rates_hz == (12.5, 25.0)
        assert torch.equal(some.layer(4), output.layer(4))
        assert some.padding_mask.sum(1).tolist() == [0, 2]
    for number, stride in enumerate(model.layer_strides):
        aligned = output.aligned(number)
        assert aligned.shape == output.last.shape
        for frame in (0, 3, 8, 16):
            assert torch.equal(aligned[:, frame], output.layer(number)[:, frame // stride])
    assert some.aligned(4).shape == aligned.shape
    bare = EncoderOutput((torch.zeros(1, 5, 2),), (4,), torch.tensor([17]), 50.0, None, (12.5,))
    assert bare.aligned(4).shape == (1, 17, 2)


@pytest.mark.parametrize("changes", [{}, THREE, {"factors": (3,)}, {"simple_samplers": True}])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("front_end", ["wave", "log_mel"])
def test_padding_changes_nothing(changes: Any, pre_norm: bool, front_end: Any) -> None:
    model = small(**changes, pre_norm=pre_norm, normalize_wave=pre_norm, front_end=front_end)
    model = model.eval()
    # 28, 27, 13 and 1 frames: even and odd at every rate.
    lengths = torch.tensor([9100, 9000, 4321, 400])
    wave = torch.randn(4, 9500)  # noise behind the lengths, which must not count either
    with torch.no_grad():
        batch = model(wave, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = model(wave[i : i + 1, :length], lengths[i : i + 1])
            for number in alone.layers:
                single = alone.layer(number)[0]
                assert len(single) == int(alone.lengths_of(number)) == batch.lengths_of(number)[i]
                together = batch.layer(number)[i, : len(single)]
                assert (together - single).abs().max() < 1e-5


def gradients(
    model: MultiresEncoder, lengths: tuple[int, ...], rows: Any = slice(None)
) -> tuple[Tensor, dict[str, Tensor]]:
    wave = torch.randn(2, 6000, generator=torch.Generator().manual_seed(5))[rows]
    output = model(wave[:, : max(lengths)], torch.tensor(lengths))
    loss = torch.zeros((), dtype=torch.float64)
    for number in model.resolution_layers.values():
        state = output.layer(number)
        valid = torch.arange(state.shape[1])[None] < output.lengths_of(number)[:, None]
        loss = loss + state[valid].double().square().sum()
    model.zero_grad()
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_batch_in_training_is_the_sum_of_its_utterances(pre_norm: bool) -> None:
    model = small(**THREE, pre_norm=pre_norm).train()
    loss, whole = gradients(model, (6000, 4000))
    parts = [gradients(model, (n,), slice(i, i + 1)) for i, n in enumerate((6000, 4000))]
    torch.testing.assert_close(loss, sum(p[0] for p in parts), rtol=1e-5, atol=1e-5)
    assert {n for n, _ in model.named_parameters()} - whole.keys() == {"mask_emb"}
    for name, gradient in whole.items():
        total = sum(p[1][name] for p in parts)
        torch.testing.assert_close(gradient, total, rtol=1e-4, atol=2e-4, msg=name)


def test_the_paths_around_stacks_are_those_of_the_paper() -> None:
    """With layers that do nothing, what is left are samplers, norms and sums."""
    model = small(stacks=(1, 1, 1, 1, 1), factors=(2, 2), pre_norm=True).eval()
    for layer in model.layers:
        nn.init.zeros_(layer.attention.out.weight), nn.init.zeros_(layer.attention.out.bias)
        nn.init.zeros_(layer.fc2.weight), nn.init.zeros_(layer.fc2.bias)
    with torch.no_grad():
        output = model(torch.randn(1, 5800), torch.tensor([5800]))
        norm, x = model.norms, output.layer(0)
        first = norm[0](x)
        second = norm[1](model.down[0](first, None)[0])
        below = model.down[1](second, None)[0]
        lowest = norm[2](below) + below
        fourth = norm[3](model.up[0](lowest, None)[0])[:, : second.shape[1]] + second
        fifth = norm[4](model.up[1](fourth, None)[0])[:, : first.shape[1]] + first
    for number, want in enumerate([x, first, second, lowest, fourth, fifth]):
        torch.testing.assert_close(output.layer(number), want)


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 2), (2, 1), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("frames", [1, 4, 7])
def test_a_sampler_is_a_pair_of_convolutions_with_skips(
    simple: bool, up: int, down: int, frames: int
) -> None:
    """Written once more with torch's convolutions and group norm."""
    module, scale = Sampler(6, up, down, simple=simple), math.sqrt(0.4)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, frames, 6)
    got, _ = module(x, None)
    y = start = x.transpose(1, 2)
    if not simple or up > 1:
        weight = module.up_conv.weight.t()[..., None]
        y = F.conv_transpose1d(y, weight, stride=up, output_padding=up - 1)
        y = F.gelu(F.group_norm(y, 1, module.up_norm.weight, module.up_norm.bias))
        y = (y + start.repeat_interleave(up, 2)) * scale
    start = start.repeat_interleave(up, 2)[..., ::down]
    if not simple or down > 1:
        z = F.conv1d(y, module.down_conv.weight[..., None], stride=down)
        z = F.gelu(F.group_norm(z, 1, module.down_norm.weight, module.down_norm.bias))
        y = (z + y[..., ::down]) * scale
    want = y if simple else (y + start) * scale
    assert got.shape[1] == math.ceil(frames * up / down)
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_low_layers_are_computed_without_the_higher_ones() -> None:
    model = small(**THREE).eval()
    calls: list[int] = []
    for number, layer in enumerate(model.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    with torch.no_grad():
        model(torch.randn(1, 4000), torch.tensor([4000]), layers=[3, 0])
    assert calls == [1, 2, 3]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_checkpointing_and_bfloat16_change_little(pre_norm: bool) -> None:
    model = small(**THREE, pre_norm=pre_norm)
    plain = gradients(model, (6000, 5000))[1]
    model.config = dataclasses.replace(model.config, checkpointing=True)
    again = gradients(model, (6000, 5000))[1]
    for name in plain:
        torch.testing.assert_close(plain[name], again[name])
    wave, lengths = torch.randn(2, 6000), torch.tensor([6000, 4000])
    want = model(wave, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(wave, lengths)
    valid = ~want.padding_mask
    assert F.cosine_similarity(want.last[valid], got.last[valid].float()).min() > 0.99


def test_layerdrop_skips_layers_and_keeps_norms_and_samplers() -> None:
    model = small(layerdrop=1.0, pre_norm=True)
    wave, lengths = torch.randn(1, 4000), torch.tensor([4000])
    with torch.no_grad():
        dropped = model(wave, lengths)
        assert torch.equal(dropped.layer(1), dropped.layer(0))
        assert torch.equal(dropped.layer(2), model.norms[0](dropped.layer(0)))
        assert not torch.equal(model.eval()(wave, lengths).layer(1), dropped.layer(1))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"stacks": (2, 2)}, "stacks"),
        ({"stacks": (4,)}, "stacks"),
        ({"stacks": (2, 0, 2)}, "stacks"),
        ({"factors": (2, 2)}, "factors"),
        ({"factors": (1,)}, "factors"),
        ({"heads": 5}, "dim"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        MultiresConfig(**(SMALL | changes))
