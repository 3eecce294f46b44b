"""Rank, world size and collectives; in a single process each is a no-op.

Programs started by torchrun call `init()` first. CPU runs use gloo, CUDA runs NCCL.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor


def init(device: str = "auto") -> torch.device:
    """Join the process group if launched by torchrun; return this rank's device.

    device: "auto" (CUDA when present, else CPU), "cpu", "cuda".
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: found {device!r}, want auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: found cuda, but torch sees no CUDA device; use auto or cpu")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if use_cuda:
        torch.cuda.set_device(local_rank)
    if "RANK" in os.environ and not td.is_initialized():
        td.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")
    return torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")


def shutdown() -> None:
    if td.is_initialized():
        td.destroy_process_group()


def rank() -> int:
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    return td.get_world_size() if td.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if td.is_initialized():
        td.barrier()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum `x` over ranks in place, and return it."""
    if world_size() > 1:
        td.all_reduce(x)
    return x


def broadcast(x: Tensor, source: int = 0) -> Tensor:
    """Overwrite `x` by that of rank `source`, and return it."""
    if world_size() > 1:
        td.broadcast(x, source)
    return x


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The value that rank `source` passed."""
    if world_size() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, source)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    td.all_gather_object(box, value)
    return box
