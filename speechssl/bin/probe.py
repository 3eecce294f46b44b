"""`speechssl probe`: what each layer of an encoder holds, with and without labels."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.config import parse
from speechssl.labels.probe_config import ProbeConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from speechssl.labels.probe_sample import Layers, ProbeCut, ProbeSample

DESCRIPTION = """Compare the layers of an upstream: a model, a baseline of MFCC or log-mel, or an
encoder with random weights.

Per layer: RankMe and effective rank; linear CKA with the other layers; CKA and CCA, the latter on
utterances that its directions were not found on, with log-mel, the first layer, and the identity of
phones and of words (means over each); PNMI of a quick k-means; accuracy of a linear classifier of
phones, on speakers that it was not trained on, and of speakers, on utterances that it was not
trained on; with --abx the ABX error of phones, within and across speakers, also of a label store's
units. Writes probe.json, and prints it as a table. What the cuts hold no labels for is left out,
and named."""

COLUMNS = (
    ("layer", "layer", "d"), ("RankMe", "rankme", ".1f"), ("eff. rank", "effective_rank", ".1f"),
    ("CKA mel", "cka_mel", ".3f"), ("CCA mel", "cca_mel", ".3f"),
    ("CCA phone", "cca_phone", ".3f"), ("CCA word", "cca_word", ".3f"), ("PNMI", "pnmi", ".3f"),
    ("phones", "phone_accuracy", ".3f"), ("speakers", "speaker_accuracy", ".3f"),
)  # fmt: skip
ABX_COLUMNS = (("ABX within", "abx_within", ".4f"), ("ABX across", "abx_across", ".4f"))
LOWEST = ("abx_within", "abx_across")
"""Measures of which less is better."""


def main(argv: list[str] | None = None) -> int:
    config = parse(ProbeConfig, argv, prog="speechssl probe", description=DESCRIPTION)
    from speechssl import dist

    try:
        print(table(run(config)))
    except ValueError as error:
        print(f"speechssl probe: error: {error}", file=sys.stderr)
        return 1
    finally:
        dist.shutdown()
    return 0


@dataclasses.dataclass(frozen=True)
class Upstream:
    """What is probed. layers: of a batch, per number of `numbers`; info: goes into probe.json."""

    layers: Layers
    numbers: tuple[int, ...]
    dim: int
    frame_rate_hz: float
    window_seconds: float
    info: dict[str, Any]


def run(config: ProbeConfig) -> dict[str, Any]:
    """Read, measure, write probe.json; returns what it holds."""
    from speechssl import dist
    from speechssl.bin.probe_abx import choose_test
    from speechssl.bin.probe_measure import measure, segment_means
    from speechssl.config import to_dict
    from speechssl.labels.probe_sample import choose_cuts
    from speechssl.labels.quality import PhoneTable
    from speechssl.labels.sample_file import write_json
    from speechssl.train.folder import versions

    device = dist.init(config.device)
    if dist.world_size() > 1:
        raise ValueError(f"found {dist.world_size()} ranks, want 1: run it without torchrun")
    started = time.monotonic()
    upstream = open_upstream(config, device)
    cuts = choose_cuts(
        config.cuts,
        config.alignment,
        speakers=config.speakers,
        utterances=config.utterances,
        seed=config.seed,
    )
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    abx = None
    if config.abx is not None:
        rate, window, count = upstream.frame_rate_hz, upstream.window_seconds, len(upstream.numbers)
        abx = choose_test(config, cuts, rate, window, count, notes)
    means = segment_means(config, cuts, upstream, notes)
    takers = [m.add for m in means.values()] + ([] if abx is None else [abx.frames.add])
    phone_table = PhoneTable()
    sample, skipped = read(config, upstream, cuts, phone_table, output, device, takers)
    phones = len(phone_table.names)
    rows, shared = measure(config, upstream, cuts, sample, phones, device, abx, means, notes)
    report = {
        "kind": "probe",
        "upstream": upstream.info,
        "dim": upstream.dim,
        "frame_rate_hz": upstream.frame_rate_hz,
        "layers": rows,
        **shared,
        "best": best_layers(rows),
        "data": {
            "cuts": config.cuts,
            "utterances": len(sample.utterances),
            "speakers": len({cut.speaker for cut in cuts if cut.speaker is not None}),
            "frames": len(sample.keys),
            "frames_seen": sample.seen,
            "frames_in_phones": int((sample.phones >= 0).sum()),
            "skipped": skipped,
        },
        "notes": notes,
        "options": to_dict(config),
        "made_by": versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(output / "probe.json", report)
    return report


def open_upstream(config: ProbeConfig, device: torch.device) -> Upstream:
    """The model, baseline or random encoder that the options name."""
    from speechssl.labels.features import (
        EncoderFeatures,
        LogMelFeatures,
        MfccFeatures,
        weights_hash,
    )

    if config.features is not None:
        kind = {"mfcc": MfccFeatures, "logmel": LogMelFeatures}[config.features]
        simple = kind(device, cmvn=config.cmvn)
        info = {"name": config.features, **simple.info}
        rate, window = simple.frame_rate_hz, simple.window_seconds
        return Upstream(lambda batch: [simple(batch)], (0,), simple.dim, rate, window, info)
    if config.model is not None:
        from speechssl.hub.load import load

        model = load(config.model)
        encoder: Any = model.encoder
        numbers = model.resolve_layers(config.layers)
        plain = {
            k: v for k, v in model.provenance.items() if isinstance(v, str | int | float | bool)
        }
        info = {"kind": "model", "name": config.model, "provenance": plain}
    else:
        encoder = random_encoder(str(config.random), config.random_seed)
        numbers = _numbers(config.layers, encoder.num_layers)
        info = {"kind": "random", "name": f"random {Path(str(config.random)).stem}"}
        info |= {"config": config.random, "seed": config.random_seed}
    info["encoder"] = type(encoder).__name__
    info["parameters"] = sum(p.numel() for p in encoder.parameters())
    info["weights_hash"] = weights_hash(encoder)
    extractor = EncoderFeatures(encoder, max(numbers), device=device, bf16=config.bf16)
    return Upstream(
        lambda batch: extractor.layers(batch, numbers),
        numbers,
        extractor.dim,
        extractor.frame_rate_hz,
        extractor.window_seconds,
        info,
    )


def _numbers(layers: list[int] | None, count: int) -> tuple[int, ...]:
    numbers = tuple(range(count + 1)) if layers is None else tuple(layers)
    if not numbers or not all(0 <= n <= count for n in numbers):
        raise ValueError(f"layers: found {layers}, want numbers from 0 to {count}")
    return numbers


def random_encoder(path: str, seed: int) -> Any:
    """The encoder of a YAML that has `encoder`, or `objective` with an `encoder`."""
    import torch
    import yaml

    from speechssl.config import EncoderConfig, from_class_path

    if not Path(path).is_file():
        raise ValueError(f"random: found no {path}, want the YAML of a training run")
    values = yaml.safe_load(Path(path).read_text()) or {}
    objective = values.get("objective") or {}
    found = values.get("encoder") or (objective.get("init_args") or {}).get("encoder")
    if not found:
        raise ValueError(
            f"random: {path} has {', '.join(values) or 'nothing'}, want an `encoder`, or an "
            "`objective` with one"
        )
    torch.manual_seed(seed)
    return from_class_path(EncoderConfig, found).build()


def read(
    config: ProbeConfig,
    upstream: Upstream,
    cuts: list[ProbeCut],
    phone_table: Any,
    output: Path,
    device: torch.device,
    takers: Sequence[Callable[[int, list[Tensor]], None]],
) -> tuple[ProbeSample, list[str]]:
    """Frames and utterance means of the chosen cuts, and the ids that could not be read.

    takers: called with the place of each utterance and its (T, D) frames of each layer.
    """
    from speechssl.data.loader import read_all
    from speechssl.labels.probe_sample import read_sample
    from speechssl.labels.stream import Progress, say

    manifest = output / "cuts.jsonl.gz"
    temporary = output / "cuts.tmp.jsonl.gz"
    with gzip.open(temporary, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(cut.row, ensure_ascii=False) + "\n" for cut in cuts)
    os.replace(temporary, manifest)
    reader = read_all(
        [str(manifest)],
        max_batch_seconds=config.max_batch_seconds,
        num_workers=config.num_workers,
        max_seconds=config.max_seconds,
    )

    def take(place: int, layers: list[Tensor]) -> None:
        for taker in takers:
            taker(place, layers)

    with Progress("reading", len(cuts)) as progress:
        sample = read_sample(
            reader,
            upstream.layers,
            cuts,
            phone_table,
            dim=upstream.dim,
            count=len(upstream.numbers),
            frame_rate_hz=upstream.frame_rate_hz,
            window_seconds=upstream.window_seconds,
            sample_frames=config.sample_frames,
            seed=config.seed,
            progress=progress,
            device=device,
            take=take,
        )
    skipped = sorted(map(str, reader.skipped))
    if skipped:
        say(f"skipped {len(skipped)} unreadable: {'; '.join(skipped[:10])}")
    return sample, skipped


def best_layers(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Measure -> the layer where it is best, for those that say what a layer is good for."""
    found = {}
    for name in ("pnmi", "phone_dev_accuracy", "speaker_dev_accuracy", *LOWEST):
        known = [row for row in rows if row.get(name) is not None and row[name] == row[name]]
        if known:
            best = min if name in LOWEST else max
            found[name] = best(known, key=lambda row: row[name])["layer"]
    return found


