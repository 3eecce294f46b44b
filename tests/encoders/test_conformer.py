"""The Conformer encoder: padding, positions, norms, sizes, gradients, layers."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.config import EncoderConfig, from_class_path, to_dict
from speechssl.encoders.conformer import ConformerConfig, ConformerEncoder
from speechssl.encoders.conformer_layer import (
    ConformerAttention,
    offset_scores,
    relative_sinusoids,
    rotary_angles,
)
from speechssl.nn.frame_norms import FrameBatchNorm, UtteranceNorm

SMALL: dict[str, Any] = {
    "layers": 2,
    "dim": 32,
    "ffn_dim": 48,
    "heads": 4,
    "depthwise_kernel": 7,
    "front_dim": 16,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "input_dropout": 0.0,
}
NORMS = ("layer", "group", "batch")
POSITIONS = ("relative", "rotary", "rotary_input", "none")


def small(**changes: Any) -> ConformerEncoder:
    model = ConformerConfig(**(SMALL | changes)).build()
    with torch.no_grad():  # norms start as identities, which would hide a forgotten one
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model


def count(config: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_sizes_are_the_published_ones() -> None:
    """The papers print one digit of billions; transformers' models have a positional convolution
    of 8,389,760 parameters more, which they never use."""
    assert round(count(ConformerConfig.w2v_bert_xl()) / 1e9, 1) == 0.6
    assert round(count(ConformerConfig.bestrq()) / 1e9, 1) == 0.6
    assert round(count(ConformerConfig.w2v_bert_xxl()) / 1e9, 1) == 1.0
    large = ConformerConfig.wav2vec2_large()
    assert count(large) == 618_559_104 - 8_389_760
    assert count(dataclasses.replace(large, positions="rotary_input")) == 593_344_128 - 8_389_760


def test_the_configuration_survives_plain_values() -> None:
    config = ConformerConfig.w2v_bert_xl(layers=3)
    assert from_class_path(EncoderConfig, to_dict(config)) == config


@pytest.mark.parametrize(("front_end", "hop"), [("wave", 320), ("log_mel", 320), ("log_mel", 640)])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_changes_nothing(front_end: Any, hop: int, norm: Any, positions: Any) -> None:
    model = small(
        front_end=front_end, mel_hop_samples=hop, conv_norm=norm, positions=positions
    ).eval()
    lengths = torch.tensor([9000, 4321, 400])
    wave = torch.randn(3, 9500)  # noise behind the lengths, which must not count either
    with torch.no_grad():
        batch = model(wave, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = model(wave[i : i + 1, :length], lengths[i : i + 1])
            frames = alone.last.shape[1]
            assert frames == (length - 400) // model.hop_samples + 1
            for together, single in zip(batch.hidden, alone.hidden):
                assert (together[i, :frames] - single[0]).abs().max() < 1e-5


def gradients(
    model: ConformerEncoder, lengths: tuple[int, ...], rows: Any = slice(None)
) -> tuple[Tensor, dict[str, Tensor]]:
    wave = torch.randn(2, 6000, generator=torch.Generator().manual_seed(5))[rows]
    output = model(wave[:, : max(lengths)], torch.tensor(lengths))
    valid = ~output.padding_mask
    loss = output.last[valid].double().square().sum() + output.layer(1)[valid].double().sum()
    model.zero_grad()
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_batch_in_training_is_the_sum_of_its_utterances(norm: Any, positions: Any) -> None:
    model = small(conv_norm=norm, positions=positions).train()
    loss, whole = gradients(model, (6000, 4000))
    parts = [gradients(model, (n,), slice(i, i + 1)) for i, n in enumerate((6000, 4000))]
    torch.testing.assert_close(loss, sum(p[0] for p in parts), rtol=1e-5, atol=1e-5)
    assert {n for n, _ in model.named_parameters()} - whole.keys() == {"mask_emb"}
    for name, gradient in whole.items():
        total = sum(p[1][name] for p in parts)
        torch.testing.assert_close(gradient, total, rtol=1e-4, atol=2e-4, msg=name)


def test_in_training_batch_norm_sees_the_valid_frames_of_the_batch() -> None:
    norm = FrameBatchNorm(8).train()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    theirs = nn.BatchNorm1d(8).train()
    theirs.load_state_dict(norm.state_dict(), strict=False)
    x = torch.randn(3, 20, 8, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    padding = torch.arange(20)[None] >= torch.tensor([20, 7, 13])[:, None]
    got, want = norm(x, padding)[~padding], theirs(y[~padding])
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(norm.running_mean, theirs.running_mean)
    torch.testing.assert_close(norm.running_var, theirs.running_var)
    torch.testing.assert_close(norm.eval()(x), theirs.eval()(x.transpose(1, 2)).transpose(1, 2))


def test_batch_norm_over_two_ranks_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads as ranks of unlike size: same output, statistics and summed gradients."""
    x = torch.randn(5, 20, 8)
    padding = torch.arange(20)[None] >= torch.tensor([20, 7, 13, 20, 1])[:, None]
    weight = torch.randn_like(x) * ~padding[..., None]
    alone = FrameBatchNorm(8).train()
    leaf = x.clone().requires_grad_()
    want = alone(leaf, padding)
    (want * weight).sum().backward()

    barrier, boxes, rank = threading.Barrier(2), [torch.empty(0)] * 2, threading.local()

    def all_reduce_sum(y: Tensor) -> Tensor:
        boxes[rank.number] = y
        barrier.wait()
        total = boxes[0] + boxes[1]
        barrier.wait()
        return total

    monkeypatch.setattr("speechssl.nn.frame_norms.dist.all_reduce_sum", all_reduce_sum)
    norms = [FrameBatchNorm(8).train() for _ in range(2)]

    def run(number: int) -> tuple[Tensor, Tensor]:
        rank.number = number
        rows = slice(0, 2) if number == 0 else slice(2, 5)
        part = x[rows].clone().requires_grad_()
        got = norms[number](part, padding[rows])
        (got * weight[rows]).sum().backward()
        return got.detach(), part.grad

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(run, range(2)))
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(torch.cat([p[0] for p in parts])[~padding], want[~padding])
    close(torch.cat([p[1] for p in parts]), leaf.grad)
    close(norms[0].weight.grad + norms[1].weight.grad, alone.weight.grad)
    for norm in norms:
        close(norm.running_mean, alone.running_mean)
        close(norm.running_var, alone.running_var)


