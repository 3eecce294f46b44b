"""`speechssl vocoder`: train what makes a wave of a log-mel spectrogram."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

from speechssl.config import VocoderConfig, parse
from speechssl.data.config import DataConfig
from speechssl.train.config import TrainConfig
from speechssl.vocoder.config import CriticConfig, ReconstructionConfig, SpectralConfig

DESCRIPTION = """Train a vocoder: what makes a wave of a log-mel spectrogram.

It needs audio only, cropped to data.max_seconds (1 is enough). The first run gives back the wave
that a mel was made of; a second one, with --init_from of the first and a critic, makes it sound
more natural against discriminators. Run again with the same output, it continues from the newest
checkpoint; when all steps are done it writes model.safetensors and model.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderTrainConfig:
    data: DataConfig
    """What to train on."""
    output: str
    """Folder of the run, such as exp/vocoder."""
    vocoder: VocoderConfig | None = None
    """Which vocoder; default: that of init_from, or speechssl.vocoder.config.SpectralConfig, for
    CPUs. The other is speechssl.vocoder.config.HifiganConfig."""
    loss: ReconstructionConfig = dataclasses.field(default_factory=ReconstructionConfig)
    """How its wave is compared with the true one."""
    critic: CriticConfig | None = None
    """Discriminators to train against, if any: `--critic.segment_seconds 0.5` or the like."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How to optimise, the discriminators too."""
    init_from: str | None = None
    """Folder of a trained vocoder to start from."""
    export: Literal["best", "last"] = "last"
    """Weights to export: the last ones, or those of the best validation."""
    force: bool = False
    """Continue a run although its configuration differs from before."""


def main(argv: list[str] | None = None) -> int:
    config = parse(VocoderTrainConfig, argv, prog="speechssl vocoder", description=DESCRIPTION)
    try:
        return run(config)
    except (ValueError, OSError) as error:
        print(f"speechssl vocoder: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def run(config: VocoderTrainConfig) -> int:
    """Train, then export; the exit status is 0 only when all steps are done."""
    import torch

    from speechssl import dist
    from speechssl.data.loader import open_source
    from speechssl.train.adversarial import AdversarialTrainer
    from speechssl.train.folder import open_folder, provenance
    from speechssl.train.log import say
    from speechssl.train.trainer import Trainer
    from speechssl.vocoder.load import save_vocoder
    from speechssl.vocoder.objective import VocoderObjective

    _check_data(config.data)
    dist.init(config.train.device)
    torch.manual_seed(config.train.seed)
    vocoder = built(config)
    # The configuration of the run names the vocoder, wherever it came from.
    config = dataclasses.replace(config, vocoder=vocoder.config)
    open_folder(config.output, config, force=config.force)
    objective = VocoderObjective(vocoder, config.loss, config.critic)
    say(_sizes(objective))
    hop = vocoder.mel.config.hop
    train = open_source(config.data, hop_samples=hop, split="train")
    valid = open_source(config.data, hop_samples=hop, split="valid") if config.data.valid else None
    kind = AdversarialTrainer if config.critic else Trainer
    trainer = kind(config.train, objective, train, valid, config.output)
    result = trainer.fit()
    if result.finished:
        prefix = "vocoder."
        state = trainer.export_state(config.export).items()
        if dist.is_main():
            save_vocoder(
                config.output,
                vocoder.config,
                vocoder.mel.config,
                {k.removeprefix(prefix): v for k, v in state if k.startswith(prefix)},
                provenance(config, result.step) | {"best": result.best},
            )
    dist.shutdown()
    return 0 if result.finished else 128 + result.signal


def built(config: VocoderTrainConfig) -> Any:
    """The vocoder to train: with the weights of `init_from`, or new ones."""
    from speechssl.nn.speech_mel import SpeechMelConfig
    from speechssl.vocoder.load import GRIFFIN_LIM, load_vocoder

    if config.init_from is None:
        return (config.vocoder or SpectralConfig()).build(SpeechMelConfig())
    if config.init_from == GRIFFIN_LIM:
        raise ValueError(f"init_from: found {GRIFFIN_LIM}, want the folder of a trained vocoder")
    vocoder: Any = load_vocoder(Path(config.init_from), SpeechMelConfig())
    if config.vocoder not in (None, vocoder.config):
        raise ValueError(
            f"vocoder: found {config.vocoder}, want that of {config.init_from}, {vocoder.config}; "
            "leave out one of them"
        )
    return vocoder


def _check_data(data: DataConfig) -> None:
    if data.labels or data.tokenizer or data.classes or data.mixing or data.mixtures:
        raise ValueError(
            "data: found labels, tokenizer, classes, mixing or mixtures, want audio only: a "
            "vocoder learns from the wave alone"
        )


def _sizes(objective: Any) -> str:
    def count(module: Any) -> str:
        return f"{sum(p.numel() for p in module.parameters()):,}"

    critic = objective.critic
    against = "" if critic is None else f", {count(critic)} of its discriminators"
    return f"parameters: {count(objective.vocoder)} of the vocoder{against}"


if __name__ == "__main__":
    sys.exit(main())
