"""`speechssl cluster fit | apply | quality | layers`: k-means pseudo-labels and their quality."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.bin.actions import Action, run_action
from speechssl.labels.config import (
    ApplyConfig,
    FitConfig,
    LayersConfig,
    QualityConfig,
    ReadingConfig,
)

if TYPE_CHECKING:
    import torch

    from speechssl.contract import Encoder
    from speechssl.labels.codebook import Codebook
    from speechssl.labels.features import Extractor
    from speechssl.labels.stream import LabelCounts


def main(argv: list[str] | None = None) -> int:
    actions: dict[str, Action] = {
        "fit": (FitConfig, "sample frames in one pass over the audio and cluster them", fit),
        "apply": (ApplyConfig, "label every frame of some cuts with a fitted codebook", apply),
        "quality": (
            QualityConfig,
            "PNMI, purities and usage of labels against phone alignments",
            quality,
        ),
        "layers": (
            LayersConfig,
            "PNMI of every layer of a model, by a quick k-means on each",
            layers,
        ),
    }
    return run_action("cluster", "K-means pseudo-labels of speech frames.", actions, argv)


def fit(config: FitConfig) -> None:
    """Sample frames, cluster them, save the codebook; a killed fit goes on where it was."""
    from speechssl import dist
    from speechssl.labels import sample_file
    from speechssl.labels.codebook import Codebook, load_codebook, normalised, save_codebook
    from speechssl.labels.kmeans import KMeansConfig, fit_kmeans
    from speechssl.labels.stream import say

    device = dist.init(config.device)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    extractor = _extractor(
        config.features, config.model, config.layer, device, config.bf16, config.cmvn
    )
    identity = _identity(config, extractor)
    if (output / "clusters.json").is_file():
        if load_codebook(output).info.get("fit") != identity:
            raise ValueError(
                f"output: found clusters of other options in {output}, want an empty folder; "
                "choose another, or remove it"
            )
        say(f"{output} holds these clusters already")
        return
    started = time.monotonic()
    points, keys, source = _sample(config, extractor, output, identity)
    sampled = time.monotonic()
    points, normaliser = normalised(points, config.normalise, config.whiten_dim)
    kmeans = KMeansConfig(
        **{
            f.name: getattr(config, f.name)
            for f in dataclasses.fields(KMeansConfig)
            if hasattr(config, f.name)
        }
    )
    starts: list[float] = []

    def log(phase: str, number: int, inertia: float) -> None:
        if phase == "start":
            starts.append(inertia)
        say(f"k-means {phase} {number}: inertia {inertia:.4f}")

    found = fit_kmeans(
        points, kmeans, keys=keys, device=device, state_path=output / "state.npz", log=log
    )
    seconds = {"sample": sampled - started, "cluster": time.monotonic() - sampled}
    if dist.is_main():
        info = {
            "features": dict(extractor.info),
            "frame_rate_hz": extractor.frame_rate_hz,
            "window_seconds": extractor.window_seconds,
            "feature_dim": extractor.dim,
            "model": config.model,
            "seed": config.seed,
            "inertia": found.inertia,
            "data": {"cuts": config.cuts, "frames_clustered": found.points, **source},
            "fit": identity,
        }
        _write_fit_log(output, found, starts, seconds, source)
        save_codebook(output, Codebook(found.centroids, normaliser, info))
        (output / "state.npz").unlink(missing_ok=True)
    sample_file.remove_sample(output)
    say(
        f"{output}: {config.classes} clusters of {found.points} frames (of "
        f"{source['frames_seen']}), inertia {found.inertia:.4f}, "
        f"{seconds['sample']:.1f} s reading, {seconds['cluster']:.1f} s clustering"
    )


def _write_fit_log(
    output: Path, found: Any, starts: list[float], seconds: dict[str, float], source: dict
) -> None:
    from speechssl.labels import quality as q
    from speechssl.labels.sample_file import write_json

    report = {
        "starts": starts,
        "inertia": found.history,
        "counts": found.counts.tolist(),
        **q.usage(found.counts.numpy()),
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        **source,
    }
    write_json(output / "fit.json", report)


def apply(config: ApplyConfig) -> None:
    """Label every frame of the cuts; ids that have labels are kept."""
    from speechssl import dist
    from speechssl.data.label_store import LabelWriter
    from speechssl.labels.codebook import load_codebook
    from speechssl.labels.stream import Progress, say, write_labels

    device = dist.init(config.device)
    codebook = load_codebook(config.clusters)
    features = codebook.info["features"]
    model = config.model or codebook.info.get("model")
    extractor = _extractor(
        features["kind"],
        model,
        features.get("layer"),
        device,
        config.bf16,
        features.get("cmvn", False),
    )
    writer = LabelWriter(config.output, label_meta(codebook, extractor))
    reader = _read(config)
    with Progress("labelling", reader.num_cuts) as progress:
        done = write_labels(reader, extractor, codebook, writer, device, progress)
    writer.finish()
    skipped = _all_skipped(reader)
    report = report_labels(config.output, done, skipped)
    say(
        f"{config.output}: {report['utterances']} utterances, {report['frames']} frames labelled, "
        f"{report['already']} had labels, {len(skipped)} skipped"
    )


def label_meta(codebook: Codebook, extractor: Extractor) -> dict[str, Any]:
    """What a label store says of labels that the codebook gives to these features.

    Raises ValueError if they are not the features that were clustered.
    """
    features = codebook.info["features"]
    if dict(extractor.info) != features:
        raise ValueError(
            f"model: found features {dict(extractor.info)}, want those of the fit: {features}; "
            "the model's weights have changed since"
        )
    rate = extractor.frame_rate_hz
    return {
        "classes": codebook.classes,
        "frame_rate_hz": int(rate) if float(rate).is_integer() else rate,
        "window_seconds": extractor.window_seconds,
        "codebook_hash": codebook.hash,
        "source": features.get("model_hash") or features["kind"],
        "layer": features.get("layer"),
    }


def report_labels(output: str | Path, done: LabelCounts, skipped: list[str]) -> dict[str, Any]:
    """Write apply.json beside the labels: counts over all ranks, and how the classes are used."""
    import numpy as np

    from speechssl import dist
    from speechssl.labels import quality as q
    from speechssl.labels.sample_file import write_json

    parts = dist.gather_objects(done)
    report = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("utterances", "already", "frames", "runs")
    }
    counts = np.sum([part.counts for part in parts], axis=0)
    report |= {"mean_run_length": report["frames"] / max(report["runs"], 1), **q.usage(counts)}
    if dist.is_main():
        write_json(Path(output) / "apply.json", {**report, "skipped": skipped})
    return report


def quality(config: QualityConfig) -> None:
    """Joint counts over the cuts, their measures as JSON and as a table, and a picture."""
    from speechssl.data.label_store import LabelStore
    from speechssl.labels.measure import measure, picture, table
    from speechssl.labels.sample_file import write_json

    store = LabelStore.open(config.labels)
    report, joint, names, counts = measure(store, config.cuts, config.alignment, config.rate_hz)
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    drawn = picture(output.with_suffix(".png"), joint, names, counts)
    write_json(output, {**report, "picture": str(drawn) if drawn else None})
    print(table(report))
    if drawn is None:
        print("No picture: matplotlib is not installed (pip install 'speechssl[report]')")


def layers(config: LayersConfig) -> None:
    """One pass over the audio, one k-means and one PNMI per layer."""
    from speechssl import dist
    from speechssl.labels import quality as q
    from speechssl.labels.features import EncoderFeatures
    from speechssl.labels.measure import layer_quality, phone_lookup
    from speechssl.labels.reservoir import FrameReservoir, rank_capacity
    from speechssl.labels.sample_file import write_json
    from speechssl.labels.stream import Progress, sample_layers, say

    device = dist.init(config.device)
    encoder, info = _open_encoder(config.model)
    numbers = config.layers or list(range(encoder.num_layers + 1))
    extractor = EncoderFeatures(encoder, max(numbers), device=device, bf16=config.bf16, info=info)
    phone_table = q.PhoneTable()
    phones = phone_lookup(config.cuts, config.alignment, phone_table, extractor)
    capacity = rank_capacity(config.sample_frames)
    reservoirs = {n: FrameReservoir(capacity, extractor.dim + 1, seed=config.seed) for n in numbers}
    reader = _read(config)
    with Progress("reading", reader.num_cuts) as progress:
        sample_layers(reader, extractor, reservoirs, phones, progress)
    skipped = _all_skipped(reader)
    rows = []
    for number, reservoir in reservoirs.items():
        points, keys, _ = reservoir.shared_sample(config.sample_frames)
        measured = layer_quality(
            points, keys, len(phone_table.names), config.classes, config.seed, device
        )
        rows.append({"layer": number, **measured})
        say(f"layer {number:>2}: PNMI {measured['pnmi']:.4f}")
    best = max(rows, key=lambda row: row["pnmi"])
    if dist.is_main():
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        result = {"model": config.model, "classes": config.classes, "layers": rows}
        write_json(output, {**result, "best_layer": best["layer"], "skipped": skipped})
    say(f"best layer: {best['layer']} (PNMI {best['pnmi']:.4f})")


def _sample(
    config: FitConfig, extractor: Extractor, output: Path, identity: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """This rank's frames, their keys, and what was read; from disk if a killed fit left them."""
    import torch

    from speechssl import dist
    from speechssl.labels import sample_file
    from speechssl.labels.reservoir import FrameReservoir, rank_capacity
    from speechssl.labels.stream import Progress, sample_frames

    kept = sample_file.load_sample(output, identity)
    if kept is not None:
        return kept
    # The state of an earlier fit belongs to its own sample.
    if dist.is_main():
        (output / "state.npz").unlink(missing_ok=True)
    reservoir = FrameReservoir(
        rank_capacity(config.sample_frames),
        extractor.dim,
        seed=config.seed,
        dtype=torch.float16 if config.half else torch.float32,
    )
    reader = _read(config)
    with Progress("sampling", reader.num_cuts) as progress:
        sample_frames(reader, extractor, reservoir, progress)
    points, keys, seen = reservoir.shared_sample(config.sample_frames)
    source = {"frames_seen": seen, "skipped": _all_skipped(reader)}
    sample_file.save_sample(output, identity, points, keys, source)
    return points, keys, source


