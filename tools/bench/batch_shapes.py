"""Updates on a CPU, their batches padded to few shapes, as training's are, or to the longest.

    OMP_NUM_THREADS=1 python tools/bench/batch_shapes.py --cuts data/cuts_train.jsonl.gz

The lengths are those of the updates that training would make of the cuts; the waves are noise, so
reading is left out. A CPU's kernels are made anew for each shape, and kept for a while: hence a
process of its own for each way and round, in turn, and the first updates of each do not count.
Seconds are of CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from objectives import CONF, configured, noise, updater

from speechssl.contract import Batch
from speechssl.data.index import CutIndices
from speechssl.data.sampler import UpdateSampler, padded_samples

WAYS = ("longest", "few shapes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", required=True, help="manifest of a training split")
    parser.add_argument("--config", type=Path, default=CONF / "hubert.yaml", help="of pretraining")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--updates", type=int, default=120, help="in each process")
    parser.add_argument("--warmup", type=int, default=20, help="of these not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help="this one alone, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        print(json.dumps(measure(options)))
        return
    found = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in WAYS[:: 1 if number % 2 == 0 else -1]:
            again = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            done = subprocess.run(again, check=True, stdout=subprocess.PIPE)
            found[way].append(json.loads(done.stdout))
    print("| padded to | CPU s per update | over the first | padded audio s | shapes | peak GB |")
    print("|---|---|---|---|---|---|")
    for way, rows in found.items():
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(rows, found[WAYS[0]], strict=True)]
        seconds, memory = (statistics.median(r[k] for r in rows) for k in ("seconds", "memory"))
        print(
            f"| {way} | {seconds:.3f} | {statistics.median(ratios):.2f} | {rows[0]['padded']:.1f} "
            f"| {rows[0]['shapes']} | {memory:.2f} |"
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    import resource

    config = configured(options.config)
    torch.manual_seed(0)
    objective = config.objective.build()
    sampler = UpdateSampler(CutIndices([options.cuts]), config.data)
    random = torch.Generator().manual_seed(0)
    shapes, seconds = [], 0.0
    train = dataclasses.replace(config.train, precision=options.precision)
    update = updater(train, objective, "cpu")
    for at, plan in enumerate(itertools.islice(sampler.plans(), options.updates)):
        lengths = sampler.lengths(plan.members)
        batches: list[Batch] = []
        for places in plan.batches:
            own = lengths[list(places)]
            longest = own.max()
            samples = int(longest if options.way == WAYS[0] else padded_samples(longest))
            shapes.append((len(own), samples))
            made = torch.from_numpy(own.astype(np.int64))
            batches.append(noise(objective, config.objective, made, samples, random))
        start = time.process_time()
        update(batches)
        if at >= options.warmup:
            seconds += time.process_time() - start
    return {
        "seconds": seconds / (options.updates - options.warmup),
        "padded": sum(rows * samples for rows, samples in shapes) / 16000 / options.updates,
        "shapes": len(set(shapes)),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


if __name__ == "__main__":
    main()
