"""The head of a class, further fields and transcripts: its terms by hand, and the contract."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from utterance_heads import CLASSES, ENCODER, batch

from speechssl.config import HeadConfig, from_class_path, to_dict
from speechssl.contract import Batch
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.heads.classify import ClassifyConfig
from speechssl.heads.multitask import MultitaskConfig, MultitaskHead

VOCAB = 6
FURTHER = {"further": ["gender"], "further_values": [["f", "m"]], "further_weights": [0.5]}
SIZES = (4, 2)
KINDS: list[dict[str, Any]] = [
    {},
    FURTHER,
    {**FURTHER, "text_weight": 0.0, "hidden_layers": 1},
    {**FURTHER, "pooling": "attentive", "projection_dim": 0, "layer": -1},
    {"balanced": True, "class_counts": [9, 3, 1, 7], "text_weight": 2.0},
]
every = pytest.mark.parametrize("changes", KINDS, ids=lambda c: "-".join(c) or "plain")


def build(**changes: Any) -> MultitaskHead:
    """A head that trains its encoder too, unless `changes` say otherwise."""
    torch.manual_seed(3)
    given = {"field": "x", "classes": CLASSES, "freeze_encoder_steps": 0, "vocab_size": VOCAB,
             "projection_dim": 24, "attention_dim": 8, "hidden_dim": 20}  # fmt: skip
    return MultitaskConfig(**(given | changes)).build(ENCODER.build())


def labelled(
    head: MultitaskHead, places: Sequence[Sequence[int]] = ((0, 1), (2, 0), (1, 1), (3, 0)),
    tokens: Sequence[int] = (4, 3, 5, 2),
) -> Batch:  # fmt: skip
    """Four utterances; 4 is no class, 2 no gender, and no tokens no transcript."""
    data = batch((0.5, 0.3, 0.7, 0.4))
    random = torch.Generator().manual_seed(5)
    texts = [torch.randint(1, VOCAB, (n,), generator=random) for n in tokens]
    width = 1 + len(head.config.further)
    targets = {
        "classes": torch.tensor(places)[:, :width],
        "text": torch.cat(texts),
        "text_lengths": torch.tensor(tokens),
    }
    return dataclasses.replace(data, targets=targets)


GAPS = {"places": ((0, 2), (4, 0), (4, 2), (3, 1)), "tokens": (4, 0, 5, 0)}
"""The second lacks class and transcript, the third everything but the transcript."""


def one(whole: Batch, i: int) -> Batch:
    counts = whole.targets["text_lengths"]
    start, length = int(counts[:i].sum()), int(whole.wave_lengths[i])
    return Batch(
        wave=whole.wave[i : i + 1, :length],
        wave_lengths=whole.wave_lengths[i : i + 1],
        targets={
            "classes": whole.targets["classes"][i : i + 1],
            "text": whole.targets["text"][start : start + int(counts[i])],
            "text_lengths": counts[i : i + 1],
        },
        views={},
        seeds=whole.seeds[i : i + 1],
        ids=whole.ids[i : i + 1],
    )


def joined(parts: Sequence[Batch]) -> Batch:
    waves = [w[:n] for p in parts for w, n in zip(p.wave, p.wave_lengths.tolist(), strict=True)]
    return Batch(
        wave=torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        wave_lengths=torch.cat([p.wave_lengths for p in parts]),
        targets={k: torch.cat([p.targets[k] for p in parts]) for k in parts[0].targets},
        views={},
        seeds=torch.cat([p.seeds for p in parts]),
        ids=tuple(i for p in parts for i in p.ids),
    )


def ctc_by_hand(log_probs: Tensor, tokens: list[int]) -> float:
    """-log p(tokens) of (T, V) float64 log-probabilities, by Graves et al.'s forward variables."""
    states = [0] + [s for token in tokens for s in (token, 0)]
    alpha = torch.full((len(states),), -torch.inf, dtype=torch.float64)
    alpha[:2] = log_probs[0, states[:2]]
    for row in log_probs[1:]:
        paths = [alpha]
        paths.append(torch.cat([alpha.new_tensor([-torch.inf]), alpha[:-1]]))
        skip = torch.cat([alpha.new_full((2,), -torch.inf), alpha[:-2]])
        may = [i > 1 and s != 0 and s != states[i - 2] for i, s in enumerate(states)]
        paths.append(skip.masked_fill(~torch.tensor(may), -torch.inf))
        alpha = torch.stack(paths).logsumexp(0) + row[states]
    return -float(alpha[-2:].logsumexp(0))


