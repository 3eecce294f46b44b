"""Joint counts of labels and phones over cuts, their table and picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl import dist
from speechssl.data.label_store import LabelStore
from speechssl.labels import quality as q
from speechssl.labels.cuts import alignment_of, read_cuts
from speechssl.labels.features import Extractor
from speechssl.labels.kmeans import Assigner, KMeansConfig, fit_kmeans


def alignments(cuts: Sequence[str], name: str) -> Iterator[tuple[Any, list[tuple]]]:
    """(cut, [(start, end, phone)]) of each cut, times from the cut's start; lazily."""
    for cut in read_cuts(cuts):
        yield cut, alignment_of(cut, name)


def measure(
    store: LabelStore, cuts: Sequence[str], alignment: str, rate_hz: float = 0.0
) -> tuple[dict[str, Any], np.ndarray, list[str], np.ndarray]:
    """The report, the joint counts (phones, classes), the phones' names and label counts.

    rate_hz: measure only every n-th label, as an encoder of that rate reads them; 0: all. Labels
    of different rates are comparable only at one.
    """
    rate = rate_hz or store.frame_rate_hz
    step = round(store.frame_rate_hz / rate)
    if step < 1 or step * rate != store.frame_rate_hz:
        raise ValueError(
            f"rate_hz: found {rate_hz:g} with labels at {store.frame_rate_hz:g} per second, want "
            "that rate divided by a whole number"
        )
    window = float(store.meta.get("window_seconds", 0.025))
    phone_table = q.PhoneTable()
    joint = np.zeros((64, store.classes), dtype=np.int64)
    counts, runs = np.zeros((2, store.classes), dtype=np.int64)
    frames = unaligned_cuts = unlabelled = difference = largest = 0
    for cut, items in alignments(cuts, alignment):
        labels = labels_of(store, cut)
        if labels is None:
            unlabelled += 1
            continue
        labels = labels[::step]
        frames += len(labels)
        runs += np.bincount(q.run_values(labels), minlength=store.classes)
        counts += np.bincount(labels, minlength=store.classes)
        if not items:
            unaligned_cuts += 1
            continue
        expected = max(0, int((cut.duration - window) * rate + 1e-6) + 1)
        difference += abs(expected - len(labels))
        largest = max(largest, abs(expected - len(labels)))
        phones = q.phone_frames(phone_table.intervals(items), expected, rate, window)
        if len(phone_table.names) > len(joint):
            joint = np.pad(joint, ((0, len(phone_table.names)), (0, 0)))
        q.add_counts(joint, phones, labels)
    joint = joint[: len(phone_table.names)]
    if not joint.sum():
        raise ValueError(
            f"cuts: found no frame with both a label and a {alignment!r} alignment "
            f"({unlabelled} cuts without labels, {unaligned_cuts} without alignment); give cuts "
            "that were labelled and that have alignments"
        )
    report = {
        "classes": store.classes,
        "frame_rate_hz": rate,
        **q.summary(joint),
        **q.usage(counts),
        "frames": frames,
        "mean_run_length": frames / max(int(runs.sum()), 1),
        "bits_per_second": q.bit_rates(counts, runs, rate),
        "frame_difference": difference,
        "largest_frame_difference": largest,
        "cuts_without_labels": unlabelled,
        "cuts_without_alignment": unaligned_cuts,
        "codebook_hash": store.meta.get("codebook_hash"),
    }
    return report, joint, phone_table.names, counts


def labels_of(store: LabelStore, cut: Any) -> np.ndarray | None:
    """Labels of a cut: by its own id, else its part of its recording's."""
    if cut.id in store:
        return store.frames(cut.id)
    if cut.recording_id not in store:
        return None
    first = round(cut.start * store.frame_rate_hz)
    window = float(store.meta.get("window_seconds", 0.025))
    count = max(0, int((cut.duration - window) * store.frame_rate_hz + 1e-6) + 1)
    return store.frames(cut.recording_id)[first : first + count]


