"""How alike two representations of the same frames are: linear CKA, and CCA.

Both are 1 for equal ones and do not change when a representation is shifted, scaled or rotated;
CCA does not under any invertible linear map either.

Shape legend: N points; P and Q widths of two views of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PARTS = 10
"""Of `heldout_cca`."""
EPSILONS = (1e-8, 1e-6, 1e-4, 1e-2)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of (N, P) and (N, Q): 0 to 1; NaN if one is constant.

    |X'Y|^2 / (|X'X| |Y'Y|) in Frobenius norms, of centred columns, in float64. Biased upwards where
    N is not far above P and Q: for independent views about sqrt(P Q) / N.
    Source: Kornblith et al., 2019, "Similarity of neural network representations revisited",
    section 3.
    Raises ValueError for other shapes, or NaN or infinite values.
    """
    return float(cka_matrix([x, y])[0, 1])


def cka_matrix(views: Sequence[Tensor]) -> Tensor:
    """`linear_cka` of each pair of V views, (N, P_v): (V, V) float64 on the CPU.

    Two views at a time are held in float64.
    """
    norms = []
    for view in views:
        x = _centred(view, len(views[0]))
        norms.append(float(torch.linalg.matrix_norm(x.T @ x)))
    found = torch.eye(len(views), dtype=torch.float64)
    for i, one in enumerate(views):
        found[i, i] = 1.0 if norms[i] else float("nan")
        x = _centred(one, len(one))
        for j in range(i):
            cross = torch.linalg.matrix_norm(x.T @ _centred(views[j], len(one))).square()
            product = norms[i] * norms[j]
            found[i, j] = found[j, i] = float(cross) / product if product else float("nan")
    return found


def cca(x: Tensor, y: Tensor, epsilon: float = 1e-8) -> tuple[Tensor, float]:
    """Canonical correlations (min(P, Q),), falling, and their projection-weighted mean.

    epsilon: added to the covariances' eigenvalues, as a share of the largest; what has less
    variance counts for little. Measured on the points that the directions were found on: take
    N far above P + Q, or `heldout_cca`.
    Source: Morcos et al., 2018, "Insights on representational similarity in neural networks with
    canonical correlation", section 2: direction i weighs sum_j |<h_i, x_j>|, h_i the canonical
    variable of X, x_j its columns.
    Raises ValueError as `linear_cka`.
    """
    x, y = _centred(x, len(x)), _centred(y, len(x))
    if not (bool(x.any()) and bool(y.any())):
        nothing = torch.full((min(x.shape[1], y.shape[1]),), float("nan"), dtype=torch.float64)
        return nothing, float("nan")
    left, right = _whitener(x, epsilon), _whitener(y, epsilon)
    cross = left.T @ (x.T @ y / len(x)) @ right
    turn, correlations, _ = torch.linalg.svd(cross, full_matrices=False)
    variables = x @ (left @ turn)
    weights = (variables.T @ x).abs().sum(1)
    correlations = correlations.clamp(max=1.0)
    mean = (weights * correlations).sum() / weights.sum()
    return correlations.cpu(), float(mean)


def heldout_cca(
    x: Tensor,
    y: Tensor,
    parts: Tensor,
    *,
    trials: int = 3,
    epsilons: Sequence[float] = EPSILONS,
) -> float:
    """Projection-weighted mean of canonical correlations on points that took no part in finding
    the directions: about 0 for independent views, however wide they are.

    parts: (N,) from 0 to `PARTS` - 1. In each trial one part tests, the next chooses epsilon, and
    the others find directions and weights as `cca` does; the mean over trials is returned. A
    direction that is constant on the test part correlates with nothing. NaN for a constant view.
    Source: Pasad, Chou, Livescu, 2021, "Layer-wise analysis of a self-supervised speech
    representation model", section 3: ten parts, eight, one and one. Differs: both epsilons are
    equal, and shares of the largest eigenvalue.
    Raises ValueError as `linear_cka`, and for a part without points.
    """
    counts = torch.bincount(parts, minlength=PARTS)
    if len(parts) != len(x) or len(counts) != PARTS or int(counts.min()) == 0:
        raise ValueError(
            f"parts: found {len(parts)} with {counts.tolist()} points, want {len(x)} from 0 to "
            f"{PARTS - 1}, some of each"
        )
    x, y = _centred(x, len(x)), _centred(y, len(x))
    if not (bool(x.any()) and bool(y.any())):
        return float("nan")
    found = []
    for trial in range(trials):
        test, dev = (parts == (trial + i) % PARTS for i in (0, 1))
        train = ~(test | dev)
        views = [_centred(v[train], int(train.sum())) for v in (x, y)]
        if not all(bool(v.any()) for v in views):
            continue
        spectra = [torch.linalg.eigh(v.T @ v / len(v)) for v in views]
        best: tuple[float, float] | None = None
        for epsilon in epsilons:
            left, right = (_whitening(*spectrum, epsilon) for spectrum in spectra)
            cross = left.T @ (views[0].T @ views[1] / len(views[0])) @ right
            one, _, two = torch.linalg.svd(cross, full_matrices=False)
            left, right = left @ one, right @ two.T
            weights = ((views[0] @ left).T @ views[0]).abs().sum(1)
            chosen, scored = (
                _weighted_correlation(x[where] @ left, y[where] @ right, weights)
                for where in (dev, test)
            )
            if best is None or chosen > best[0]:
                best = chosen, scored
        assert best is not None
        found.append(best[1])
    return sum(found) / len(found) if found else float("nan")


def _weighted_correlation(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Pearson's correlation of each column of (N, K) and (N, K), and its weighted mean."""
    x, y = x - x.mean(0), y - y.mean(0)
    norms = x.norm(dim=0) * y.norm(dim=0)
    each = torch.where(norms > 0, (x * y).sum(0) / norms.clamp(min=1e-300), 0.0)
    return float((weights * each).sum() / weights.sum())


def _whitener(x: Tensor, epsilon: float) -> Tensor:
    """(P, P) W with (X W)'(X W) / N = 1."""
    return _whitening(*torch.linalg.eigh(x.T @ x / len(x)), epsilon)


def _whitening(values: Tensor, vectors: Tensor, epsilon: float) -> Tensor:
    return vectors * (values.clamp(min=0) + epsilon * values[-1]).rsqrt()


def _centred(view: Tensor, count: int) -> Tensor:
    if view.ndim != 2 or 0 in view.shape or len(view) != count:
        raise ValueError(
            f"views: found shape {tuple(view.shape)}, want ({count}, width), of the same points"
        )
    view = view.double()
    if not bool(view.isfinite().all()):
        raise ValueError("views: found NaN or infinity, want finite features")
    centred = view - view.mean(0)
    # What rounding leaves of a constant column is no variance.
    return centred.where(centred.abs().amax(0) > 1e-12 * view.abs().amax(0), 0.0)
