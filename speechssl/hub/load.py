"""`load`: a folder (or the name of a public model in the local cache) -> Model."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from speechssl.contract import Encoder
from speechssl.hub.model import Model
from speechssl.model_file import load_strictly, open_model

FORMATS = (
    "an experiment folder with model.json and model.safetensors (own format), or a transformers "
    "folder of HuBERT or WavLM with config.json and model.safetensors"
)


def load(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Open a model for use.

    path: a folder of either format, one of its files, or the name of a public model such as
        "facebook/hubert-base-ls960", which is looked up in the local Hugging Face cache.
    Raises ValueError that says what was found and which formats are read.
    """
    folder = _find(str(path))
    if (folder / "model.json").is_file():
        model = _own(folder)
    elif (folder / "config.json").is_file():
        model = _transformers(folder, name=str(path))
    else:
        shown = sorted(p.name for p in folder.iterdir())
        hint = ""
        if (folder / "checkpoints").is_dir():
            hint = f"; `speechssl export --checkpoint {folder}` makes model.json of its checkpoints"
        raise ValueError(
            f"model: {folder} holds {', '.join(shown[:12]) or 'nothing'}"
            f"{', ...' * (len(shown) > 12)}; want {FORMATS}{hint}"
        )
    return model.to(device)


def _own(folder: Path) -> Model:
    opened = open_model(folder)
    decode = None
    if opened.tokenizer is not None:
        from speechssl.data.text import Tokenizer

        decode = Tokenizer.from_dict(opened.tokenizer).decode
    return Model(
        opened.encoder,
        name=str(folder),
        head=opened.head,
        log_probs=getattr(opened.head, "log_probs", None),
        decode=decode,
        provenance=opened.provenance,
    )


def _transformers(folder: Path, name: str) -> Model:
    from speechssl.hub.transformers_format import read_transformers

    config, state, ctc = read_transformers(folder)
    # Built without memory first: the random initialisation of a large model takes seconds.
    encoder: Encoder = config.build()
    load_strictly(encoder, state, str(folder))
    extra: dict[str, Any] = {}
    if ctc is not None:
        extra = {"ctc": ctc}
    return Model(encoder, name=name, provenance={"format": "transformers", **extra})


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.name in ("model.json", "model.safetensors", "config.json"):
            return path.parent
        raise ValueError(f"model: found the file {path}, want {FORMATS}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _cached(name)
    raise ValueError(f"model: {name} is neither a folder nor a file; want {FORMATS}")


def _cached(name: str) -> Path:
    """Folder of a public model in the Hugging Face cache, read by its published layout."""
    environment = os.environ
    home = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(environment.get("HF_HUB_CACHE", home / "hub")).expanduser()
    folder = cache / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if reference.is_file():
        snapshot = folder / "snapshots" / reference.read_text().strip()
        if snapshot.is_dir():
            return snapshot
    snapshots = sorted((folder / "snapshots").glob("*"))
    if len(snapshots) == 1:
        return snapshots[0]
    raise ValueError(
        f"model: there is no folder {name}, and {cache} holds no copy of the public model of that "
        f"name; `hf download {name}` (pip install huggingface_hub) fetches it, or pass the folder "
        "where it lies"
    )


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