def phone_lookup(
    cuts: Sequence[str], alignment: str, phone_table: q.PhoneTable, extractor: Extractor
) -> Callable[[str, int], np.ndarray]:
    """(id, frames) -> phone numbers. Holds the intervals of all cuts that have an alignment."""
    intervals = {
        cut.id: phone_table.intervals(items) for cut, items in alignments(cuts, alignment) if items
    }
    if not intervals:
        raise ValueError(
            f"cuts: found no {alignment!r} alignment, want cuts with one; the synthetic corpus has"
        )
    rate, window = extractor.frame_rate_hz, extractor.window_seconds
    return lambda name, frames: q.phone_frames(intervals.get(name, ()), frames, rate, window)


def layer_quality(
    sample: Tensor,
    keys: np.ndarray,
    phones: int,
    classes: int,
    seed: int,
    device: torch.device | str,
) -> dict[str, float]:
    """Cluster (N, D + 1) frames, whose last column is the phone, and compare the two."""
    points, column = sample[:, :-1].contiguous(), sample[:, -1].to(torch.int64).numpy()
    config = KMeansConfig(classes=classes, seed=seed, max_iterations=20)
    found = fit_kmeans(points, config, keys=keys, device=device)
    labels = Assigner(found.centroids, device)(points).cpu().numpy()
    joint = np.zeros((phones, classes), dtype=np.int64)
    q.add_counts(joint, column, labels)
    joint = dist.all_reduce_sum(torch.from_numpy(joint).to(device)).cpu().numpy()
    return {**q.summary(joint), "inertia": found.inertia}


def table(report: dict[str, Any]) -> str:
    rows = [
        ("PNMI", f"{report['pnmi']:.4f}"),
        ("phone purity", f"{report['phone_purity']:.4f}"),
        ("cluster purity", f"{report['cluster_purity']:.4f}"),
        ("classes", f"{report['classes']}"),
        ("usage perplexity", f"{report['perplexity']:.1f}"),
        ("empty clusters", f"{report['empty']}"),
        ("mean run length", f"{report['mean_run_length']:.2f} frames"),
        (
            "bits per second",
            "{bits:.1f}, by frequency {coded_bits:.1f}, of runs {collapsed_bits:.1f}".format(
                **report["bits_per_second"]
            ),
        ),
        ("phones", f"{report['phones']}"),
        ("frames", f"{report['frames']}, {report['aligned_frames']} of them in a phone"),
        (
            "frame difference",
            f"{report['frame_difference']} in all, at most {report['largest_frame_difference']}",
        ),
    ]
    if report["cuts_without_labels"] or report["cuts_without_alignment"]:
        rows.append(("cuts without labels", f"{report['cuts_without_labels']}"))
        rows.append(("cuts without phones", f"{report['cuts_without_alignment']}"))
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def picture(path: Path, joint: np.ndarray, names: list[str], counts: np.ndarray) -> Path | None:
    """Usage by rank and p(phone | cluster), clusters ordered by their phone; None: not drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(11, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[1, 3])
    upper.bar(np.arange(len(counts)), np.sort(counts)[::-1] / max(counts.sum(), 1), width=1.0)
    upper.set(xlabel="cluster, by use", ylabel="share of frames", title="Use of the clusters")
    phones = joint.sum(1).argsort()[::-1]
    given = joint[phones] / np.maximum(joint.sum(0), 1)
    order = np.lexsort((-given.max(0), given.argmax(0)))
    image = lower.imshow(given[:, order], aspect="auto", cmap="magma", interpolation="nearest")
    lower.set_yticks(range(len(phones)), [names[i] for i in phones], fontsize=6)
    lower.set(xlabel="cluster, by its commonest phone", title="p(phone | cluster)")
    figure.colorbar(image, ax=lower)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
    return path
