"""Encoders from wherever they lie, and several of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechssl.config import EncoderConfig, from_class_path
from speechssl.contract import Encoder
from speechssl.encoders.fusion import FusionEncoder
from speechssl.hub.load import load


def open_encoder(path: str | Path) -> Encoder:
    """The encoder of what `speechssl.load` opens, with what a head has tuned inside it; or the one
    that the `encoder` of a YAML file describes, such as log-mel, with the weights it is built with.

    Raises ValueError as `load` does, and for a YAML file without `encoder`.
    """
    if Path(path).suffix not in (".yaml", ".yml"):
        model = load(path)
        model.fold_adapters()
        return model.encoder
    import yaml

    if not Path(path).is_file():
        raise ValueError(f"encoder: found no {path}, want a YAML file with `encoder`, or a model")
    values = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(values, dict) or not values.get("encoder"):
        raise ValueError(
            f"encoder: {path} has {', '.join(values) or 'nothing'}, want `encoder` with a "
            "class_path, as for `speechssl finetune`"
        )
    return from_class_path(EncoderConfig, values["encoder"]).build()


def fuse(encoders: Sequence[Encoder]) -> FusionEncoder:
    """The encoders side by side; they become parts of the new one, and are not copied.

    The parts of one that is fused already count as several.
    Raises ValueError for fewer than two, and if their rates do not go together.
    """
    parts: list[Encoder] = []
    for encoder in encoders:
        parts += encoder.parts if isinstance(encoder, FusionEncoder) else [encoder]
    return FusionEncoder(parts)
