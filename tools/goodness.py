"""Goodness of pronunciation by a phone recogniser or a trained head, and how well it tells wrong
phones.

python tools/goodness.py --model exp/phones --cuts phones_test.jsonl.gz --output exp/phones/gop

The recogniser is a CTC model over texts of phones (tools/phone_text.py). Without human scores a
share of the canonical phones is replaced by others, which were therefore not said, each as often as
it is said elsewhere; the AUC says how often a phone that was said scores higher. With --scores, a
field that holds one number per phone (speechocean762's phones-accuracy, 0 to 2), the correlation
with them. Writes gop.jsonl and results.json.

With --labels the recogniser's alignment of the phones asked for becomes labels of frames, in the
stores OUTPUT/asked and OUTPUT/said, with phones.json, for a head to learn from
(speechssl/heads/pronounce.py); with --head such a head's scores take the place of the recogniser's,
on the recogniser's alignment.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.data.fields import cut_rows
from speechssl.data.label_store import LabelWriter
from speechssl.score.pronunciation import auc, ctc_align, goodness, spread
from speechssl.score.regression import pearson

LABEL_RATE = 100
SPREAD_SECONDS = 0.1
"""How far a phone reaches to each side of the frames in which CTC recognises it, at most."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Phones asked for in a cut. said: whether they were, as far as it is known; human: scores of
    0 and more. gop: of each; spans: its first frame and the one behind its last, by LABEL_RATE."""

    cut: dict[str, Any]
    phones: list[str]
    said: list[bool]
    human: list[float] | None
    gop: np.ndarray
    spans: list[tuple[int, int]]

    def grades(self) -> list[int]:
        return [int(x) for x in self.said] if self.human is None else [round(h) for h in self.human]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--replaced", type=float, default=0.2, help="share of phones")
    parser.add_argument("--scores", help="field with a number per phone, or a list per word")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", action="store_true", help="write labels, no scores")
    parser.add_argument("--grades", type=int, default=3, help="of --scores: 0, 1, ...")
    parser.add_argument("--head", help="folder of a model with a PronounceHead")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    model, tokenizer = recogniser(options.model)
    skipped: list[str] = []
    found = list(asked_of(model, tokenizer, options, skipped))
    if not found:
        raise SystemExit("goodness: found no utterance with enough frames, want some")
    if options.labels:
        write_labels(found, phone_names(tokenizer), options)
        return
    judge = model
    if options.head:
        judge, scores = head_scores(options.head, options.cuts, found)
        found = [dataclasses.replace(one, gop=scores[one.cut["id"]]) for one in found]
    rows = [
        {"id": one.cut["id"], "phones": one.phones, "gop": one.gop.round(4).tolist(),
         "said": one.said, "human": one.human}
        for one in found
    ]  # fmt: skip
    results = figures(rows) | {"skipped": len(skipped), "replaced": options.replaced}
    kind = "pronounce" if options.head else "gop"
    results["decode"] = {
        "model": options.model, "head": {"class_path": kind, "init_args": {}},
        "trained_head": options.head,
        "trainable_parameters": sum(p.numel() for p in judge.parameters() if p.requires_grad),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (options.output / "gop.jsonl").write_text(lines)
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    shown = ", ".join(f"{k} {results[k]:.4f}" for k in ("auc", "pearson") if k in results)
    print(f"{shown}   {results['phones']} phones, {len(skipped)} utterances too short for theirs")


def asked_of(
    model: Any, tokenizer: Any, options: argparse.Namespace, skipped: list[str]
) -> Iterator[Asked]:
    """What is asked for in each cut, aligned; skipped: gets the ids of cuts that are too short."""
    space = tokenizer.symbols.index(" ")
    phones = [i for i in range(1, tokenizer.size) if i != space]
    rate = model.encoder.frame_rate_hz * model.factor
    heard = dict(log_probs(model, options.cuts))
    cuts = list(cut_rows(options.cuts))
    spoken = [[t for t in tokenizer.encode(cut["supervisions"][0]["text"]) if t != space]
              for cut in cuts]  # fmt: skip
    # As often as each is said: else rare phones would be known for wrong by their names alone.
    counts = collections.Counter(itertools.chain(*spoken))
    for number, (cut, said) in enumerate(zip(cuts, spoken, strict=True)):
        first = cut["supervisions"][0]
        human = _flat((first.get("custom") or {}).get(options.scores)) if options.scores else None
        if human is not None and len(human) != len(said):
            raise SystemExit(
                f"goodness: found {len(human)} scores for {len(said)} phones of {cut['id']!r}"
            )
        random = np.random.default_rng([options.seed, number])
        asked, right = list(said), [True] * len(said)
        for i in range(len(said)) if human is None else ():
            if random.random() < options.replaced:
                others = [p for p in phones if p != said[i] and counts[p]]
                weights = np.array([counts[p] for p in others], dtype=np.float64)
                asked[i] = int(random.choice(others, p=weights / weights.sum()))
                right[i] = False
        # A word boundary is no phone: it goes to the blank.
        posteriors = heard.get(cut["id"], np.empty((0, tokenizer.size))).copy()
        posteriors[:, 0] = np.logaddexp(posteriors[:, 0], posteriors[:, space])
        posteriors = np.delete(posteriors, space, axis=1)
        tokens = [t - (t > space) for t in asked]
        try:
            spans = ctc_align(posteriors, tokens)
        except ValueError:
            skipped.append(cut["id"])
            continue
        whole = spread(spans, len(posteriors), round(SPREAD_SECONDS * rate))
        places = [(round(a * LABEL_RATE / rate), round(b * LABEL_RATE / rate)) for a, b in whole]
        names = [tokenizer.symbols[t] for t in asked]
        yield Asked(cut, names, right, human, goodness(posteriors, tokens, spans), places)


def phone_names(tokenizer: Any) -> list[str]:
    return [s for s in tokenizer.symbols[1:] if s != " "]


def write_labels(found: list[Asked], phones: list[str], options: argparse.Namespace) -> None:
    """Stores of frame labels by the cuts' ids, and the phones in their order."""
    folder, grades = options.output, options.grades if options.scores else 2
    most = max(max(one.grades()) for one in found)
    if most >= grades:
        raise SystemExit(f"goodness: found the score {most}, want less than --grades {grades}")
    how = {"model": options.model, "scores": options.scores, "seed": options.seed}
    meta = {"frame_rate_hz": LABEL_RATE, **how, "replaced": options.replaced}
    place = {name: i for i, name in enumerate(phones)}
    writers = {
        name: LabelWriter(folder / name, {"name": name, "classes": classes, **meta})
        for name, classes in (("asked", len(phones) + 1), ("said", grades))
    }
    for one in found:
        frames = round(one.cut["duration"] * LABEL_RATE)
        rows = {"asked": np.full(frames, len(phones)), "said": np.zeros(frames, dtype=np.int64)}
        for (a, b), phone, grade in zip(one.spans, one.phones, one.grades(), strict=True):
            rows["asked"][a:b], rows["said"][a:b] = place[phone], grade
        for name, writer in writers.items():
            if one.cut["id"] not in writer:
                writer.add(one.cut["id"], rows[name])
    for writer in writers.values():
        writer.finish()
    (folder / "phones.json").write_text(json.dumps(phones) + "\n")
    print(f"{folder}: {len(found)} cuts, {len(phones)} phones, {grades} grades")


