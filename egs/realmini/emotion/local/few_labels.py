"""How well a linear classifier does with few labels on embeddings: UAR, of each view and of all.

    python local/few_labels.py --train exp/views/train --test exp/views/test --views 2

Both folders are of `speechssl decode` with a head that embeds. Of each class, so many utterances
are drawn; the mean and the deviation over draws are printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from speechssl.score.probe import fit_logistic, standardised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--views", type=int, default=1, help="parts of equal width of each vector")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--l2", type=float, default=0.01)
    options = parser.parse_args()
    (x, names), (y, refs) = read(options.train), read(options.test)
    classes = sorted(set(names))
    if set(refs) - set(classes) or x.shape[1] % options.views:
        raise SystemExit(
            f"found classes {sorted(set(refs))} and vectors of {x.shape[1]}, want some of {classes}"
            f" and {options.views} equal parts"
        )
    least = min(names.count(name) for name in classes)
    counts = [n for n in options.counts if n <= least]
    if not counts:
        raise SystemExit(
            f"--counts: found {options.counts}, want {least} or less, the rarest class"
        )
    labels, wanted = (np.array([classes.index(n) for n in found]) for found in (names, refs))
    width = x.shape[1] // options.views
    parts = {f"view {v + 1}": slice(v * width, (v + 1) * width) for v in range(options.views)}
    if options.views > 1:
        parts["all"] = slice(None)
    print(f"{len(y)} utterances, {len(classes)} classes; chance {1 / len(classes):.3f}")
    print(f"{'labels of each':>14} " + " ".join(f"{n:>13}" for n in counts))
    for name, columns in parts.items():
        cells = []
        for count in counts:
            found = [
                recall(x[:, columns], labels, y[:, columns], wanted, count, seed, options.l2)
                for seed in range(options.draws)
            ]
            cells.append(f"{np.mean(found):.3f} ± {np.std(found):.3f}")
        print(f"{name:>14} " + " ".join(cells))


def read(folder: Path) -> tuple[np.ndarray, list[str]]:
    """(U, D) embeddings and the class of each; those without one are left out."""
    lines = (folder / "embeddings.jsonl").read_text().splitlines()
    refs = [json.loads(line)["ref"] for line in lines]
    kept = [i for i, ref in enumerate(refs) if ref is not None]
    return np.load(folder / "embeddings.npy")[kept], [str(refs[i]) for i in kept]


def recall(
    x: np.ndarray, labels: np.ndarray, y: np.ndarray, wanted: np.ndarray, count: int, seed: int,
    l2: float,
) -> float:  # fmt: skip
    """UAR on y of a classifier trained on `count` utterances of each class of x."""
    random = np.random.default_rng(seed)
    chosen = np.concatenate(
        [random.permutation(np.flatnonzero(labels == c))[:count] for c in np.unique(labels)]
    )
    points = torch.from_numpy(np.concatenate([x[chosen], y]))
    points = standardised(points, torch.arange(len(points)) < len(chosen))
    classes = int(labels.max()) + 1
    known = torch.from_numpy(labels[chosen])
    weights = fit_logistic(points[: len(chosen)], known, classes, l2)
    scores = points[len(chosen) :] @ weights[:, :-1].T + weights[:, -1]
    right = scores.argmax(1).numpy() == wanted
    return float(np.mean([right[wanted == c].mean() for c in np.unique(wanted)]))


if __name__ == "__main__":
    main()
