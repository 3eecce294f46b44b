"""What every head of voice conversion must satisfy of the contract, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from voice_heads import ENCODER, KINDS, LOG_MEL, batch, build, embedding_of, kind_name, one

from speechssl.config import HeadConfig, from_class_path, to_dict
from speechssl.contract import Batch, Update
from speechssl.model_file import open_model, save_model
from speechssl.train import checkpoint
from speechssl.train.config import TrainConfig
from speechssl.train.trainer import Trainer

every = pytest.mark.parametrize("kind", KINDS, ids=kind_name)
CLOSE = 1e-4  # of log-mel of size 10 behind some twenty layers in float32


@every
def test_the_loss_is_a_finite_sum_with_a_count_and_pairs_to_log(kind: Any) -> None:
    data = batch()
    loss = build(kind)(data)
    assert loss.total.dtype == torch.float32 and loss.total.ndim == 0
    assert torch.isfinite(loss.total)
    assert int(loss.count) == int((data.wave_lengths // 160 + 1).sum())
    for total, count in loss.logs.values():
        assert not total.requires_grad and torch.isfinite(total) and count.ndim == 0


@every
def test_the_loss_of_a_batch_is_the_sum_over_its_utterances(kind: Any) -> None:
    head, data = build(kind), batch()
    whole, alone = head(data), [head(one(data, i)) for i in range(3)]
    assert whole.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-5)
    assert float(whole.count) == sum(float(x.count) for x in alone)
    longer = dataclasses.replace(data, wave=torch.nn.functional.pad(data.wave, (0, 3200)))
    assert head(longer).total.item() == pytest.approx(whole.total.item(), rel=1e-5)


@every
def test_padding_and_what_it_holds_change_no_spectrogram(kind: Any) -> None:
    head, data = build(kind).eval(), batch()
    own = embedding_of(head, data)
    for noise in (0.0, 7.0, float("nan")):
        longer = torch.nn.functional.pad(data.wave, (0, 1600))
        behind = torch.arange(longer.shape[1])[None] >= data.wave_lengths[:, None]
        longer = longer.masked_fill(behind, noise)
        together, lengths = head.convert(longer, data.wave_lengths, embedding=own)
        for i in range(3):
            x = one(data, i)
            given = None if own is None else own[i]
            alone, _ = head.convert(x.wave, x.wave_lengths, embedding=given)
            assert int(lengths[i]) == alone.shape[1]
            assert (together[i, : alone.shape[1]] - alone[0]).abs().max() < CLOSE
            assert (together[i, alone.shape[1] :] == head.config.mel.silence).all()


@every
def test_gradient_reaches_every_trainable_parameter(kind: Any) -> None:
    head = build(kind)
    head(batch((0.5, 0.6, 0.7, 0.5))).total.backward()
    read, units = head.layers[-1], hasattr(head, "units")
    dead = [
        n
        for n, p in head.named_parameters()
        if p.requires_grad
        and (p.grad is None or not p.grad.any())
        and not (n.startswith("encoder.layers.1") and read == 1)
    ]
    assert [n for n in dead if n != "encoder.mask_emb"] == []
    assert units == (not any(p.requires_grad for p in head.encoder.parameters()))


@every
def test_a_frozen_encoder_keeps_still_and_has_no_dropout(kind: Any) -> None:
    noisy = dataclasses.replace(ENCODER, dropout=0.5, layerdrop=0.5, input_dropout=0.5)
    head = build(kind, noisy.build(), freeze_encoder_steps=-1).train()
    data = batch()
    first, second = head(data), head(data)
    assert torch.equal(first.total, second.total)
    first.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in head.encoder.parameters())


@every
def test_bf16_autocast_gives_nearly_the_same_loss(kind: Any) -> None:
    head, data = build(kind).eval(), batch()
    exact = head(data).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(data)
    assert rough.total.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact, rel=0.02)


@every
def test_two_utterances_are_learnt_by_heart(kind: Any) -> None:
    units, taco = bool(kind[1].get("units")), "Taco" in kind[0].__name__
    wide = {"prenet_dropout": 0.0} if taco else {"dim": 48, "hidden_dim": 96}
    changes = wide if units else wide | {"layer": None}
    head = build(kind, None if units else LOG_MEL.build(), **changes)
    data = batch((0.4, 0.3))
    optimiser = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(60):
        loss = head(data)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        losses.append(float(loss.total.detach() / loss.count))
    # Frames of one of nine units can only get the same; the true last frame is a good guess.
    assert losses[-1] < (0.5 if units or taco else 0.3) * losses[0], losses[::10]


class Source:
    """Updates of three utterances, others in each."""

    def updates(self, position: Any = None) -> Iterator[Update]:
        number = position["update"] if position else 0
        while True:
            number += 1
            yield Update((batch((0.3, 0.4, 0.35), number),), {"update": number, "epoch": 0})

    def one_pass(self) -> Iterator[Batch]:
        yield batch((0.3, 0.4), 99)


@every
def test_a_resumed_run_is_bit_equal_to_one_never_stopped(kind: Any, tmp_path: Path) -> None:
    dropping = {"conv_dropout": 0.3, "lstm_dropout": 0.2} if "Taco" in kind[0].__name__ else {}
    for name, stops in (("whole", (4,)), ("stopped", (2, 4))):
        for steps in stops:
            config = TrainConfig(device="cpu", tensorboard=False, learning_rate=1e-3, steps=steps,
                                 schedule="constant", warmup_fraction=0.0)  # fmt: skip
            head = build(kind, **dropping)
            if steps == 4 and name == "stopped":  # what fine-tuning filled in comes back too
                head.mel_mean.zero_()
            Trainer(config, head, Source(), Source(), tmp_path / name).fit()
    first, second = (
        checkpoint.Reader(tmp_path / name / "checkpoints" / "step_4").whole("")
        for name in ("whole", "stopped")
    )
    assert first.keys() == second.keys()
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


@every
def test_its_configuration_and_its_weights_survive_a_round_trip(kind: Any, tmp_path: Path) -> None:
    head, data = build(kind).eval(), batch()
    assert from_class_path(HeadConfig, to_dict(head.config)) == head.config
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(
        tmp_path, ENCODER, head.encoder.state_dict(), head_config=head.config, head_state=own
    )
    opened: Any = open_model(tmp_path).head
    given = {"embedding": embedding_of(head, data)}
    found, _ = opened.convert(data.wave, data.wave_lengths, **given)
    assert torch.equal(found, head.convert(data.wave, data.wave_lengths, **given)[0])
