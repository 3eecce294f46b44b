"""Matryoshka heads: the first channels of a vector alone have to do what all of them do.

The losses of several prefixes of a vector are added, each through the same output, of which it
sees as many inputs. Then any of these prefixes can stand for the vector, with nothing trained
anew: small embeddings for many comparisons, say, and the whole ones for few.
Source: Kusupati et al. 2022, "Matryoshka Representation Learning", equation 1, with all weights 1,
and the tied outputs of its section 3 (MRL-E): no parameter is added.

Shape legend: B utterances, D width, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def nested_widths(prefixes: Sequence[int], dim: int) -> list[int]:
    """The widths of which losses are added, `dim` itself last.

    Raises `ValueError` for prefixes that do not grow, or not from 1 to below `dim`.
    """
    widths = [*prefixes, dim]
    if widths[0] < 1 or any(a >= b for a, b in itertools.pairwise(widths)):
        raise ValueError(
            f"prefixes: found {list(prefixes)} of a vector of {dim}, want widths that grow, each "
            f"from 1 to {dim - 1}, such as {[n for n in (dim // 16, dim // 4, dim // 2) if n]}"
        )
    return widths


def narrowed(output: nn.Linear, vectors: Tensor, width: int) -> Tensor:
    """(B, D) -> (B, C): what `output` says of the first `width` channels."""
    if width == output.in_features:
        return output(vectors)
    return F.linear(vectors[:, :width], output.weight[:, :width], output.bias)
