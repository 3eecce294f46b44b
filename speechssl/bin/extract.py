"""`speechssl extract`: frame features of any layer, utterance vectors or units, for any audio."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

from speechssl.config import parse

DESCRIPTION = """Write frame features of chosen layers, for any audio; or one vector per utterance
(--pool), or the unit of each frame (--clusters).

Frame t is computed from samples [320 t, 320 t + 400) at 16 kHz. As .npy: one file (frames, width)
per utterance and layer, and index.jsonl. Run again with the same output, it continues, and the
files are those of a run without a break; started by torchrun, its processes share the work. Audio
that cannot be read, or is shorter than a frame, is left out and listed in skipped.txt. Hours of one
recording need no more memory than minutes."""

UNIT_FORMATS = ("labels", "jsonl")


# No TYPE_CHECKING imports in this file: jsonargparse runs them, and --help would load torch.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    model: str
    """Folder of an own or a transformers model, or a public model's name in the local cache."""
    output: str
    """Folder for the features."""
    cuts: list[str] = dataclasses.field(default_factory=list)
    """Cuts to read: cuts_*.jsonl.gz files or Shar folders, as '[a,b]'."""
    audio: list[str] = dataclasses.field(default_factory=list)
    """Audio to read instead: files, folders or globs, as '[a,b]'; the path becomes the id."""
    layers: list[int] | None = None
    """Layers, as '[6,9]': 0 is the transformer's input, -1 the last layer; default all."""
    pool: Literal["none", "mean", "mean_std"] = "none"
    """One vector per utterance instead of frames: their mean, or mean and standard deviation."""
    clusters: str | None = None
    """Folder of `speechssl cluster fit`: write only the unit of each frame of its layer. Up to
    chunk_seconds, these are the labels that `speechssl cluster apply` gives."""
    format: Literal["npy", "hdf5", "shar", "labels", "jsonl"] | None = None
    """npy (the default); hdf5, which also gathers everything in features.h5 at the end (needs
    h5py); shar, which lhotse.CutSet.from_shar reads. With clusters: labels (the default), a label
    store for pretraining; or jsonl, one line per utterance."""
    shard_size: int | None = None
    """Cuts per shard of shar, 1000 by default; a process takes whole shards."""
    dtype: Literal["float32", "float16"] = "float32"
    """How numbers are stored."""
    batch_seconds: float | None = None
    """Audio seconds, padding included, that are computed at once; sets the memory. Default: as is
    fast on the device."""
    chunk_seconds: float | None = None
    """Longer utterances are computed in windows of this length; default 40, with clusters 100."""
    overlap_seconds: float = 4.0
    """Context dropped at each inner border of such a window."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    bf16: bool = False
    """Compute in bfloat16 mixed precision: faster on hardware that has it, slightly different."""
    readers: int = 2
    """Threads that read and resample audio."""

    def __post_init__(self) -> None:
        if bool(self.cuts) == bool(self.audio):
            raise ValueError(
                f"cuts, audio: found {'both' if self.cuts else 'neither'}, want one of them: "
                "--cuts cuts.jsonl.gz, or --audio '[folder]'"
            )
        if self.shard_size is not None and self.format != "shar":
            raise ValueError(
                f"shard_size: found {self.shard_size} without format shar, want --format shar, or "
                "no shard_size"
            )
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"shard_size: found {self.shard_size}, want 1 or more")
        if self.clusters is None:
            if self.format in UNIT_FORMATS:
                raise ValueError(
                    f"format: found {self.format} without clusters, want the folder of `speechssl "
                    "cluster fit` as --clusters, or the format npy, hdf5 or shar"
                )
            return
        if self.format is not None and self.format not in UNIT_FORMATS:
            raise ValueError(
                f"format: found {self.format} with clusters, want labels or jsonl: units are "
                "written, no features"
            )
        for name, found, plain in (("pool", self.pool, "none"), ("dtype", self.dtype, "float32")):
            if found != plain:
                raise ValueError(
                    f"{name}: found {found} with clusters, want none given: units are integers, "
                    "one per frame"
                )
        if self.layers is not None and len(self.layers) != 1:
            raise ValueError(
                f"layers: found {self.layers} with clusters, want none given, or the one layer "
                "that was clustered"
            )


def main(argv: list[str] | None = None) -> int:
    options = parse(ExtractOptions, argv, prog="speechssl extract", description=DESCRIPTION)
    from speechssl import dist

    try:
        code = run(options)
        dist.barrier()  # a rank that leaves early would take the others' connection with it
        return code
    except ValueError as error:
        print(f"speechssl extract: error: {error}", file=sys.stderr)
        return 2
    finally:
        dist.shutdown()


def run(options: ExtractOptions) -> int:
    """Extract all that is not there yet; 1 if nothing at all could be extracted."""
    import torch

    from speechssl import dist, load
    from speechssl.hub.extract import Plan
    from speechssl.hub.store import require_h5py, write_hdf5

    device = dist.init(options.device)
    given = {} if options.batch_seconds is None else {"batch_seconds": options.batch_seconds}
    plan = Plan(
        **given,
        chunk_seconds=_chunk_seconds(options),
        overlap_seconds=options.overlap_seconds,
        readers=options.readers,
        # Without order, a kill loses no more than the open batch.
        in_order=options.format == "shar",
    )
    if options.format == "hdf5":
        require_h5py()
    items = _items(options)
    model = load(options.model, device)
    model.to(dtype=torch.bfloat16 if options.bf16 else torch.float32)
    work = _units(options, model, device) if options.clusters else _features(options, model)
    before = len(work.store)
    if before and dist.is_main():
        print(f"{before} of {len(items)} are there already", flush=True)
    with Progress(len(items), before) as progress:
        for share in work.store.shares(items):
            stream = model.extract_iter(
                share, work.layers, on_error=work.store.fault, **dataclasses.asdict(plan)
            )
            for features in stream:
                work.store.add(features)
                progress(features.seconds, features.num_frames)
    here = (progress.audio, progress.frames, len(work.store) - before, progress.passed)
    skipped = work.store.finish()
    totals = dist.gather_objects(here)
    if work.report is not None:
        work.report(sorted(f"{k}: {v.removeprefix(f'{k}: ')}" for k, v in skipped.items()))
    if not dist.is_main():
        return 0
    seconds, frames, count = (sum(t[i] for t in totals) for i in range(3))
    passed = max(t[3] for t in totals)
    list_skipped(Path(options.output), skipped)
    if options.format == "hdf5":
        print(f"{write_hdf5(options.output, Path(options.output) / 'features.h5')} in features.h5")
    print(
        f"{count} utterances, {seconds:.1f} s of audio, {frames} frames per layer, "
        f"{work.what} -> {options.output}"
    )
    if seconds:
        rate = seconds / passed
        print(f"{passed:.1f} s: {rate:.1f} hours of audio per hour, RTF {1 / rate:.4f}")
    return 0 if before + count else 1


@dataclasses.dataclass(frozen=True)
class Work:
    """store: what is written. report: called with what was left out, at the end, on every rank."""

    store: Any
    layers: list[int]
    what: str
    report: Any = None


def _features(options: ExtractOptions, model: Any) -> Work:
    from speechssl import dist
    from speechssl.hub.shar import SharWriter
    from speechssl.hub.store import FeatureWriter

    layers = list(model.resolve_layers(options.layers))
    meta = _meta(options, model, layers)
    part = dist.rank() if dist.world_size() > 1 else None

    def make() -> Any:
        if options.format == "shar":
            size = 1000 if options.shard_size is None else options.shard_size
            return SharWriter(options.output, meta, options.dtype, size, options.pool)
        return FeatureWriter(options.output, meta, options.dtype, part, options.pool)

    return Work(_main_first(make), layers, f"{len(layers)} layers")


def _units(options: ExtractOptions, model: Any, device: Any) -> Work:
    import torch

    from speechssl import dist
    from speechssl.bin.cluster import label_meta, report_labels
    from speechssl.hub.units import UnitFile, UnitLabels
    from speechssl.labels.codebook import load_codebook
    from speechssl.labels.features import EncoderFeatures, weights_hash
    from speechssl.labels.stream import LabelCounts

    codebook = load_codebook(str(options.clusters))
    layer = _clustered_layer(options, codebook.info["features"], model)
    info = {"model_hash": weights_hash(model.encoder)}
    features: Any = EncoderFeatures(model.encoder, layer, device=device, info=info)
    meta = label_meta(codebook, features)
    assign = codebook.assigner(device)
    counts = LabelCounts(counts=torch.zeros(codebook.classes, dtype=torch.int64).numpy())

    def units(frames: Any) -> Any:
        return assign(torch.from_numpy(frames).to(device)).cpu().numpy()

    what = f"units of layer {layer}, {codebook.classes} classes"
    if options.format == "jsonl":
        meta = {**meta, **_meta(options, model, [layer])}
        store = _main_first(lambda: UnitFile(options.output, meta, units, counts.add))
        return Work(store, [layer], what)
    # All ranks at once: a label store waits for all of its writers.
    labels = UnitLabels(options.output, meta, units, counts.add)
    counts.already = len(labels) if dist.is_main() else 0

    def report(skipped: list[str]) -> None:
        report_labels(options.output, counts, skipped)

    return Work(labels, [layer], what, report)


def _clustered_layer(options: ExtractOptions, features: dict[str, Any], model: Any) -> int:
    if features["kind"] != "encoder":
        raise ValueError(
            f"clusters: found clusters of {features['kind']} in {options.clusters}, want those of "
            "a model's layer; `speechssl cluster apply` gives the units of these"
        )
    layer = int(features["layer"])
    if options.layers is not None and list(model.resolve_layers(options.layers)) != [layer]:
        raise ValueError(
            f"layers: found {options.layers}, want none given, or [{layer}], the layer that was "
            f"clustered in {options.clusters}"
        )
    return layer


def _main_first(make: Any) -> Any:
    """This rank's store; the first rank settles what the folder holds before the others look."""
    from speechssl import dist

    store = make() if dist.is_main() else None
    dist.barrier()
    store = make() if store is None else store
    dist.barrier()  # nobody writes before all know what is done
    return store


