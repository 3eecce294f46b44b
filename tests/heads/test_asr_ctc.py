"""The CTC head: its loss, its masks and freezing, its errors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechssl.contract import Batch
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig, TransformerEncoder
from speechssl.heads.asr_ctc import CtcConfig, CtcHead, best_path, edit_distance
from speechssl.model_file import open_model, save_model
from speechssl.nn.adapters import AdapterConfig
from speechssl.nn.spec_augment import SpecAugmentConfig

VOCAB = 6


def encoder(**changes: Any) -> TransformerEncoder:
    torch.manual_seed(3)
    config = TransformerConfig(
        front_end="log_mel",
        front_norm="layer",
        front_dim=32,
        layers=2,
        dim=32,
        ffn_dim=64,
        heads=4,
        pos_conv_kernel=16,
        pos_conv_groups=4,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
        **changes,
    )
    return config.build()


def head(**changes: Any) -> CtcHead:
    given = {"vocab_size": VOCAB, "dropout": 0.0, "mask_probability": 0.0} | changes
    built = CtcConfig(**given).build(encoder())
    assert isinstance(built, CtcHead)
    return built


def batch(seconds: Sequence[float] = (1.0, 0.6, 1.4), tokens: Sequence[int] = (5, 3, 7)) -> Batch:
    waves, texts = [], []
    for i, (s, n) in enumerate(zip(seconds, tokens, strict=True)):
        random = torch.Generator().manual_seed(i)
        waves.append(torch.randn(int(16000 * s), generator=random))
        texts.append(torch.randint(1, VOCAB, (n,), generator=random))
    return Batch(
        wave=torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        wave_lengths=torch.tensor([len(w) for w in waves]),
        targets={"text": torch.cat(texts), "text_lengths": torch.tensor(tokens)},
        views={},
        seeds=torch.arange(len(waves)),
        ids=tuple(f"u{i}" for i in range(len(waves))),
    )


def one(whole: Batch, i: int) -> Batch:
    length = int(whole.wave_lengths[i])
    counts = whole.targets["text_lengths"]
    start = int(counts[:i].sum())
    return Batch(
        wave=whole.wave[i : i + 1, :length],
        wave_lengths=whole.wave_lengths[i : i + 1],
        targets={
            "text": whole.targets["text"][start : start + int(counts[i])],
            "text_lengths": counts[i : i + 1],
        },
        views={},
        seeds=whole.seeds[i : i + 1],
        ids=whole.ids[i : i + 1],
    )


def brute_force(log_probs: Tensor, tokens: list[int]) -> float:
    """-log of the summed probability of every path that collapses to `tokens`."""
    total = 0.0
    frames, vocab = log_probs.shape
    for path in itertools.product(range(vocab), repeat=frames):
        merged = [k for k, _ in itertools.groupby(path) if k != 0]
        if merged == tokens:
            total += log_probs[range(frames), path].sum().exp().item()
    return -float(torch.tensor(total, dtype=torch.float64).log())


def test_the_loss_is_the_sum_over_all_paths() -> None:
    model = head(vocab_size=3).eval()
    data = batch(seconds=(0.13,), tokens=(2,))
    data = dataclasses.replace(
        data, targets={"text": torch.tensor([1, 2]), "text_lengths": torch.tensor([2])}
    )
    log_probs, lengths = model.log_probs(data.wave, data.wave_lengths)
    assert 3 <= int(lengths[0]) <= 7
    expected = brute_force(log_probs[0, : lengths[0]].double(), [1, 2])
    assert model(data).total.item() == pytest.approx(expected, rel=1e-5)


KINDS: list[dict[str, Any]] = [
    {},
    {"weighted_layers": True},
    {"weighted_layers": True, "interface": "convolution", "upsample": 2},
    {"weighted_layers": True, "interface": "grouped", "groups": 2, "normalise_layers": True},
    {"weighted_layers": True, "standardise": True},
    {"weighted_layers": True, "interface": "adapted", "interface_dim": 20},
    {"upsample": 2},
    {"hidden": "mlp", "hidden_layers": 2, "hidden_dim": 24},
    {"hidden": "blstm", "hidden_dim": 12},
    {"hidden": "blstm", "hidden_dim": 12, "projection_dim": 10, "upsample": 2},
    {"hidden": "transformer", "hidden_dim": 16, "hidden_heads": 2, "projection_dim": 12},
    {"hidden": "transformer", "hidden_dim": 8, "hidden_stride": 4, "upsample": 2, "dropout": 0.0},
    {"projection_dim": 16, "spec_augment": SpecAugmentConfig(frame_masks=2, channel_masks=2)},
    {"spec_augment": SpecAugmentConfig(time_warp=2, frame_masks=9, frame_mask_rate=0.1)},
    {"layer": 1},
    {"intermediate_layers": [1]},
]
every = pytest.mark.parametrize("changes", KINDS, ids=lambda c: "-".join(c) or "plain")


@every
def test_the_loss_of_a_batch_is_the_sum_over_its_utterances(changes: dict[str, Any]) -> None:
    model = head(**changes)  # training mode: intermediate losses count too
    data = batch()
    whole = model(data)
    alone = [model(one(data, i)) for i in range(3)]
    assert whole.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-5)
    assert int(whole.count) == sum(int(x.count) for x in alone) == 15


@every
def test_gradient_reaches_every_trainable_parameter(changes: dict[str, Any]) -> None:
    changes = {"mask_probability": 0.5} | changes
    model = head(**changes)
    model(batch()).total.backward()
    unread = "encoder.layers.1" if changes.get("layer") == 1 else "nothing"
    dead = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any()) and not n.startswith(unread)
    ]
    # A bias of keys shifts all logits of a query alike: its gradient is rounding noise or zero.
    assert [n for n in dead if "k.bias" not in n] == []


@every
def test_padding_does_not_change_log_probs(changes: dict[str, Any]) -> None:
    model = head(**changes).eval()
    data = batch()
    together, lengths = model.log_probs(data.wave, data.wave_lengths)
    alone, length = model.log_probs(data.wave[1:2, : data.wave_lengths[1]], data.wave_lengths[1:2])
    assert int(length) == int(lengths[1]) == alone.shape[1]
    assert (together[1, : int(length)] - alone[0]).abs().max() < 1e-5


def test_standardised_channels_are_read_whatever_their_place_and_scale() -> None:
    """An encoder whose last norm scales and shifts each channel changes only other heads."""
    for standardise in (True, False):
        config = CtcConfig(vocab_size=VOCAB, dropout=0.0, standardise=standardise)
        plain, moved = (config.build(encoder(pre_norm=True)).eval() for _ in range(2))
        moved.load_state_dict(plain.state_dict())
        norm: Any = moved.encoder.layer_norm
        with torch.no_grad():
            norm.weight.mul_(torch.linspace(0.5, 30.0, 32))
            norm.bias.add_(torch.linspace(-50.0, 50.0, 32))
        found = [m.log_probs(batch().wave, batch().wave_lengths)[0] for m in (plain, moved)]
        assert torch.allclose(*found, atol=1e-3) is standardise


@pytest.mark.parametrize(("hop", "factor"), [(160 * 8, 4), (640, 2), (320, 1)])
def test_upsampling_by_itself_makes_50_frames_per_second(hop: int, factor: int) -> None:
    found = CtcConfig(vocab_size=VOCAB, upsample=0).build(encoder(mel_hop_samples=hop))
    given = CtcConfig(vocab_size=VOCAB, upsample=factor).build(encoder(mel_hop_samples=hop))
    assert found.factor == factor and found.encoder.frame_rate_hz * factor == 50
    assert {k: v.shape for k, v in found.state_dict().items()} == {
        k: v.shape for k, v in given.state_dict().items()
    }
    data = batch()
    _, lengths = found.eval().log_probs(data.wave, data.wave_lengths)
    assert lengths.tolist() == given.log_probs(data.wave, data.wave_lengths)[1].tolist()


def test_an_utterance_that_cannot_be_aligned_is_counted_and_left_out() -> None:
    model = head()
    data = batch(tokens=(5, 300, 7))
    loss = model(data)
    assert loss.logs["unalignable"][0] == 1 and loss.logs["unalignable"][1] == 3
    assert int(loss.count) == 12 and torch.isfinite(loss.total)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_repeated_tokens_need_a_frame_between() -> None:
    model = head()
    data = batch(seconds=(0.2,), tokens=(1,))
    frames = int(model.encoder.frame_lengths(data.wave_lengths))
    for count, fits in (((frames + 1) // 2, True), ((frames + 1) // 2 + 1, False)):
        text = {"text": torch.ones(count, dtype=torch.int64), "text_lengths": torch.tensor([count])}
        loss = model(dataclasses.replace(data, targets=text))
        assert bool(loss.logs["unalignable"][0] == 0) is fits


def test_the_encoder_is_frozen_until_its_step() -> None:
    model = head(freeze_encoder_steps=3, freeze_front_end=True)
    model(batch()).total.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.output.weight.grad is not None
    model.after_update(3)
    model(batch()).total.backward()
    assert model.encoder.projection.weight.grad is not None
    assert all(p.grad is None for p in model.encoder.front.parameters())
    assert not any(p.requires_grad for p in head(freeze_encoder_steps=-1).encoder.parameters())


def test_masks_act_in_training_alone() -> None:
    model = head(mask_probability=0.5, channel_mask_probability=0.3, channel_mask_span=8)
    plain = head()
    data = batch()
    assert model(data).total != plain(data).total
    assert model.eval()(data).total.item() == pytest.approx(plain.eval()(data).total.item())


def test_masked_frames_do_not_count_where_frames_are_standardised() -> None:
    model, data = head(standardise=True, mask_probability=0.5), batch()
    found: list[torch.Tensor] = []
    model.dropout.register_forward_hook(lambda module, inputs, output: found.append(inputs[0]))
    model(data)
    mask = model._masks(data.wave.shape[1], data.wave_lengths, data.seeds)["mask"]
    lengths = model.encoder.frame_lengths(data.wave_lengths).tolist()
    for x, hidden, length in zip(found[0], mask, lengths, strict=True):
        seen, unseen = x[:length][~hidden[:length]], x[:length][hidden[:length]]
        assert len(unseen) > 3 and seen.mean(0).abs().max() < 1e-4
        assert unseen.mean(0).abs().max() > 0.1


def test_what_spec_augment_hides_is_not_read_in_training_alone() -> None:
    masks = SpecAugmentConfig(frame_masks=40, frame_width=90)
    model, data = head(weighted_layers=True, spec_augment=masks), batch()
    model.output.bias.data = torch.randn(VOCAB)
    scores, lengths = model._all_log_probs(data.wave, data.wave_lengths, data.seeds)
    empty = model.output.bias.log_softmax(-1)
    hidden = ((scores[0] - empty).abs().max(-1).values < 1e-6).float()
    shares = [hidden[i, :n].mean().item() for i, n in enumerate(lengths.tolist())]
    assert all(share > 0.9 for share in shares)
    plain = head(weighted_layers=True).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(data).total, plain(data).total)


def test_superb_s_heads_have_their_layers_and_no_more() -> None:
    """Of letters: 1024, two BLSTMs of 1024 in each direction; of phones: 256. On 768 channels."""
    superb = {"weighted_layers": True, "hidden": "blstm", "hidden_dim": 1024, "hidden_layers": 2}

    def sizes(vocab: int, **changes: Any) -> int:
        with torch.device("meta"):
            given = {"vocab_size": vocab, "freeze_encoder_steps": -1} | changes
            built = CtcConfig(**given).build(TransformerConfig().build())
        return sum(p.numel() for n, p in built.named_parameters() if not n.startswith("encoder."))

    lstm = [2 * 4 * 1024 * (inputs + 1024 + 2) for inputs in (1024, 2048)]
    letters = 13 + 769 * 1024 + sum(lstm) + 2049 * 32
    assert sizes(32, projection_dim=1024, **superb) == letters
    assert sizes(74, projection_dim=256, weighted_layers=True) == 13 + 769 * 256 + 257 * 74


def test_ml_superb_s_head_has_its_layers_and_no_more() -> None:
    options = {"weighted_layers": True, "freeze_encoder_steps": -1, "projection_dim": 80,
               "hidden": "transformer", "hidden_dim": 256, "hidden_layers": 2}  # fmt: skip
    with torch.device("meta"):
        built = CtcConfig(vocab_size=50, **options).build(TransformerConfig().build())
    found = sum(p.numel() for n, p in built.named_parameters() if not n.startswith("encoder."))
    # 80 channels become 39, then 37.
    convs = 256 * (9 + 1) + 256 * (9 * 256 + 1) + 256 * (256 * 37 + 1)
    block = 4 * 256 * 257 + 1024 * 257 + 256 * 1025 + 4 * 256
    assert found == 13 + 80 * 769 + convs + 2 * block + 2 * 256 + 257 * 50


def test_evaluation_logs_the_token_error_rate() -> None:
    model = head().eval()
    data = batch()
    errors, tokens = model(data).logs["cer"]
    log_probs, lengths = model.log_probs(data.wave, data.wave_lengths)
    hypotheses = best_path(log_probs, lengths)
    refs = data.targets["text"].split([5, 3, 7])
    assert errors == sum(
        edit_distance(r.tolist(), h) for r, h in zip(refs, hypotheses, strict=True)
    )
    assert tokens == 15
    best = [row[:n] for row, n in zip(log_probs.argmax(-1).tolist(), lengths.tolist(), strict=True)]
    blanks, frames = model(data).logs["blank_share"]
    assert int(blanks) == sum(row.count(0) for row in best) and int(frames) == sum(map(len, best))
    assert not {"cer", "blank_share"} & head()(data).logs.keys()


def test_edit_distance_is_that_of_plain_recursion() -> None:
    def plain(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        same = plain(a[1:], b[1:]) + (a[0] != b[0])
        return min(same, plain(a[1:], b) + 1, plain(a, b[1:]) + 1)

    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        sizes = torch.randint(0, 6, (2,), generator=random).tolist()
        a, b = (tuple(torch.randint(1, 4, (n,), generator=random).tolist()) for n in sizes)
        assert edit_distance(a, b) == plain(a, b)


def test_best_path_merges_repeats_and_drops_blanks() -> None:
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0], [3, 3, 0, 0, 0, 5, 5, 5]])
    log_probs = torch.nn.functional.one_hot(path, 6).float()
    assert best_path(log_probs, torch.tensor([8, 4])) == [[1, 1, 2], [3]]


def test_three_utterances_are_learnt_by_heart() -> None:
    model = head()
    data = batch()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(data)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    errors, _ = model.eval()(data).logs["cer"]
    assert int(errors) == 0


def test_wrong_settings_and_targets_are_named() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        CtcConfig().build(encoder())
    with pytest.raises(ValueError, match="layer: found 9"):
        head(layer=9)
    with pytest.raises(ValueError, match="hidden_stride: found 3"):
        head(hidden="transformer", hidden_stride=3)
    with pytest.raises(ValueError, match="projection_dim: found frames of width 4"):
        head(hidden="transformer", projection_dim=4)
    with pytest.raises(ValueError, match="hidden_heads, hidden_dim: found 1, 8 and 20"):
        head(hidden="transformer", hidden_dim=20)
    with pytest.raises(ValueError, match="intermediate_layers"):
        CtcConfig(intermediate_layers=[1], hidden="mlp")
    data = batch()
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        head()(dataclasses.replace(data, targets={}))
    with pytest.raises(ValueError, match="token ids"):
        head(vocab_size=3)(data)


@pytest.mark.parametrize("weighted", [True, False])
def test_layers_of_a_lower_rate_are_read_at_the_encoders(weighted: bool) -> None:
    config = MultiresConfig(
        front_end="log_mel",
        front_norm="layer",
        front_dim=32,
        stacks=(1, 1, 1),
        dim=32,
        ffn_dim=64,
        heads=4,
        pos_conv_groups=4,
    )
    given = {"vocab_size": VOCAB, "layer": 2, "weighted_layers": weighted}
    built = CtcConfig(**given).build(config.build()).eval()
    whole = batch()
    scores, lengths = built.log_probs(whole.wave, whole.wave_lengths)
    assert lengths.tolist() == built.encoder.frame_lengths(whole.wave_lengths).tolist()
    assert scores.shape[:2] == (3, int(lengths.max()))
    assert torch.equal(scores[:, :-1:2], scores[:, 1::2]) != weighted
    assert torch.isfinite(built(whole).total)


ADAPTED = [{"kind": "lora", "dim": 2}, {"kind": "conv", "dim": 3}, {"kind": "prefix", "dim": 2}]


@pytest.mark.parametrize("options", ADAPTED, ids=lambda o: o["kind"])
def test_adapters_learn_in_a_frozen_encoder_and_travel_with_the_head(
    options: dict[str, Any], tmp_path: Path
) -> None:
    adapters, data = AdapterConfig(**options), batch()
    plain = head(freeze_encoder_steps=-1).eval()
    model = head(freeze_encoder_steps=-1, adapters=adapters).eval()
    ask = data.wave, data.wave_lengths
    assert torch.equal(model.log_probs(*ask)[0], plain.log_probs(*ask)[0])
    model.train()
    assert model.encoder.training
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):  # in the first update all but what is zero have no gradient
        optimiser.zero_grad()
        model(data).total.backward()
        optimiser.step()
    learnt = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learnt == {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(n.startswith("adapters.") for n in learnt)
    frozen = plain.encoder.state_dict()
    assert all(torch.equal(v, frozen[k]) for k, v in model.encoder.state_dict().items())
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    save_model(
        tmp_path, model.encoder.config, model.encoder.state_dict(), head_config=model.config,
        head_state=own,
    )  # fmt: skip
    opened: Any = open_model(tmp_path).head
    assert torch.equal(opened.log_probs(*ask)[0], model.eval().log_probs(*ask)[0])
    with pytest.raises(ValueError, match="freeze_encoder_steps 0"):
        head(adapters=adapters)


def test_another_interface_wants_all_layers() -> None:
    with pytest.raises(ValueError, match="interface: found 'concat'"):
        head(interface="concat")
    with pytest.raises(ValueError, match="interface: found 'concat'"):
        head(interface="concat", weighted_layers=True, intermediate_layers=[1])
