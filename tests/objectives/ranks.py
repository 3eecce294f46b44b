"""Train every objective for a few updates on all ranks of torchrun: ranks.py OUTPUT PARALLEL."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from kinds import FOUND, trainer
from safetensors.torch import save_file

from speechssl import dist

STEPS = 2


def main() -> None:
    output, parallel = Path(sys.argv[1]), sys.argv[2]
    dist.init("cpu")
    for kind in FOUND:
        run = trainer(
            kind,
            output / kind.__name__,
            rank=dist.rank(),
            world=dist.world_size(),
            valid=False,
            steps=STEPS,
            log_every=STEPS,
            parallel=parallel,
        )
        run.fit()
        state = run.export_state()
        if dist.is_main():
            save_file(state, output / f"{kind.__name__}.safetensors")
    dist.barrier()
    dist.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
