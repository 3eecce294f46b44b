"""Query by example: spoken queries found in recordings by warping an encoder's frames; no training.

What `tools/query_by_example.py` and tasks of `speechssl suite` with `query` share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def search(
    encoder: Any, layer: int, queries: dict[str, Any], recordings: dict[str, Any],
    cuts: tuple[Sequence[str], Sequence[str]],
) -> tuple[np.ndarray, list[str], list[str]]:  # fmt: skip
    """Scores (N, M) of queries in recordings, by one layer, and the ids of both.

    queries, recordings: ids that count, in their order; those without a frame are left out.
    cuts: manifests of both. Each dimension is brought to mean 0 and variance 1 over all of them.
    """
    import numpy as np
    from tqdm import tqdm

    from speechssl.score.query import match, moments

    found = [features(encoder, layer, paths) for paths in cuts]
    ids = [[i for i in side if i in x]
           for side, x in zip((queries, recordings), found, strict=True)]  # fmt: skip
    mean, deviation = moments([found[side][i] for side in (0, 1) for i in ids[side]])
    # One by one: those of a whole corpus fit into memory once.
    even = [
        [((found[side].pop(i) - mean) / deviation).astype(np.float32) for i in ids[side]]
        for side in (0, 1)
    ]
    scores = [[match(q, x) for x in even[1]] for q in tqdm(even[0], unit="query", disable=None)]
    return np.array(scores), ids[0], ids[1]


def query_figures(
    encoder: Any, layer: int, queries: Sequence[str], recordings: Sequence[str], field: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores, and what results.json holds of them; a recording holds a query of its `field`.

    Raises `ValueError` for a cut without the field, and where no recording holds a query.
    """
    import numpy as np

    from speechssl.data.fields import field_values
    from speechssl.score.query import query_results

    values = [field_values(cuts, field) for cuts in (queries, recordings)]
    scores, ours, theirs = search(encoder, layer, values[0], values[1], (queries, recordings))
    relevant = np.array([[values[0][q] == values[1][x] for x in theirs] for q in ours])
    return scores, query_results(scores, relevant)


def features(encoder: Any, layer: int, cuts: Sequence[str]) -> dict[str, np.ndarray]:
    """Cut id -> (T, D) float32 of those that have a frame."""
    import torch

    from speechssl.bin.decode import long_enough
    from speechssl.data.loader import read_all

    found = {}
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    encoder.eval()
    with torch.inference_mode():
        for batch in read_all(list(cuts), max_batch_seconds=60.0):
            batch = long_enough(batch, encoder, [])
            if not len(batch):
                continue
            moved = batch.to(device)
            out = encoder(moved.wave, moved.wave_lengths, layers=[layer])
            rows = out.aligned(layer).float().cpu().numpy()
            for name, row, length in zip(batch.ids, rows, out.lengths.tolist(), strict=True):
                found[name] = row[:length].copy()
    return found
