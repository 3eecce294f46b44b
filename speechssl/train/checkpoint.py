"""Checkpoints: safetensors and JSON, written under a temporary name that is then renamed.

`step_N/rank_R.safetensors` holds the tensors that rank R owns and `step_N/state.json` all else.
A replicated tensor is written by rank 0; of a sharded one each rank writes its rows. Reading
takes only the rows it needs, so a checkpoint may be resumed on another number of ranks, and
replicated where it was sharded.

Differs from torch.distributed.checkpoint, which does the same but keeps its index as a pickle:
nothing here is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl import dist
from speechssl.train.parallel import local

FORMAT = 1


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; those before it are untouched."""


def _row_range(tensor: Tensor) -> tuple[int, int] | None:
    """Rows that this rank holds of a sharded tensor; None if it holds all."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return None
    if tensor.device_mesh.ndim != 1 or tensor.placements != (Shard(0),):
        raise ValueError(f"checkpoint: found placements {tensor.placements}, want (Shard(0),)")
    rows = tensor.shape[0]
    chunk = -(-rows // tensor.device_mesh.size())
    start = min(chunk * tensor.device_mesh.get_local_rank(), rows)
    return start, min(start + chunk, rows)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `folder`/step_N; every rank calls it with its own `tensors`, rank 0's `state` counts.

    Raises `CheckpointNotWritten`, on every rank and with nothing left behind, if any rank fails.
    """
    final, temporary = folder / f"step_{step}", folder / f"tmp_step_{step}"
    fault = ""
    if dist.is_main():
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        except OSError as error:
            fault = str(error)
    dist.barrier()
    rows: dict[str, tuple[int, int]] = {}
    if not fault:
        try:
            rows = _write_tensors(temporary / f"rank_{dist.rank()}.safetensors", tensors)
        except Exception as error:  # safetensors has its own class for a failed write
            fault = f"rank {dist.rank()}: {error}"
    answers = dist.gather_objects((fault, rows))
    if dist.is_main():
        fault = "; ".join(text for text, _ in answers if text)
        if not fault:
            pieces = {f"rank_{r}.safetensors": rows for r, (_, rows) in enumerate(answers)}
            shapes = {k: list(v.shape) for k, v in tensors.items()}
            index = {"format": FORMAT, "shapes": shapes, "pieces": pieces, **state}
            try:
                _write_text(temporary / "state.json", json.dumps(index))
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
            except OSError as error:
                fault = str(error)
        if fault:
            shutil.rmtree(temporary, ignore_errors=True)
    fault = dist.broadcast_object(fault)
    if fault:
        raise CheckpointNotWritten(
            f"checkpoint: could not write {final}: {fault}. Free some space; the checkpoints "
            "before it are untouched."
        )
    return final


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    from safetensors.torch import save_file

    rows: dict[str, tuple[int, int]] = {}
    mine: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        span = _row_range(tensor)
        if span is None and not dist.is_main():
            continue
        if span is not None and span[0] == span[1]:
            continue
        held = local(tensor).cpu().contiguous()
        # Tied tensors share storage, which safetensors refuses.
        place = held.untyped_storage().data_ptr()
        mine[name] = held.clone() if place in places else held
        places.add(place)
        rows[name] = span or (0, tensor.shape[0] if tensor.ndim else 1)
    save_file(mine, path)
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    return rows


