"""Parameter groups, the optimiser, and the moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from speechssl.train.config import TrainConfig
from speechssl.train.parallel import local


def parameter_groups(config: TrainConfig, model: nn.Module) -> list[dict]:
    """Groups with their own decay and `rate_scale`; `names` lists their parameters."""
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = config.decay_norms_and_biases or parameter.ndim > 1
        decay = config.weight_decay if decays else 0.0
        scale = config.encoder_rate_scale if name.startswith("encoder.") else 1.0
        group = groups.setdefault(
            (decay, scale),
            {"params": [], "names": [], "weight_decay": decay, "rate_scale": scale},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups and not getattr(model, "learns_in_buffers", False):
        raise ValueError("model: found no trainable parameter, want at least one")
    if not groups:
        groups[0.0, 1.0] = {"params": [], "names": [], "weight_decay": 0.0, "rate_scale": 1.0}
    return list(groups.values())


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam with decoupled (adamw) or L2 (adam) decay, as one fused kernel."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        parameter_groups(config, model),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by name of parameter: "weight/exp_avg" and so on."""
    return {
        f"{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def empty_optimizer_state(optimizer: torch.optim.Optimizer, names: set[str]) -> dict[str, Tensor]:
    """Make zeroed state for the entries `names` (as of `optimizer_tensors`) and return it.

    A parameter that never had a gradient has no state, and none is made for it.
    """
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{k}" in names]
            if keys:
                optimizer.state[parameter] = {
                    k: torch.zeros((), dtype=torch.float32, device=parameter.device)
                    if k == "step"
                    else torch.zeros_like(parameter, requires_grad=False)
                    for k in keys
                }
    return optimizer_tensors(optimizer)


class WeightAverage:
    """Exponential moving average of the trainable parameters, in their own precision (fp32)."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors: Mapping[str, Tensor] = {
            n: p.detach().clone() for n, p in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights"""
        average = [local(t) for t in self.tensors.values()]
        torch._foreach_lerp_(average, [local(p) for p in self.parameters.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model, and the weights back at the end."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            weight = local(parameter).clone()
            local(parameter).copy_(local(self.tensors[name]))
            local(self.tensors[name]).copy_(weight)
