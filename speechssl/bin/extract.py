"""`speechssl extract`: frame features of any layer, for any audio."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Literal

from speechssl.config import parse

DESCRIPTION = """Write frame features of chosen layers, for any audio.

One .npy (frames, width) per utterance and layer, and index.jsonl. Frame t is computed from samples
[320 t, 320 t + 400) at 16 kHz. Run again with the same output, it continues; started by torchrun,
its processes share the work. Audio that cannot be read, or is shorter than a frame, is left out and
listed in skipped.txt. Hours of one recording need no more memory than minutes."""


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
    format: Literal["npy", "hdf5"] = "npy"
    """hdf5 also gathers everything in features.h5 at the end (needs h5py)."""
    dtype: Literal["float32", "float16"] = "float32"
    """How numbers are stored."""
    batch_seconds: float = 80.0
    """Audio seconds, padding included, that are computed at once; sets the memory."""
    chunk_seconds: float = 40.0
    """Longer utterances are computed in windows of this length."""
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
    from speechssl.hub.store import merge_index, write_hdf5

    device = dist.init(options.device)
    items = _items(options)
    model = load(options.model, device)
    model.to(dtype=torch.bfloat16 if options.bf16 else torch.float32)
    writer = _writer(options, model)
    before = len(writer.done)
    if before and dist.is_main():
        print(f"{before} of {len(items)} are there already")
    faults: dict[str, str] = {}
    start = time.perf_counter()
    seconds, frames = _extract(options, model, items, writer, faults)
    passed = time.perf_counter() - start
    count = len(writer.done) - before
    totals = dist.gather_objects((seconds, frames, count, passed, faults))
    if not dist.is_main():
        return 0
    seconds, frames, count = (sum(t[i] for t in totals) for i in range(3))
    passed = max(t[3] for t in totals)
    merge_index(options.output)
    _list_skipped(Path(options.output), {k: v for t in totals for k, v in t[4].items()})
    if options.format == "hdf5":
        print(f"{write_hdf5(options.output, Path(options.output) / 'features.h5')} in features.h5")
    print(
        f"{count} utterances, {seconds:.1f} s of audio, {frames} frames per layer, "
        f"{len(model.resolve_layers(options.layers))} layers -> {options.output}"
    )
    if seconds:
        print(f"{passed:.1f} s: {seconds / passed:.1f} times real time, RTF {passed / seconds:.4f}")
    return 0 if before + count else 1


def _writer(options: ExtractOptions, model: Any) -> Any:
    """This rank's writer; the first rank settles what the folder holds before the others look."""
    from speechssl import dist
    from speechssl.hub.store import FeatureWriter

    part = dist.rank() if dist.world_size() > 1 else None
    writer = None
    if dist.is_main():
        writer = FeatureWriter(options.output, _meta(options, model), options.dtype, part)
    dist.barrier()
    if writer is None:
        writer = FeatureWriter(options.output, _meta(options, model), options.dtype, part)
    dist.barrier()  # nobody writes before all know what is done
    return writer


def _items(options: ExtractOptions) -> Any:
    if options.cuts:
        from speechssl.hub.cuts import CutItems

        return CutItems(options.cuts)
    from speechssl.hub.audio import as_items, find_audio

    return list(as_items(find_audio(options.audio), None))


def _meta(options: ExtractOptions, model: Any) -> dict[str, Any]:
    return {
        "model": options.model,
        "layers": list(model.resolve_layers(options.layers)),
        "dim": model.dim,
        "frame_rate_hz": model.frame_rate_hz,
        "hop_samples": model.geometry.hop_samples,
        "field_samples": model.geometry.field_samples,
        "sample_rate_hz": model.sample_rate_hz,
        "chunk_seconds": options.chunk_seconds,
        "overlap_seconds": options.overlap_seconds,
        "bf16": options.bf16,
    }


def _extract(
    options: ExtractOptions,
    model: Any,
    items: Any,
    writer: Any,
    faults: dict[str, str],
) -> tuple[float, int]:
    """Write features of all items not done; returns seconds of audio and frames."""
    seconds, frames = 0.0, 0
    stream = model.extract_iter(
        _pending(items, writer.done),
        options.layers,
        on_error=lambda name, error: faults.update({name: str(error)}),
        batch_seconds=options.batch_seconds,
        chunk_seconds=options.chunk_seconds,
        overlap_seconds=options.overlap_seconds,
        readers=options.readers,
        # A kill then loses no more than the open batch.
        in_order=False,
    )
    with Ticker(items, len(writer.done)) as ticker:
        for features in stream:
            writer.add(features)
            seconds += features.seconds
            frames += features.num_frames
            ticker.tick(seconds)
    return seconds, frames


def _pending(items: Iterable[Any], done: set[str]) -> Iterator[Any]:
    """This rank's share of what is not done."""
    from speechssl import dist

    for number, item in enumerate(items):
        if number % dist.world_size() == dist.rank() and item.id not in done:
            yield item


class Ticker:
    """A bar with rate and time left on a terminal; a line a minute elsewhere."""

    def __init__(self, items: Sized, done: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=len(items), initial=done, unit="utt", disable=not sys.stderr.isatty())
        self.total, self.count, self.last = len(items), done, time.monotonic()
        self.start = self.last

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def tick(self, seconds: float) -> None:
        self.count += 1
        self.bar.update(1)
        now = time.monotonic()
        if self.bar.disable and now - self.last >= 60:
            self.last = now
            rate = seconds / (now - self.start)
            print(f"{self.count} of {self.total}, {rate:.1f} times real time", flush=True)


def _list_skipped(output: Path, faults: dict[str, str]) -> None:
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