def test_the_utterance_norm_is_a_group_norm_of_each_utterance_alone() -> None:
    norm = UtteranceNorm(6)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(3, 20, 6) * 3 + 1
    lengths = [20, 7, 1]
    padding = torch.arange(20)[None] >= torch.tensor(lengths)[:, None]
    batch = norm(x, padding)
    assert not batch[padding].any()
    for i, length in enumerate(lengths):
        alone = x[i : i + 1, :length].transpose(1, 2)
        want = nn.functional.group_norm(alone, 1, norm.weight, norm.bias).transpose(1, 2)
        torch.testing.assert_close(batch[i, :length], want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(x[:1]), batch[:1])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_scores_of_offsets_become_scores_of_keys(frames: int) -> None:
    scores = torch.randn(2, frames, 2 * frames - 1)
    found = offset_scores(scores)
    for query in range(frames):
        for key in range(frames):
            assert torch.equal(found[:, query, key], scores[:, query, key - query + frames - 1])


def attention(positions: str) -> ConformerAttention:
    module = ConformerAttention(16, 2, dropout=0.0, positions=positions)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def test_relative_attention_is_that_of_transformer_xl_written_out() -> None:
    """Dai et al., 2019, section 3.3: A = (q + u) k + (q + v) W r of the distance, in float64."""
    module, frames, width = attention("relative"), 5, 8
    x = torch.randn(1, frames, 16, dtype=torch.float64)
    got = module(x, None, relative_sinusoids(frames, 16, x.device).double())
    q, k, v = (y.unflatten(-1, (2, width))[0] for y in module.qkv(x).chunk(3, -1))
    heads = []
    for h in range(2):
        scores = torch.zeros(frames, frames, dtype=torch.float64)
        for i in range(frames):
            for j in range(frames):
                rates = [10000 ** (-2 * e / 16) for e in range(8)]
                r = [f((i - j) * w) for w in rates for f in (math.sin, math.cos)]
                key = module.position.weight @ torch.tensor(r, dtype=torch.float64)
                content = (q[i, h] + module.content_bias[h]) @ k[j, h]
                place = (q[i, h] + module.position_bias[h]) @ key[h * width : (h + 1) * width]
                scores[i, j] = (content + place) / math.sqrt(width)
        heads.append(scores.softmax(-1) @ v[:, h])
    # The table is float32, as the model makes it.
    torch.testing.assert_close(got[0], module.out(torch.cat(heads, -1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "by_distance"),
    [("relative", True), ("rotary", True), ("rotary_input", False), ("none", True)],
)
def test_scores_depend_on_distance_alone_but_for_turned_inputs(
    positions: str, by_distance: bool
) -> None:
    module, frames = attention(positions), 12
    x = torch.randn(1, frames, 16, dtype=torch.float64)
    keep = torch.ones(1, 2 * frames, dtype=torch.bool)
    keep[:, :frames] = False
    tables = {
        "relative": lambda n: relative_sinusoids(n, 16, x.device).double(),
        "none": lambda n: None,
    }
    table = tables.get(positions, lambda n: rotary_angles(n, 8, 10000.0, x.device).double())
    here = module(x, None, table(frames))
    later = module(torch.cat([torch.randn_like(x), x], 1), keep, table(2 * frames))[:, frames:]
    assert torch.allclose(here, later, atol=1e-5) == by_distance


def test_only_without_positions_and_convolution_is_the_order_lost() -> None:
    for positions in POSITIONS:
        module = attention(positions)
        x = torch.randn(1, 6, 16, dtype=torch.float64)
        table = None
        if positions == "relative":
            table = relative_sinusoids(6, 16, x.device).double()
        elif positions != "none":
            table = rotary_angles(6, 8, 10000.0, x.device).double()
        back = module(x.flip(1), None, table).flip(1)
        same = torch.allclose(back, module(x, None, table), atol=1e-5)
        assert same == (positions == "none")


def test_masked_frames_carry_no_content_and_padding_is_zeroed_after_the_mask() -> None:
    model = small(layers=1).eval()
    frames = (8000 - 400) // 640 + 1
    lengths = torch.tensor([8000])
    mask = torch.ones(1, frames, dtype=torch.bool)
    with torch.no_grad():
        a = model(torch.randn(1, 8000), lengths, mask=mask).last
        b = model(torch.randn(1, 8000), lengths, mask=mask).last
        assert torch.equal(a, b)
        short = model(torch.randn(1, 8000), torch.tensor([4000]), mask=mask).last[:, :6]
        alone = model(torch.randn(1, 4000), torch.tensor([4000]), mask=mask[:, :6]).last
        assert (short - alone).abs().max() < 1e-5
        channels = torch.zeros(1, 32, dtype=torch.bool)
        channels[:, 3] = True
        output = model(torch.randn(1, 8000), lengths, channel_mask=channels, layers=[0])
        assert not output.last[..., 3].any() and output.last[..., 4].any()


def test_low_layers_are_computed_without_the_higher_ones() -> None:
    model = small(layers=4).eval()
    calls: list[int] = []
    for number, layer in enumerate(model.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    wave, lengths = torch.randn(1, 4000), torch.tensor([4000])
    with torch.no_grad():
        some = model(wave, lengths, layers=[2, 0])
        assert calls == [1, 2]
        everything = model(wave, lengths)
    assert everything.layers == (0, 1, 2, 3, 4)
    assert torch.equal(some.layer(2), everything.layer(2))


@pytest.mark.parametrize("positions", POSITIONS)
def test_checkpointing_changes_no_gradient(positions: Any) -> None:
    model = small(positions=positions)
    plain = gradients(model, (6000, 5000))[1]
    model.config = dataclasses.replace(model.config, checkpointing=True)
    again = gradients(model, (6000, 5000))[1]
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], again[name])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_bfloat16_autocast_stays_close_to_float32(norm: Any, positions: Any) -> None:
    model = small(conv_norm=norm, positions=positions).eval()
    wave, lengths = torch.randn(2, 6000), torch.tensor([6000, 4000])
    want = model(wave, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(wave, lengths)
    valid = ~want.padding_mask
    a, b = want.last[valid], got.last[valid].float()
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99
    b.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_layers_compile_to_one_graph_with_the_same_gradients() -> None:
    model = small()
    plain = gradients(model, (6000, 5000))[1]
    for layer in model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    compiled = gradients(model, (6000, 5000))[1]
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"heads": 5}, "dim"),
        ({"dim": 36, "heads": 4}, "dim"),
        ({"depthwise_kernel": 8}, "depthwise_kernel"),
        ({"conv_norm": "batch", "checkpointing": True}, "checkpointing"),
        ({"layers": 0}, "layers"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ConformerConfig(**(SMALL | changes))
