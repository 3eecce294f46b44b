"""Factor analysis of an utterance's frames: one hidden vector moves the means of all classes.

x_t of class k ~ N(mean_k + T_k w, diag(variance_k)), with w ~ N(0, I) shared by all frames of an
utterance (total variability). With hard alignments the posterior of w is Gaussian and known, and
with it the evidence lower bound is the very likelihood: sum_t log N(x_t; mean, variance)
+ b' P^-1 b / 2 - log det P / 2, where P = I + sum_k N_k T_k' V_k^-1 T_k is the posterior's
precision and P^-1 b its mean.

Source: Kenny 2005 and Dehak et al. 2011 (i-vectors); Lin et al. 2023, "Self-supervised Neural
Factor Analysis for Disentangling Utterance-level Speech Representations", section 3.

Shape legend: B utterances, T frames, M chosen frames, K classes, D channels, R factors.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Posterior:
    """What an utterance's frames say of its factors.

    mean: (B, R). precision: (B, R, R) float64. log_likelihood: (B,) nats of all its frames, by all
    channels; of an utterance without frames 0.
    """

    mean: Tensor
    precision: Tensor
    log_likelihood: Tensor


class FactorModel(nn.Module):
    """Means, variances and factor loadings of K classes.

    variance_floor: added to each variance, so that no frame can become infinitely likely.
    learns: by gradients; otherwise what it holds are buffers, which `take` moves.
    """

    means: Tensor
    log_variances: Tensor
    loadings: Tensor

    def __init__(
        self,
        classes: int,
        dim: int,
        factors: int,
        variance_floor: float = 0.01,
        *,
        learns: bool = True,
    ) -> None:
        super().__init__()
        if factors < 1 or variance_floor <= 0:
            raise ValueError(
                f"factors, variance_floor: found {factors} and {variance_floor}, want 1 or more "
                "and more than 0"
            )
        self.variance_floor = variance_floor
        start = {
            "means": torch.zeros(classes, dim),
            "log_variances": torch.zeros(classes, dim),
            # At 0 they would stay there: their gradient is proportional to them.
            "loadings": 0.1 * torch.randn(classes, dim, factors),
        }
        for name, value in start.items():
            if learns:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def variances(self) -> Tensor:
        """(K, D)."""
        return self.log_variances.exp() + self.variance_floor

    @torch.no_grad()
    def take(self, means: Tensor, variances: Tensor, loadings: Tensor) -> None:
        """(K, D), (K, D) of at least the floor, (K, D, R)."""
        self.means.copy_(means)
        # Above the floor by a thousandth of it, so that the logarithm is finite.
        self.log_variances.copy_(
            (variances - self.variance_floor).clamp(min=1e-3 * self.variance_floor).log()
        )
        self.loadings.copy_(loadings)

    def posterior(self, x_BTD: Tensor, classes_BT: Tensor, chosen_BT: Tensor) -> Posterior:
        """Of the chosen frames of each utterance, with their classes; others are not read.

        In the parameters' precision; the posterior's matrices in float64.
        """
        with torch.autocast(x_BTD.device.type, enabled=False):
            return self._posterior(x_BTD[chosen_BT], classes_BT[chosen_BT], chosen_BT)

    def _posterior(self, x_MD: Tensor, class_M: Tensor, chosen_BT: Tensor) -> Posterior:
        batch, (classes, dim, factors) = len(chosen_BT), self.loadings.shape
        row_M = chosen_BT.nonzero()[:, 0]
        variances = self.variances()
        centred = x_MD.to(self.means.dtype) - self.means[class_M]
        square = (centred.square() / variances[class_M]).sum(1)
        constant = dim * math.log(2 * math.pi) + variances.log().sum(1)
        plain = centred.new_zeros(batch).index_add(0, row_M, -0.5 * (square + constant[class_M]))

        place = row_M * classes + class_M
        sums = centred.new_zeros(batch * classes, dim).index_add(0, place, centred)
        counts = torch.bincount(place, minlength=batch * classes).view(batch, classes)
        weighted = self.loadings / variances[..., None]
        pull = sums.view(batch, -1) @ weighted.flatten(0, 1)  # (B, R)
        gram = self.loadings.transpose(1, 2) @ weighted  # (K, R, R)
        added = (counts.to(gram.dtype) @ gram.flatten(1)).view(batch, factors, factors)

        precision = torch.eye(factors, dtype=torch.float64, device=added.device) + added.double()
        lower = torch.linalg.cholesky(precision)
        b = pull.double()[..., None]
        mean = torch.cholesky_solve(b, lower)
        half_log_det = lower.diagonal(dim1=1, dim2=2).log().sum(1)
        gain = 0.5 * (b * mean).sum((1, 2)) - half_log_det
        return Posterior(mean[..., 0].to(plain.dtype), precision, plain + gain.to(plain.dtype))

    def align(self, x_MD: Tensor) -> Tensor:
        """(M, D) frames -> (M,) the class whose Gaussian, without factors, fits each best."""
        with torch.autocast(x_MD.device.type, enabled=False):
            x, inverse = x_MD.to(self.means.dtype), 1 / self.variances()
            # Squares written out: (M, K, D) differences would not fit in memory.
            distance = x.square() @ inverse.T - 2 * x @ (self.means * inverse).T
            constant = (self.means.square() * inverse).sum(1) - inverse.log().sum(1)
            return (distance + constant).argmin(1)

    def embed(self, x_BTD: Tensor, chosen_BT: Tensor) -> Tensor:
        """(B, R) where the chosen frames of utterances, each aligned by itself, are moved to.

        Products of embeddings are those of the posterior means in the metric of what they do to
        frames, T_k' V_k^-1 T_k, mean over classes: factors that hardly move a frame hardly count,
        though they vary as much as others (covariance 1).
        """
        classes = torch.zeros_like(chosen_BT, dtype=torch.int64)
        classes[chosen_BT] = self.align(x_BTD[chosen_BT])
        mean = self.posterior(x_BTD, classes, chosen_BT).mean
        loadings = self.loadings.double()
        metric = (loadings.transpose(1, 2) @ (loadings / self.variances()[..., None])).mean(0)
        # Its triangular root is one; a little more on the diagonal for factors that do nothing.
        metric.diagonal().add_(1e-9 * metric.diagonal().mean() + 1e-12)
        return (mean.double() @ torch.linalg.cholesky(metric)).to(mean.dtype)