def _identity(config: FitConfig, extractor: Extractor) -> dict[str, Any]:
    """What decides the clusters; compared when a fit finds earlier work in its folder."""
    kept = dataclasses.asdict(config)
    for name in ("output", "device", "num_workers", "max_batch_seconds", "model", "cmvn"):
        del kept[name]
    return json.loads(json.dumps({**kept, "extractor": dict(extractor.info)}))


def _extractor(
    kind: str, model: str | None, layer: int | None, device: torch.device, bf16: bool, cmvn: bool
) -> Extractor:
    from speechssl.labels.features import EncoderFeatures, LogMelFeatures, MfccFeatures

    if model is None and kind != "encoder":
        return {"mfcc": MfccFeatures, "logmel": LogMelFeatures}[kind](device, cmvn=cmvn)
    if model is None or layer is None:
        raise ValueError("model: found none, want the model whose layer was clustered")
    encoder, info = _open_encoder(model)
    return EncoderFeatures(encoder, layer, device=device, bf16=bf16, info=info)


def _open_encoder(model: str) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of an own or a public model, and a hash of its weights."""
    from speechssl.hub.load import load
    from speechssl.labels.features import weights_hash

    encoder = load(model).encoder
    return encoder, {"model_hash": weights_hash(encoder)}


def _read(config: ReadingConfig) -> Any:
    """A pass over this rank's share; `.skipped` of it names what could not be read."""
    from speechssl.data.loader import read_all

    return read_all(
        config.cuts,
        max_batch_seconds=config.max_batch_seconds,
        num_workers=config.num_workers,
        max_seconds=config.max_seconds,
    )


def _all_skipped(reader: Any) -> list[str]:
    """Ids that could not be read, over all ranks; named on stderr."""
    from speechssl import dist
    from speechssl.labels.stream import say

    skipped = sorted(str(x) for part in dist.gather_objects(list(reader.skipped)) for x in part)
    if skipped:
        more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        say(f"skipped {len(skipped)} unreadable: {'; '.join(skipped[:10])}{more}")
    return skipped


if __name__ == "__main__":
    sys.exit(main())
