"""The moving-average teacher: exact decay, copies, shared front end; sums over an update."""

from __future__ import annotations

import pytest
import torch

from speechssl.encoders.transformer import TransformerConfig, TransformerEncoder
from speechssl.nn import collapse
from speechssl.nn.ema import EmaTeacher, linear_then_hold
from speechssl.nn.frame_masks import pack
from speechssl.nn.update_sums import UpdateSums

CONFIG = TransformerConfig(
    front_end="log_mel", front_norm="layer", front_dim=16, layers=3, dim=16, ffn_dim=32, heads=2,
    pos_conv_kernel=8, pos_conv_groups=4, dropout=0.3, layerdrop=0.5,
)  # fmt: skip
AVERAGED = "layers.1.fc1.weight"
COPIED = "pos_conv.v"


def pair() -> tuple[TransformerEncoder, EmaTeacher]:
    torch.manual_seed(0)
    student = CONFIG.build()
    return student, EmaTeacher(student)


def test_the_schedule_is_a_line_that_then_holds() -> None:
    at = [linear_then_hold(0.999, 0.9999, 30_000, s) for s in (0, 15_000, 30_000, 400_000)]
    assert at == pytest.approx([0.999, 0.99945, 0.9999, 0.9999], abs=1e-12)
    assert linear_then_hold(0.5, 0.9, 0, 0) == 0.9


def test_the_average_equals_its_closed_form_and_other_parameters_are_copied() -> None:
    student, teacher = pair()
    mine = dict(teacher.encoder.named_parameters())
    decays = [0.9, 0.95, 0.8, 0.99]
    expected = mine[AVERAGED].double().clone()
    for decay in decays:
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        teacher.update(student, decay)
        weight = dict(student.named_parameters())[AVERAGED].double()
        expected = decay * expected + (1 - decay) * weight
        assert torch.equal(mine[COPIED], dict(student.named_parameters())[COPIED])
    assert (mine[AVERAGED].double() - expected).abs().max() < 1e-6


def test_a_float32_average_follows_a_bfloat16_student_by_small_steps() -> None:
    student, _ = pair()
    student.to(torch.bfloat16)
    teacher = EmaTeacher(student)
    p = dict(student.named_parameters())[AVERAGED]
    before = dict(teacher.encoder.named_parameters())[AVERAGED].clone()
    with torch.no_grad():
        p.add_(0.01)
    for _ in range(100):
        teacher.update(student, 0.999)
    after = dict(teacher.encoder.named_parameters())[AVERAGED]
    assert after.dtype == torch.float32
    moved = (after - before) / (p.float() - before)
    assert moved.median().item() == pytest.approx(1 - 0.999**100, rel=0.01)


def test_the_teacher_starts_as_the_student_unmasked_without_dropout() -> None:
    student, teacher = pair()
    wave, lengths = torch.randn(2, 9000), torch.tensor([9000, 7000])
    teacher.train()
    student.eval()
    out = student(wave, lengths, layers=[-1])
    taken: list[torch.Tensor] = []
    for layer in student.layers[1:]:
        layer.fc2.register_forward_hook(lambda _m, _i, y: taken.append(y))
    student(wave, lengths)
    found = teacher.feed_forward_outputs(wave, lengths, out.front, top=2)
    for a, b in zip(found, taken, strict=True):
        assert torch.equal(a, b) and not a.requires_grad


def test_the_teacher_has_no_front_end_of_its_own_and_never_trains() -> None:
    student, teacher = pair()
    names = {name for name, _ in teacher.encoder.named_parameters()}
    assert names == {n for n, _ in student.named_parameters() if not n.startswith("front.")}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.train().modules())


def test_a_beginning_that_names_no_parameter_is_an_error() -> None:
    student, _ = pair()
    with pytest.raises(ValueError, match=r"'blocks\.'"):
        EmaTeacher(student, averaged=("blocks.",))


def test_update_sums_count_training_only_and_start_anew() -> None:
    sums = UpdateSums(total=(2,), count=())
    for _ in range(2):
        sums.add(total=torch.tensor([1.0, 2.0]), count=torch.tensor(3))
    sums.add(total=torch.tensor([1.0, 2.0]))
    taken = sums.take()
    assert taken["total"].tolist() == [3.0, 6.0] and taken["count"] == 6
    sums.add(count=torch.tensor(3))
    sums.eval()
    sums.add(count=torch.tensor(3))
    assert sums.take()["count"] == 0
    sums.train()
    sums.add(count=torch.tensor(3))
    sums.train()
    assert sums.take()["count"] == 0
    assert not sums.state_dict()


def test_spread_and_perplexity_have_their_known_values() -> None:
    x = torch.randn(4000, 5) * torch.arange(1, 6) + 2
    found = collapse.spread(x.sum(0), x.square().sum(0), torch.tensor(4000))
    assert found.item() == pytest.approx(x.std(0, correction=0).mean().item(), rel=1e-4)
    counts = torch.tensor([[7, 7, 7, 7], [9, 0, 0, 0], [0, 0, 0, 0]])
    assert collapse.perplexity(counts).tolist() == pytest.approx([4.0, 1.0, 1.0])


def test_the_detector_looks_when_due_and_names_the_cause() -> None:
    assert [s for s in range(1, 120) if collapse.due(s, 10)] == [10, 60, 110]
    assert not any(collapse.due(s, 0) for s in range(200))
    collapse.require("deviation", torch.tensor(0.2), 0.1, 5, "x")
    for bad in (0.05, float("nan")):
        with pytest.raises(collapse.Collapsed, match=r"update 5: deviation .* at least 0\.1: why"):
            collapse.require("deviation", torch.tensor(bad), 0.1, 5, "why")


def test_packing_moves_chosen_frames_to_the_front_in_their_order() -> None:
    x = torch.arange(10.0).view(2, 5, 1)
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    packed, valid = pack(x, mask)
    assert packed[0, :, 0].tolist() == [1, 3, 4] and packed[1, 0, 0] == 5
    assert valid.tolist() == [[True] * 3, [True, False, False]]
