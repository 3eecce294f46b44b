"""How many dimensions features use: RankMe and the effective rank of their covariance.

Neither needs labels. Both depend on the number of points and are not comparable across widths;
take a fixed number, 10 per dimension or more.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rankme(points: Tensor) -> float:
    """exp H(p), p the singular values of (N, D) points divided by their sum; from 1 to min(N, D).

    The points are not centred: a common offset is one strong direction. 0 if all are zero.
    Source: Garrido et al., 2023, "RankMe", section 3. Differs: in float64, so that no epsilon has
    to be added to p; its sum over D dimensions would count as rank.
    Raises ValueError for anything but finite (N, D) with N and D at least 1.
    """
    return _exp_entropy(torch.linalg.svdvals(_checked(points)))


def effective_rank(points: Tensor) -> float:
    """exp H(p), p the eigenvalues of the covariance of (N, D) points divided by their sum.

    Directions count by the variance that they carry, so that a collapse of dimensions shows
    early; an offset does not count. 0 if all points are equal.
    Source: Roy and Vetterli, 2007, "The effective rank", definition 1, of the covariance.
    Raises ValueError as `rankme`.
    """
    points = _checked(points)
    centred = points - points.mean(0)
    # What rounding leaves of equal points is no direction.
    if centred.abs().max() <= 1e-12 * points.abs().max():
        return 0.0
    return _exp_entropy(torch.linalg.svdvals(centred).square())


def _exp_entropy(values: Tensor) -> float:
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def _checked(points: Tensor) -> Tensor:
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"points: found shape {tuple(points.shape)}, want (N, D), at least (1, 1)")
    points = points.double()
    if not bool(points.isfinite().all()):
        raise ValueError("points: found NaN or infinity, want finite features")
    return points
