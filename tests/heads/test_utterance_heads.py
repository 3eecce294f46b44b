"""What every head of whole utterances must satisfy of the contract, one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from utterance_heads import CLASSES, ENCODER, KINDS, batch, build, kind_name, one

from speechssl.bin.cached_features import check_head
from speechssl.bin.finetune import FinetuneConfig, build_encoder
from speechssl.config import HeadConfig, from_class_path, to_dict
from speechssl.contract import EncoderOutput
from speechssl.data.config import DataConfig
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.heads.classify import ClassifyConfig
from speechssl.heads.interfaces import LayerSum
from speechssl.heads.utterance import UtteranceHead
from speechssl.hub.export import write
from speechssl.hub.featurizer import Featurizer
from speechssl.hub.load import load
from speechssl.model_file import open_model, save_model
from speechssl.nn.adapters import AdapterConfig

every = pytest.mark.parametrize("kind", KINDS, ids=kind_name)
# Of float32 answers of size 1 behind some twenty norms.
CLOSE = 3e-5
# A softmax over frames does not see what is added to all of them.
SHIFTS = ("attention.outer.bias", "pool.outer.bias")


def answers(head: UtteranceHead, data: Any) -> Tensor:
    """Log-probabilities or embeddings."""
    answer: Any = getattr(head, "class_log_probs", None) or head.embed
    return answer(data.wave, data.wave_lengths)


@every
def test_the_loss_is_a_finite_sum_with_a_count_and_pairs_to_log(kind: Any) -> None:
    loss = build(kind)(batch())
    assert loss.total.dtype == torch.float32 and loss.total.ndim == 0
    assert torch.isfinite(loss.total) and loss.count > 0
    for total, count in loss.logs.values():
        assert not total.requires_grad and torch.isfinite(total) and count.ndim == 0


@every
def test_the_loss_of_a_batch_is_the_sum_over_its_utterances(kind: Any) -> None:
    head = build(kind)  # in training mode
    data = batch()
    whole, alone = head(data), [head(one(data, i)) for i in range(3)]
    assert whole.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-5)
    assert float(whole.count) == pytest.approx(sum(float(x.count) for x in alone))
    for name, (total, count) in whole.logs.items():
        assert float(total) == pytest.approx(sum(float(x.logs[name][0]) for x in alone), rel=1e-5)
        assert float(count) == pytest.approx(sum(float(x.logs[name][1]) for x in alone))


@every
def test_padding_and_what_it_holds_change_no_answer(kind: Any) -> None:
    head = build(kind).eval()
    data = batch()
    alone = torch.cat([answers(head, one(data, i)) for i in range(3)])
    close = CLOSE * float(alone.detach().abs().max().clamp(min=1))
    assert (answers(head, data) - alone).abs().max() < close
    for noise in (0.0, 7.0, float("nan")):
        longer = torch.nn.functional.pad(data.wave, (0, 1600))
        behind = torch.arange(longer.shape[1])[None] >= data.wave_lengths[:, None]
        changed = dataclasses.replace(data, wave=longer.masked_fill(behind, noise))
        assert (answers(head, changed) - alone).abs().max() < close


@every
def test_the_order_of_a_batch_is_that_of_its_answers(kind: Any) -> None:
    head = build(kind).eval()
    data, order = batch(), [2, 0, 1]
    turned = dataclasses.replace(data, wave=data.wave[order], wave_lengths=data.wave_lengths[order])
    assert (answers(head, turned) - answers(head, data)[order]).abs().max() < CLOSE


@every
def test_gradient_reaches_every_trainable_parameter(kind: Any) -> None:
    head = build(kind)
    head(batch()).total.backward()
    read = head.layers[-1]
    dead = [
        n
        for n, p in head.named_parameters()
        if p.requires_grad
        and (p.grad is None or not p.grad.any())
        and not (n.startswith("encoder.layers.1") and read == 1)
    ]
    # Nobody masks here.
    assert [n for n in dead if n != "encoder.mask_emb" and not n.endswith(SHIFTS)] == []


@every
def test_a_frozen_encoder_keeps_still_and_has_no_dropout(kind: Any) -> None:
    noisy = dataclasses.replace(ENCODER, dropout=0.5, layerdrop=0.5, input_dropout=0.5)
    head = build(kind, noisy.build(), freeze_encoder_steps=-1)
    head.train()
    data = batch()
    first, second = head(data), head(data)
    assert torch.equal(first.total, second.total)
    first.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in head.encoder.parameters())
    assert any(p.grad is not None for p in head.parameters())


@every
def test_the_encoder_is_frozen_until_its_step(kind: Any) -> None:
    head = build(kind, freeze_encoder_steps=2).train()
    head(batch()).total.backward()
    assert all(p.grad is None for p in head.encoder.parameters())
    assert not head.encoder.training
    head.after_update(2)
    head.train()
    head(batch()).total.backward()
    assert head.encoder.training and head.encoder.projection.weight.grad is not None


@every
def test_the_front_end_can_stay_as_it_is(kind: Any) -> None:
    head = build(kind, freeze_front_end=True)
    head(batch()).total.backward()
    assert all(p.grad is None for p in head.encoder.front.parameters())
    assert head.encoder.projection.weight.grad is not None


@pytest.mark.parametrize("pre_norm", [False, True])
def test_early_layers_can_stay_as_they_are(pre_norm: bool) -> None:
    encoder = dataclasses.replace(ENCODER, pre_norm=pre_norm, relative_buckets=8)
    for count, learning in ((1, {"layers.1"}), (2, set())):
        head = build((ClassifyConfig, {"layer": -1}), encoder.build(), freeze_layers=count)
        head(batch()).total.backward()
        moved = {n.removeprefix("encoder.") for n, p in head.named_parameters()
                 if p.grad is not None and n.startswith("encoder.")}  # fmt: skip
        parts = {".".join(n.split(".")[:2]) if n.startswith("layers") else n for n in moved}
        norm = {"layer_norm.weight", "layer_norm.bias"} if pre_norm else set()
        assert parts == learning | norm
        assert head.output.weight.grad is not None
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"freeze_layers: found {wrong} with a Transformer"):
            build((ClassifyConfig, {}), freeze_layers=wrong)
    with pytest.raises(ValueError, match="found 1 with a LogMelEncoder"):
        build((ClassifyConfig, {}), LogMelConfig(mel_bins=20).build(), freeze_layers=1)


@every
def test_bf16_autocast_gives_nearly_the_same_loss(kind: Any) -> None:
    head = build(kind).eval()
    data = batch()
    exact = head(data).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(data)
    assert rough.total.dtype == torch.float32
    # The scale of speakers' cosines multiplies the rounding by 30.
    assert rough.total.item() == pytest.approx(exact, rel=0.1)


@every
def test_eight_utterances_are_learnt_by_heart(kind: Any) -> None:
    head = build(kind)
    data = batch([0.4] * 8)
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(60):
        loss = head(data)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    right, number = head.eval()(data).logs["accuracy"]
    assert int(right) == int(number) == 8


@every
def test_its_configuration_survives_a_round_trip(kind: Any) -> None:
    config = build(kind).config
    assert from_class_path(HeadConfig, to_dict(config)) == config


@every
def test_log_mel_serves_as_encoder(kind: Any) -> None:
    options = {k: v for k, v in kind[1].items() if k != "layer"}
    head = build((kind[0], options), LogMelConfig(mel_bins=20).build())
    head(batch()).total.backward()
    assert head.layer_sum.weights is None
    dead = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in dead if not n.endswith(SHIFTS)] == []


@pytest.mark.parametrize("layer", [None, 2])
def test_layers_of_a_lower_rate_are_read_at_the_encoders(layer: int | None) -> None:
    config = MultiresConfig(
        front_end="log_mel", front_norm="layer", front_dim=32, stacks=(1, 1, 1), dim=32, ffn_dim=64,
        heads=4, pos_conv_groups=4,
    )  # fmt: skip
    head = build(KINDS[0], config.build(), layer=layer).eval()
    data = batch()
    frames, lengths = head.frames(data.wave, data.wave_lengths)
    assert lengths.tolist() == head.encoder.frame_lengths(data.wave_lengths).tolist()
    assert frames.shape[:2] == (3, int(lengths.max()))
    alone, _ = head.frames(data.wave[1:2, : data.wave_lengths[1]], data.wave_lengths[1:2])
    assert (frames[1, : lengths[1]] - alone[0]).abs().max() < CLOSE


@pytest.mark.parametrize("normalise", [True, False])
def test_the_sum_of_layers_is_that_of_the_featurizer(normalise: bool) -> None:
    encoder = ENCODER.build().eval()
    featurizer = Featurizer(encoder, normalise=normalise).eval()
    head = build(KINDS[0], encoder, normalise_layers=normalise).eval()
    logits = torch.tensor([0.3, -1.0, 2.0])
    featurizer.layer_weights.data.copy_(logits)
    head.layer_sum.weights.data.copy_(logits)
    data = batch()
    ours, lengths = head.frames(data.wave, data.wave_lengths)
    theirs, others = featurizer(data.wave, data.wave_lengths)
    assert torch.equal(lengths, others) and (ours - theirs).abs().max() < 1e-6


def test_some_layers_can_be_joined_instead_of_all() -> None:
    options = {"normalise_layers": False, "freeze_encoder_steps": -1}
    kind, data = (ClassifyConfig, options), batch()
    some, whole = (build(kind, **more).eval() for more in ({"layers": [-1, 0]}, {}))
    assert some.layers == check_head(some) == [0, 2]
    state = some.state_dict() | {"layer_sum.weights": torch.tensor([0.3, -1e9, -0.4])}
    whole.load_state_dict(state)
    some.layer_sum.weights.data = torch.tensor([0.3, -0.4])
    assert torch.allclose(answers(some, data), answers(whole, data), atol=1e-6)
    for wrong, message in (([0, 0], "each of 0 to 2 once"), ([2, -1], "once"), ([3], "found 3")):
        with pytest.raises(ValueError, match=message):
            build(kind, layers=wrong)
    with pytest.raises(ValueError, match="layer, layers: found 1 and"):
        build(kind, layer=1, layers=[0, 2])
    with pytest.raises(ValueError, match="want weighted_layers: true"):
        CtcConfig(layers=[0, 1])
    recogniser = CtcConfig(vocab_size=5, weighted_layers=True, layers=[2, 1])
    assert recogniser.build(ENCODER.build()).layers == [1, 2]


def test_uniform_weights_are_the_mean_and_a_large_one_is_its_layer() -> None:
    states = tuple(torch.randn(2, 5, 4) for _ in range(3))
    out = EncoderOutput(states, (0, 1, 2), torch.tensor([5, 5]), 50.0)
    layers = LayerSum(3, normalise=False)
    assert torch.allclose(layers(out), torch.stack(states).mean(0), atol=1e-6)
    layers.weights.data[1] = 100.0
    assert torch.allclose(layers(out), states[1])


def test_wrong_settings_and_targets_are_named() -> None:
    kind = KINDS[0]
    with pytest.raises(ValueError, match=r"classes: found \['a'\]"):
        build(kind, classes=["a"])
    with pytest.raises(ValueError, match="twice"):
        build(kind, classes=["a", "a"])
    with pytest.raises(ValueError, match="class_counts: found 1"):
        build(kind, class_counts=[1])
    with pytest.raises(ValueError, match="layer: found 9"):
        build(kind, layer=9)
    with pytest.raises(ValueError, match="balanced"):
        build(kind, balanced=True)
    with pytest.raises(ValueError, match="front"):
        build(kind, LogMelConfig().build(), freeze_front_end=True)
    head, data = build(kind), batch()
    with pytest.raises(ValueError, match=r"head\.field"):
        head(dataclasses.replace(data, targets={}))
    with pytest.raises(ValueError, match=f"want 0 to {len(CLASSES) - 1}"):
        head(dataclasses.replace(data, targets={"classes": torch.tensor([0, 1, 4])}))


ADAPTED = [AdapterConfig(kind="lora", dim=2), AdapterConfig(kind="houlsby", dim=3),
           AdapterConfig(kind="bitfit")]  # fmt: skip


@pytest.mark.parametrize("adapters", ADAPTED, ids=lambda a: a.kind)
def test_adapters_learn_in_a_frozen_encoder_and_travel_with_the_head(
    adapters: AdapterConfig, tmp_path: Path
) -> None:
    data = batch()
    plain = build(KINDS[0], freeze_encoder_steps=-1).eval()
    head = build(KINDS[0], freeze_encoder_steps=-1, adapters=adapters).eval()
    start = head.frames(data.wave, data.wave_lengths)[0]
    assert torch.equal(start, plain.frames(data.wave, data.wave_lengths)[0])
    head.train()
    optimiser = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # in the first update all but the zero projections have no gradient
        optimiser.zero_grad()
        head(data).total.backward()
        optimiser.step()
    learnt = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert learnt == {n for n, p in head.named_parameters() if p.requires_grad}
    encoder = head.encoder.state_dict()
    moved = {k for k in encoder if not torch.equal(encoder[k], plain.encoder.state_dict()[k])}
    assert all(k.startswith("layers.") and k.endswith("bias") for k in moved)
    assert bool(moved) == (adapters.kind == "bitfit")
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(tmp_path, ENCODER, encoder, head_config=head.config, head_state=own)
    opened = open_model(tmp_path).head
    assert torch.equal(answers(opened, data), answers(head.eval(), data))


def test_adapters_want_an_encoder_that_is_frozen() -> None:
    with pytest.raises(ValueError, match="freeze_encoder_steps 0"):
        build(KINDS[0], adapters=ADAPTED[0])


def test_a_weighted_sum_alone_learns_one_number_per_layer() -> None:
    with torch.device("meta"):
        config = ClassifyConfig(field="x", classes=CLASSES)
        head = config.build(TransformerConfig().build())
    assert sum(p.numel() for p in head.layer_sum.parameters()) == 13
    assert not any(p.requires_grad for p in head.encoder.parameters())


@pytest.mark.parametrize("adapters", ADAPTED, ids=lambda a: a.kind)
def test_a_tuned_encoder_leaves_with_what_was_learnt(
    adapters: AdapterConfig, tmp_path: Path
) -> None:
    """For another library or another run; bottlenecks, which no encoder can hold, are refused."""
    small = TransformerConfig(
        layers=2, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4
    )
    head = build(KINDS[0], small.build(), freeze_encoder_steps=-1, adapters=adapters).eval()
    plain = head.encoder(*(data := (torch.randn(1, 8000), torch.tensor([8000])))).last
    for p in head.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(
        tmp_path / "tuned", small, head.encoder.state_dict(),
        head_config=head.config, head_state=own,
    )  # fmt: skip
    config = FinetuneConfig(
        data=DataConfig(), head=head.config, output="x", init=str(tmp_path / "tuned")
    )
    uses = (
        lambda: build_encoder(config),
        lambda: load(write(load(tmp_path / "tuned"), tmp_path / "hf", "transformers")).encoder,
    )
    for use in uses:
        if adapters.kind == "houlsby":
            with pytest.raises(ValueError, match="cannot hold what"):
                use()
            continue
        found = use().eval()(*data).last
        assert (found - head.encoder(*data).last).abs().max() < CLOSE
        assert (found - plain).abs().max() > 1e-2
