"""The Transformer encoder: lengths, padding, parameter counts, masks, layers, gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from speechssl.config import EncoderConfig, from_class_path, to_dict
from speechssl.encoders.frame_encoder import normalise_wave
from speechssl.encoders.transformer import TransformerConfig, TransformerEncoder
from speechssl.nn.positions import alibi_slopes

SMALL: dict[str, Any] = {
    "layers": 2,
    "dim": 32,
    "ffn_dim": 48,
    "heads": 4,
    "front_dim": 16,
    "pos_conv_groups": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "input_dropout": 0.0,
    "layerdrop": 0.0,
}


def small(**changes: Any) -> TransformerEncoder:
    return TransformerConfig(**(SMALL | changes)).build()


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (TransformerConfig(), 94_371_712),
        (TransformerConfig.large(), 315_435_136),
        (TransformerConfig.large(conv_bias=True), 315_438_720),
        (TransformerConfig.xlarge(), 962_493_824),
        (TransformerConfig.wavlm_base(), 94_381_936),
        (TransformerConfig.wavlm_large(), 315_453_120),
        (TransformerConfig.data2vec_base(), 93_164_288),
        (
            TransformerConfig.data2vec_base(layers=24, dim=1024, ffn_dim=4096, heads=16),
            313_276_416,
        ),
    ],
)
def test_published_sizes_have_their_published_parameter_count(
    config: TransformerConfig, count: int
) -> None:
    with torch.device("meta"):
        model = config.build()
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_configuration_survives_plain_values() -> None:
    config = TransformerConfig.wavlm_large(layers=3)
    assert from_class_path(EncoderConfig, to_dict(config)) == config


@pytest.mark.parametrize(("front_end", "hop"), [("wave", 320), ("log_mel", 320), ("log_mel", 640)])
def test_the_number_of_frames_is_the_closed_form(front_end: str, hop: int) -> None:
    model = small(front_end=front_end, mel_hop_samples=hop, layers=1)
    wave = torch.randn(1, 5000)
    for length in range(400, 5001, 37):
        frames = (length - 400) // hop + 1
        lengths = torch.tensor([length])
        with torch.no_grad():
            output = model(wave[:, :length], lengths, layers=[0])
        assert output.last.shape[1] == frames == int(output.lengths[0])


@pytest.mark.parametrize("front_end", ["wave", "log_mel"])
@pytest.mark.parametrize("front_norm", ["group", "layer"])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize(
    ("buckets", "depth", "alibi"), [(0, 1, False), (320, 1, False), (0, 3, True)]
)
def test_padding_changes_nothing(
    front_end: Any, front_norm: Any, pre_norm: bool, buckets: int, depth: int, alibi: bool
) -> None:
    model = small(
        front_end=front_end,
        front_norm=front_norm,
        pre_norm=pre_norm,
        relative_buckets=buckets,
        alibi=alibi,
        normalize_wave=pre_norm,
        pos_conv_depth=depth,
        pos_conv_kernel=16 if depth == 1 else 7,
    ).eval()
    lengths = torch.tensor([9000, 4321, 400])
    wave = torch.randn(3, 9500)  # noise behind the lengths, which must not count either
    with torch.no_grad():
        batch = model(wave, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = model(wave[i : i + 1, :length], lengths[i : i + 1])
            frames = alone.last.shape[1]
            for together, single in zip(batch.hidden, alone.hidden):
                assert (together[i, :frames] - single[0]).abs().max() < 1e-5


def test_group_norm_ignores_gain_and_offset_and_layer_norm_only_what_it_should() -> None:
    wave, lengths = torch.randn(1, 8000), torch.tensor([8000])
    model = small().eval()
    with torch.no_grad():
        reference = model(wave, lengths).last
        for gain, offset in ((0.1, 0.3), (10.0, -1.0)):
            moved = model(gain * wave + offset, lengths).last
            assert (moved - reference).abs().max() < 5e-3
        layered = small(front_norm="layer").eval()
        plain = layered(wave, lengths).last
        assert (layered(wave + 1.0, lengths).last - plain).abs().max() > 1e-2


def test_a_normalised_wave_has_mean_0_and_variance_1_over_its_own_samples() -> None:
    wave = torch.randn(2, 1000) * 0.02 + 0.5
    out = normalise_wave(wave, torch.tensor([1000, 600]))
    assert out[1, 600:].abs().max() == 0
    assert out[1, :600].mean().abs() < 1e-4
    assert out[1, :600].var(unbiased=False) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("lengths", "index"), [([9000, 399], 1), ([0, 9000], 0), ([9001, 9000], 0)]
)
def test_a_length_without_a_frame_is_named(lengths: list[int], index: int) -> None:
    with pytest.raises(ValueError, match=rf"wave_lengths\[{index}\]"):
        small()(torch.randn(2, 9000), torch.tensor(lengths))


def test_masked_frames_carry_no_content_and_padding_is_zeroed_after_the_mask() -> None:
    model = small(layers=1).eval()
    lengths = torch.tensor([8000])
    mask = torch.ones(1, 24, dtype=torch.bool)
    with torch.no_grad():
        a = model(torch.randn(1, 8000), lengths, mask=mask).last
        b = model(torch.randn(1, 8000), lengths, mask=mask).last
        assert torch.equal(a, b)
        short = model(torch.randn(1, 8000), torch.tensor([4000]), mask=mask).last[:, :12]
        alone = model(torch.randn(1, 4000), torch.tensor([4000]), mask=mask[:, :12]).last
        assert (short - alone).abs().max() < 1e-5


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
    assert some.layers == (2, 0)
    assert everything.layers == (0, 1, 2, 3, 4)
    assert torch.equal(some.layer(2), everything.layer(2))
    with pytest.raises(ValueError, match="layers"):
        model(wave, lengths, layers=[5])


def gradients(model: TransformerEncoder) -> dict[str, torch.Tensor]:
    wave = torch.randn(2, 6000, generator=torch.Generator().manual_seed(5))
    output = model(wave, torch.tensor([6000, 5000]))
    valid = ~output.padding_mask
    (output.last[valid].square().sum() + output.front[valid].square().mean()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_front_end_gradient_is_scaled_with_the_penalty_included() -> None:
    model = small(conv_gradient_scale=1.0)
    full = gradients(model)
    scaled_model = small(conv_gradient_scale=0.1)
    scaled_model.load_state_dict(model.state_dict())
    scaled = gradients(scaled_model)
    for name, gradient in full.items():
        factor = 0.1 if name.startswith("front.") else 1.0
        torch.testing.assert_close(scaled[name], factor * gradient, rtol=1e-4, atol=1e-4)
    frozen = small(conv_gradient_scale=0.0)
    assert not any(name.startswith("front.") for name in gradients(frozen))


@pytest.mark.parametrize("buckets", [0, 320])
def test_checkpointing_changes_no_gradient(buckets: int) -> None:
    model = small(relative_buckets=buckets)
    plain = gradients(model)
    model.zero_grad()
    model.config = dataclasses.replace(model.config, checkpointing=True)
    again = gradients(model)
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], again[name])


def test_layerdrop_skips_layers_in_training_only() -> None:
    model = small(layers=3, layerdrop=1.0)
    wave, lengths = torch.randn(1, 4000), torch.tensor([4000])
    with torch.no_grad():
        dropped = model(wave, lengths)
        assert torch.equal(dropped.layer(0), dropped.layer(3))
        kept = model.eval()(wave, lengths)
        assert not torch.equal(kept.layer(0), kept.layer(3))


def test_normalised_over_utterances_the_level_of_log_mel_is_lost_and_globally_kept() -> None:
    wave, lengths = 0.1 * torch.randn(2, 6000), torch.tensor([6000, 4000])
    for norm, kept in (("utterance", False), ("global", True)):
        model = small(front_end="log_mel", front_norm="layer", mel_norm=norm).eval()
        with torch.no_grad():
            soft, loud = model(0.1 * wave, lengths), model(wave, lengths)
            alone = model(wave[1:, :4000], lengths[1:])
        moved = (soft.last - loud.last).abs().max()
        assert moved > 0.1 if kept else moved < 1e-3
        frames = int(alone.lengths[0])
        assert (loud.last[1, :frames] - alone.last[0, :frames]).abs().max() < 1e-5
        rebuilt = small(front_end="log_mel", front_norm="layer", mel_norm=norm).eval()
        rebuilt.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(rebuilt(wave, lengths).last, loud.last)


@pytest.mark.parametrize("front_end", ["wave", "log_mel"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_bfloat16_autocast_stays_close_to_float32(front_end: Any, pre_norm: bool) -> None:
    model = small(front_end=front_end, pre_norm=pre_norm, relative_buckets=320)
    wave, lengths = torch.randn(2, 6000), torch.tensor([6000, 4000])
    want = model(wave, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(wave, lengths)
    valid = ~want.padding_mask
    a, b = want.last[valid], got.last[valid].float()
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99
    b.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_zero_table_makes_wavlm_equal_to_hubert() -> None:
    hubert = small().eval()
    wavlm = small(relative_buckets=320).eval()
    wavlm.load_state_dict(hubert.state_dict(), strict=False)
    torch.nn.init.zeros_(wavlm.relative_bias.table)
    wave, lengths = torch.randn(1, 5000), torch.tensor([5000])
    with torch.no_grad():
        assert (hubert(wave, lengths).last - wavlm(wave, lengths).last).abs().max() < 1e-5


def test_alibi_adds_the_scaled_distance_to_the_logits() -> None:
    model = small(alibi=True, layers=1, pre_norm=True).eval()
    torch.nn.init.normal_(model.layers[0].attention.qkv.weight)
    scale = torch.tensor([2.0, 0.5, -1.0, 0.0])
    with torch.no_grad():
        model.alibi.scale.copy_(scale)
        x = torch.randn(1, 9, 32)
        found = model._transform(x, None, (1,))[0]
        layer = model.layers[0]
        q, k, v = (
            layer.attention.qkv(layer.attention_norm(x))[0].double().view(9, 3, 4, 8).unbind(1)
        )
        heads = []
        for h, slope in enumerate([0.25, 0.0625, 0.015625, 0.00390625]):
            logits = q[:, h] @ k[:, h].T / 8**0.5
            for i in range(9):
                for j in range(9):
                    logits[i, j] -= max(scale[h].item(), 0) * slope * abs(i - j)
            heads.append(logits.softmax(-1) @ v[:, h])
        y = x + layer.attention.out(torch.stack(heads, 1).flatten(1).float())[None]
        y = y + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.ffn_norm(y))))
    assert (found - model.layer_norm(y)).abs().max() < 1e-5


def test_slopes_of_heads_that_are_no_power_of_two_come_from_both_neighbours() -> None:
    slopes = alibi_slopes(12)
    assert slopes[:8].tolist() == [2.0**-n for n in range(1, 9)]
    assert slopes[8:].tolist() == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"heads": 5}, "dim"),
        ({"relative_buckets": 6}, "relative_buckets"),
        ({"relative_buckets": 8, "alibi": True}, "alibi"),
        ({"attention": "flex", "attention_dropout": 0.1}, "attention"),
        ({"layers": 0}, "layers"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TransformerConfig(**(SMALL | changes))


def test_layers_compile_to_one_graph_with_the_same_gradients() -> None:
    model = small(relative_buckets=320)
    plain = gradients(model)
    model.zero_grad()
    for layer in model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    compiled = gradients(model)
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], rtol=1e-3, atol=1e-4)
