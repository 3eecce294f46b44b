"""K-means against scikit-learn's MiniBatchKMeans (fairseq's settings) and faiss, in one run.

    python tools/bench/kmeans.py --data mixture
    python tools/bench/kmeans.py --data real --cuts cuts.jsonl.gz
    python tools/bench/kmeans.py --data real --cuts cuts.jsonl.gz --model DIR --layer 6

Every row clusters the same points; its inertia per point is measured alike, in float64, after the
clock has stopped. Ratios are to scikit-learn; on a machine that does other things too, trust
those of CPU time, with --threads 1.

Data: `mixture` has 400 Gaussian centres (768 dimensions, standard deviation 1.5 about centres of
unit variance), where seeding decides; `real` are MFCC frames stacked to about the same width,
or a layer of a model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from speechssl.labels.kmeans import KMeansConfig, fit_kmeans


def mixture(points: int, dim: int, centres: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(centres, dim, generator=generator)
    labels = torch.randint(centres, (points,), generator=generator)
    out = torch.empty(points, dim)
    for start in range(0, points, 16384):
        noise = torch.randn(len(labels[start : start + 16384]), dim, generator=generator)
        out[start : start + 16384] = means[labels[start : start + 16384]] + 1.5 * noise
    return out.numpy()


def real(options: argparse.Namespace) -> np.ndarray:
    """Frames sampled from `--cuts`: a layer of `--model`, or stacked MFCC."""
    from speechssl.data.loader import read_all
    from speechssl.hub.load import load
    from speechssl.labels.features import EncoderFeatures, MfccFeatures
    from speechssl.labels.reservoir import FrameReservoir

    batches = read_all(options.cuts, max_batch_seconds=100.0)
    stack = 1
    if options.model:
        extractor = EncoderFeatures(load(options.model).encoder, options.layer)
    else:
        extractor = MfccFeatures()
        stack = max(1, round(options.dim / extractor.dim))
    reservoir = FrameReservoir(options.points, extractor.dim * stack, seed=options.seed)
    for batch in batches:
        features = extractor(batch)
        if stack > 1:
            features = [_stacked(frames, stack) for frames in features]
        reservoir.add(batch.ids, features)
    return reservoir.sample()[0].numpy()


def _stacked(frames: torch.Tensor, width: int) -> torch.Tensor:
    """(T, D) -> (T - width + 1, width D): each frame with those behind it."""
    if len(frames) < width:
        return frames.new_zeros(0, frames.shape[1] * width)
    return frames.unfold(0, width, 1).transpose(1, 2).reshape(-1, frames.shape[1] * width)


def ours(x: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    config = KMeansConfig(classes=options.classes, seed=options.seed)
    fit = fit_kmeans(torch.from_numpy(x), config, device=options.device)
    return fit.centroids.numpy()


def sklearn(x: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        n_clusters=options.classes, init="k-means++", n_init=20, batch_size=10000, max_iter=100,
        tol=0.0, max_no_improvement=100, reassignment_ratio=0.0, compute_labels=False,
        random_state=options.seed,
    )  # fmt: skip
    return model.fit(x).cluster_centers_


def faiss(x: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    import faiss as library

    library.omp_set_num_threads(options.threads)
    model = library.Kmeans(
        x.shape[1], options.classes, niter=25, seed=options.seed + 1,
        max_points_per_centroid=len(x), min_points_per_centroid=1,
    )  # fmt: skip
    model.train(x)
    return model.centroids


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    centres = torch.from_numpy(np.asarray(centroids)).double()
    total = 0.0
    for part in torch.from_numpy(x).split(8192):
        part = part.double()
        scores = torch.addmm(centres.square().sum(1), part, centres.T, alpha=-2.0)
        total += float((scores.amin(1) + part.square().sum(1)).sum())
    return total / len(x)


METHODS = {"ours": ours, "sklearn": sklearn, "faiss": faiss}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["mixture", "real"], default="mixture")
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--centres", type=int, default=400, help="of the mixture")
    parser.add_argument("--cuts", nargs="+", help="cuts_*.jsonl.gz for real data")
    parser.add_argument("--model", help="folder of a model; default: stacked MFCC")
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="of ours; the others run on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file for the rows")
    options = parser.parse_args()
    if options.data == "real" and not options.cuts:
        parser.error("--data real: found no --cuts, want cuts of audio to make features of")
    torch.set_num_threads(options.threads)
    from threadpoolctl import threadpool_limits

    x = real(options) if options.data == "real" else mixture(
        options.points, options.dim, options.centres, options.seed
    )  # fmt: skip
    print(f"{options.data}: {x.shape[0]} x {x.shape[1]} into {options.classes}, "
          f"{options.threads} threads", flush=True)  # fmt: skip
    rows = []
    for name in options.methods:
        with threadpool_limits(options.threads):
            started, used = time.perf_counter(), time.process_time()
            centroids = METHODS[name](x, options)
            seconds, cpu = time.perf_counter() - started, time.process_time() - used
        rows.append({"method": name, "seconds": seconds, "cpu_seconds": cpu,
                     "inertia": inertia(x, centroids)})  # fmt: skip
        print(f"  {name:<8} {seconds:8.1f} s, {cpu:8.1f} s of CPU   "
              f"inertia {rows[-1]['inertia']:.3f}", flush=True)  # fmt: skip
    peer = next((row for row in rows if row["method"] == "sklearn"), None)
    if peer:
        print(f"{'method':<9}{'seconds':>9}{'CPU s':>9}{'inertia':>12}"
              f"{'faster':>9}{'CPU ratio':>11}{'inertia ratio':>15}")  # fmt: skip
        for row in rows:
            row["times_faster"] = peer["seconds"] / row["seconds"]
            row["cpu_ratio"] = peer["cpu_seconds"] / row["cpu_seconds"]
            row["inertia_ratio"] = row["inertia"] / peer["inertia"]
            print(f"{row['method']:<9}{row['seconds']:>9.1f}{row['cpu_seconds']:>9.1f}"
                  f"{row['inertia']:>12.3f}{row['times_faster']:>9.2f}{row['cpu_ratio']:>11.2f}"
                  f"{row['inertia_ratio']:>15.5f}")  # fmt: skip
    if options.output:
        result = {"data": options.data, "shape": x.shape, "classes": options.classes,
                  "threads": options.threads, "rows": rows}  # fmt: skip
        Path(options.output).write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
