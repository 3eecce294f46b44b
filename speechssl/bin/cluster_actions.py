"""What `speechssl cluster` does once its options are read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from speechssl import dist
from speechssl.labels import quality as q
from speechssl.labels.codebook import Codebook, fit_normaliser, load_codebook, save_codebook
from speechssl.labels.features import EncoderFeatures, Extractor, LogMelFeatures, MfccFeatures
from speechssl.labels.kmeans import KMeansConfig, fit_kmeans
from speechssl.labels.reservoir import FrameReservoir
from speechssl.labels.stream import sample_frames, sample_layers, write_labels

if TYPE_CHECKING:
    from speechssl.bin.cluster import ApplyConfig, FitConfig, LayersConfig, QualityConfig
    from speechssl.contract import Batch, Encoder


def fit(config: FitConfig) -> int:
    """Sample frames, cluster them, save the codebook; a killed fit goes on where it was."""
    device = dist.init(config.device)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    extractor = _extractor(config.features, config.model, config.layer, device, config.bf16)
    identity = _identity(config, extractor)
    if (output / "clusters.json").is_file():
        if load_codebook(output).info.get("fit") == identity:
            _say(f"{output} holds these clusters already")
            return 0
        raise ValueError(
            f"output: found clusters of other options in {output}, want an empty folder; choose "
            "another, or remove it"
        )
    started = time.monotonic()
    points, keys, source = _sample(config, extractor, output, identity)
    sampled = time.monotonic()
    normaliser = fit_normaliser(points, config.normalise, config.whiten_dim)
    if config.normalise != "none":
        points = torch.cat([normaliser(part) for part in points.split(16384)])
    log = _FitLog()
    kmeans = _kmeans_config(config)
    found = fit_kmeans(
        points, kmeans, keys=keys, device=device, state_path=output / "state.npz", log=log
    )
    seconds = {"sample": sampled - started, "cluster": time.monotonic() - sampled}
    info = {
        "features": dict(extractor.info),
        "frame_rate_hz": extractor.frame_rate_hz,
        "window_seconds": extractor.window_seconds,
        "feature_dim": extractor.dim,
        "seed": config.seed,
        "inertia": found.inertia,
        "data": {"cuts": config.cuts, "frames_clustered": found.points, **source},
        "model": config.model,
        "fit": identity,
    }
    if dist.is_main():
        report = {
            "inertia": found.history,
            "starts": log.starts,
            "counts": found.counts.tolist(),
            "seconds": {k: round(v, 3) for k, v in seconds.items()},
            **q.usage(found.counts.numpy()),
            **source,
        }
        _write_json(output / "fit.json", report)
        save_codebook(output, Codebook(found.centroids, normaliser, info))
    dist.barrier()
    _sample_path(output).unlink(missing_ok=True)
    if dist.is_main():
        for name in ("state.npz", "sample.json"):
            (output / name).unlink(missing_ok=True)
    _say(
        f"{output}: {config.classes} clusters of {found.points} frames "
        f"(of {source['frames_seen']}), inertia {found.inertia:.4f}, "
        f"{seconds['sample']:.1f} s reading, {seconds['cluster']:.1f} s clustering"
    )
    return 0


def apply(config: ApplyConfig) -> int:
    """Label every frame of the cuts; ids that have labels are kept."""
    from speechssl.data.label_store import LabelWriter

    device = dist.init(config.device)
    codebook = load_codebook(config.clusters)
    features = codebook.info["features"]
    model = config.model or codebook.info.get("model")
    extractor = _extractor(features["kind"], model, features.get("layer"), device, config.bf16)
    if dict(extractor.info) != features:
        raise ValueError(
            f"model: found features {dict(extractor.info)}, want those of the fit: {features}; "
            "the model's file has changed since"
        )
    writer = LabelWriter(
        config.output,
        {
            "classes": codebook.classes,
            "frame_rate_hz": _whole(extractor.frame_rate_hz),
            "window_seconds": extractor.window_seconds,
            "codebook_hash": codebook.hash,
            "source": features.get("model_hash") or features["kind"],
            "layer": features.get("layer"),
        },
    )
    reader = _read(config)
    with _Progress("labelling") as progress:
        done = write_labels(reader, extractor, codebook, writer, device, progress)
    writer.finish()
    skipped = _all_skipped(reader)
    parts = dist.gather_objects(done)
    if dist.is_main():
        counts = np.sum([part.counts for part in parts], axis=0)
        frames, runs = sum(p.frames for p in parts), sum(p.runs for p in parts)
        report = {
            "utterances": sum(p.utterances for p in parts),
            "already_labelled": sum(p.already for p in parts),
            "frames": frames,
            "mean_run_length": frames / max(runs, 1),
            **q.usage(counts),
            "skipped": skipped,
        }
        _write_json(Path(config.output) / "apply.json", report)
        _say(
            f"{config.output}: {report['utterances']} utterances, {frames} frames labelled, "
            f"{report['already_labelled']} had labels, {len(skipped)} skipped"
        )
    return 0


def quality(config: QualityConfig) -> int:
    """Joint counts over the cuts, their measures as JSON and as a table, and a picture."""
    from speechssl.bin.cluster_quality import measure, picture, table
    from speechssl.data.label_store import LabelStore

    store = LabelStore.open(config.labels)
    report, joint, names, counts = measure(store, config.cuts, config.alignment)
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    drawn = picture(output.with_suffix(".png"), joint, names, counts)
    _write_json(output, {**report, "picture": str(drawn) if drawn else None})
    print(table(report))
    if drawn is None:
        print("No picture: matplotlib is not installed (pip install 'speechssl[report]')")
    return 0


def layers(config: LayersConfig) -> int:
    """One pass over the audio, one k-means and one PNMI per layer."""
    from speechssl.bin.cluster_quality import phone_lookup

    device = dist.init(config.device)
    encoder, info = _open_encoder(config.model)
    numbers = config.layers or list(range(encoder.num_layers + 1))
    extractor = EncoderFeatures(encoder, max(numbers), device=device, bf16=config.bf16, info=info)
    phone_table = q.PhoneTable()
    phones = phone_lookup(config.cuts, config.alignment, phone_table, extractor)
    capacity = _rank_capacity(config.sample_frames)
    reservoirs = {n: FrameReservoir(capacity, extractor.dim + 1, seed=config.seed) for n in numbers}
    reader = _read(config)
    with _Progress("reading") as progress:
        sample_layers(reader, extractor, reservoirs, phones, progress)
    kmeans = KMeansConfig(classes=config.classes, seed=config.seed, max_iterations=20)
    rows = []
    for number, reservoir in reservoirs.items():
        sample, keys, _ = reservoir.shared_sample(config.sample_frames)
        points, column = sample[:, :-1].contiguous(), sample[:, -1].numpy().astype(np.int32)
        found = fit_kmeans(points, kmeans, keys=keys, device=device)
        labels = Codebook(found.centroids, fit_normaliser(points, "none"), {}).assigner(device)(
            points
        )
        joint = np.zeros((len(phone_table.names), config.classes), dtype=np.int64)
        q.add_counts(joint, column, labels.cpu().numpy())
        joint = dist.all_reduce_sum(torch.from_numpy(joint)).numpy()
        rows.append({"layer": number, **q.summary(joint), "inertia": found.inertia})
        _say(f"layer {number:>2}: PNMI {rows[-1]['pnmi']:.4f}")
    best = max(rows, key=lambda row: row["pnmi"])
    if dist.is_main():
        result = {"model": config.model, "classes": config.classes, "layers": rows}
        result |= {"best_layer": best["layer"], "skipped": _all_skipped(reader)}
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        _write_json(Path(config.output), result)
    else:
        _all_skipped(reader)
    _say(f"best layer: {best['layer']} (PNMI {best['pnmi']:.4f})")
    return 0


def _sample(
    config: FitConfig, extractor: Extractor, output: Path, identity: dict[str, Any]
) -> tuple[Tensor, np.ndarray, dict[str, Any]]:
    """This rank's frames and keys, and what was read; from the files of a killed fit if there.

    The sample is kept on disk (never larger than in memory) until the fit is done, so that a
    restart does not compute features again.
    """
    path, note = _sample_path(output), output / "sample.json"
    wanted = {"fit": identity, "world_size": dist.world_size()}
    kept = json.loads(note.read_text()) if note.is_file() else {}
    if kept.get("for") == wanted:
        with np.load(path, allow_pickle=False) as saved:
            return torch.from_numpy(saved["points"]), saved["keys"], kept["source"]
    # The state of an earlier fit belongs to its own sample.
    if dist.is_main():
        (output / "state.npz").unlink(missing_ok=True)
    dtype = torch.float16 if config.half else torch.float32
    capacity = _rank_capacity(config.sample_frames)
    reservoir = FrameReservoir(capacity, extractor.dim, seed=config.seed, dtype=dtype)
    reader = _read(config)
    with _Progress("sampling") as progress:
        sample_frames(reader, extractor, reservoir, progress)
    points, keys, seen = reservoir.shared_sample(config.sample_frames)
    source = {"frames_seen": seen, "skipped": _all_skipped(reader)}
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, points=points.numpy(), keys=keys)
    os.replace(temporary, path)
    dist.barrier()
    if dist.is_main():
        _write_json(note, {"for": wanted, "source": source})
    dist.barrier()
    return points, keys, source


def _sample_path(output: Path) -> Path:
    return output / f"sample-{dist.rank():05d}.npz"


def _rank_capacity(total: int) -> int:
    """Room per rank: its share and a fifth more, since shares are not equal to the frame."""
    world = dist.world_size()
    return total if world == 1 else min(total, total * 6 // (5 * world) + 4096)


def _kmeans_config(config: FitConfig) -> KMeansConfig:
    return KMeansConfig(
        classes=config.classes,
        seed=config.seed,
        restarts=config.restarts,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
        batch_points=config.batch_points,
    )


def _identity(config: FitConfig, extractor: Extractor) -> dict[str, Any]:
    """What decides the clusters; compared when a fit finds earlier work in its folder."""
    kept = dataclasses.asdict(config)
    for name in ("output", "device", "num_workers", "max_batch_seconds", "model"):
        del kept[name]
    return json.loads(json.dumps({**kept, "extractor": dict(extractor.info)}))


def _extractor(
    kind: str, model: str | None, layer: int | None, device: torch.device, bf16: bool
) -> Extractor:
    if model is None and kind != "encoder":
        return {"mfcc": MfccFeatures, "logmel": LogMelFeatures}[kind](device)
    if model is None or layer is None:
        raise ValueError("model: found none, want the model whose layer was clustered")
    encoder, info = _open_encoder(model)
    return EncoderFeatures(encoder, layer, device=device, bf16=bf16, info=info)


def _open_encoder(model: str) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of an own or a public model, and a hash of its weights."""
    folder = Path(model)
    if (folder / "model.json").is_file() or not (folder / "config.json").is_file():
        from speechssl.model_file import open_model

        encoder = open_model(folder).encoder
    else:
        from speechssl.hub.load import load

        encoder = load(model).encoder
    return encoder, {"model_hash": _weights_hash(encoder)}


