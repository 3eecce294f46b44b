"""Goodness of pronunciation by a phone recogniser, and how well it tells wrong phones.

python tools/goodness.py --model exp/phones --cuts phones_test.jsonl.gz --output exp/phones/gop

The recogniser is a CTC model over texts of phones (tools/phone_text.py). Without human scores a
share of the canonical phones is replaced by others, which were therefore not said; the AUC says how
often a phone that was said scores higher. With --scores, a field that holds one number per phone
(speechocean762's phones-accuracy), the correlation with them. Writes gop.jsonl and results.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.data.fields import cut_rows
from speechssl.score.pronunciation import auc, goodness
from speechssl.score.regression import pearson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--replaced", type=float, default=0.2, help="share of phones")
    parser.add_argument("--scores", help="field with a number per phone, or a list per word")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    head, tokenizer = recogniser(options.model)
    space = tokenizer.symbols.index(" ")
    phones = [i for i in range(1, tokenizer.size) if i != space]
    rows, skipped = [], 0
    heard = dict(log_probs(head, options.cuts))
    for number, cut in enumerate(cut_rows(options.cuts)):
        first = cut["supervisions"][0]
        said = [t for t in tokenizer.encode(first["text"]) if t != space]
        human = _flat((first.get("custom") or {}).get(options.scores)) if options.scores else None
        if human is not None and len(human) != len(said):
            raise SystemExit(
                f"goodness: found {len(human)} scores for {len(said)} phones of {cut['id']!r}"
            )
        random = np.random.default_rng([options.seed, number])
        asked, right = list(said), [True] * len(said)
        for i in range(len(said)) if human is None else ():
            if random.random() < options.replaced:
                asked[i] = int(random.choice([p for p in phones if p != said[i]]))
                right[i] = False
        # A word boundary is no phone: it goes to the blank.
        posteriors = heard.get(cut["id"], np.empty((0, tokenizer.size))).copy()
        posteriors[:, 0] = np.logaddexp(posteriors[:, 0], posteriors[:, space])
        posteriors = np.delete(posteriors, space, axis=1)
        try:
            found = goodness(posteriors, [t - (t > space) for t in asked])
        except ValueError:
            skipped += 1
            continue
        names = [tokenizer.symbols[t] for t in asked]
        rows.append({"id": cut["id"], "phones": names, "gop": found.round(4).tolist(),
                     "said": right, "human": human})  # fmt: skip
    results = figures(rows) | {"skipped": skipped, "replaced": options.replaced}
    results["decode"] = {
        "model": options.model, "head": {"class_path": "gop", "init_args": {}},
        "trainable_parameters": sum(p.numel() for p in head.parameters() if p.requires_grad),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (options.output / "gop.jsonl").write_text(lines)
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    shown = ", ".join(f"{k} {results[k]:.4f}" for k in ("auc", "pearson") if k in results)
    print(f"{shown}   {results['phones']} phones, {skipped} utterances too short for theirs")


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if not rows:
        raise SystemExit("goodness: found no utterance with enough frames, want some")
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


def log_probs(head: Any, cuts: list[str]) -> Any:
    """(cut id, (S, V) log-probabilities) of those that have a frame."""
    import torch

    from speechssl.data.loader import read_all

    with torch.inference_mode():
        for batch in read_all(cuts, max_batch_seconds=60.0):
            found, lengths = head.log_probs(batch.wave, batch.wave_lengths)
            for name, row, length in zip(batch.ids, found.numpy(), lengths.tolist(), strict=True):
                yield name, row[:length].copy()


def _flat(values: Any) -> list[float]:
    """Numbers of a list, or of a list of lists."""
    if values is None:
        raise SystemExit("goodness: found a cut without scores, want them in each")
    return [float(x) for v in values for x in (v if isinstance(v, list) else [v])]


if __name__ == "__main__":
    main()
