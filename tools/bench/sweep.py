"""A sweep of learning rates over a frozen encoder, on cached features, against full runs.

    python tools/bench/sweep.py --cuts-train cuts_train.jsonl.gz --cuts-valid cuts_valid.jsonl.gz

Trains the same head (SUPERB's: weighted sum, projection, mean, linear) `--full` times with the
encoder in every update, then once by `speechssl finetune --cache --rates` with ten learning rates,
features included. Prints CPU seconds (user and system, which a loaded machine disturbs little) and
seconds of each, and how many full runs the sweep costs. The encoder has random weights: time does
not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts-train", required=True)
    parser.add_argument("--cuts-valid", required=True)
    parser.add_argument("--field", default="label")
    parser.add_argument("--full", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-seconds", type=float, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--hop", type=int, default=640, help="samples of the encoder's log-mel hop")
    options = parser.parse_args()

    from speechssl.bin import finetune
    from speechssl.encoders.transformer import TransformerConfig
    from speechssl.model_file import save_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = TransformerConfig(
            front_end="log_mel", front_norm="layer", front_dim=256, mel_hop_samples=options.hop,
            layers=options.layers, dim=options.dim, ffn_dim=4 * options.dim,
            heads=max(1, options.dim // 48), pre_norm=True, pos_conv_kernel=32,
        )  # fmt: skip
        encoder = config.build()
        save_model(folder / "encoder", config, encoder.state_dict())
        size = sum(p.numel() for p in encoder.parameters())
        print(
            f"encoder of {size:,} parameters, {options.layers} layers; "
            f"load {os.getloadavg()[0]:.1f}"
        )

        cuts = [f"[{options.cuts_train}]", f"[{options.cuts_valid}]"]

        def words(output: str, *more: str) -> list[str]:
            return [
                "--init", str(folder / "encoder"), "--output", str(folder / output),
                "--data.train", cuts[0], "--data.valid", cuts[1],
                "--data.batch_seconds", str(options.batch_seconds), "--data.max_seconds", "15",
                "--data.max_batch_seconds", str(max(options.batch_seconds, 15)),
                "--data.min_seconds", "0.3", "--data.num_workers", "0",
                "--head", "speechssl.heads.classify.ClassifyConfig", "--head.field", options.field,
                "--train.steps", str(options.steps), "--train.valid_every", "50",
                "--train.save_every", str(options.steps), "--train.log_every", str(options.steps),
                "--train.best_metric", "accuracy", "--train.best_is", "highest",
                "--train.device", "cpu", "--train.tensorboard", "false", *more,
            ]  # fmt: skip

        full = []
        for number in range(options.full):
            cost = timed(lambda n=number: finetune.main(words(f"full{n}")))
            full.append(cost)
            print(f"full run {number + 1}: {cost[0]:.1f} CPU s, {cost[1]:.1f} s")
        more = ("--cache", str(folder / "features"), "--rates", json.dumps(RATES))
        swept = timed(lambda: finetune.main(words("sweep", *more)))
        stored = sum(p.stat().st_size for p in (folder / "features").rglob("features.bin"))
        print(f"ten learning rates: {swept[0]:.1f} CPU s, {swept[1]:.1f} s, {stored / 1e6:.1f} MB")
        for i, unit in enumerate(("CPU seconds", "seconds")):
            mean = sum(cost[i] for cost in full) / len(full)
            print(f"the sweep costs {swept[i] / mean:.2f} full runs in {unit}")


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """CPU seconds and seconds."""
    cpu, wall = _cpu(), time.perf_counter()
    if work():
        raise SystemExit("sweep: the run failed, see above")
    return _cpu() - cpu, time.perf_counter() - wall


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
