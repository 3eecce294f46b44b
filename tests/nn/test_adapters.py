"""Adapters: exact sizes, no change at the start, gradients where they belong, merging."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.config import HeadConfig, from_class_path, to_dict
from speechssl.encoders.conformer import ConformerConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.nn.adapters import PARTS, AdapterConfig, AdapterOptions, attach


def stack(*options: dict[str, Any]) -> list[AdapterOptions]:
    return [AdapterOptions(**o) for o in options]


SMALL = TransformerConfig(
    front_end="log_mel", front_norm="layer", front_dim=16, layers=2, dim=32, ffn_dim=64, heads=4,
    pos_conv_kernel=8, pos_conv_groups=4, dropout=0.0, attention_dropout=0.0, input_dropout=0.0,
    layerdrop=0.0,
)  # fmt: skip
KINDS: list[dict[str, Any]] = [
    {"kind": "houlsby", "dim": 5},
    {"kind": "houlsby", "dim": 5, "both": False},
    {"kind": "pfeiffer", "dim": 5},
    {"kind": "conv", "dim": 5, "kernel": 3},
    {"kind": "adapter_bias"},
    {"kind": "prefix", "dim": 4},
    {"kind": "lora", "dim": 3},
    {"kind": "lora", "dim": 3, "projections": list(PARTS), "alpha": 6.0},
    {"kind": "bitfit"},
    {"kind": "layer_norm"},
    {"kind": "houlsby", "dim": 5,
     "also": stack({"kind": "prefix", "dim": 4}, {"kind": "lora", "dim": 3, "projections": ["fc2"]},
                   {"kind": "layer_norm"}, {"kind": "conv", "dim": 4, "kernel": 3})},
    {"kind": "lora", "dim": 3, "also": stack({"kind": "bitfit"}, {"kind": "layer_norm"})},
]  # fmt: skip
every = pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(
    ["stack" if k == "also" else str(v) for k, v in o.items()]))  # fmt: skip
# Of HuBERT Base, D = 768, L = 12.
BASE = [
    ({"kind": "layer_norm"}, 4 * 768 * 12, 36_864),
    ({"kind": "bitfit"}, 11 * 768 * 12, 101_376),
    ({"kind": "lora", "dim": 8}, 4 * 768 * 8 * 12, 294_912),
    ({"kind": "lora", "dim": 16, "projections": list(PARTS[:4])}, 8 * 768 * 16 * 12, 1_179_648),
    ({"kind": "houlsby", "dim": 32, "both": False}, (2 * 768 * 32 + 32 + 768) * 12, 599_424),
    ({"kind": "houlsby", "dim": 32}, 2 * (2 * 768 * 32 + 32 + 768) * 12, 1_198_848),
    ({"kind": "houlsby", "dim": 256}, 2 * (2 * 768 * 256 + 256 + 768) * 12, 9_461_760),
    ({"kind": "pfeiffer", "dim": 32}, (2 * 768 * 32 + 32 + 768) * 12, 599_424),
    ({"kind": "adapter_bias"}, (2 * 768 + 1) * 12, 18_444),
    ({"kind": "prefix", "dim": 6}, 12 * 768 * 12, 110_592),
    ({"kind": "conv", "dim": 32, "kernel": 5}, (2 * 768 * 32 + 32 + 768 + 32 * 6) * 12, 601_728),
    ({"kind": "none"}, 0, 0),
    # Encoder adapters of Otake et al. 2023 (in 11 of 12 layers, with norms of their own: 4.35 M).
    ({"kind": "houlsby", "dim": 256, "both": False, "also": stack({"kind": "layer_norm"})},
     (2 * 768 * 256 + 256 + 768 + 4 * 768) * 12, 4_767_744),
]  # fmt: skip


def learning(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)


def encoder(config: TransformerConfig = SMALL) -> Any:
    torch.manual_seed(0)
    return config.build()


def last(model: nn.Module, seconds: tuple[float, ...] = (0.8, 0.5)) -> Tensor:
    random = torch.Generator().manual_seed(1)
    lengths = torch.tensor([int(16000 * s) for s in seconds])
    wave = torch.randn(len(seconds), int(lengths.max()), generator=random)
    return model(wave, lengths).last


@pytest.mark.parametrize(("options", "formula", "number"), BASE)
def test_sizes_are_those_published_for_base(options: Any, formula: int, number: int) -> None:
    with torch.device("meta"):
        base = TransformerConfig().build()
        added = attach(base, AdapterConfig(**options))
    assert learning(base, added) == formula == number


@every
def test_the_start_changes_no_bit(options: Any) -> None:
    model = encoder().eval()
    before = last(model)
    attach(model, AdapterConfig(**options))
    assert torch.equal(last(model), before)


@every
def test_gradient_reaches_all_that_learns_and_nothing_else(options: Any) -> None:
    model = encoder()
    added = attach(model, AdapterConfig(**options))
    for p in added.parameters():  # zero starts hide the inner projections
        p.data += 0.1 * torch.randn_like(p)
    (last(model) * torch.randn(32)).sum().backward()
    for module in (model, added):
        for name, p in module.named_parameters():
            assert (p.grad is not None) == p.requires_grad, name
            if p.requires_grad:
                assert torch.isfinite(p.grad).all() and p.grad.any(), name


@every
def test_the_encoder_s_tensors_keep_their_names_and_values(options: Any) -> None:
    model = encoder()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    added = attach(model, AdapterConfig(**options))
    optimiser = torch.optim.SGD([p for m in (model, added) for p in m.parameters()], lr=0.1)
    (last(model) * torch.randn(32)).sum().backward()
    optimiser.step()
    after = model.state_dict()
    assert after.keys() == before.keys()
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert all(torch.equal(after[k], before[k]) for k in frozen)
    own = len(frozen) < len(list(model.parameters()))
    kinds = {o.kind for o in AdapterConfig(**options).parts}
    assert own == bool(kinds & {"bitfit", "layer_norm"})


# Large, D = 1024, L = 24: shares of 316.6 M parameters.
@pytest.mark.parametrize(
    ("options", "percent"),
    [
        ({"kind": "lora", "dim": 8}, 0.248),
        ({"kind": "houlsby", "dim": 32, "both": False}, 0.505),
        ({"kind": "bitfit"}, 0.085),
    ],
)
def test_shares_are_those_published_for_large(options: Any, percent: float) -> None:
    with torch.device("meta"):
        large = TransformerConfig(layers=24, dim=1024, ffn_dim=4096, heads=16).build()
        added = attach(large, AdapterConfig(**options))
    assert 100 * learning(large, added) / 316.6e6 == pytest.approx(percent, abs=6e-4)


@pytest.mark.parametrize("options", [o for o in KINDS[:8] if o["kind"] in ("houlsby", "lora")])
def test_what_is_attached_changes_features_as_its_formula_says(options: Any) -> None:
    model = encoder().eval()
    plain = copy.deepcopy(model)
    added = attach(model, AdapterConfig(**options))
    torch.manual_seed(5)
    for p in added.parameters():
        p.data = 0.2 * torch.randn_like(p)
    assert (last(model) - last(plain)).abs().max() > 1e-2
    layer, own = model.layers[0], added.layers[0]
    x = torch.randn(1, 4, 32)
    if options["kind"] == "houlsby":
        y = nn.functional.linear(x.repeat(1, 1, 2), layer.fc2.weight, layer.fc2.bias)
        unit = own["fc2"]
        inner = nn.functional.gelu(y @ unit.down.weight.T + unit.down.bias)
        expected = y + inner @ unit.up.weight.T + unit.up.bias
        assert torch.allclose(layer.fc2(x.repeat(1, 1, 2)), expected, atol=1e-5)
        return
    scale = 2.0 if "alpha" in options else 1.0
    weight = layer.attention.qkv.weight.clone()
    for i, part in enumerate("qkv"):
        if part in options.get("projections", ["q", "v"]):
            change = own["qkv"].up[part] @ own["qkv"].down[part]
            weight[i * 32 : (i + 1) * 32] += scale * change
    expected = nn.functional.linear(x, weight, layer.attention.qkv.bias)
    assert torch.allclose(layer.attention.qkv(x), expected, atol=1e-5)


def changed(options: dict[str, Any]) -> tuple[Any, Any]:
    """An encoder's first layer and what was attached to it, no longer at its start."""
    model = encoder().eval()
    added = attach(model, AdapterConfig(**options))
    torch.manual_seed(5)
    for p in added.parameters():
        p.data = 0.2 * torch.randn_like(p)
    return model.layers[0], added.layers[0]


