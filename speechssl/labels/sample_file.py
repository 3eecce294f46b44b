"""The sample of an unfinished fit, on disk until the fit is done; so a restart reads no audio.

It is never larger than it was in memory, since the sample's size is bounded.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl import dist


def save_sample(
    folder: Path, identity: Any, points: Tensor, keys: np.ndarray, source: dict[str, Any]
) -> None:
    """Every rank writes its share; sample.json, last, says that all are there."""
    path = _share(folder)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, points=points.numpy(), keys=keys)
    os.replace(temporary, path)
    dist.barrier()
    if dist.is_main():
        write_json(folder / "sample.json", {"for": _wanted(identity), "source": source})
    dist.barrier()


def load_sample(folder: Path, identity: Any) -> tuple[Tensor, np.ndarray, dict[str, Any]] | None:
    """This rank's share, if the folder holds one of an equal fit on as many ranks."""
    note = folder / "sample.json"
    kept = json.loads(note.read_text()) if note.is_file() else {}
    if not all(dist.gather_objects(kept.get("for") == _wanted(identity))):
        return None
    with np.load(_share(folder), allow_pickle=False) as saved:
        return torch.from_numpy(saved["points"]), saved["keys"], kept["source"]


def remove_sample(folder: Path) -> None:
    """Delete all shares and the note."""
    dist.barrier()
    if dist.is_main():
        (folder / "sample.json").unlink(missing_ok=True)
        for path in folder.glob("sample-*.npz"):
            path.unlink()
    dist.barrier()


def write_json(path: Path, value: Any) -> None:
    """Write under a temporary name, then rename; NaN, which JSON does not know, becomes null."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(_finite(value), indent=1, allow_nan=False))
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _share(folder: Path) -> Path:
    return folder / f"sample-{dist.rank():05d}.npz"


def _wanted(identity: Any) -> dict[str, Any]:
    return {"fit": identity, "world_size": dist.world_size()}
