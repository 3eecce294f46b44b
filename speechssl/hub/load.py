"""`load`: a folder (or the name of a public model in the local cache) -> Model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speechssl.contract import Encoder
from speechssl.hub.model import Decode, Model
from speechssl.model_file import load_strictly, open_model

if TYPE_CHECKING:
    from speechssl.hub.tensor_names import Checkpoint, CtcTensors

FORMATS = (
    "an experiment folder with model.json and model.safetensors (own format); a transformers "
    "folder of HuBERT, WavLM, wav2vec 2.0 (also Conformer), data2vec, UniSpeech or UniSpeech-SAT "
    "with config.json and model.safetensors; a .pt file of fairseq or UniLM; or a .pt or .pth "
    "state dict of torchaudio with its settings in a .json beside it"
)
OWN_FILES = ("model.json", "model.safetensors", "config.json", "pytorch_model.bin")


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Model:
    """Open a model for use.

    path: a folder or file of one of `FORMATS`, or the name of a public model such as
        "facebook/hubert-base-ls960", which is looked up in the local Hugging Face cache.
    dtype: torch.bfloat16 computes in mixed precision; see `Model.to`.
    settings: of a torchaudio state dict, instead of its .json; of a transformers folder without
        preprocessor_config.json, {"do_normalize": bool}.
    Raises ValueError that says what was found and which formats are read.
    """
    file = Path(path).expanduser()
    if file.is_file() and file.name not in OWN_FILES:
        return _file(file, settings).to(device, dtype)
    folder = _find(str(path))
    if (folder / "model.json").is_file():
        _no_settings(settings, folder)
        model = _own(folder)
    elif (folder / "config.json").is_file():
        model = _transformers(folder, settings, name=str(path))
    else:
        shown = sorted(p.name for p in folder.iterdir())
        hint = ""
        if (folder / "checkpoints").is_dir():
            hint = f"; `speechssl export --checkpoint {folder}` makes model.json of its checkpoints"
        raise ValueError(
            f"model: {folder} holds {', '.join(shown[:12]) or 'nothing'}"
            f"{', ...' * (len(shown) > 12)}; want {FORMATS}{hint}"
        )
    return model.to(device, dtype)


def _own(folder: Path) -> Model:
    opened = open_model(folder)
    decode = vocabulary = None
    if opened.tokenizer is not None:
        from speechssl.data.text import BLANK, Tokenizer

        tokenizer = Tokenizer.from_dict(opened.tokenizer)
        decode = tokenizer.decode
        if tokenizer.kind == "letters":
            public = {BLANK: "<pad>", " ": "|"}
            vocabulary = {public.get(s, s): i for i, s in enumerate(tokenizer.symbols)}
    return Model(
        opened.encoder,
        name=str(folder),
        head=opened.head,
        log_probs=getattr(opened.head, "log_probs", None),
        decode=decode,
        vocabulary=vocabulary,
        provenance=opened.provenance,
    )


def _transformers(folder: Path, settings: Mapping[str, Any] | None, name: str) -> Model:
    from speechssl.hub.transformers_format import read_transformers

    found = read_transformers(folder, settings)
    return _public(found, name=name, kind="transformers", source=folder)


def _file(path: Path, settings: Mapping[str, Any] | None) -> Model:
    from speechssl.hub import fairseq_format, torchaudio_format
    from speechssl.hub.restricted_pickle import read_torch_file

    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(f"model: found the file {path}, want {FORMATS}")
    content = read_torch_file(path)
    if fairseq_format.is_fairseq(content):
        _no_settings(settings, path)
        found, kind = fairseq_format.read_fairseq(content, path), "fairseq"
    elif torchaudio_format.is_torchaudio(content):
        found, kind = torchaudio_format.read_torchaudio(content, path, settings), "torchaudio"
    else:
        shown = [str(k) for k in content] if isinstance(content, Mapping) else [type(content)]
        raise ValueError(f"model: {path} holds {shown[:6]}; want {FORMATS}")
    return _public(found, name=str(path), kind=kind, source=path)


def _no_settings(settings: Mapping[str, Any] | None, path: Path) -> None:
    if settings:
        raise ValueError(f"settings: found {sorted(settings)}, want none: {path} holds its own")


def _public(found: Checkpoint, *, name: str, kind: str, source: Path) -> Model:
    encoder, ctc = found.config.build(), found.head
    load_strictly(encoder, found.state, str(source))
    head = None if ctc is None else _LinearCtc(encoder, ctc)
    return Model(
        encoder,
        name=name,
        head=head,
        log_probs=None if head is None else head.log_probs,
        decode=None if ctc is None or ctc.vocabulary is None else _speller(ctc.vocabulary),
        blank=0 if ctc is None else ctc.blank,
        vocabulary=None if ctc is None else ctc.vocabulary,
        provenance={"format": kind, "source": str(source), "left_out": list(found.left_out)},
    )


class _LinearCtc(nn.Module):
    """The recogniser of transformers' ...ForCTC: one linear map of the last layer."""

    def __init__(self, encoder: Encoder, tensors: CtcTensors) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(tensors.weight.shape[1], tensors.weight.shape[0])
        self.linear.load_state_dict({"weight": tensors.weight, "bias": tensors.bias})

    def log_probs(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encoder(wave, wave_lengths, layers=[-1])
        return self.linear(output.last).float().log_softmax(-1), output.lengths


def _speller(vocabulary: Mapping[str, int]) -> Decode:
    """Text of ids over a public vocabulary: "|" parts words, <...> and [...] are control."""
    symbols = {
        i: " " if s == "|" else s
        for s, i in vocabulary.items()
        if s == "|" or not re.fullmatch(r"<.+>|\[.+\]", s)
    }
    return lambda ids: " ".join("".join(symbols.get(i, "") for i in ids).split())


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
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