def _weights_hash(encoder: Encoder) -> str:
    """Hash of the encoder's tensors alone: the same model exported again keeps its labels."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _read(config: Any) -> Iterable[Batch]:
    from speechssl.data.loader import read_all

    return _KeepIterator(
        read_all(
            config.cuts,
            max_batch_seconds=config.max_batch_seconds,
            num_workers=config.num_workers,
            max_seconds=config.max_seconds,
        )
    )


class _KeepIterator:
    """The reader, whose `.skipped` is complete once it is exhausted."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.reader)


def _all_skipped(reader: Any) -> list[str]:
    """Ids that could not be read, over all ranks; named on stderr by rank 0."""
    skipped = sorted(str(x) for part in dist.gather_objects(list(reader.reader.skipped))
                     for x in part)  # fmt: skip
    if skipped and dist.is_main():
        shown = "; ".join(skipped[:10]) + (f"; and {len(skipped) - 10} more" * (len(skipped) > 10))
        print(f"skipped {len(skipped)} unreadable: {shown}", file=sys.stderr)
    return skipped


class _FitLog:
    """Prints each pass on rank 0, and keeps the starts' inertia."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def __call__(self, phase: str, number: int, inertia: float) -> None:
        if phase == "start":
            self.starts.append(inertia)
        _say(f"k-means {phase} {number}: inertia {inertia:.4f}")


class _Progress:
    """A bar on a terminal; otherwise a line every minute."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds, self.utterances = 0.0, 0

    def __enter__(self) -> _Progress:
        from tqdm import tqdm

        self.started = self.printed = time.monotonic()
        shown = dist.is_main() and sys.stderr.isatty()
        self.bar = tqdm(desc=self.name, unit=" audio s", disable=not shown)
        return self

    def __call__(self, seconds: float, utterances: int) -> None:
        self.seconds += seconds
        self.utterances += utterances
        self.bar.update(round(seconds, 1))
        now = time.monotonic()
        if self.bar.disable and now - self.printed > 60:
            self.printed = now
            self._line(now)

    def _line(self, now: float) -> None:
        rate = self.seconds / max(now - self.started, 1e-9)
        _say(
            f"{self.name}: {self.utterances} utterances, {self.seconds / 3600:.2f} h of audio, "
            f"{rate:.0f} x real time on rank 0"
        )

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self._line(time.monotonic())


def _say(text: str) -> None:
    if dist.is_main():
        print(text, file=sys.stderr, flush=True)


def _whole(rate: float) -> float | int:
    return int(rate) if float(rate).is_integer() else rate


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=True))
    os.replace(temporary, path)
