"""A factor model that follows its frames by expectation maximisation, one small step per update.

The posteriors of an update's utterances give expected sums; moving averages of these sums give
means, loadings and variances in closed form. Gradients need many thousand updates for what this
finds within hundreds, and its pace does not depend on the learning rate of the encoder.

Source: Cappe and Moulines 2009 (online EM), section 2.3; the sums are those of Kenny 2005, with the
means estimated together with the loadings. Behind each step the factors are brought to mean 0 and
covariance 1 (Kenny 2005, minimum divergence), which EM alone reaches slowly.

Shape legend: B utterances, T frames, M chosen frames, K classes, D channels, R factors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechssl.nn.factor_analysis import FactorModel, Posterior
from speechssl.nn.update_sums import UpdateSums

WARMUP = 10
"""The average over updates so far, rather than the slow one, until that has seen as many."""


class FactorStatistics(nn.Module):
    """Expected sums of each class, and the parameters that they make likeliest.

    With v = (1, w): `gram` is the sum over frames of E[v v'], (K, R + 1, R + 1), whose corner is
    the number of frames; `cross` that of x E[v]', (K, D, R + 1); `squares` that of x^2, (K, D).
    `moments` is the sum over utterances of E[v v'], (R + 1, R + 1). They begin as what `model`
    expects of one frame of each class, and of one utterance.
    """

    gram: Tensor
    cross: Tensor
    squares: Tensor
    moments: Tensor

    def __init__(self, model: FactorModel, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"factor decay: found {decay}, want 0 or more and less than 1")
        self.decay = decay
        classes, dim, factors = model.loadings.shape
        shapes = {
            "gram": (classes, factors + 1, factors + 1),
            "cross": (classes, dim, factors + 1),
            "squares": (classes, dim),
            "moments": (factors + 1, factors + 1),
        }
        with torch.no_grad():
            whole = torch.cat([model.means[..., None], model.loadings], -1)
            start = {
                "gram": torch.eye(factors + 1).expand(shapes["gram"]).clone(),
                "cross": whole.clone(),
                "squares": whole.square().sum(-1) + model.variances(),
                "moments": torch.eye(factors + 1),
            }
        for name, value in start.items():
            self.register_buffer(name, value)
        self.pending = UpdateSums(**shapes)

    @torch.no_grad()
    def collect(self, x_BTD: Tensor, classes_BT: Tensor, chosen_BT: Tensor, of: Posterior) -> None:
        """Remember, in training mode, the chosen frames of a batch with their posteriors."""
        if not self.training:
            return
        with torch.autocast(x_BTD.device.type, enabled=False):
            batch, (classes, dim, _) = len(x_BTD), self.cross.shape
            x, row = x_BTD[chosen_BT].float(), chosen_BT.nonzero()[:, 0]
            place = row * classes + classes_BT[chosen_BT]
            counts = torch.bincount(place, minlength=batch * classes).view(batch, classes).float()
            firsts = x.new_zeros(batch * classes, dim).index_add(0, place, x)
            squares = x.new_zeros(classes, dim).index_add(0, place % classes, x.square())
            w = of.mean.detach().double()
            spread = torch.cholesky_inverse(torch.linalg.cholesky(of.precision.detach()))
            one = torch.ones_like(w[:, :1])
            v = torch.cat([one, w], 1)
            outer = v[:, :, None] * v[:, None, :]
            outer[:, 1:, 1:] += spread
            gram = counts.T @ outer.flatten(1).float()
            cross = torch.einsum("bkd,br->kdr", firsts.view(batch, classes, dim), v.float())
            self.pending.add(
                gram=gram.view_as(self.gram),
                cross=cross,
                squares=squares,
                moments=outer[counts.sum(1) > 0].sum(0).float(),
            )

    @torch.no_grad()
    def commit(self, model: FactorModel, step: int) -> None:
        """Behind update number `step`, from 1: move the sums and the model (a collective).

        Classes that no frame of any rank had stay as they are, told in the new factors.
        """
        update = self.pending.take()
        share = 1 - min(self.decay, step / (step + WARMUP))
        moments = update.pop("moments")
        if moments[0, 0] > 0:
            self.moments.lerp_(moments, share)
        taken = update["gram"][:, 0, 0] > 0
        for name, value in update.items():
            held = getattr(self, name)
            mask = taken.view(-1, *[1] * (held.ndim - 1))
            held.copy_(torch.where(mask, held.lerp(value, share), held))
        self._normalise()
        model.take(*self.likeliest(model.variance_floor))

    def _normalise(self) -> None:
        """Express all sums in factors of mean 0 and covariance 1 over utterances."""
        moments = self.moments.double() / self.moments[0, 0]
        mean = moments[1:, :1]
        lower = torch.linalg.cholesky(moments[1:, 1:] - mean @ mean.T)
        turn = torch.eye(len(moments), dtype=torch.float64, device=moments.device)
        turn[1:] = torch.linalg.solve_triangular(
            lower, torch.cat([-mean, turn[1:, 1:]], 1), upper=False
        )
        self.gram.copy_(turn @ self.gram.double() @ turn.T)
        self.cross.copy_(self.cross.double() @ turn.T)
        self.moments.copy_(turn @ self.moments.double() @ turn.T)

    def plain(self, x_BTD: Tensor, floor: float) -> Tensor:
        """(B, T) log-likelihood of frames under one diagonal Gaussian of all classes' frames."""
        number = self.gram[:, 0, 0].sum()
        mean = self.cross[..., 0].sum(0) / number
        variance = (self.squares.sum(0) / number - mean.square()).clamp(min=floor)
        x = x_BTD.to(mean.dtype)
        return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log()).sum(-1)

    def likeliest(self, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Means (K, D), variances (K, D), at least `floor`, and loadings (K, D, R)."""
        gram, cross = self.gram.double(), self.cross.double()
        solved = torch.cholesky_solve(cross.transpose(1, 2), torch.linalg.cholesky(gram))
        whole = solved.transpose(1, 2)
        left = self.squares.double() - (cross * whole).sum(-1)
        variances = (left / gram[:, :1, 0]).clamp(min=floor)
        return whole[..., 0], variances, whole[..., 1:]