def test_a_shift_is_along_one_vector() -> None:
    layer, own = changed({"kind": "adapter_bias"})
    x = torch.randn(2, 4, 64)
    y = nn.functional.linear(x, layer.fc2.weight, layer.fc2.bias)
    unit = own["fc2"]
    expected = y + (y @ unit.weigh.weight[0] + unit.weigh.bias)[..., None] * unit.vector
    assert torch.allclose(layer.fc2(x), expected, atol=1e-5)


def test_a_prefix_is_attended_to_by_every_head() -> None:
    layer, own = changed({"kind": "prefix", "dim": 4})
    plain = copy.deepcopy(layer)
    for module in (plain.attention.qkv, plain.attention.out):
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    x, unit = torch.randn(2, 5, 32), own["attention"]
    queries = plain.attention.qkv(x)[..., :32]
    added = []
    for head in range(4):  # of width 8
        part = slice(8 * head, 8 * head + 8)
        weights = (queries[..., part] @ unit.keys[:, part].T / 8**0.5).softmax(-1)
        added.append(weights @ unit.values[:, part])
    change = torch.cat(added, -1) @ plain.attention.out.weight.T
    assert torch.allclose(layer.attention(x), plain.attention(x) + change, atol=1e-5)


def test_the_convolution_spans_its_frames_and_no_more() -> None:
    _, own = changed({"kind": "conv", "dim": 5, "kernel": 3})
    unit, y = own["fc2"], torch.randn(1, 9, 32, requires_grad=True)
    unit(y, None)[0, 4].sum().backward()
    assert [t for t in range(9) if y.grad[0, t].any()] == [3, 4, 5]


