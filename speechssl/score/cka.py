"""How alike two representations of the same frames are: linear CKA, and CCA.

Both are 1 for equal ones and do not change when a representation is shifted, scaled or rotated;
CCA does not under any invertible linear map either.

Shape legend: N points; P and Q widths of two views of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
    N far above P + Q.
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


def _whitener(x: Tensor, epsilon: float) -> Tensor:
    """(P, P) W with (X W)'(X W) / N = 1."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
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
