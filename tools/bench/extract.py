"""Feature extraction over mixed lengths, against transformers with the same weights.

Both get the same waves in the same order and must give every layer of every utterance. Ours
sorts and batches by itself; transformers runs in three usual ways: one utterance at a time, padded
batches in the given order, and padded batches sorted by length with an attention mask (the best a
careful user writes). Reported: seconds of audio per second (RTFx), and the largest difference to
transformers' single-utterance features. Weights are random, so no download is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import speechssl


def waves(count: int, seed: int) -> list[np.ndarray]:
    """Lengths as in read speech: 1 to 17 s, log-normal around 7 s; noise of varying loudness."""
    rng = np.random.default_rng(seed)
    seconds = np.clip(rng.lognormal(np.log(7.0), 0.6, count), 1.0, 17.0)
    return [
        (rng.standard_normal(int(16000 * s)) * rng.uniform(0.02, 0.2)).astype(np.float32)
        for s in seconds
    ]


def theirs_alone(model: torch.nn.Module, found: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [_theirs(model, [w])[0] for w in found]


def theirs_batched(
    model: torch.nn.Module, found: list[np.ndarray], seconds: float, sort: bool
) -> list[list[np.ndarray]]:
    order = sorted(range(len(found)), key=lambda i: -len(found[i])) if sort else range(len(found))
    out: list[list[np.ndarray]] = [[] for _ in found]
    batch: list[int] = []

    def flush() -> None:
        for i, features in zip(batch, _theirs(model, [found[i] for i in batch])):
            out[i] = features
        batch.clear()

    for i in order:
        longest = max(len(found[j]) for j in [*batch, i])
        if batch and longest * (len(batch) + 1) > seconds * 16000:
            flush()
        batch.append(i)
    flush()
    return out


def _theirs(model: torch.nn.Module, batch: list[np.ndarray]) -> list[list[np.ndarray]]:
    device = next(model.parameters()).device
    longest = max(map(len, batch))
    padded = torch.zeros(len(batch), longest)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, wave in enumerate(batch):
        padded[row, : len(wave)] = torch.from_numpy(wave)
        mask[row, : len(wave)] = 1
    with torch.inference_mode():
        hidden = model(
            padded.to(device),
            attention_mask=mask.to(device) if len(batch) > 1 else None,
            output_hidden_states=True,
        ).hidden_states
        hidden = [h.float().cpu().numpy() for h in hidden]
    return [
        [h[row, : (len(wave) - 400) // 320 + 1] for h in hidden] for row, wave in enumerate(batch)
    ]


def worst_difference(found: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> float:
    return max(
        float(np.abs(a - b).max())
        for one, other in zip(found, want, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=["hubert", "wavlm"], default="hubert")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--batch-seconds", type=float, default=80.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    try:
        import transformers
    except ImportError:
        raise SystemExit("transformers is absent; pip install 'speechssl[bench]'") from None
    if options.threads:
        torch.set_num_threads(options.threads)
    name = {"hubert": "Hubert", "wavlm": "WavLM"}[options.kind]
    torch.manual_seed(options.seed)
    config = getattr(transformers, f"{name}Config")(num_hidden_layers=options.layers)
    theirs = getattr(transformers, f"{name}Model")(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = speechssl.load(folder, options.device)
    theirs.to(options.device)
    audio = waves(options.utterances, options.seed)
    seconds = sum(map(len, audio)) / 16000

    def own() -> list[list[np.ndarray]]:
        found = ours.extract(audio, rate=16000, batch_seconds=options.batch_seconds)
        return [list(f.hidden.values()) for f in found]

    budget = options.batch_seconds
    rows: dict[str, Callable[[], list[list[np.ndarray]]]] = {
        "transformers, one at a time": lambda: theirs_alone(theirs, audio),
        "transformers, batches": lambda: theirs_batched(theirs, audio, budget, sort=False),
        "transformers, sorted batches": lambda: theirs_batched(theirs, audio, budget, sort=True),
        "speechssl": own,
    }
    print(f"{options.kind}, {options.layers} layers, {len(audio)} utterances, {seconds:.0f} s, "
          f"{torch.get_num_threads()} threads, {options.device}")  # fmt: skip
    results, want = {}, None
    for label, run in rows.items():
        best, found = float("inf"), []
        for _ in range(options.repeats):
            start = time.perf_counter()
            found = run()
            best = min(best, time.perf_counter() - start)
        want = found if want is None else want
        difference = worst_difference(found, want)
        results[label] = {"rtfx": seconds / best, "max_difference": difference}
        print(f"{label:<30} {seconds / best:8.2f} x real time   max difference {difference:.2e}",
              flush=True)  # fmt: skip
    own_rate = results["speechssl"]["rtfx"]
    for label, row in results.items():
        if label != "speechssl":
            print(f"speechssl / {label}: {own_rate / row['rtfx']:.2f}")
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "json": None, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