def _items(options: ExtractOptions) -> Any:
    from speechssl.hub.cuts import CutItems, FileItems

    return CutItems(options.cuts) if options.cuts else FileItems(options.audio)


def _chunk_seconds(options: ExtractOptions) -> float:
    if options.chunk_seconds is not None:
        return options.chunk_seconds
    return 100.0 if options.clusters else 40.0


def _meta(options: ExtractOptions, model: Any, layers: list[int]) -> dict[str, Any]:
    return {
        "model": options.model,
        "layers": layers,
        "dim": model.dim,
        "frame_rate_hz": model.frame_rate_hz,
        "hop_samples": model.geometry.hop_samples,
        "field_samples": model.geometry.field_samples,
        "sample_rate_hz": model.sample_rate_hz,
        "chunk_seconds": _chunk_seconds(options),
        "overlap_seconds": options.overlap_seconds,
        "bf16": options.bf16,
    }


class Progress:
    """Hours of audio done, their rate and the time left, of this process.

    A bar on a terminal; elsewhere a line a minute, of the first process.
    """

    every_seconds = 60.0

    def __init__(self, total: int, done: int) -> None:
        from speechssl import dist

        # Shares are equal but for one utterance, or one shard.
        world = dist.world_size()
        self.total, self.count = -(-total // world), done // world
        self.before = self.count
        self.audio, self.frames = 0.0, 0
        self.is_main = dist.is_main()

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        off = not (self.is_main and sys.stderr.isatty())
        self.bar = tqdm(total=self.total, initial=self.count, unit="utt", disable=off)
        self.start = self.last = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    @property
    def passed(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    def __call__(self, seconds: float, frames: int) -> None:
        self.audio += seconds
        self.frames += frames
        self.count += 1
        self.bar.set_postfix_str(self._hours(), refresh=False)
        self.bar.update(1)
        now = time.monotonic()
        if self.is_main and self.bar.disable and now - self.last >= self.every_seconds:
            self.last = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        from tqdm import tqdm

        done = self.count - self.before
        left = tqdm.format_interval(self.passed / max(done, 1) * max(self.total - self.count, 0))
        return f"{self.count} of {self.total} utterances, {self._hours()}, {left} left"

    def _hours(self) -> str:
        return f"{self.audio / 3600:.2f} h of audio, {self.audio / self.passed:.1f} h per hour"


def list_skipped(output: Path, faults: dict[str, str]) -> None:
    path = output / "skipped.txt"
    if not faults:
        path.unlink(missing_ok=True)
        return
    path.write_text("".join(f"{name}\t{why}\n" for name, why in faults.items()), encoding="utf-8")
    print(f"{len(faults)} left out, listed in {path}:", file=sys.stderr)
    for why in list(faults.values())[:5]:
        print(f"  {why}", file=sys.stderr)
    if len(faults) > 5:
        print(f"  and {len(faults) - 5} more", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