def test_a_copy_can_be_made_behind_a_forward_pass() -> None:
    for options in KINDS:
        model = nn.ModuleDict({"encoder": encoder()})
        model["added"] = attach(model["encoder"], AdapterConfig(**options))
        last(model["encoder"])
        assert torch.equal(last(copy.deepcopy(model)["encoder"]), last(model["encoder"]))


def test_a_bottleneck_reads_what_the_low_rank_change_has_made() -> None:
    """Whichever of them is stated first."""
    unit = {"kind": "houlsby", "dim": 5, "both": False}
    change = {"kind": "lora", "dim": 3, "projections": ["fc2"]}
    for first, second in ((unit, change), (change, unit)):
        layer, own = changed(first | {"also": stack(second)})
        names = {"houlsby": "fc2", "lora": "fc2", second["kind"]: f"{second['kind']}_fc2"}
        low, bottleneck = own[names["lora"]], own[names["houlsby"]]
        x = torch.randn(2, 4, 64)
        weight = layer.fc2.weight + low.up["fc2"] @ low.down["fc2"]
        y = nn.functional.linear(x, weight, layer.fc2.bias)
        expected = y + bottleneck.up(nn.functional.gelu(bottleneck.down(y)))
        assert torch.allclose(layer.fc2(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (KINDS[10], {"fc2", "attention", "prefix_attention", "lora_fc2", "conv_fc2"}),
        (KINDS[11], {"qkv"}),
    ],
    ids=["bottlenecks", "folded"],
)
def test_a_stack_holds_all_of_its_kinds(options: Any, names: set[str]) -> None:
    config = AdapterConfig(**options)
    model = encoder()
    together = attach(model, config)
    assert set(together.layers[0]) == names
    sizes = []
    for part in config.parts:
        alone = encoder()
        added = attach(alone, AdapterConfig(**to_dict(part) | {"also": []}))
        sizes.append(learning(alone, added))
    shared = 2 * 2 * 32 * (len(config.also) == 2)  # bitfit's biases of layer norms
    assert learning(model, together) == sum(sizes) - shared
    head = CtcConfig(vocab_size=9, freeze_encoder_steps=-1, adapters=config)
    assert from_class_path(HeadConfig, to_dict(head)) == head


