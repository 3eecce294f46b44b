"""Multiply-accumulates and speed of MR-HuBERT's encoder beside the flat one of equal size.

Counted are the products of all convolutions and matrices of one utterance's forward pass,
attention's included, by torch's counter of floating point operations, without computing them. Then
all encoders of a size, with random weights, run by turns, one pass each per round; a ratio is the
median over rounds of the two times of that round. On a CPU the clock is that of the process, which
does not run while other programs do.

    OMP_NUM_THREADS=1 python tools/bench/resolutions.py --rounds 5
    python tools/bench/resolutions.py --seconds 5,10,30 --rounds 0        # only count
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speechssl.contract import Encoder
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.nn.linear import HAS_ONEDNN

THREE: dict[str, Any] = {"factors": (2, 2)}
SIZES: dict[str, dict[str, TransformerConfig | MultiresConfig]] = {
    "base": {
        "20 ms, 12 layers": TransformerConfig(),
        "20-40 ms, 4-4-4": MultiresConfig(),
        "20-40-80 ms, 3-2-2-2-3": MultiresConfig(stacks=(3, 2, 2, 2, 3), **THREE),
    },
    "large": {
        "20 ms, 24 layers": TransformerConfig.large(),
        "20-40 ms, 8-8-8": MultiresConfig.large(),
        "20-40-80 ms, 6-4-4-4-6": MultiresConfig.large(stacks=(6, 4, 4, 4, 6), **THREE),
    },
}
"""Size -> encoders with as many layers; the first, flat one is what others are compared with, the
second is published, the third is not."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="base,large", help="base, large or both")
    parser.add_argument("--seconds", default="10", help="lengths of an utterance, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each; 0: only count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = options.sizes.split(",")
    if not set(sizes) <= set(SIZES):
        raise SystemExit(f"--sizes: found {options.sizes}, want some of {', '.join(SIZES)}")
    load, rows = os.getloadavg()[0], []
    for size in sizes:
        times = timed(size, options) if options.rounds else {}
        for seconds in map(float, options.seconds.split(",")):
            rows += compared(size, seconds, times.get(seconds, {}))
    if options.rounds:
        print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {options.rounds} rounds")
    print(table(rows))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1))


def macs(config: TransformerConfig | MultiresConfig, seconds: float) -> int:
    """Multiply-accumulates of one utterance's forward pass to the last layer."""
    counter = FlopCounterMode(display=False, custom_mapping=_onednn())
    # Fused attention is not counted on a CPU; written out it has the same products.
    with FakeTensorMode(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        encoder: Any = config.build().eval()
        samples = round(16000 * seconds)
        wave, lengths = torch.empty(1, samples), torch.tensor([samples])
        with counter:
            encoder(wave, lengths, layers=[-1])
    return counter.get_total_flops() // 2


def _onednn() -> dict[Any, Any]:
    """Operations of the products that `nn.linear` gives to oneDNN, which the counter misses."""

    def operations(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x.numel() * weight[0]

    return {torch.ops.mkldnn._linear_pointwise: operations} if HAS_ONEDNN else {}


def timed(size: str, options: argparse.Namespace) -> dict[float, dict[str, list[float]]]:
    """Length -> encoder -> seconds of each round."""
    torch.manual_seed(0)
    encoders: dict[str, Any] = {
        name: config.build().eval().to(options.device) for name, config in SIZES[size].items()
    }
    found: dict[float, dict[str, list[float]]] = {}
    for seconds in map(float, options.seconds.split(",")):
        wave = 0.1 * torch.randn(1, round(16000 * seconds), device=options.device)
        found[seconds] = times = {name: [] for name in encoders}
        for encoder in encoders.values():
            one_pass(encoder, wave)  # memory is taken, kernels are chosen
        for number in range(options.rounds):
            # Backwards every other time: no one always comes behind the same one.
            for name in list(encoders)[:: 1 if number % 2 == 0 else -1]:
                times[name].append(one_pass(encoders[name], wave))
    return found


@torch.no_grad()
def one_pass(encoder: Encoder, wave: Tensor) -> float:
    """Seconds of the process, all threads together, on a CPU; else seconds on the wall."""
    clock = time.process_time if wave.device.type == "cpu" else time.perf_counter
    lengths = torch.tensor([wave.shape[1]], device=wave.device)
    start = clock()
    encoder(wave, lengths, layers=[-1])
    if wave.device.type != "cpu":
        torch.accelerator.synchronize()
    return clock() - start


def compared(size: str, seconds: float, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    reference = next(iter(times.values()), [])
    for name, config in SIZES[size].items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in config.build().parameters())
        row = {"size": size, "encoder": name, "seconds": seconds, "parameters": parameters}
        row["macs"] = macs(config, seconds)
        row["macs_ratio"] = row["macs"] / (rows[0] if rows else row)["macs"]
        if own := times.get(name):
            row["pass_seconds"] = statistics.median(own)
            row["pass_ratio"] = statistics.median(
                a / b for a, b in zip(own, reference, strict=True)
            )
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| size | encoder | parameters | audio s | MACs | of the flat one's | s per pass | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        timing = ["-", "-"]
        if "pass_seconds" in row:
            timing = [f"{row['pass_seconds']:.3f}", f"{row['pass_ratio']:.3f}"]
        lines.append(
            f"| {row['size']} | {row['encoder']} | {row['parameters'] / 1e6:.2f} M "
            f"| {row['seconds']:g} | {row['macs'] / 1e9:.1f} G | {row['macs_ratio']:.3f} "
            f"| {' | '.join(timing)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
