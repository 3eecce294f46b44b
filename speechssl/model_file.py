"""`model.safetensors` + `model.json`: the exported model that `speechssl.load` opens. Leaf.

model.json holds {"format": 1, "encoder": {class_path, init_args}, "head": the same or null,
"tokenizer": {...} or null, "provenance": {...}}; the tensors are named `encoder.*` and `head.*`.
Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from speechssl.config import EncoderConfig, HeadConfig, from_class_path, to_dict
from speechssl.contract import Encoder, Objective

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """An opened model: the encoder, and the head on it (its `.encoder` is the same module)."""

    encoder: Encoder
    head: Objective | None
    tokenizer: Mapping[str, Any] | None
    provenance: Mapping[str, Any]


def save_model(
    folder: str | Path,
    encoder_config: EncoderConfig,
    encoder_state: Mapping[str, Tensor],
    *,
    head_config: HeadConfig | None = None,
    head_state: Mapping[str, Tensor] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write both files, each under a temporary name that is then renamed.

    head_state: the head's state dict without its encoder's tensors.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"encoder.{k}": v for k, v in encoder_state.items()}
    state |= {f"head.{k}": v for k, v in (head_state or {}).items()}
    state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    info = {
        "format": FORMAT,
        "encoder": to_dict(encoder_config),
        "head": None if head_config is None else to_dict(head_config),
        "tokenizer": None if tokenizer is None else dict(tokenizer),
        "provenance": dict(provenance or {}),
    }
    save_file(state, folder / "model.safetensors.tmp")
    (folder / "model.json.tmp").write_text(json.dumps(info, indent=2))
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    os.replace(folder / "model.json.tmp", folder / "model.json")


def open_model(folder: str | Path) -> ModelFile:
    """Build the model of `folder` in eval mode on the CPU and load its tensors, strictly.

    Raises `ValueError` if a file is absent or of another format, or a tensor is missing,
    unexpected or of another shape.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"model: found no {name} in {folder}, want a folder with model.json and "
                "model.safetensors; `speechssl export --checkpoint DIR` makes them of a checkpoint"
            )
    info = json.loads((folder / "model.json").read_text())
    if info.get("format") != FORMAT:
        raise ValueError(f"{folder}/model.json: found format {info.get('format')}, want {FORMAT}")
    state = load_file(folder / "model.safetensors")
    encoder = from_class_path(EncoderConfig, info["encoder"]).build()
    load_strictly(encoder, _below(state, "encoder."), str(folder))
    head = None
    if info["head"] is not None:
        head = from_class_path(HeadConfig, info["head"]).build(encoder)
        own = _below(state, "head.")
        own |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
        load_strictly(head, own, str(folder))
        head.eval()
    return ModelFile(encoder.eval(), head, info["tokenizer"], info["provenance"])


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state`, or raise a `ValueError` that names each tensor that does not fit."""
    own = module.state_dict()
    faults = [f"missing {k} {tuple(own[k].shape)}" for k in own.keys() - state.keys()]
    faults += [f"unexpected {k} {tuple(state[k].shape)}" for k in state.keys() - own.keys()]
    faults += [
        f"{k}: found shape {tuple(state[k].shape)}, want {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if own[k].shape != state[k].shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:8])
        if len(faults) > 8:
            shown += f"; and {len(faults) - 8} more"
        raise ValueError(
            f"{source} does not hold a {type(module).__name__} of this configuration: {shown}"
        )
    module.load_state_dict(state)
