"""The factor model against the joint Gaussian of all frames, in float64, and against the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechssl.nn.factor_analysis import FactorModel


def model(classes: int = 3, dim: int = 4, factors: int = 2, seed: int = 0) -> FactorModel:
    torch.manual_seed(seed)
    made = FactorModel(classes, dim, factors).double()
    with torch.no_grad():
        made.means.copy_(2 * torch.randn(classes, dim))
        made.log_variances.copy_(0.5 * torch.randn(classes, dim))
        made.loadings.copy_(torch.randn(classes, dim, factors))
    return made


def frames(many: int = 2, size: int = 5, classes: int = 3, dim: int = 4) -> tuple[Tensor, ...]:
    """Random frames with classes, the last two of the first utterance not chosen."""
    torch.manual_seed(5)
    x = torch.randn(many, size, dim, dtype=torch.float64)
    chosen = torch.ones(many, size, dtype=torch.bool)
    chosen[0, -2:] = False
    return x, torch.randint(classes, (many, size)), chosen


def joint(made: FactorModel, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (T D,) and covariance of the frames of one utterance, side by side."""
    stacked = made.loadings[classes].flatten(0, 1)
    covariance = stacked @ stacked.T + torch.diag(made.variances()[classes].flatten())
    return made.means[classes].flatten(), covariance


def test_likelihood_and_posterior_equal_those_of_the_joint_gaussian() -> None:
    made = model()
    x, classes, chosen = frames()
    found = made.posterior(x, classes, chosen)
    for row in range(2):
        own = classes[row][chosen[row]]
        mean, covariance = joint(made, own)
        given = x[row][chosen[row]].flatten() - mean
        wanted = torch.distributions.MultivariateNormal(
            torch.zeros_like(mean), covariance
        ).log_prob(given)
        assert found.log_likelihood[row].item() == pytest.approx(wanted.item(), rel=1e-10)
        # w given x of their joint Gaussian, whose cross-covariance is the loadings.
        cross = made.loadings[own].flatten(0, 1)
        solved = torch.linalg.solve(covariance, torch.cat([given[:, None], cross], 1))
        assert torch.allclose(found.mean[row], cross.T @ solved[:, 0])
        left = torch.eye(2, dtype=torch.float64) - cross.T @ solved[:, 1:]
        assert torch.allclose(torch.linalg.inv(found.precision[row]), left)


def test_it_equals_the_evidence_lower_bound_of_its_posterior() -> None:
    """Expected log-likelihood less the divergence from the prior, written out."""
    made = model()
    x, classes, chosen = frames()
    found = made.posterior(x, classes, chosen)
    for row in range(2):
        mean, covariance = found.mean[row], torch.linalg.inv(found.precision[row])
        expected = torch.zeros((), dtype=torch.float64)
        for t in torch.nonzero(chosen[row])[:, 0].tolist():
            k = int(classes[row, t])
            variance, loading = made.variances()[k], made.loadings[k]
            off = x[row, t] - made.means[k] - loading @ mean
            spread = (loading @ covariance @ loading.T).diagonal()
            terms = (2 * math.pi * variance).log() + (off.square() + spread) / variance
            expected = expected - 0.5 * terms.sum()
        apart = 0.5 * (covariance.trace() + mean @ mean - 2 - covariance.logdet())
        wanted = (expected - apart).item()
        assert found.log_likelihood[row].item() == pytest.approx(wanted, rel=1e-10)


def test_without_loadings_factors_are_0_and_frames_are_independent_gaussians() -> None:
    made = model()
    with torch.no_grad():
        made.loadings.zero_()
    x, classes, chosen = frames()
    found = made.posterior(x, classes, chosen)
    assert not found.mean.any()
    each = torch.distributions.Normal(made.means[classes], made.variances()[classes].sqrt())
    wanted = (each.log_prob(x).sum(-1) * chosen).sum(1)
    assert torch.allclose(found.log_likelihood, wanted, rtol=1e-12)


def test_the_order_of_frames_and_what_is_not_chosen_do_not_matter() -> None:
    made = model()
    x, classes, chosen = frames()
    found = made.posterior(x, classes, chosen)
    order = torch.randperm(5)
    mixed = made.posterior(x[:, order], classes[:, order], chosen[:, order])
    assert torch.allclose(found.mean, mixed.mean)
    assert torch.allclose(found.log_likelihood, mixed.log_likelihood)
    broken, ignored = x.clone(), classes.clone()
    broken[0, -2:], ignored[0, -2:] = torch.nan, -100
    same = made.posterior(broken, ignored, chosen)
    assert torch.equal(found.mean, same.mean)
    alone = made.posterior(x[:1, :3], classes[:1, :3], chosen[:1, :3])
    assert torch.allclose(found.mean[:1], alone.mean, rtol=1e-12)


def test_an_utterance_without_frames_has_the_priors_mean_and_no_likelihood() -> None:
    x, classes, chosen = frames()
    chosen[1] = False
    found = model().posterior(x, classes, chosen)
    assert not found.mean[1].any() and found.log_likelihood[1] == 0