@pytest.mark.parametrize("gaps", [{}, GAPS], ids=["all", "gaps"])
def test_the_loss_is_that_of_its_definition_in_float64(gaps: dict[str, Any]) -> None:
    """CE of the class + 0.5 CE of the gender + 0.3 CTC, each where the utterance has it."""
    head = build(**FURTHER, text_weight=0.3, projection_dim=0).eval()
    data = labelled(head, **gaps)
    loss = head(data)
    frames, lengths = head.frames(data.wave, data.wave_lengths)
    tokens = data.targets["text"].split(data.targets["text_lengths"].tolist())
    total = {"class": 0.0, "gender": 0.0, "text": 0.0}
    right = 0
    for i, place in enumerate(data.targets["classes"].tolist()):
        x = frames[i, : lengths[i]].detach().double()
        pooled = x.mean(0)
        outputs = (head.output, head.further[0])
        for name, output, target, size in zip(total, outputs, place, SIZES):
            if target < size:
                weight = output.weight.detach().double()
                logits = weight @ pooled + output.bias.detach().double()
                total[name] -= float(logits.log_softmax(0)[target])
                right += name == "class" and int(logits.argmax()) == target
        if len(tokens[i]):
            weight = head.text_output.weight.detach().double()
            log_probs = (x @ weight.T + head.text_output.bias.detach().double()).log_softmax(-1)
            total["text"] += ctc_by_hand(log_probs, tokens[i].tolist())
            theirs = F.ctc_loss(log_probs[:, None], tokens[i][None], lengths[i : i + 1],
                                torch.tensor([len(tokens[i])]), reduction="sum")  # fmt: skip
            assert float(theirs) == pytest.approx(ctc_by_hand(log_probs, tokens[i].tolist()))
    expected = total["class"] + 0.5 * total["gender"] + 0.3 * total["text"]
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    logs = {k: (float(a), float(b)) for k, (a, b) in loss.logs.items()}
    assert logs["ctc_nats"] == (pytest.approx(total["text"], rel=1e-5), sum(map(len, tokens)))
    known = sum(p[0] < 4 for p in data.targets["classes"].tolist())
    assert logs["nats"] == (pytest.approx(total["class"], rel=1e-5), known)
    assert logs["nats_gender"][0] == pytest.approx(total["gender"], rel=1e-5)
    assert logs["accuracy"] == (right, known)
    assert float(loss.count) == 4  # each has something


def test_without_transcripts_it_is_the_classifier_bit_for_bit() -> None:
    """Weights, losses, gradients and answers, with dropout too."""
    shared = {"field": "x", "classes": CLASSES, "freeze_encoder_steps": 0, "projection_dim": 24,
              "hidden_layers": 1, "hidden_dim": 20, "dropout": 0.3, "balanced": True,
              "class_counts": [9, 3, 1, 7], "pooling": "mean_std"}  # fmt: skip
    data = batch((0.5, 0.3, 0.7))
    found = []
    for config in (ClassifyConfig(**shared), MultitaskConfig(**shared, text_weight=0.0)):
        torch.manual_seed(3)
        head = config.build(ENCODER.build())
        torch.manual_seed(4)
        loss = head(data)
        loss.total.backward()
        grads = {n: p.grad for n, p in head.named_parameters() if p.grad is not None}
        answer = head.eval().class_log_probs(data.wave, data.wave_lengths)
        found.append((head.state_dict(), grads, loss, answer))
    (state, grads, loss, answer), others = found[0], found[1]
    assert state.keys() == others[0].keys() and grads.keys() == others[1].keys()
    assert all(torch.equal(state[k], others[0][k]) for k in state)
    assert all(torch.equal(grads[k], others[1][k]) for k in grads)
    assert torch.equal(loss.total, others[2].total) and torch.equal(loss.count, others[2].count)
    assert loss.logs.keys() == others[2].logs.keys()
    assert all(torch.equal(a, b) for k in loss.logs
               for a, b in zip(loss.logs[k], others[2].logs[k]))  # fmt: skip
    assert torch.equal(answer, others[3])


