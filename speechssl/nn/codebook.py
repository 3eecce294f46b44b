"""Codebooks that follow their data by moving averages, one per layer.

Source: Liu et al. 2023 (DinoSR), section 3.2; van den Oord et al. 2017 (VQ-VAE), appendix A.1.
Differs: they are committed once per optimiser update from the sums over its micro-batches and
ranks; the official code moves them in every forward pass, so that accumulating gradients changes
them. Sums and counts are buffers, so a checkpoint holds them; there they are entries of a dict.

Shape legend: K codebooks, V codewords, N frames, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.nn.update_sums import UpdateSums


class OnlineCodebooks(nn.Module):
    """K times V codewords: nearest ones are assigned; means of what they got move them.

    A codeword is sums / counts. What it is assigned to until the next commit uses its place of
    before, whatever was seen meanwhile.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, books: int, codes: int, dim: int, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"codebook decay: found {decay}, want 0 or more and less than 1")
        self.decay = decay
        start = torch.randn(books, codes, dim)
        # Each channel to mean 0 and deviation 1, as the features that codewords will follow.
        start = (start - start.mean(1, keepdim=True)) / start.std(1, correction=0, keepdim=True)
        self.register_buffer("sums", start)
        self.register_buffer("counts", torch.ones(books, codes))
        self.pending = UpdateSums(sums=(books, codes, dim), counts=(books, codes))

    def codewords(self) -> Tensor:
        """(K, V, D) float32."""
        return self.sums / self.counts[..., None]

    @torch.no_grad()
    def assign(self, x_KND: Tensor) -> Tensor:
        """(K, N) index of the nearest codeword of each book, by Euclidean distance."""
        with torch.autocast(x_KND.device.type, enabled=False):
            words = self.codewords()
            # The frame's own square is the same for all codewords.
            distance = words.square().sum(-1)[:, None] - 2 * x_KND.float() @ words.transpose(1, 2)
            return distance.argmin(-1)

    @torch.no_grad()
    def collect(self, x_KND: Tensor, codes_KN: Tensor) -> None:
        """Remember, in training mode, which frames took which codeword."""
        with torch.autocast(x_KND.device.type, enabled=False):
            # A product with the one-hot codes: adding by index is not deterministic on a GPU.
            taken = nn.functional.one_hot(codes_KN, self.counts.shape[1]).float()
            self.pending.add(sums=taken.transpose(1, 2) @ x_KND.float(), counts=taken.sum(1))

    @torch.no_grad()
    def commit(self) -> Tensor:
        """Move the codewords that were taken in this update (a collective); (K, V) their counts.

        Those that no frame of any rank took stay as they are.
        """
        update = self.pending.take()
        taken = update["counts"] > 0
        for name, mask in (("sums", taken[..., None]), ("counts", taken)):
            held = getattr(self, name)
            held.copy_(torch.where(mask, held.lerp(update[name], 1 - self.decay), held))
        return update["counts"]