def test_merged_lora_is_unmerged_lora_in_float64() -> None:
    model = encoder().eval().double()
    added = attach(model, AdapterConfig(kind="lora", dim=3, projections=list(PARTS), alpha=6.0))
    for p in added.parameters():
        p.data = 0.2 * torch.randn_like(p, dtype=torch.float64)
    added.double()
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    before = model.layers[1](x)
    added.fold()
    assert (model.layers[1](x) - before).abs().max() < 1e-12


@pytest.mark.parametrize(
    "options", [o for o in KINDS if o["kind"] in ("lora", "bitfit", "layer_norm")],
    ids=lambda o: "-".join(map(str, o))
)  # fmt: skip
def test_folded_is_unfolded(options: Any) -> None:
    model = encoder().eval()
    added = attach(model, AdapterConfig(**options))
    for p in added.parameters():
        p.data += 0.1 * torch.randn_like(p)
    before = last(model)
    added.fold()
    assert (last(model) - before).abs().max() < 1e-5
    bare = encoder().eval()
    bare.load_state_dict(model.state_dict())
    assert torch.equal(last(bare), last(model))
    assert not any(m._forward_hooks for m in model.modules())


def test_a_copy_has_adapters_of_its_own() -> None:
    model = nn.ModuleDict({"encoder": encoder().eval()})
    model["added"] = attach(model["encoder"], AdapterConfig(kind="lora", dim=2))
    other = copy.deepcopy(model)
    before = last(model["encoder"])
    for p in other["added"].parameters():
        p.data += 1.0
    assert torch.equal(last(model["encoder"]), before)
    assert not torch.equal(last(other["encoder"]), before)


def test_padding_changes_nothing_with_adapters() -> None:
    for options in [*KINDS[:8], KINDS[10]]:
        model = encoder().eval()
        for p in attach(model, AdapterConfig(**options)).parameters():
            p.data += 0.1 * torch.randn_like(p)
        random = torch.Generator().manual_seed(1)
        wave = torch.randn(2, 12800, generator=random)
        both = model(wave, torch.tensor([12800, 8000]))
        alone = model(wave[1:, :8000], torch.tensor([8000]))
        assert (both.last[1, : int(alone.lengths[0])] - alone.last[0]).abs().max() < 1e-5


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="dim: found 0"):
        AdapterConfig(dim=0)
    with pytest.raises(ValueError, match="kernel: found 4"):
        AdapterConfig(kind="conv", kernel=4)
    with pytest.raises(ValueError, match="projections: found"):
        AdapterConfig(projections=["q", "w"])
    with pytest.raises(ValueError, match=r"also: found kinds \['lora', 'lora'\]"):
        AdapterConfig(kind="lora", also=stack({"kind": "lora", "dim": 2}))
    with pytest.raises(ValueError, match=r"also: found kinds \['none', 'lora'\]"):
        AdapterConfig(also=stack({"kind": "lora"}))
    conformer = ConformerConfig.wav2vec2_large(
        layers=1, dim=16, ffn_dim=16, heads=2, front_dim=16, depthwise_kernel=3
    )
    with pytest.raises(ValueError, match="ConformerEncoder"):
        attach(conformer.build(), AdapterConfig(kind="lora"))
    with pytest.raises(ValueError, match="cannot hold what"):
        attach(encoder(), AdapterConfig(kind="houlsby")).fold()
    with pytest.raises(ValueError, match="found lora, prefix, want lora"):
        attach(encoder(), AdapterConfig(kind="lora", also=stack({"kind": "prefix"}))).fold()
