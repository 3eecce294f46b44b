"""The effective rank of front-end frames that validation reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy import CLASSES, HOP, WIDTH, ToyEncoder, ToyObjective, ToySource

from speechssl import dist
from speechssl.contract import EncoderOutput
from speechssl.score.rank import effective_rank
from speechssl.train.config import TrainConfig
from speechssl.train.front_rank import FrontRank
from speechssl.train.trainer import Trainer


class Frames(nn.Module):
    """Returns the frames that it is given as its front end's."""

    def forward(self, front: Tensor, lengths: Tensor) -> EncoderOutput:
        return EncoderOutput((front,), (0,), lengths, 50.0, front)


def test_it_is_the_rank_of_all_valid_frames_together() -> None:
    random = torch.Generator().manual_seed(0)
    scale = torch.tensor([3.0, 1.0, 0.5, 0.1])
    batches = [3 + torch.randn(2, 30, 4, generator=random) * scale for _ in range(3)]
    lengths = torch.tensor([30, 12])
    rank, frames = FrontRank(torch.device("cpu")), Frames()
    with rank.watch(frames):
        for x in batches:
            x[1, 12:] = 1e6  # padding
            frames(x, lengths)
        rank.paused = True
        frames(torch.full((1, 5, 4), 1e6), torch.tensor([5]))
    frames(torch.full((1, 5, 4), 1e6), torch.tensor([5]))  # no longer watched
    points = torch.cat([torch.cat([x[0], x[1, :12]]) for x in batches])
    assert rank.figures()["front_rank"] == pytest.approx(effective_rank(points), rel=1e-6)


@pytest.mark.parametrize("directions", [1, 3])
def test_a_front_end_of_few_directions_shows(directions: int) -> None:
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, directions, generator=random))[0]
    rank, frames = FrontRank(torch.device("cpu")), Frames()
    with rank.watch(frames):
        frames(torch.randn(1, 4000, directions, generator=random) @ basis.T, torch.tensor([4000]))
    assert rank.figures()["front_rank"] == pytest.approx(directions, rel=0.01)


def test_equal_frames_have_rank_0_and_no_frames_none() -> None:
    rank, frames = FrontRank(torch.device("cpu")), Frames()
    assert rank.figures() == {}
    with rank.watch(frames):
        frames(torch.full((1, 9, 4), 0.1), torch.tensor([9]))
    assert rank.figures() == {"front_rank": 0.0}


@pytest.mark.parametrize("empty", [False, True])
def test_two_ranks_report_the_rank_of_all_their_frames(
    empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank may have had no utterance at all."""
    random = torch.Generator().manual_seed(0)
    parts = [5 + torch.randn(1, n, 6, generator=random).cumsum(-1) for n in (20, 33)]
    ranks = [FrontRank(torch.device("cpu")) for _ in parts]
    for rank, x in zip(ranks[: 1 if empty else 2], parts, strict=False):
        frames = Frames()
        with rank.watch(frames):
            frames(x, torch.tensor([x.shape[1]]))
    widths = [0 if r.sums is None else 6 for r in ranks]
    monkeypatch.setattr(dist, "gather_objects", lambda value: widths)
    expected = effective_rank(parts[0][0] if empty else torch.cat(parts, 1)[0])
    for this, other in (ranks, ranks[::-1]):
        theirs = iter(other.sums or [torch.zeros(())] * 3)
        monkeypatch.setattr(dist, "all_reduce_sum", lambda x, theirs=theirs: x + next(theirs))
        assert this.figures()["front_rank"] == pytest.approx(expected, rel=1e-6)


class FrontEncoder(ToyEncoder):
    """The toy encoder, with the contract's output."""

    def forward(self, wave: Tensor) -> EncoderOutput:  # type: ignore[override]
        x = super().forward(wave)
        front = self.front(wave.unfold(1, HOP, HOP))
        return EncoderOutput((x,), (0,), torch.full((len(x),), x.shape[1]), 50.0, front)


class OfLast(nn.Linear):
    def forward(self, out: EncoderOutput) -> Tensor:  # type: ignore[override]
        return super().forward(out.last)


@pytest.mark.parametrize("asked", [True, False])
def test_the_trainer_reports_it_only_if_asked(asked: bool, tmp_path: Path) -> None:
    objective = ToyObjective()
    objective.encoder, objective.project = FrontEncoder(), OfLast(WIDTH, CLASSES)
    config = TrainConfig(steps=1, device="cpu", tensorboard=False)
    source = ToySource()
    trainer = Trainer(config, objective, source, source, tmp_path, front_rank=asked)
    found = trainer.validate()
    assert ("front_rank" in found) is asked
    fronts = [objective.encoder(b.wave).front.detach().flatten(0, 1) for b in source.one_pass()]
    if asked:
        assert found["front_rank"] == pytest.approx(effective_rank(torch.cat(fronts)), rel=1e-4)
