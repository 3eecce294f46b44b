"""`speechssl pretrain`: train an encoder with a self-supervised objective."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

from speechssl.config import EncoderConfig, HeadConfig, ObjectiveConfig, from_class_path, parse
from speechssl.data.config import DataConfig
from speechssl.train.config import TrainConfig

DESCRIPTION = """Train an encoder with a self-supervised objective.

Under torchrun it runs on all ranks. Run again with the same output, it continues from the newest
checkpoint; when all steps are done it writes model.safetensors and model.json."""

TRAINING = {
    "dropout", "attention_dropout", "activation_dropout", "input_dropout", "layerdrop",
    "conv_gradient_scale", "attention", "checkpointing",
}  # fmt: skip
"""Fields of encoders that only training reads: a run may start from weights made with others."""


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
    """Model whose encoder's weights to start from, with any objective: a run's folder, one of its
    checkpoints (exp/x/checkpoints/step_N), or any public model that opens here."""
    branch_from: str | None = None
    """Run, or one of its checkpoints, to continue in this folder with its whole state (optimiser,
    teacher, step; the place in the data too, if they are the same); that run stays as it is."""
    probe_batches: bool = False
    """Measure how much audio fits in memory and use that as data.max_batch_seconds; the gradient
    of an update does not depend on it."""
    memory_gb: float | None = None
    """Memory that the probe may plan for on a CPU; default: what is available."""
    force: bool = False
    """Continue a run although its configuration differs from before."""

    def __post_init__(self) -> None:
        if self.init_from is not None and self.branch_from is not None:
            raise ValueError(
                f"init_from, branch_from: found {self.init_from} and {self.branch_from}, want one: "
                "only the encoder's weights, or the whole state of a run"
            )


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
    from speechssl.train.folder import branch, export, open_folder, provenance, write_architecture
    from speechssl.train.trainer import Trainer

    device = dist.init(config.train.device)
    open_folder(config.output, config, force=config.force)
    torch.manual_seed(config.train.seed)
    if config.branch_from:
        branch(config.output, config.branch_from, config)
    wanted = config.objective
    objective = (started(wanted, config.init_from) if config.init_from else wanted).build()
    encoder: Any = objective.encoder
    if dist.is_main():
        head = objective.exported_head()
        own = None if head is None else from_class_path(HeadConfig, head)
        write_architecture(config.output, encoder.config, own)
    hop = encoder.hop_samples
    data = config.data
    if config.probe_batches:
        objective.to(device)
        data = probed(data, objective, config.train.precision, config.memory_gb)
    train = open_source(data, hop_samples=hop, split="train")
    valid = open_source(data, hop_samples=hop, split="valid") if data.valid else None
    trainer = Trainer(config.train, objective, train, valid, config.output, front_rank=True)
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


def started(objective: ObjectiveConfig, source: str) -> ObjectiveConfig:
    """`objective`, whose encoder is built with the weights of `source`.

    Whatever an objective makes of its encoder when it is built (a teacher) begins there too.
    """
    wanted = getattr(objective, "encoder", None)
    if not isinstance(wanted, EncoderConfig):
        raise ValueError(
            f"init_from: found {type(objective).__name__}, which has no option `encoder`, want an "
            "objective of which it is one"
        )
    encoder = load_encoder(wanted, source)

    class Started(type(wanted)):  # pyright: ignore
        def build(self) -> Any:
            return copy.deepcopy(encoder)

    values = {f.name: getattr(wanted, f.name) for f in dataclasses.fields(wanted)}
    return dataclasses.replace(objective, encoder=Started(**values))  # pyright: ignore


def load_encoder(wanted: EncoderConfig, source: str) -> Any:
    """The encoder of `wanted` with the weights of `source`.

    Raises `ValueError` that lists fields that differ from those of `source`, but those that only
    training reads, and tensors that do not fit.
    """
    from speechssl.model_file import load_strictly

    config, state = encoder_of(source)
    if type(config) is not type(wanted):
        raise ValueError(
            f"objective.encoder: found {type(wanted).__name__}, want {type(config).__name__}, that "
            f"of {source}"
        )
    faults = [
        f"{f.name}: found {getattr(wanted, f.name)!r}, want {getattr(config, f.name)!r}"
        for f in dataclasses.fields(config)
        if f.name not in TRAINING and getattr(wanted, f.name) != getattr(config, f.name)
    ]
    if faults:
        raise ValueError(f"objective.encoder is not that of {source}: {'; '.join(faults)}")
    encoder = wanted.build()
    load_strictly(encoder, state, source)
    return encoder


def encoder_of(source: str) -> tuple[EncoderConfig, dict[str, Any]]:
    """Configuration and weights of the encoder of a run, a checkpoint or a public model."""
    from speechssl.hub.load import load
    from speechssl.train import checkpoint
    from speechssl.train.folder import read_architecture

    path = Path(source)
    if not (path / "model.json").is_file() and (path / "checkpoints").is_dir():
        path = checkpoint.find(path / "checkpoints", "last")
    if (path / "state.json").is_file():
        prefix = "encoder."
        weights = checkpoint.read_weights(path).items()
        state = {k.removeprefix(prefix): v for k, v in weights if k.startswith(prefix)}
        config, head, _ = read_architecture(path.parent.parent)
        kinds = [o.kind for o in getattr(getattr(head, "adapters", None), "parts", [])]
        if not set(kinds) <= {"none", "bitfit", "layer_norm"}:  # tensors of the encoder's own
            raise ValueError(
                f"init_from: found a checkpoint of a head with adapters ({', '.join(kinds)}) in "
                f"{path}, want the folder of its exported model, into whose encoder lora is folded"
            )
        return config, state
    model = load(source)
    model.fold_adapters()
    return model.encoder.config, model.encoder.state_dict()


if __name__ == "__main__":
    sys.exit(main())