def test_other_terms_change_no_answer_of_the_class_and_begin_at_the_same_weights() -> None:
    plain, joint = build(text_weight=0.0), build(**FURTHER)
    states = plain.state_dict(), joint.state_dict()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert {k.split(".")[0] for k in states[1].keys() - states[0].keys()} == {
        "further", "text_output",
    }  # fmt: skip


@pytest.mark.parametrize("gaps", [{}, GAPS], ids=["all", "gaps"])
@every
def test_the_loss_of_a_batch_is_the_sum_over_its_utterances(
    changes: dict[str, Any], gaps: dict[str, Any]
) -> None:
    """Gradients too: how an update is cut, and over how many ranks, changes nothing."""
    for train in (True, False):
        head = build(**changes).train(train)
        data = labelled(head, **gaps)
        alone = [one(data, i) for i in range(4)]
        cuts = [[data], alone, [joined([alone[2], alone[0]]), joined([alone[1], alone[3]])]]
        found = []
        for parts in cuts:
            head.zero_grad()
            losses = [head(p) for p in parts]
            torch.stack([x.total for x in losses]).sum().backward()
            grads = {n: p.grad.clone() for n, p in head.named_parameters() if p.grad is not None}
            sums = {n: sum(float(x.logs[n][k]) for x in losses)
                    for n, k in itertools.product(losses[0].logs, (0, 1))}  # fmt: skip
            total = sum(x.total.item() for x in losses)
            found.append((total, sum(float(x.count) for x in losses), sums, grads))
            assert all(not a.requires_grad for x in losses for a, _ in x.logs.values())
        for total, count, sums, grads in found[1:]:
            assert total == pytest.approx(found[0][0], rel=1e-5)
            assert count == pytest.approx(found[0][1])
            assert sums == pytest.approx(found[0][2], rel=1e-4)
            scale = max(float(g.abs().max()) for g in grads.values())
            assert all((g - grads[n]).abs().max() < 1e-4 * scale for n, g in found[0][3].items())


@every
def test_gradient_reaches_every_trainable_parameter(changes: dict[str, Any]) -> None:
    head = build(**changes)
    data = labelled(head)
    head(joined([one(data, 0), one(data, 3)])).total.backward()
    dead = [n for n, p in head.named_parameters()
            if p.requires_grad and (p.grad is None or not p.grad.any())]  # fmt: skip
    # Nobody masks here; a softmax over frames does not see what is added to all of them.
    assert [n for n in dead if n not in ("encoder.mask_emb", "attention.outer.bias")] == []


def test_each_term_teaches_its_output_alone_and_all_the_encoder() -> None:
    lacking = {"places": ((4, 2),) * 4, "tokens": (0, 0, 0, 0)}
    terms = {
        "output": {"places": ((0, 2), (1, 2), (2, 2), (3, 2))},
        "further": {"places": ((4, 0), (4, 1), (4, 0), (4, 1))},
        "text_output": {"tokens": (4, 3, 5, 2)},
    }
    for name, given in terms.items():
        head = build(**FURTHER)
        loss = head(labelled(head, **(lacking | given)))
        loss.total.backward()
        assert float(loss.count) == 4
        for other in terms:
            grads = [p.grad for p in head.get_submodule(other).parameters()]
            assert any(g is not None and g.any() for g in grads) == (name == other)
        assert head.encoder.projection.weight.grad.any()
    head = build(**FURTHER)
    nothing = head(labelled(head, **lacking))
    nothing.total.backward()
    assert nothing.total.item() == 0 and float(nothing.count) == 0
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())


def test_what_cannot_be_aligned_counts_in_the_other_terms() -> None:
    head = build(text_weight=1.0, classes=CLASSES)
    data = batch((0.3, 0.3))
    frames = int(head.encoder.frame_lengths(data.wave_lengths)[0])
    texts = {"text": torch.ones(frames + 2, dtype=torch.int64),  # equal ones need blanks between
             "text_lengths": torch.tensor([frames, 2])}  # fmt: skip
    loss = head(dataclasses.replace(data, targets={"classes": torch.tensor([1, 4]), **texts}))
    assert [float(x) for x in loss.logs["unalignable"]] == [1, 2]
    assert [float(x) for x in (loss.count, loss.logs["nats"][1], loss.logs["ctc_nats"][1])] == [
        2, 1, 2,
    ]  # fmt: skip
    assert torch.isfinite(loss.total)


