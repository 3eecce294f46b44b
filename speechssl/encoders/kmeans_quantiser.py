"""The quantiser of vq-wav2vec's k-means variant: nearest codewords, a straight-through gradient.

Shape legend: N frames, C input channels, G groups, V codes per group, D output width, E = D / G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.gumbel import Quantised


class KmeansQuantiser(nn.Module):
    """Each group of channels is projected, normed and takes the nearest of V codewords.

    The gradient of the result passes to the frame as if nothing were quantised, and none of it to
    the codewords, which learn from `Quantised.distances` alone.

    Source: Baevski et al. 2020 (vq-wav2vec), section 3.2; van den Oord et al. 2017 (VQ-VAE);
    fairseq `modules/kmeans_vector_quantizer.py`.
    Differs: norms are over a frame's own channels; the reference norms over channels and time.
    """

    def __init__(self, in_dim: int, dim: int, groups: int, codes: int) -> None:
        super().__init__()
        if in_dim % groups or dim % groups:
            raise ValueError(
                f"quantiser: found widths {in_dim} and {dim}, want multiples of {groups} groups"
            )
        self.groups, self.codes = groups, codes
        width = dim // groups
        self.projection = nn.Parameter(torch.empty(groups, width, in_dim // groups))
        bound = (in_dim // groups) ** -0.5
        nn.init.uniform_(self.projection, -bound, bound)
        self.norm_weight = nn.Parameter(torch.ones(groups, width))
        self.norm_bias = nn.Parameter(torch.zeros(groups, width))
        self.codewords = nn.Parameter(0.01 * torch.randn(groups, codes, width))

    def forward(self, x_NC: Tensor) -> Quantised:
        with torch.autocast(x_NC.device.type, enabled=False):
            x_NGC = x_NC.float().unflatten(-1, (self.groups, -1))
            z_NGE = torch.einsum("ngc,gec->nge", x_NGC, self.projection.float())
            z_NGE = F.layer_norm(z_NGE, z_NGE.shape[-1:])
            z_NGE = z_NGE * self.norm_weight.float() + self.norm_bias.float()
            words = self.codewords.float()
            with torch.no_grad():
                # A frame's own length is the same for all codewords.
                products = torch.einsum("nge,gve->ngv", z_NGE, words)
                codes_NG = (words.square().sum(-1) - 2 * products).argmin(-1)
            chosen = words[torch.arange(self.groups, device=words.device), codes_NG]
            vectors = chosen.detach() + z_NGE - z_NGE.detach()
            distances = torch.stack(
                [
                    (chosen - z_NGE.detach()).square().mean((1, 2)),
                    (z_NGE - chosen.detach()).square().mean((1, 2)),
                ]
            )
        taken = F.one_hot(codes_NG, self.codes).float()
        return Quantised(vectors.flatten(1), codes_NG, taken, distances)
