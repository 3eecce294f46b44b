"""Train every objective for a few updates as one of some ranks: ranks.py OUTPUT."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from kinds import FOUND, apart, trainer
from safetensors.torch import save_file

from speechssl import dist

STEPS = 2


def main() -> None:
    output = Path(sys.argv[1])
    dist.init("cpu")
    for kind, parallel in itertools.product(FOUND, ("replicated", "fsdp2")):
        name = f"{kind.__name__}_{parallel}"
        run = trainer(
            kind,
            output / name,
            rank=dist.rank(),
            world=dist.world_size(),
            valid=False,
            steps=STEPS,
            log_every=STEPS,
            parallel=parallel,
            changes=apart(kind),
        )
        run.fit()
        state = run.export_state()
        if dist.is_main():
            save_file(state, output / f"{name}.safetensors")
    dist.barrier()
    dist.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