def head_scores(
    folder: str, cuts: list[str], found: list[Asked]
) -> tuple[Any, dict[str, np.ndarray]]:
    """The head, and of each cut's id the mean log-odds of each phone asked for."""
    from speechssl.model_file import open_model

    head = open_model(folder).head
    if not hasattr(head, "phone_log_odds"):
        raise SystemExit(f"goodness: found no head of pronunciation in {folder}, want one")
    place = {name: i for i, name in enumerate(head.config.phones)}
    odds = dict(_rows(head, head.phone_log_odds, cuts))
    scale = head.encoder.frame_rate_hz / LABEL_RATE
    scores = {}
    for one in found:
        own, means = odds[one.cut["id"]], []
        for (a, b), phone in zip(one.spans, one.phones, strict=True):
            first = min(int(a * scale), len(own) - 1)
            means.append(own[first : max(round(b * scale), first + 1), place[phone]].mean())
        scores[one.cut["id"]] = np.array(means)
    return head, scores


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    scores = np.concatenate([row["gop"] for row in rows])
    found: dict[str, Any] = {"phones": len(scores), "utterances": len(rows)}
    if rows[0]["human"] is not None:
        found["pearson"] = pearson(scores, np.concatenate([row["human"] for row in rows]))
    else:
        found["auc"] = auc(scores, np.concatenate([row["said"] for row in rows]))
    return found


def recogniser(folder: str) -> tuple[Any, Any]:
    from speechssl.data.text import Tokenizer
    from speechssl.model_file import open_model

    opened = open_model(folder)
    if opened.tokenizer is None or not hasattr(opened.head, "log_probs"):
        raise SystemExit(f"goodness: found no recogniser in {folder}, want one over phones")
    tokenizer = Tokenizer.from_dict(opened.tokenizer)
    if tokenizer.kind != "letters":
        raise SystemExit(f"goodness: found a tokenizer of {tokenizer.kind}, want letters")
    return opened.head, tokenizer


def log_probs(head: Any, cuts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(cut id, (S, V) log-probabilities) of those that have a frame."""
    return _rows(head, head.log_probs, cuts)


def _rows(head: Any, ask: Any, cuts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    import torch

    from speechssl.bin.decode import long_enough
    from speechssl.data.loader import read_all

    with torch.inference_mode():
        for batch in read_all(cuts, max_batch_seconds=60.0):
            batch = long_enough(batch, head.encoder, [])
            if not len(batch):
                continue
            found, lengths = ask(batch.wave, batch.wave_lengths)
            for name, row, length in zip(batch.ids, found.numpy(), lengths.tolist(), strict=True):
                yield name, row[:length].copy()


def _flat(values: Any) -> list[float]:
    """Numbers of a list, or of a list of lists."""
    if values is None:
        raise SystemExit("goodness: found a cut without scores, want them in each")
    return [float(x) for v in values for x in (v if isinstance(v, list) else [v])]


if __name__ == "__main__":
    main()
