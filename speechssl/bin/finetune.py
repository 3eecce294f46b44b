"""`speechssl finetune`: train a downstream head on a pretrained encoder, or from scratch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from speechssl.config import EncoderConfig, HeadConfig, parse
from speechssl.data.config import DataConfig
from speechssl.train.config import TrainConfig

DESCRIPTION = """Train a downstream head, with its encoder, on labelled speech.

Run again with the same output, it continues from the newest checkpoint; when all steps are done
it writes model.safetensors and model.json, tokenizer included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    kind: Literal["letters", "bpe", "unigram"] = "letters"
    """Units of the output."""
    size: int | None = None
    """Number of units for bpe and unigram, the blank included."""
    case: Literal["upper", "lower", "keep"] = "upper"
    """Case that texts are brought to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    data: DataConfig
    """What to train on."""
    head: HeadConfig
    """What to learn."""
    output: str
    """Folder of the run, such as exp/ctc."""
    init: str | None = None
    """Pretrained model to start from: a folder with model.safetensors, or a transformers one."""
    encoder: EncoderConfig | None = None
    """Without `init`: the encoder to train from scratch."""
    encoder_overrides: dict[str, float] = dataclasses.field(default_factory=dict)
    """With `init`: fields of its encoder's configuration to change, such as dropout; none that
    changes its tensors."""
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    """Made from the training texts, where the head needs one and data.tokenizer names none."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How to optimise."""
    export: Literal["best", "last"] = "best"
    """Weights to export: those of the best validation, or the last ones."""
    force: bool = False
    """Continue a run although its configuration differs from before."""

    def __post_init__(self) -> None:
        if (self.init is None) == (self.encoder is None):
            raise ValueError(
                "init, encoder: found both or none, want one: --init FOLDER for a pretrained "
                "encoder, or an encoder's configuration to train from scratch"
            )


