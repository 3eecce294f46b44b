"""Schedules, parameter groups, averages, the guard, the probe, checkpoints and folders."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import ToyObjective, collate

from speechssl.train import checkpoint, optim, precision
from speechssl.train.config import TrainConfig
from speechssl.train.folder import flat, open_folder, provenance
from speechssl.train.guard import Guard
from speechssl.train.log import LineFile
from speechssl.train.probe import _search, largest_batch_seconds, padded_seconds, tile
from speechssl.train.run_state import RunState
from speechssl.train.schedule import ema_decay, last_constant_step, rate_scale


def test_linear_schedule_warms_up_to_its_peak_and_ends_at_zero() -> None:
    config = TrainConfig(steps=100, warmup_fraction=0.1)
    assert [rate_scale(config, n) for n in (1, 5, 10, 55, 100)] == pytest.approx(
        [0.1, 0.5, 1.0, 0.5, 0.0]
    )


def test_cosine_schedule_is_a_half_cosine() -> None:
    config = TrainConfig(steps=110, warmup_fraction=1 / 11, schedule="cosine", final_scale=0.1)
    assert rate_scale(config, 10) == 1
    assert rate_scale(config, 35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate_scale(config, 110) == pytest.approx(0.1)


def test_tri_stage_schedule_is_that_of_fairseq() -> None:
    config = TrainConfig(
        steps=1000, schedule="tri_stage", warmup_fraction=0.1, hold_fraction=0.4,
        initial_scale=0.01, final_scale=0.05,
    )  # fmt: skip
    for step in range(1, 1001):
        if step < 100:
            want = 0.01 + 0.99 / 100 * step
        elif step < 500:
            want = 1.0
        else:
            want = math.exp(math.log(0.05) / 500 * (step - 500))
        assert rate_scale(config, step) == pytest.approx(want)


def test_constant_schedule_stays_at_its_peak_behind_the_warm_up() -> None:
    config = TrainConfig(steps=10, schedule="constant", warmup_fraction=0.2)
    assert [rate_scale(config, n) for n in range(1, 11)] == [0.5] + [1.0] * 9


def test_inverse_square_root_schedule_is_noams_and_does_not_look_at_the_end() -> None:
    options = {"schedule": "inverse_sqrt", "warmup_steps": 25}
    for steps in (200, 4000):
        config = TrainConfig(steps=steps, **options)
        for step in (1, 10, 24, 25, 26, 100, 200):
            noam = 25**0.5 * min(step**-0.5, step * 25**-1.5)
            assert rate_scale(config, step) == pytest.approx(noam)
    assert rate_scale(TrainConfig(steps=9, warmup_fraction=0, schedule="inverse_sqrt"), 4) == 0.5


@pytest.mark.parametrize("kind", ["triangular", "triangular2"])
def test_cyclic_schedule_is_that_of_torch(kind) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.01, max_lr=1.0, step_size_up=20, mode=kind, cycle_momentum=False
    )
    decay = 0.5 if kind == "triangular2" else 1.0
    config = TrainConfig(schedule="cyclic", cycle_steps=40, cycle_decay=decay, final_scale=0.01,
                         warmup_fraction=0.0, steps=130)  # fmt: skip
    for step in range(1, 131):
        optimizer.step()
        theirs.step()
        assert rate_scale(config, step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
    assert [rate_scale(config, n) for n in (20, 40)] == pytest.approx([1.0, 0.01])


def test_exponential_schedule_falls_by_one_factor_per_update() -> None:
    config = TrainConfig(schedule="exponential", steps=60, warmup_steps=10, final_scale=0.02)
    rates = [rate_scale(config, n) for n in range(10, 61)]
    assert rates == pytest.approx([0.02 ** (n / 50) for n in range(51)])
    assert rate_scale(config, 5) == 0.5


INFINITE = {"schedule": "infinite", "warmup_steps": 10, "cooldown_steps": 40, "constant_scale": 0.4,
            "final_scale": 0.1}  # fmt: skip


@pytest.mark.parametrize("cooldown", ["cosine", "inverse_sqrt"])
def test_infinite_schedule_falls_to_a_constant_rate_that_more_steps_only_prolong(cooldown) -> None:
    short, long, annealed = (
        TrainConfig(steps=steps, anneal_steps=anneal, cooldown=cooldown, **INFINITE)
        for steps, anneal in ((100, 0), (1000, 0), (120, 20))
    )
    rates = [rate_scale(short, n) for n in range(1, 101)]
    assert rates == [rate_scale(long, n) for n in range(1, 101)]
    assert rates == [rate_scale(annealed, n) for n in range(1, 101)]
    assert rates[4] == 0.5 and rates[9] == 1.0 and set(rates[49:]) == {0.4}
    falling = rates[9:50]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 41
    if cooldown == "cosine":
        assert rates[29] == pytest.approx(0.7)
    else:
        assert rates[29] == pytest.approx(1 - 0.6 * (1 - 6**-0.5) / (1 - 11**-0.5))
    # The anneal is a straight line on a logarithmic scale.
    assert [rate_scale(annealed, n) for n in (110, 120)] == pytest.approx([0.2, 0.1])
    assert last_constant_step(annealed) == 100
    assert last_constant_step(short) is last_constant_step(TrainConfig()) is None


def test_a_warm_up_may_be_counted_in_updates() -> None:
    config = TrainConfig(steps=50, warmup_steps=20, warmup_fraction=0.9)
    assert [rate_scale(config, n) for n in (10, 20, 35, 50)] == pytest.approx([0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (INFINITE | {"warmup_steps": None}, "train.warmup_steps: found none"),
        (INFINITE | {"anneal_steps": 9, "steps": 55}, "train.anneal_steps: found 9"),
        (INFINITE | {"anneal_steps": 9, "final_scale": 0.0}, "train.final_scale"),
        (INFINITE | {"constant_scale": 1.5}, "train.constant_scale"),
        ({"anneal_steps": 5}, "train.schedule: found linear"),
        ({"warmup_steps": 11, "steps": 10}, "train.warmup_steps: found 11"),
        ({"steps": -1}, "train.steps"),
        ({"schedule": "tri_stage"}, "final_scale"),
        ({"schedule": "exponential"}, "more than 0 for exponential"),
        ({"schedule": "cyclic"}, "train.cycle_steps: found 0"),
        ({"schedule": "cyclic", "cycle_steps": 9}, "found 0.08 and None, want warmup_fraction 0"),
        ({"schedule": "cyclic", "cycle_steps": 9, "cycle_decay": 0.0}, "train.cycle_decay"),
        ({"cycle_steps": 9}, "train.schedule: found linear with cycle_steps 9"),
        ({"warmup_fraction": 1.5}, "warmup_fraction"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainConfig(**options)


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = ToyObjective()
    model.project.bias.requires_grad_(False)
    config = TrainConfig(decay_norms_and_biases=False, encoder_rate_scale=0.1)
    groups = optim.parameter_groups(config, model)
    names = sorted(n for g in groups for n in g["names"])
    assert names == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)
            assert group["rate_scale"] == (0.1 if name.startswith("encoder.") else 1.0)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adamw_decays_beside_the_gradient_and_adam_within(kind: str) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    config = TrainConfig(optimizer=kind, weight_decay=0.1)
    optimizer = optim.build_optimizer(config, model)
    optim.set_rate(optimizer, 0.5)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    moved = before - model.weight.detach()
    want = 0.05 * before if kind == "adamw" else 0.5 * torch.sign(before)
    torch.testing.assert_close(moved, want, rtol=2e-3, atol=2e-3)


def test_the_average_moves_by_its_decay_exactly() -> None:
    model = nn.Linear(2, 2)
    average = optim.WeightAverage(model)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(0.75)
    torch.testing.assert_close(average.tensors["weight"], start + 0.25)
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), start + 0.25)
    torch.testing.assert_close(model.weight.detach(), start + 1.0)
    assert ema_decay(0.999, 1) == pytest.approx(2 / 11) and ema_decay(0.9, 10_000) == 0.9


def test_the_guard_follows_a_falling_noisy_loss_without_refusing() -> None:
    generator = torch.Generator().manual_seed(0)
    guard = Guard(10.0, 20)
    noise = torch.randn(500, generator=generator).tolist()
    for i, x in enumerate(noise):
        assert guard.fault(6 * math.exp(-i / 200) + 0.2 * x + 2, 1.0, 10) == ""
    assert "spike" in guard.fault(20.0, 1.0, 10)
    assert "scored" in guard.fault(math.nan, 0.0, 0)
    assert guard.bad_in_a_row == 2
    assert "norm" in guard.fault(2.0, math.inf, 10)


def test_search_finds_a_size_that_fits_within_an_eighth() -> None:
    for limit in (0, 1, 2, 3, 7, 8, 50, 99, 1000):
        tried: list[int] = []

        def fits(n: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(n)
            return n <= limit

        found = _search(fits, 200)
        best = min(limit, 200)
        assert found <= best and best - found <= max(0, found // 8)
        assert max(tried, default=0) <= 200


def test_tiling_repeats_utterances_and_their_loss() -> None:
    model, batch = ToyObjective(), collate([1, 2, 3])
    once, thrice = model(batch), model(tile(batch, 3))
    assert int(thrice.count) == 3 * int(once.count)
    assert thrice.total.item() == pytest.approx(3 * once.total.item(), rel=1e-5)
    assert len(tile(batch, 3)) == 9


class Hungry(ToyObjective):
    """Keeps about 4 MB per utterance until the backward pass."""

    def forward(self, batch):  # type: ignore[override]
        loss = super().forward(batch)
        ballast = self.project.bias.sum() * torch.ones(len(batch), 1_000_000)
        return dataclasses.replace(loss, total=loss.total + 0.0 * ballast.square().sum())


def test_probe_uses_more_memory_where_more_is_allowed() -> None:
    model, batch = Hungry(), collate([1])
    unit = padded_seconds(batch)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = [
        largest_batch_seconds(model, batch, limit_seconds=256 * unit, memory_gb=gb) / unit
        for gb in (0.1, 0.4)
    ]
    assert 2 <= found[0] < found[1] <= 0.4e9 / 4e6
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="do not fit"):
        largest_batch_seconds(model, batch, limit_seconds=9.0, memory_gb=-1.0)


def test_checkpoints_hold_every_shape_and_kind_of_tensor(tmp_path: Path) -> None:
    tensors = {
        "a/x": torch.randn(5, 3),
        "a/scalar": torch.tensor(7),
        "a/empty": torch.zeros(0, 4),
        "a/flag": torch.tensor([True, False]),
        "a/transposed": torch.randn(4, 6).T,
    }
    checkpoint.save(tmp_path, 3, tensors, {"step": 3})
    read = checkpoint.Reader(tmp_path / "step_3").whole("a/")
    for name, tensor in tensors.items():
        assert torch.equal(read[name.removeprefix("a/")], tensor)


def test_a_half_written_checkpoint_is_never_seen(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, {"x": torch.ones(2)}, {})
    (tmp_path / "tmp_step_9").mkdir()
    (tmp_path / "tmp_step_9" / "state.json").write_text("{}")
    (tmp_path / "step_10").mkdir()
    assert checkpoint.steps(tmp_path) == [3]
    checkpoint.sweep(tmp_path)
    assert not (tmp_path / "tmp_step_9").exists()


def test_lines_behind_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "metrics.jsonl")
    file.write(*(json.dumps({"step": n}) for n in range(1, 6)))
    with open(file.path, "a") as stream:
        stream.write('{"step": 6, "lo')
    file.forget_after(3)
    file.write('{"step": 4, "new": 1}')
    lines = [json.loads(x) for x in file.path.read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "new": 1}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    file = LineFile(path)
    file.write('{"step": 1}')
    path.unlink()
    file.write('{"step": 2}')
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2}']


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    output: str = "x"
    width: int = 3
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def test_resuming_with_another_configuration_lists_what_differs(tmp_path: Path) -> None:
    config = RunConfig(output=str(tmp_path))
    open_folder(tmp_path, config)
    open_folder(tmp_path, RunConfig(width=4))
    open_folder(tmp_path, config)
    checkpoint.save(tmp_path / "checkpoints", 1, {}, {})
    longer = dataclasses.replace(config.train, steps=20_000, log_every=1)
    open_folder(tmp_path, dataclasses.replace(config, train=longer))
    other = dataclasses.replace(config.train, learning_rate=1.0, steps=20_000)
    with pytest.raises(ValueError, match=r"learning_rate: found 1.0, before 0.0005; width: "):
        open_folder(tmp_path, RunConfig(width=4, train=other))
    with pytest.raises(ValueError, match=r"train\.steps"):
        open_folder(tmp_path, config)
    open_folder(tmp_path, RunConfig(width=4, train=other), force=True)


@pytest.mark.parametrize(("best_is", "best"), [("lowest", 1.0), ("highest", 3.0)])
def test_a_validation_that_is_no_number_is_never_the_best(best_is: str, best: float) -> None:
    state = RunState()
    judged = []
    for step, value in enumerate((math.nan, 2.0, math.nan, 1.0, 3.0), start=1):
        state.step = step
        judged.append(state.judge(value, best_is))
    assert judged[:3] == [False, True, False] and state.best is not None
    assert state.best["value"] == best
    only = RunState()
    assert not only.judge(math.nan, best_is) and only.best is None and only.since_best == 1


def test_the_best_validations_are_kept_in_order_and_of_equal_ones_the_earlier() -> None:
    state = RunState()
    kept = []
    for step, value in enumerate((3.0, 2.0, 2.0, 4.0, 1.0), start=1):
        state.step = step
        kept.append(state.judge(value, "lowest", keep=2))
    assert kept == [True, True, True, False, True]
    assert [x["step"] for x in state.leaders] == [5, 2]
    assert state.best == state.leaders[0] and state.since_best == 0
    # A run that was begun before they were kept goes on from its best one.
    older = RunState(step=7, best={"step": 4, "value": 1.5})
    assert older.judge(2.0, "lowest", keep=2) and older.since_best == 1
    assert [x["step"] for x in older.leaders] == [4, 7]


def test_provenance_is_plain_and_names_versions() -> None:
    found = provenance(RunConfig(), 7)
    assert json.loads(json.dumps(found))["config"]["width"] == 3
    assert found["torch"] == torch.__version__ and found["step"] == 7
    assert flat({"a": {"b": 1, "c": {}}}) == {"a.b": 1, "a.c": {}}


def test_auto_precision_is_bf16_only_where_the_device_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def product() -> torch.dtype:
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "fast_bf16", lambda _device, fast=fast: fast)
        with precision.autocast("auto", "cpu"):
            assert product() == dtype
    with precision.autocast("bf16", "cpu"):
        assert product() == torch.bfloat16
    with precision.autocast("fp32", "cpu"):
        assert product() == torch.float32
