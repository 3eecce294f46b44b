"""A head without its encoder: what a run on a frozen encoder has learnt, in a file of its own.

head.safetensors holds the head's tensors (`head.*`, adapters among them) and those of the encoder
that were tuned (`encoder.*`: biases, layer norms); head.json what `model.json` does, and a hash of
the encoder's other tensors, so that it is put on no other one. A low-rank change of Base is a
megabyte instead of 380; many heads go with one encoder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.config import EncoderConfig, HeadConfig, from_class_path, to_dict
from speechssl.contract import Encoder
from speechssl.model_file import ModelFile, load_strictly, save_model

FORMAT = 1


def tensors_hash(state: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, types and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_head(model: ModelFile, folder: str | Path) -> None:
    """Write the head of `model` alone.

    Raises `ValueError` if there is none, or if all of its encoder was tuned.
    """
    from safetensors.torch import save_file

    head: Any = model.head
    if head is None:
        raise ValueError("head: found none in the model, want one that `speechssl finetune` made")
    if getattr(head.config, "freeze_encoder_steps", 0) >= 0:
        raise ValueError(
            f"head.freeze_encoder_steps: found {getattr(head.config, 'freeze_encoder_steps', 0)}, "
            "want -1: the whole encoder was tuned, and belongs to the head; export both together"
        )
    whole = model.encoder.state_dict()
    tuned = {n for n, p in model.encoder.named_parameters() if p.requires_grad}
    state = {f"head.{k}": v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    state |= {f"encoder.{k}": whole[k] for k in tuned}
    info = {
        "format": FORMAT,
        "encoder": to_dict(model.encoder.config),
        "frozen": tensors_hash({k: v for k, v in whole.items() if k not in tuned}),
        "head": to_dict(head.config),
        "tokenizer": None if model.tokenizer is None else dict(model.tokenizer),
        "provenance": dict(model.provenance),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    save_file(state, folder / "head.safetensors.tmp")
    (folder / "head.json.tmp").write_text(json.dumps(info, indent=2))
    os.replace(folder / "head.safetensors.tmp", folder / "head.safetensors")
    os.replace(folder / "head.json.tmp", folder / "head.json")


def join_head(encoder: Encoder, head_folder: str | Path, output: str | Path) -> None:
    """Write `encoder` with the head of a folder as one model.

    The encoder's options that change no tensor, such as dropout, are those that the head learnt
    with. Raises `ValueError` for a folder without head, and for another encoder than the head's.
    """
    from safetensors.torch import load_file

    folder = Path(head_folder)
    for name in ("head.json", "head.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"head: found no {name} in {folder}, want what `speechssl export --form head` wrote"
            )
    info = json.loads((folder / "head.json").read_text())
    if info.get("format") != FORMAT:
        raise ValueError(f"{folder}/head.json: found format {info.get('format')}, want {FORMAT}")
    state = load_file(folder / "head.safetensors")
    tuned = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    whole = encoder.state_dict()
    frozen = {k: v for k, v in whole.items() if k not in tuned}
    if tensors_hash(frozen) != info["frozen"]:
        raise ValueError(
            f"head: found a {type(encoder).__name__} of other weights than the head in {folder} "
            "learnt on, want the model that its run was started from (provenance in head.json)"
        )
    built = from_class_path(EncoderConfig, info["encoder"]).build()
    load_strictly(built, frozen | tuned, str(folder))
    head = from_class_path(HeadConfig, info["head"]).build(built)
    own = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    load_strictly(
        head, own | {f"encoder.{k}": v for k, v in built.state_dict().items()}, str(folder)
    )
    save_model(
        output, built.config, built.state_dict(), head_config=head.config, head_state=own,
        tokenizer=info["tokenizer"], provenance=info["provenance"],
    )  # fmt: skip
