"""Online EM of the factor model: steps are maxima, likelihood never falls."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_factor_analysis import cosines, frames, model, spoken
from torch import Tensor

from speechssl.nn.factor_analysis import FactorModel
from speechssl.nn.online_factors import FactorStatistics


def learner(
    classes: int, dim: int, factors: int, decay: float = 0.0
) -> tuple[FactorModel, FactorStatistics]:
    torch.manual_seed(9)
    made = FactorModel(classes, dim, factors, learns=False)
    return made.double(), FactorStatistics(made, decay).double().train()


def see(made: FactorModel, kept: FactorStatistics, x: Tensor, k: Tensor, chosen: Tensor) -> float:
    """Collect a batch; its log-likelihood."""
    found = made.posterior(x, k, chosen)
    kept.collect(x, k, chosen, found)
    return float(found.log_likelihood.sum())


def test_a_whole_step_is_the_maximum_of_the_expected_likelihood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, kept = learner(3, 4, 2)
    x, classes, chosen = frames(many=40, size=30)
    found = made.posterior(x, classes, chosen)
    see(made, kept, x, classes, chosen)
    monkeypatch.setattr(kept, "_normalise", lambda: None)
    kept.commit(made, 1)
    means, variances, loadings = (v.requires_grad_() for v in kept.likeliest(1e-6))
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(x)):
        covariance = torch.linalg.inv(found.precision[row])
        k = classes[row][chosen[row]]
        off = x[row][chosen[row]] - means[k] - loadings[k] @ found.mean[row]
        spread = torch.einsum("tdr,rs,tds->td", loadings[k], covariance, loadings[k])
        total = total - 0.5 * ((off.square() + spread) / variances[k] + variances[k].log()).sum()
    for gradient in torch.autograd.grad(total, (means, variances, loadings)):
        assert gradient.abs().max() < 1e-5 * int(chosen.sum())
    assert torch.allclose(made.means, means) and torch.allclose(made.loadings, loadings)
    assert torch.allclose(made.variances(), variances, rtol=1e-4)


def test_whole_steps_never_lose_likelihood_and_find_the_factors() -> None:
    truth = model(classes=4, dim=6, factors=2, seed=3)
    x, classes, w = spoken(truth, 150, 30)
    every = torch.ones_like(classes, dtype=torch.bool)
    made, kept = learner(4, 6, 2)
    likelihoods = []
    for step in range(1, 31):
        likelihoods.append(see(made, kept, x, classes, every))
        kept.commit(made, step)
    assert all(b > a - 1e-3 for a, b in itertools.pairwise(likelihoods))
    best = truth.posterior(x, classes, every).log_likelihood.sum().item()
    assert likelihoods[-1] > best  # the truth is not the likeliest of 150 utterances
    found = made.posterior(x, classes, every).mean
    u, _, v = torch.linalg.svd(found.T @ w)
    assert cosines(found @ (u @ v), w).mean() > 0.95


def test_small_steps_over_few_utterances_come_near_the_same() -> None:
    truth = model(classes=4, dim=6, factors=2, seed=3)
    x, classes, w = spoken(truth, 300, 30)
    every = torch.ones_like(classes, dtype=torch.bool)
    made, kept = learner(4, 6, 2, decay=0.97)
    for step in range(1, 151):
        rows = torch.arange(10) + 10 * step
        see(made, kept, x[rows % 300], classes[rows % 300], every[:10])
        kept.commit(made, step)
    found = made.posterior(x, classes, every).mean
    u, _, v = torch.linalg.svd(found.T @ w)
    assert cosines(found @ (u @ v), w).mean() > 0.9


@pytest.mark.parametrize("pieces", [2, 5])
def test_pieces_of_an_update_commit_as_the_whole(pieces: int) -> None:
    x, classes, chosen = frames(many=10, size=12)
    states = []
    for count in (1, pieces):
        made, kept = learner(3, 4, 2, decay=0.9)
        for rows in torch.arange(10).chunk(count):
            see(made, kept, x[rows], classes[rows], chosen[rows])
        kept.commit(made, 40)
        states.append(torch.cat([v.flatten() for v in made.state_dict().values()]))
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


def test_classes_without_frames_and_passes_of_validation_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, kept = learner(3, 4, 2, decay=0.9)
    monkeypatch.setattr(kept, "_normalise", lambda: None)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    x, classes, chosen = frames()
    kept.eval()
    see(made, kept, x, classes, chosen)
    assert not any(bool(v.any()) for v in kept.pending.buffers())
    kept.train()
    see(made, kept, x, classes.clamp(max=1), chosen)
    kept.commit(made, 1)
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value[2], before[name][2], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(value[:2], before[name][:2], atol=0.02)