def table(report: dict[str, Any]) -> str:
    """The report as text: one line per layer, then chance and notes."""
    lines = [f"{report['upstream']['name']}: {report['frame_rate_hz']:g} frames per second"]
    abx = report.get("abx")
    columns = COLUMNS if abx is None else COLUMNS + ABX_COLUMNS
    lines.append(" ".join(f"{title:>10}" for title, _, _ in columns))
    for row in report["layers"]:
        lines.append(" ".join(f"{cell:>10}" for _, cell in _cells(row, abx is not None)))
    if abx is not None and "units" in abx:
        units = abx["units"]
        shown = ", ".join(f"{name[4:]} {units[name]:.4f}" for name in LOWEST if name in units)
        lines.append(f"ABX of the units of {units['labels']} ({units['distance']}): {shown}")
    data = report["data"]
    lines.append(
        f"{data['frames']} frames of {data['utterances']} utterances of {data['speakers']} speakers"
    )
    for name, value in report["chance"].items():
        lines.append(f"chance of {name}s: {value:.3f}")
    return "\n".join([*lines, *(f"note: {text}" for text in report["notes"])])


def _cells(row: dict[str, Any], abx: bool) -> list[tuple[str, str]]:
    return [
        (title, "-" if row.get(key) is None else format(row[key], form))
        for title, key, form in (COLUMNS + ABX_COLUMNS if abx else COLUMNS)
    ]


if __name__ == "__main__":
    sys.exit(main())
