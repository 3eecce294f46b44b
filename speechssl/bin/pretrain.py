"""`speechssl pretrain`: train an encoder with a self-supervised objective."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from speechssl.config import ObjectiveConfig, parse
from speechssl.data.config import DataConfig
from speechssl.train.config import TrainConfig

DESCRIPTION = """Train an encoder with a self-supervised objective.

Under torchrun it runs on all ranks. Run again with the same output, it continues from the newest
checkpoint; when all steps are done it writes model.safetensors and model.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    data: DataConfig
    """What to train on."""
    objective: ObjectiveConfig
    """What to learn, and with which encoder."""
    output: str
    """Folder of the run, such as exp/hubert_it1."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How to optimise."""
    init_from: str | None = None
    """Exported model whose encoder's weights to start from."""
    probe_batches: bool = False
    """Measure how much audio fits in memory and use that as data.max_batch_seconds; the gradient
    of an update does not depend on it."""
    memory_gb: float | None = None
    """Memory that the probe may plan for on a CPU; default: what is available."""
    force: bool = False
    """Continue a run although its configuration differs from before."""


def main(argv: list[str] | None = None) -> int:
    config = parse(PretrainConfig, argv, prog="speechssl pretrain", description=DESCRIPTION)
    try:
        return run(config)
    except (ValueError, OSError) as error:
        print(f"speechssl pretrain: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def run(config: PretrainConfig) -> int:
    """Train, then export; the exit status is 0 only when all steps are done."""
    import torch

    from speechssl import dist
    from speechssl.data.loader import open_source
    from speechssl.train.folder import export, open_folder, provenance, write_architecture
    from speechssl.train.trainer import Trainer

    device = dist.init(config.train.device)
    open_folder(config.output, config, force=config.force)
    torch.manual_seed(config.train.seed)
    objective = config.objective.build()
    if config.init_from:
        load_encoder(objective.encoder, config.init_from)
    encoder: Any = objective.encoder
    if dist.is_main():
        write_architecture(config.output, encoder.config)
    hop = encoder.hop_samples
    data = config.data
    if config.probe_batches:
        objective.to(device)
        data = probed(data, objective, config.train.precision, config.memory_gb)
    train = open_source(data, hop_samples=hop, split="train")
    valid = open_source(data, hop_samples=hop, split="valid") if data.valid else None
    trainer = Trainer(config.train, objective, train, valid, config.output)
    result = trainer.fit()
    if result.finished:
        state = trainer.export_state("last")
        if dist.is_main():
            export(config.output, config.output, state, provenance(config, result.step))
    dist.shutdown()
    return 0 if result.finished else 128 + result.signal


def probed(data: DataConfig, objective: Any, precision: str, memory_gb: float | None) -> DataConfig:
    """`data` with the largest max_batch_seconds that memory holds, up to its share of an update."""
    from speechssl import dist
    from speechssl.data.loader import open_source
    from speechssl.train.log import say
    from speechssl.train.probe import largest_batch_seconds, padded_seconds

    source = open_source(data, hop_samples=objective.encoder.hop_samples, split="train")
    update = next(iter(source.updates()))
    seconds = largest_batch_seconds(
        objective,
        max(update.batches, key=padded_seconds),
        limit_seconds=data.batch_seconds / dist.world_size(),
        precision=precision,
        memory_gb=memory_gb,
    )
    seconds = max(seconds, data.max_seconds)
    say(f"max_batch_seconds: {seconds:.1f} fit in memory")
    return dataclasses.replace(data, max_batch_seconds=seconds)


def load_encoder(encoder: Any, folder: str) -> None:
    """Copy the encoder's weights of an exported model into `encoder`, strictly."""
    from speechssl.model_file import load_strictly, open_model

    load_strictly(encoder, open_model(folder).encoder.state_dict(), folder)


if __name__ == "__main__":
    sys.exit(main())