def spoken(truth: FactorModel, many: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Frames of the model itself: x (B, T, D), classes (B, T), and the factors (B, R)."""
    random = torch.Generator().manual_seed(8)
    classes, dim, factors = truth.loadings.shape
    w = torch.randn(many, factors, generator=random, dtype=torch.float64)
    k = torch.randint(classes, (many, size), generator=random)
    noise = torch.randn(many, size, dim, generator=random, dtype=torch.float64)
    with torch.no_grad():
        moved = torch.einsum("btdr,br->btd", truth.loadings[k], w)
        return truth.means[k] + moved + truth.variances()[k].sqrt() * noise, k, w


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, -1)


def test_known_loadings_give_the_factors_back() -> None:
    truth = model(classes=5, dim=8, factors=3)
    x, classes, w = spoken(truth, 50, 60)
    with torch.no_grad():
        found = truth.posterior(x, classes, torch.ones_like(classes, dtype=torch.bool)).mean
    near = cosines(found, w)
    # A vector near 0 has no direction to find.
    assert near.mean() > 0.95 and near[w.norm(dim=-1) > 0.5].min() > 0.95


def test_learnt_loadings_give_the_factors_back_up_to_a_rotation() -> None:
    truth = model(classes=4, dim=6, factors=2, seed=3)
    x, classes, w = spoken(truth, 150, 30)
    torch.manual_seed(9)
    learnt, every = FactorModel(4, 6, 2).double(), torch.ones_like(classes, dtype=torch.bool)
    optimiser = torch.optim.LBFGS(
        learnt.parameters(), max_iter=150, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        nats = -learnt.posterior(x, classes, every).log_likelihood.mean()
        nats.backward()
        return nats

    optimiser.step(loss)
    with torch.no_grad():
        best = -truth.posterior(x, classes, every).log_likelihood.mean()
        found = learnt.posterior(x, classes, every).mean
    assert loss().item() < best.item()  # the truth is not the likeliest of 150 utterances
    u, _, v = torch.linalg.svd(found.T @ w)
    assert cosines(found @ (u @ v), w).mean() > 0.95


def test_frames_are_aligned_with_their_likeliest_gaussian() -> None:
    made = model()
    x = 3 * torch.randn(40, 4, dtype=torch.float64)
    each = torch.distributions.Normal(made.means, made.variances().sqrt())
    wanted = each.log_prob(x[:, None]).sum(-1).argmax(1)
    assert len(wanted.unique()) == 3
    assert torch.equal(made.align(x), wanted)
    x, _, chosen = frames()
    units = torch.zeros_like(chosen, dtype=torch.int64)
    units[chosen] = made.align(x[chosen])
    # Embeddings are compared by how far, in deviations, they move the frames of a class.
    embedded, mean = made.embed(x, chosen), made.posterior(x, units, chosen).mean
    moved = torch.einsum("kdr,br->bkd", made.loadings, mean) / made.variances().sqrt()
    products = torch.einsum("bkd,ckd->bc", moved, moved) / len(made.loadings)
    assert torch.allclose(embedded @ embedded.T, products)


def test_gradients_are_those_of_finite_differences() -> None:
    made = model()
    x, classes, chosen = frames()
    x.requires_grad_(True)

    def likelihood(*values: Tensor) -> Tensor:
        parameters = dict(zip(("means", "log_variances", "loadings"), values[1:], strict=True))
        given = (values[0], classes, chosen)
        return torch.func.functional_call(Both(made), {f"made.{k}": v for k, v in
                                                       parameters.items()}, given)  # fmt: skip

    values = (x, made.means, made.log_variances, made.loadings)
    assert torch.autograd.gradcheck(likelihood, values)


class Both(torch.nn.Module):
    def __init__(self, made: FactorModel) -> None:
        super().__init__()
        self.made = made

    def forward(self, *given: Tensor) -> Tensor:
        found = self.made.posterior(*given)
        return torch.cat([found.log_likelihood, found.mean.flatten()])


def test_float32_of_published_size_is_near_float64() -> None:
    torch.manual_seed(2)
    made = FactorModel(20, 64, 16)
    x = torch.nn.functional.layer_norm(torch.randn(2, 300, 64), (64,))
    classes, chosen = torch.randint(20, (2, 300)), torch.ones(2, 300, dtype=torch.bool)
    rough = made.posterior(x, classes, chosen)
    exact = made.double().posterior(x.double(), classes, chosen)
    assert torch.allclose(rough.mean.double(), exact.mean, atol=1e-4)
    assert torch.allclose(rough.log_likelihood.double(), exact.log_likelihood, rtol=1e-5)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"found 0 and 0\.01"):
        FactorModel(3, 4, 0)
    with pytest.raises(ValueError, match="found 2 and 0"):
        FactorModel(3, 4, 2, 0.0)