def test_characters_are_counted_in_validation_and_only_of_transcripts() -> None:
    head = build(projection_dim=0).eval()
    data = labelled(head, tokens=(4, 0, 5, 0))
    head.text_output.weight.data.zero_()
    head.text_output.bias.data = F.one_hot(torch.tensor(3), VOCAB).float()
    assert "cer" not in build()(data).logs
    # Every frame says 3, which is one token: right once where a transcript has it.
    texts = data.targets["text"].split([4, 5])
    errors = sum(len(t) - int(3 in t.tolist()) for t in texts)
    assert [float(x) for x in head(data).logs["cer"]] == [errors, 9]


@every
def test_padding_and_what_it_holds_change_no_answer(changes: dict[str, Any]) -> None:
    head = build(**changes).eval()
    data = labelled(head)

    def rows(data: Batch) -> list[Tensor]:
        found, ends = head.joint_answers(data.wave, data.wave_lengths)
        return [row[:end] for row, end in zip(found, ends.tolist(), strict=True)]

    alone = [rows(one(data, i))[0] for i in range(4)]
    width = len(CLASSES) + sum(map(len, head.config.further_values))
    assert torch.allclose(
        torch.stack([r[: len(CLASSES)] for r in rows(data)]),
        head.class_log_probs(data.wave, data.wave_lengths),
    )
    for noise in (0.0, float("nan")):
        longer = F.pad(data.wave, (0, 1600))
        behind = torch.arange(longer.shape[1])[None] >= data.wave_lengths[:, None]
        changed = dataclasses.replace(data, wave=longer.masked_fill(behind, noise))
        for ours, theirs in zip(rows(changed), alone, strict=True):
            assert (ours[:width] - theirs[:width]).abs().max() < 3e-5
            assert torch.equal(ours[width:], theirs[width:])
    frames = head.encoder.frame_lengths(data.wave_lengths).tolist()
    spoken = frames if head.config.text_weight else [0] * 4
    assert [len(r) - width for r in alone] == spoken


def test_utterances_and_transcripts_are_learnt_by_heart() -> None:
    head = build(**FURTHER)
    whole = labelled(head)
    data = joined([one(whole, 1), one(whole, 3)])
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(50):
        loss = head(data)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    logs = head.eval()(data).logs
    assert int(logs["accuracy"][0]) == int(logs["accuracy_gender"][0]) == 2
    assert float(logs["cer"][0]) == 0


def test_a_frozen_encoder_keeps_still_and_log_mel_serves_as_one() -> None:
    head = build(**FURTHER, freeze_encoder_steps=-1).train()
    head(labelled(head)).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in head.encoder.parameters())
    mel = head.config.build(LogMelConfig(mel_bins=20).build())
    mel(labelled(mel)).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in mel.parameters())


def test_bf16_autocast_gives_nearly_the_same_loss() -> None:
    head = build(**FURTHER).eval()
    data = labelled(head)
    exact = head(data).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(data)
    assert rough.total.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact, rel=0.05)


@every
def test_its_configuration_survives_a_round_trip(changes: dict[str, Any]) -> None:
    config = build(**changes).config
    assert from_class_path(HeadConfig, to_dict(config)) == config


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"vocab_size: found 0, want the tokenizer's"):
        build(vocab_size=0)
    with pytest.raises(ValueError, match="text_weight: found -1"):
        build(text_weight=-1)
    with pytest.raises(ValueError, match=r"further: found \['x'\] beside the field 'x'"):
        build(further=["x"])
    with pytest.raises(ValueError, match="with 0 lists of values"):
        build(further=["gender"])
    with pytest.raises(ValueError, match=r"fewer than two values of \['gender'\]"):
        build(further=["gender"], further_values=[["f"]])
    for weights in ([1.0, 1.0], [0.0]):
        with pytest.raises(ValueError, match="further_weights: found"):
            build(**(FURTHER | {"further_weights": weights}))
    head = build(**FURTHER)
    data = labelled(head)
    for targets, told in (
        ({}, r"head\.further"),
        ({"classes": torch.arange(4)}, "found 1 labels per utterance, want 2"),
        ({"classes": torch.tensor([[0, 3]] * 4)}, r"found \[0, 3\], want 0 to \[4, 2\]"),
        ({"classes": data.targets["classes"]}, "data.tokenizer"),
    ):
        with pytest.raises(ValueError, match=told):
            head(dataclasses.replace(data, targets=targets))
