"""`speechssl decode` with heads of whole utterances: predictions of classes, or embeddings."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.config import to_dict

if TYPE_CHECKING:
    from speechssl.bin.decode import DecodeOptions
    from speechssl.data.text import Tokenizer

MOST_PROBABILITIES = 100
"""Classes, from the most probable on, whose probabilities a prediction states."""


def handles(head: Any) -> bool:
    """Whether a head has one answer per utterance."""
    return hasattr(head, "class_log_probs") or hasattr(head, "embed")


def run(
    options: DecodeOptions, head: Any, device: Any, tokenizer: Mapping[str, Any] | None = None
) -> int:
    """Write predictions.jsonl, or embeddings.npy with embeddings.jsonl; decode.json in any case.

    tokenizer: as model.json holds it, for a head that transcribes too.
    """
    from tqdm import tqdm

    from speechssl import dist
    from speechssl.bin.decode import answers
    from speechssl.data.fields import cut_rows, field_of

    if options.method != "greedy":
        raise ValueError(
            f"method: found {options.method} with a {type(head).__name__}, want greedy: there is "
            "nothing to search"
        )
    head.to(device)
    cuts = [options.cuts] if isinstance(options.cuts, str) else options.cuts
    described = {}
    for cut in cut_rows(cuts):
        described[cut["id"]] = {
            "ref": field_of(cut, head.config.field),
            "duration": cut.get("duration"),
            "speaker": field_of(cut, "speaker"),
        }
        if hasattr(head, "joint_answers"):
            described[cut["id"]]["cut"] = cut
    clock = {"audio_s": 0.0, "forward_s": 0.0}
    skipped: list[str] = []
    total = -(-len(described) // dist.world_size())
    answer = head.class_log_probs if hasattr(head, "class_log_probs") else head.embed
    ask = getattr(head, "joint_answers", lambda *w: (answer(*w), None))
    found = answers(options, head.encoder, ask, device, clock, skipped)
    rows = dict(tqdm(found, total=total, desc="decode", unit="utt", disable=None))
    parts = dist.gather_objects((rows, skipped, clock))
    if dist.is_main():
        _write(options, head, described, parts, tokenizer)
    return 0


def _write(
    options: DecodeOptions,
    head: Any,
    described: dict[str, dict[str, Any]],
    parts: list[tuple[dict[str, Any], list[str], dict[str, float]]],
    tokenizer: Mapping[str, Any] | None,
) -> None:
    from speechssl.bin.decode_tasks import STALE
    from speechssl.bin.score import write_text
    from speechssl.data.text import Tokenizer

    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    answers = {cut_id: x for rows, _, _ in parts for cut_id, x in rows.items()}
    skipped = sorted({entry for _, found, _ in parts for entry in found})
    clock = {name: sum(part[2][name] for part in parts) for name in parts[0][2]}
    kept = {cut_id: info for cut_id, info in described.items() if cut_id in answers}
    for stale in STALE:
        (folder / stale).unlink(missing_ok=True)
    if hasattr(head, "class_log_probs"):
        name = "predictions.jsonl"
        rows = [_prediction(i, info, answers[i], head) for i, info in kept.items()]
        if hasattr(head, "joint_answers"):
            read = None if tokenizer is None else Tokenizer.from_dict(tokenizer)
            for row, info in zip(rows, kept.values(), strict=True):
                row |= _further(info["cut"], answers[row["id"]], head, read)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / name, "".join(lines))
    else:
        name = "embeddings.npy"
        _write_embeddings(folder, kept, answers)
    names = ("model", "cuts", "output", "max_batch_seconds", "device", "dtype")
    info = {k: getattr(options, k) for k in names}
    info |= {"utterances": len(kept), "skipped": skipped, **_describe(head)}
    rtf = clock["forward_s"] / max(clock["audio_s"], 1e-9)
    info["timing"] = clock | {"rtf": rtf}
    write_text(folder / "decode.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    print(
        f"{folder}/{name}: {len(kept)} utterances, {len(skipped)} skipped, "
        f"{clock['audio_s']:.0f} s of audio in {clock['forward_s']:.1f} s (RTF {rtf:.3f})"
    )
    for entry in skipped[:10]:
        print(f"skipped {entry}")


def _prediction(cut_id: str, info: dict[str, Any], answer: Any, head: Any) -> dict[str, Any]:
    import numpy as np

    classes = head.config.classes
    probabilities = np.exp(answer[: len(classes)].astype(np.float64))
    order = np.argsort(-probabilities, kind="stable")[:MOST_PROBABILITIES]
    row = {"id": cut_id, "ref": info["ref"], "hyp": classes[order[0]]}
    row["probabilities"] = {classes[i]: round(float(probabilities[i]), 6) for i in order}
    return row | {"duration": info["duration"], "speaker": info["speaker"]}


def _further(
    cut: Mapping[str, Any], answer: Any, head: Any, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What a row of `joint_answers` holds behind the classes: further fields, and the transcript.

    A reference is None where the cut has none.
    """
    from speechssl.data.fields import field_of

    at, row = len(head.config.classes), {"further": {}}
    for name, values in zip(head.config.further, head.config.further_values, strict=True):
        hyp = values[int(answer[at : at + len(values)].argmax())]
        row["further"][name] = {"ref": field_of(cut, name), "hyp": hyp}
        at += len(values)
    if tokenizer is not None:
        tokens = [int(token) for token, _ in itertools.groupby(answer[at:])]
        row["text"] = {"ref": field_of(cut, "text"), "hyp": tokenizer.decode(tokens)}
    return row


def _write_embeddings(folder: Path, kept: dict[str, dict[str, Any]], answers: dict) -> None:
    import os

    import numpy as np

    from speechssl.bin.score import write_text

    lines = [json.dumps({"id": i, **info}, ensure_ascii=False) + "\n" for i, info in kept.items()]
    write_text(folder / "embeddings.jsonl", "".join(lines))
    matrix = np.stack([answers[i] for i in kept]) if kept else np.empty((0, 0), np.float32)
    with (folder / "embeddings.npy.tmp").open("wb") as file:
        np.save(file, matrix)
    os.replace(folder / "embeddings.npy.tmp", folder / "embeddings.npy")


def _describe(head: Any) -> dict[str, Any]:
    classes = head.config.classes
    return {
        "field": head.config.field,
        "classes": len(classes) if hasattr(head, "embed") else list(classes),
        **describe(head, dataclasses.replace(head.config, classes=[], class_counts=[])),
    }


def describe(head: Any, config: Any = None) -> dict[str, Any]:
    """The head, the weight of each layer, and how many parameters could learn.

    config: what to say of its configuration, if not all.
    """
    shares = head.layer_sum.shares()
    return {
        "head": to_dict(config or head.config),
        "layer_weights": {str(n): round(w, 6) for n, w in zip(head.layers, shares)},
        "encoder_parameters": sum(p.numel() for p in head.encoder.parameters()),
        "trainable_parameters": sum(p.numel() for p in head.parameters() if p.requires_grad),
    }