def main(argv: list[str] | None = None) -> int:
    config = parse(FinetuneConfig, argv, prog="speechssl finetune", description=DESCRIPTION)
    try:
        return run(config)
    except (ValueError, OSError) as error:
        print(f"speechssl finetune: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def run(config: FinetuneConfig) -> int:
    """Train, then export; the exit status is 0 only when all steps are done."""
    import torch

    from speechssl import dist
    from speechssl.data.loader import open_source
    from speechssl.train.folder import export, open_folder, provenance, write_architecture
    from speechssl.train.log import say
    from speechssl.train.trainer import Trainer

    dist.init(config.train.device)
    open_folder(config.output, config, force=config.force)
    torch.manual_seed(config.train.seed)
    encoder = build_encoder(config)
    data, head_config, tokenizer = with_tokenizer(config)
    data, head_config = with_classes(config.output, data, head_config)
    head = head_config.build(encoder)
    say(_sizes(head))
    if dist.is_main():
        write_architecture(config.output, encoder.config, head_config, tokenizer)
    train = open_source(data, hop_samples=encoder.hop_samples, split="train")
    valid = (
        open_source(data, hop_samples=encoder.hop_samples, split="valid") if data.valid else None
    )
    trainer = Trainer(config.train, head, train, valid, config.output)
    result = trainer.fit()
    if result.finished:
        state = trainer.export_state(config.export)
        if dist.is_main():
            origin = provenance(config, result.step) | {"best": result.best, "init": config.init}
            export(config.output, config.output, state, origin)
    dist.shutdown()
    return 0 if result.finished else 128 + result.signal


def _sizes(head: Any) -> str:
    """How many parameters learn, and where."""
    named = list(head.named_parameters())

    def count(inside: bool, learning: bool) -> int:
        return sum(
            p.numel()
            for n, p in named
            if n.startswith("encoder.") == inside and (p.requires_grad or not learning)
        )

    total = count(True, False) + count(False, False)
    learnt = count(True, True) + count(False, True)
    return (
        f"parameters: {learnt:,} of {total:,} learn ({100 * learnt / total:.3f} %): "
        f"{count(True, True):,} of the encoder's {count(True, False):,}, "
        f"{count(False, True):,} of the head's {count(False, False):,}"
    )


def build_encoder(config: FinetuneConfig) -> Any:
    """The pretrained encoder with `encoder_overrides`, or the one to train from scratch."""
    if config.encoder is not None:
        return config.encoder.build()
    from speechssl.model_file import load_strictly, open_model

    folder = str(config.init)
    if (Path(folder) / "model.json").is_file() or not (Path(folder) / "config.json").is_file():
        opened = open_model(folder)
        if hasattr(opened.head, "adapters"):
            opened.head.adapters.fold()
        encoder: Any = opened.encoder
    else:
        encoder = _transformers_encoder(folder)
    if not config.encoder_overrides:
        return encoder
    known = {f.name: f.type for f in dataclasses.fields(encoder.config)}
    unknown = sorted(config.encoder_overrides.keys() - known.keys())
    if unknown:
        raise ValueError(f"encoder_overrides: found {unknown}, want some of {sorted(known)}")
    before = {k: getattr(encoder.config, k) for k in config.encoder_overrides}
    changed = {
        k: type(before[k])(v) if isinstance(before[k], bool | int | float) else v
        for k, v in config.encoder_overrides.items()
    }
    other = dataclasses.replace(encoder.config, **changed).build()
    load_strictly(other, encoder.state_dict(), f"{folder} with encoder_overrides {changed}")
    return other


def _transformers_encoder(folder: str) -> Any:
    from speechssl.hub.load import load

    return load(folder).encoder


def with_tokenizer(config: FinetuneConfig) -> tuple[DataConfig, HeadConfig, dict | None]:
    """Data and head with the tokenizer filled in; made once, kept in the run's folder."""
    head: Any = config.head
    if not hasattr(head, "vocab_size"):
        return config.data, head, None
    from speechssl import dist
    from speechssl.data.text import Tokenizer, tokenizer_from_texts

    path = Path(config.data.tokenizer or Path(config.output) / "tokenizer.json")
    if config.data.tokenizer is None and dist.is_main() and not path.is_file():
        wanted = config.tokenizer
        texts = transcripts(config.data.train)
        tokenizer_from_texts(texts, wanted.kind, wanted.size, case=wanted.case).save(path)
    dist.barrier()
    tokenizer = Tokenizer.load(path)
    if head.vocab_size not in (0, tokenizer.size):
        raise ValueError(
            f"head.vocab_size: found {head.vocab_size}, want 0 (filled in) or {tokenizer.size}, "
            f"the size of {path}"
        )
    data = dataclasses.replace(config.data, tokenizer=str(path))
    return data, dataclasses.replace(head, vocab_size=tokenizer.size), tokenizer.to_dict()


def with_classes(output: str, data: DataConfig, head: Any) -> tuple[DataConfig, HeadConfig]:
    """Data and head with the classes of `head.field` filled in; their labels lie in the folder.

    Raises `ValueError` for a cut without the field, and for a class in data.valid that data.train
    (or head.classes) lacks: its loss would have no meaning.
    """
    if not hasattr(head, "classes"):
        return data, head
    from collections import Counter

    from speechssl.data.fields import field_values, write_class_labels

    if not head.field or data.classes is not None:
        raise ValueError(
            f"head.field, data.classes: found {head.field!r} and {data.classes!r}, want a field of "
            "the manifest, such as --head.field emotion, and no label store: it is made of it"
        )
    values = field_values(data.train, head.field)
    counts = Counter(values.values())
    classes = list(head.classes) or sorted(counts)
    folder = Path(output) / "classes"
    values |= field_values(data.valid, head.field)
    write_class_labels(folder, values, classes, head.field)
    filled = dataclasses.replace(
        head, classes=classes, class_counts=[counts[name] for name in classes]
    )
    return dataclasses.replace(data, classes=str(folder)), filled


def transcripts(cuts: list[str]) -> Iterator[str]:
    """Texts of the training cuts, as the loader reads them."""
    from speechssl.data.index import CutIndices

    indices = CutIndices(cuts)
    for at in range(len(indices)):
        text = indices[at].text
        if text:
            yield text


if __name__ == "__main__":
    sys.exit(main())
