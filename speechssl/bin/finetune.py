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
it writes model.safetensors and model.json, tokenizer included.

With --cache, a frozen encoder runs once per utterance and training reads its features. With
--rates, each of several learning rates is tried, and the best on the validation data exported;
sweep.json says how each of them did."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    kind: Literal["letters", "bpe", "unigram"] = "letters"
    """Units of the output."""
    size: int | None = None
    """Number of units for bpe and unigram, the blank included."""
    case: Literal["upper", "lower", "keep"] = "upper"
    """Case that texts are brought to."""
    keep_punctuation: bool = False
    """Punctuation and symbols are units too, such as those of tags: <drink> latte </drink>."""


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
    init_head: bool = False
    """Start from the head of that model too: of the same kind, size and classes."""
    encoder: EncoderConfig | None = None
    """Without `init`: the encoder to train from scratch."""
    fuse: list[str] = dataclasses.field(default_factory=list)
    """Further encoders whose frames are put beside those of `init` or `encoder`, each a model that
    opens here or a YAML file with `encoder`; every layer sum has weights for each of them."""
    encoder_overrides: dict[str, float] = dataclasses.field(default_factory=dict)
    """With `init`: fields of its encoder's configuration to change, such as dropout; none that
    changes its tensors."""
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    """Made from the training texts, where the head needs one and data.tokenizer names none."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How to optimise."""
    export: Literal["best", "last", "average"] = "best"
    """Weights to export: those of the best validation, the last ones, or the mean of those of the
    train.keep_best best validations."""
    cache: str | None = None
    """Folder for the features of a frozen encoder, computed once per utterance; any number of runs
    may share it."""
    cache_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number type of those features."""
    rates: list[float] = dataclasses.field(default_factory=list)
    """Learning rates to try one after the other in place of train.learning_rate, such as
    [1e-1,1e-2,1e-3]; the best by train.best_metric is exported."""
    force: bool = False
    """Continue a run although its configuration differs from before."""

    def __post_init__(self) -> None:
        if (self.init is None) == (self.encoder is None):
            raise ValueError(
                "init, encoder: found both or none, want one: --init FOLDER for a pretrained "
                "encoder, or an encoder's configuration to train from scratch"
            )
        if self.init_head and self.init is None:
            raise ValueError(
                "init_head: found no init, want the folder of a fine-tuned model there"
            )
        if self.export == "average" and (self.train.keep_best < 2 or not self.data.valid):
            raise ValueError(
                f"export: found average with train.keep_best {self.train.keep_best} and data.valid "
                f"{self.data.valid}, want 2 or more (5 is common) and cuts to validate on"
            )
        others, speeds = getattr(self.head, "other_speeds", []), self.data.speeds
        if others and set(speeds) != {1.0, *others} and (speeds or not self.init_head):
            raise ValueError(
                f"head.other_speeds: found {others} with data.speeds {speeds}, want data.speeds "
                f"{sorted({1.0, *others})}; none at all only with init_head, whose speakers at "
                "other speeds are kept"
            )
        if len(set(self.rates)) < len(self.rates) or any(r <= 0 for r in self.rates):
            raise ValueError(f"rates: found {self.rates}, want different numbers above 0")
        if self.rates and not self.data.valid:
            raise ValueError(
                "rates: found no data.valid, want cuts on which learning rates are compared"
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
    from speechssl import dist

    dist.init(config.train.device)
    if config.rates:
        from speechssl.bin.sweep import sweep

        result = sweep(config)
    else:
        result = train(config, export_to=config.output)
    dist.shutdown()
    return 0 if result.finished else 128 + result.signal


def train(config: FinetuneConfig, export_to: str | None) -> Any:
    """Train one model in `config.output`, from where it is; export it if all steps are done.

    The result is the trainer's. No name of it above: --help would import what annotations name.
    """
    import torch

    from speechssl import dist
    from speechssl.bin import voice_setup
    from speechssl.bin.activity_labels import with_activity
    from speechssl.bin.cached_features import check_head, fill
    from speechssl.bin.utterance_labels import with_targets
    from speechssl.data.loader import open_source
    from speechssl.train import checkpoint
    from speechssl.train.folder import export, open_folder, provenance, write_architecture
    from speechssl.train.log import say
    from speechssl.train.trainer import Trainer

    device = dist.init(config.train.device)
    open_folder(config.output, config, force=config.force)
    torch.manual_seed(config.train.seed)
    encoder = build_encoder(config)
    data, head_config, tokenizer = with_tokenizer(config)
    data, head_config = with_classes(config.output, data, head_config)
    data, head_config = with_targets(config.output, data, head_config)
    data = with_activity(config.output, data, head_config)
    head_config = voice_setup.complete(head_config, encoder, data)
    head = head_config.build(encoder)
    sizes = _sizes(head)
    say(_shown(sizes))
    if dist.is_main():
        write_architecture(config.output, encoder.config, head_config, tokenizer)
    if config.cache:
        from speechssl.data.feature_cache import FeatureSource
        from speechssl.encoders.cached import CachedEncoder

        layers = check_head(head)
        cache = fill(config.cache, config.cache_dtype, encoder, layers, data, device)
        head.encoder = CachedEncoder(encoder, layers)
        sources = [FeatureSource(data, cache, split=s) for s in _splits(data)]
    else:
        sources = [open_source(data, hop_samples=encoder.hop_samples, split=s)
                   for s in _splits(data)]  # fmt: skip
    valid = sources[1] if len(sources) > 1 else None
    if not checkpoint.steps(Path(config.output) / "checkpoints"):  # which hold what it fills in
        voice_setup.fill(head, data)
        if config.init_head:
            load_head(head, str(config.init), tokenizer)
    trainer = Trainer(config.train, head, sources[0], valid, config.output)
    result = trainer.fit()
    if result.finished and export_to is not None:
        state = trainer.export_state(config.export)
        if config.cache:
            state |= {f"encoder.{k}": v.cpu() for k, v in encoder.state_dict().items()}
        if dist.is_main():
            origin = provenance(config, result.step) | {"best": result.best, "init": config.init}
            export(config.output, export_to, state, origin | {"parameters": sizes})
    return result


def _splits(data: DataConfig) -> list[str]:
    return ["train", "valid"] if data.valid else ["train"]


def _sizes(head: Any) -> dict[str, int]:
    """How many parameters there are, and learn, in the encoder and in the head; its adapters are
    counted once more alone."""
    named = list(head.named_parameters())

    def count(inside: bool, learning: bool) -> int:
        return sum(
            p.numel()
            for n, p in named
            if n.startswith("encoder.") == inside and (p.requires_grad or not learning)
        )

    return {
        "encoder": count(True, False),
        "encoder_learning": count(True, True),
        "head": count(False, False),
        "head_learning": count(False, True),
        "adapters": sum(p.numel() for n, p in named if n.startswith("adapters.")),
    }


def _shown(sizes: dict[str, int]) -> str:
    learnt = sizes["encoder_learning"] + sizes["head_learning"]
    total = sizes["encoder"] + sizes["head"]
    shown = (
        f"parameters: {learnt:,} of {total:,} learn ({100 * learnt / total:.3f} %): "
        f"{sizes['encoder_learning']:,} of the encoder's {sizes['encoder']:,}, "
        f"{sizes['head_learning']:,} of the head's {sizes['head']:,}"
    )
    inside = sizes["adapters"] + sizes["encoder_learning"]
    if 0 < inside < sizes["encoder"]:  # what the tables of parameter-efficient tuning state
        share = 100 * inside / sizes["encoder"]
        shown += f"; inside the encoder {inside:,}, {share:.3f} % of its own"
    return shown


def build_encoder(config: FinetuneConfig) -> Any:
    """The encoder of `init` or `encoder`, with those of `fuse` beside it."""
    encoder = _one_encoder(config)
    if not config.fuse:
        return encoder
    from speechssl.hub.fuse import fuse, open_encoder

    return fuse([encoder, *map(open_encoder, config.fuse)])


def _one_encoder(config: FinetuneConfig) -> Any:
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


def load_head(head: Any, folder: str, tokenizer: dict | None = None) -> None:
    """Load the tensors of the head in `folder`, without those of its encoder and adapters.

    tokenizer: that of `head`, if it has one; equal sizes of others would hide other tokens.

    Raises `ValueError` for another kind of head, other answers, or tensors that do not fit.
    """
    from speechssl.model_file import load_strictly, open_model

    opened = open_model(folder)
    other = opened.head
    kinds = [type(h).__name__ for h in (other, head)]
    classes = [getattr(getattr(h, "config", None), "classes", None) for h in (other, head)]
    if kinds[0] != kinds[1] or classes[0] != classes[1]:
        raise ValueError(
            f"init_head: found a {kinds[0]} of {len(classes[0] or [])} classes in {folder}, want a "
            f"{kinds[1]} of the same {len(classes[1] or [])} classes; train on the same labels, "
            "or leave init_head out"
        )
    for name in ("slots", "values", "dimensions", "further", "further_values"):
        found, wanted = (getattr(h.config, name, None) for h in (other, head))
        if found != wanted:
            raise ValueError(
                f"init_head: found head.{name} {found!r:.200} in {folder}, want {wanted!r:.200}; "
                "train on the same labels, or leave init_head out"
            )

    if tokenizer is not None and dict(opened.tokenizer or {}) != tokenizer:
        raise ValueError(
            f"init_head: found other tokens in {folder}, want the same ones in the same order; "
            f"--data.tokenizer {folder}/tokenizer.json takes them, or leave init_head out"
        )

    def taken(name: str) -> bool:
        return name != "step" and not name.startswith(("encoder.", "adapters."))

    state = {k: v for k, v in head.state_dict().items() if not taken(k)}
    state |= {k: v for k, v in other.state_dict().items() if taken(k)}
    load_strictly(head, state, folder)


def _transformers_encoder(folder: str) -> Any:
    from speechssl.hub.load import load

    return load(folder).encoder


def with_tokenizer(config: FinetuneConfig) -> tuple[DataConfig, HeadConfig, dict | None]:
    """Data and head with the tokenizer filled in; made once, kept in the run's folder."""
    head: Any = config.head
    if not getattr(head, "needs_text", hasattr(head, "vocab_size")):
        return config.data, head, None
    from speechssl import dist
    from speechssl.data.text import Tokenizer, tokenizer_from_texts

    path = Path(config.data.tokenizer or Path(config.output) / "tokenizer.json")
    if config.data.tokenizer is None and dist.is_main() and not path.is_file():
        wanted = config.tokenizer
        texts = transcripts(config.data.train)
        tokenizer_from_texts(
            texts,
            wanted.kind,
            wanted.size,
            case=wanted.case,
            strip_punctuation=not wanted.keep_punctuation,
        ).save(path)
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
    if not getattr(head, "needs_classes", hasattr(head, "classes")):
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
    found: dict[str, Any] = {"classes": classes}
    if hasattr(head, "class_counts"):
        found["class_counts"] = [counts[name] for name in classes]
    filled = dataclasses.replace(head, **found)
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
