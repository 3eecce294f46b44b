"""A trained vocoder's folder, model.safetensors and model.json: write it, open it.

model.json holds {"format": "vocoder 1", "vocoder": {class_path, init_args}, "mel": {...},
"provenance": {...}}; the tensors are named as the vocoder's own. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.config import VocoderConfig, from_class_path, to_dict
from speechssl.model_file import load_strictly
from speechssl.nn.mel_inverse import GriffinLim
from speechssl.nn.speech_mel import SpeechMelConfig, require_same_mel
from speechssl.vocoder.base import Vocoder
from speechssl.vocoder.refined import RefinedVocoder

FORMAT = "vocoder 1"
GRIFFIN_LIM = "griffin_lim"


def save_vocoder(
    folder: str | Path,
    config: VocoderConfig,
    mel: SpeechMelConfig,
    state: Mapping[str, Tensor],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write both files, each under a temporary name that is then renamed.

    state: the vocoder's state dict.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    info = {
        "format": FORMAT,
        "vocoder": to_dict(config),
        "mel": mel.to_dict(),
        "provenance": dict(provenance or {}),
    }
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    save_file(tensors, folder / "model.safetensors.tmp")
    (folder / "model.json.tmp").write_text(json.dumps(info, indent=2))
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    os.replace(folder / "model.json.tmp", folder / "model.json")


def load_vocoder(
    source: str | Path, mel: SpeechMelConfig | None = None, *, refine: int = 0
) -> Vocoder | GriffinLim | RefinedVocoder:
    """The vocoder of a folder, in eval mode on the CPU, or "griffin_lim", which needs no training.

    All have `.mel`, the SpeechMel they read, and `.decode(log_mel (B, T, M), lengths (B,)) ->
    wave (B, (T - 1) * hop)`.

    mel: the definition of the log-mels that are to be decoded; None: whatever the vocoder's is.
    refine: iterations of Griffin-Lim that start from a trained vocoder's phases (`RefinedVocoder`).
    Raises `ValueError` for a folder without its two files or of another kind of model, tensors
    that do not fit, and a mel definition that differs from `mel`.
    """
    if str(source) == GRIFFIN_LIM:
        if refine:
            raise ValueError(
                f"refine: found {refine} for {GRIFFIN_LIM}, want 0: it has no phases to start from"
            )
        return GriffinLim(mel).eval()
    folder = Path(source)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"vocoder: found no {name} in {folder}, want {GRIFFIN_LIM!r}, or a folder with "
                "model.json and model.safetensors that `speechssl vocoder` wrote"
            )
    info = json.loads((folder / "model.json").read_text())
    if info.get("format") != FORMAT:
        what = "an encoder" if "encoder" in info else f"format {info.get('format')!r}"
        raise ValueError(
            f"vocoder: found {what} in {folder}/model.json, want format {FORMAT!r}, the folder of "
            "a run of `speechssl vocoder`"
        )
    own = SpeechMelConfig.from_dict(info["mel"])
    if mel is not None:
        require_same_mel(own, mel, f"the vocoder in {folder}")
    from safetensors.torch import load_file

    vocoder = from_class_path(VocoderConfig, info["vocoder"]).build(own)
    load_strictly(vocoder, load_file(folder / "model.safetensors"), str(folder))
    return (RefinedVocoder(vocoder, refine) if refine else vocoder).eval()
