"""One model on many ranks: replicated, or sharded by FSDP2, with the same exact gradient.

The gradient of an update is (sum of the totals of all ranks and micro-batches) / (sum of their
counts). Both ways sum gradients over ranks, never average them, and the trainer divides once.

The replicated way sums gradients itself at the end of an update, instead of through
DistributedDataParallel: micro-batches accumulate without traffic, and parameters that some
ranks did not use (dropped layers, frozen parts) need neither a graph search nor equal choices
on all ranks. The price is that the sum does not overlap the last backward pass.

Under FSDP2 every rank must run the same modules in the same order: a model that skips whole
blocks at random has to skip the same ones on every rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn

from speechssl import dist
from speechssl.contract import Objective

SHARD_ABOVE_PARAMETERS = 300_000_000
BUCKET_ELEMENTS = 25_000_000


def choose(parallel: str, model: nn.Module) -> str:
    """What `auto` means for `model`: "none", "replicated" or "fsdp2"."""
    if dist.world_size() == 1:
        return "none"
    if parallel == "auto":
        large = sum(p.numel() for p in model.parameters()) > SHARD_ABOVE_PARAMETERS
        return "fsdp2" if large else "replicated"
    return parallel


@torch.no_grad()
def spread(model: Objective, parallel: str, device: torch.device) -> None:
    """Move `model` to `device` with rank 0's weights, and shard it in place if asked."""
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data)
    if parallel != "fsdp2":
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    _let_hooks_see_losses()
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    for block in model.sharded():
        fully_shard(block, mesh=mesh)
    # The root too frees its whole weights behind each forward pass: after a validation, averages
    # and checkpoints must see (and may exchange) the sharded ones.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            # Sum, never average; gloo moreover has no pre-multiplied sum.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def _let_hooks_see_losses() -> None:
    # FSDP2 finds the tensors of a module's output by tree traversal.
    from torch.utils import _pytree

    from speechssl.contract import Loss

    if Loss not in _pytree.SUPPORTED_NODES:
        _pytree.register_pytree_node(
            Loss,
            lambda x: ([x.total, x.count, dict(x.logs)], None),
            lambda values, _: Loss(*values),
        )


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (sharing memory), or the tensor itself."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, on every rank (a collective), or the tensor itself."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Replicated: sum `.grad` over ranks; None where no rank has one, zeros count for None."""
    used = torch.tensor(
        [p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device
    )
    td.all_reduce(used, op=td.ReduceOp.MAX)
    taking_part = [p for p, flag in zip(parameters, used.tolist(), strict=True) if flag]
    for parameter in taking_part:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    pending = [_start_sum(bucket) for bucket in _buckets([p.grad for p in taking_part])]
    for work, flat, tensors in pending:
        work.wait()
        pieces = flat.split([t.numel() for t in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    size = BUCKET_ELEMENTS
    for tensor in tensors:
        if size + tensor.numel() > BUCKET_ELEMENTS or tensor.dtype != buckets[-1][-1].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets


def _start_sum(tensors: list[Tensor]) -> tuple[Any, Tensor, list[Tensor]]:
    flat = torch.cat([t.reshape(-1) for t in tensors])
    return td.all_reduce(flat, async_op=True), flat, tensors


@torch.no_grad()
def scale_and_clip(
    parameters: list[nn.Parameter], scale: Tensor, clip_norm: float, sharded: bool
) -> Tensor:
    """Multiply the gradients by `scale`, then clip; return the norm between the two."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=scale.device)
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    norm = torch.nn.utils.get_total_norm(gradients)
    if sharded:
        norm = dist.all_reduce_sum(norm.square()).sqrt()
    if clip_norm > 0:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
