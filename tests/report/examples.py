"""Experiment folders laid out as the programs write them, with made-up numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from speechssl.score.wer import Utterance, error_rates

SENTENCES = (
    "the early train leaves from platform nine",
    "two cups of coffee and one <small> cake please",
    "tomorrow will be cloudy with some rain in the north",
    "please call the station & ask for tickets",
)


def pretraining(folder: Path, *, steps: int = 4000, seed: int = 0, level: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    random_ = random.Random(seed)
    (folder / "config.yaml").write_text(
        "data:\n  train: [cuts_train.jsonl.gz]\n  batch_seconds: 160.0\n"
        "objective:\n  class_path: speechssl.objectives.hubert.HubertConfig\n"
        f"  init_args: {{classes: {{km: 100}}, seed: {seed}}}\ntrain:\n  steps: 5000\n"
    )
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(20, steps + 1, 20):
            done = step / 5000
            line: dict[str, Any] = {
                "step": step, "split": "train", "epoch": step // 500,
                "loss": 2.6 + level + 3.2 * math.exp(-4 * done) + random_.gauss(0, 0.06),
                "masked_accuracy": 0.45 * (1 - math.exp(-3 * done)) + random_.gauss(0, 0.008),
                "unmasked_accuracy": 0.6 * (1 - math.exp(-5 * done)) + random_.gauss(0, 0.008),
                "feature_penalty": 0.3 + random_.random() * 0.02,
                "lr": 5e-4 * min(done / 0.08, (1 - done) / 0.92),
                "grad_norm": 1.5 + random_.expovariate(3) + (60.0 if step == 1000 else 0.0),
                "utterances": step * 12.0, "audio_seconds": step * 160.0, "skipped": 0.0,
                "audio_s_per_s": 210 + random_.gauss(0, 9), "update_seconds": 0.76,
                "data_seconds": 0.01, "memory_gb": 1.9 + 0.3 * done, "time": 1.7e9 + step,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            if step % 500 == 0:
                valid = {"step": step, "split": "valid", "loss": line["loss"] + 0.1,
                         "masked_accuracy": line["masked_accuracy"] - 0.02}  # fmt: skip
                file.write(json.dumps(valid) + "\n")
    (folder / "skipped.txt").write_text("40\tutt-7: cannot be decoded\n")
    layers = [{"layer": n, "pnmi": 0.3 + 0.04 * n - 0.005 * n * n} for n in range(7)]
    (folder / "layers.json").write_text(json.dumps({"layers": layers, "best_layer": 4}))
    return folder


def clustering(folder: Path, classes: int = 100) -> Path:
    folder.mkdir(parents=True)
    counts = [int(4000 / (i + 3)) for i in range(classes - 2)] + [0, 0]
    (folder / "clusters.json").write_text(
        json.dumps({"classes": classes, "features": {"kind": "mfcc"}, "inertia": 12.5})
    )
    (folder / "fit.json").write_text(
        json.dumps({"counts": counts, "inertia": [40.0, 22.0, 17.0, 15.5, 15.2], "empty": 2})
    )
    quality = {"classes": classes, "pnmi": 0.287, "phone_purity": 0.41, "cluster_purity": 0.12,
               "perplexity": 71.3, "empty": 2, "mean_run_length": 2.4, "phones": 39,
               "frames": 90000, "aligned_frames": 81000, "picture": None}  # fmt: skip
    (folder / "quality.json").write_text(json.dumps(quality))
    return folder


def decoding(folder: Path, *, errors: int = 2, scored: bool = True) -> Path:
    folder.mkdir(parents=True)
    utterances = []
    for i in range(40):
        words = SENTENCES[i % len(SENTENCES)].split()
        hypothesis = list(words)
        if i % 3 == 0:
            for k in range(min(errors, len(words))):
                hypothesis[k] = "<eh>" if k else "tea"
            hypothesis.append("uh")
        utterances.append((f"utt-{i:02d}", " ".join(words), " ".join(hypothesis), 1.5 + i / 3))
    lines = [json.dumps({"id": i, "ref": r, "hyp": h, "duration": d}) for i, r, h, d in utterances]
    (folder / "hyp.jsonl").write_text("\n".join(lines) + "\n")
    how = {"method": "beam", "lm": "lm.arpa", "lm_weight": 1.5, "timing": {"rtf": 0.0512}}
    (folder / "decode.json").write_text(json.dumps(how))
    if scored:
        results, found = error_rates(
            Utterance(id=i, ref=r, hyp=h, duration_s=d) for i, r, h, d in utterances
        )
        found.sort(key=lambda s: -s.words.errors)
        results["worst"] = [
            {"id": s.utterance.id, "ref": s.utterance.ref, "hyp": s.utterance.hyp,
             "errors": s.words.errors, "words": s.words.length, "pairs": s.pairs}
            for s in found[:8]
        ]  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def finetuning(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "init: exp/hubert_it2\nhead:\n  class_path: speechssl.heads.asr_ctc.CtcConfig\n"
        "  init_args: {dropout: 0.1}\ntrain:\n  steps: 1000\n"
    )
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(50, 1001, 50):
            loss = 3 * math.exp(-step / 300)
            for split in ("train", "valid"):
                line = {"step": step, "split": split, "loss": loss + 0.2 * (split == "valid")}
                file.write(json.dumps(line) + "\n")
    decoding(folder / "decode_test")
    decoding(folder / "decode_test_beam", errors=1, scored=False)
    return folder