def _write_text(path: Path, text: str) -> None:
    with open(path, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints below `folder`, ascending."""
    found = (p.parent.name.removeprefix("step_") for p in folder.glob("step_*/state.json"))
    return sorted(int(text) for text in found if text.isdigit())


def retain(folder: Path, newest: int, *kept: int | None) -> None:
    """Delete all checkpoints but the `newest` ones and those of steps `kept`; rank 0 only."""
    for step in steps(folder)[:-newest]:
        if step not in kept:
            # Renamed first: a kill half-way through leaves no checkpoint with files missing.
            doomed = folder / f"tmp_old_{step}"
            os.replace(folder / f"step_{step}", doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written; rank 0 only."""
    for left in folder.glob("tmp_*"):
        shutil.rmtree(left, ignore_errors=True)


class Reader:
    """An opened checkpoint: `state`, and tensors read by rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.state = json.loads((path / "state.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint: {path} cannot be read: {error}") from None
        if self.state.get("format") != FORMAT:
            raise ValueError(f"{path}: found format {self.state.get('format')}, want {FORMAT}")
        self.shapes: dict[str, list[int]] = self.state.pop("shapes")
        self.pieces: dict[str, dict[str, list[int]]] = self.state.pop("pieces")

    def names(self, prefix: str) -> set[str]:
        """Names below `prefix`, without it."""
        return {k.removeprefix(prefix) for k in self.shapes if k.startswith(prefix)}

    @torch.no_grad()
    def read_into(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Fill every one of `tensors` (this rank's rows of sharded ones) from `prefix` + name.

        Raises `ValueError` that names the tensors that are missing, unexpected or of another
        shape: the checkpoint is then of another model.
        """
        self._compare(tensors, prefix)
        for name, tensor in tensors.items():
            span = _row_range(tensor)
            local(tensor).copy_(self._rows(prefix + name, span))

    def whole(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below `prefix`, in full."""
        return {name: self._rows(prefix + name, None) for name in sorted(self.names(prefix))}

    def _compare(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        held = {name: tuple(self.shapes[prefix + name]) for name in self.names(prefix)}
        wanted = {name: tuple(t.shape) for name, t in tensors.items()}
        faults = [f"missing {k} {wanted[k]}" for k in wanted.keys() - held.keys()]
        faults += [f"unexpected {k} {held[k]}" for k in held.keys() - wanted.keys()]
        faults += [
            f"{k}: found shape {held[k]}, want {wanted[k]}"
            for k in held.keys() & wanted.keys()
            if held[k] != wanted[k]
        ]
        if faults:
            more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
            raise ValueError(
                f"{self.path} is a checkpoint of another model ({prefix.rstrip('.')}): "
                + "; ".join(sorted(faults)[:8])
                + more
                + ". Give another output folder, or the configuration that made it."
            )

    def _rows(self, name: str, span: tuple[int, int] | None) -> Tensor:
        from safetensors import safe_open

        shape = self.shapes[name]
        start, stop = span or (0, shape[0] if shape else 1)
        parts = []
        for file, rows in sorted(self.pieces.items(), key=lambda x: x[1].get(name, [0])[0]):
            if name not in rows:
                continue
            first, last = rows[name]
            low, high = max(start, first), min(stop, last)
            if low >= high and stop > start:
                continue
            with safe_open(self.path / file, framework="pt") as opened:
                if not shape:
                    return opened.get_tensor(name)
                parts.append(opened.get_slice(name)[low - first : max(high - first, low - first)])
                if stop <= start:
                    break
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights and buffers of checkpoint `path`, averaged where it holds averages."""
    reader = Reader(path)
    return reader.whole("model/") | reader.whole("average/")


def read_average(folder: Path) -> dict[str, Tensor]:
    """Mean of the weights of the best validations' checkpoints below `folder`, as many as
    `train.keep_best` kept; what is no floating number is the best one's.

    Raises `ValueError` if fewer than two of them are there.
    """
    newest = find(folder, "last")
    leaders = Reader(newest).state.get("leaders", [])
    paths = [folder / f"step_{int(x['step'])}" for x in leaders]
    missing = [path.name for path in paths if not (path / "state.json").is_file()]
    if missing or len(paths) < 2:
        raise ValueError(
            f"checkpoint: {folder} has {len(paths)} checkpoints of the best validations, of which "
            f"{', '.join(missing) or 'none'} is missing; want two or more to average: train with "
            "train.keep_best of 2 or more and as many validations, or export the best one alone"
        )
    best = read_weights(paths[0])
    sums = {k: v.double() for k, v in best.items() if v.is_floating_point()}
    for path in paths[1:]:
        weights = read_weights(path)
        for name, total in sums.items():
            total += weights[name]
    return best | {k: (v / len(paths)).to(best[k].dtype) for k, v in sums.items()}


def find(folder: Path, which: str) -> Path:
    """The newest checkpoint below `folder` ("last"), or that of the best validation ("best")."""
    known = steps(folder)
    if not known:
        raise ValueError(f"checkpoint: found none in {folder}, want step_N with state.json")
    newest = folder / f"step_{known[-1]}"
    if which == "last":
        return newest
    best = Reader(newest).state.get("best")
    if best is None or int(best["step"]) not in known:
        raise ValueError(f"checkpoint: {folder} has no best one: the run made no validation")
    return folder / f"step_{int(best['step'])}"
