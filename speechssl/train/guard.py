"""Which updates to refuse: not finite, nothing scored, or a loss spike."""

from __future__ import annotations

import math


class Guard:
    """Judge updates by loss and gradient norm; the same verdict on every rank.

    A spike is a loss more than `factor` deviations above the running mean; the deviation counts
    as at least 5 % of the mean, so that a very steady loss does not make noise a spike.
    """

    MEMORY = 0.98

    def __init__(self, factor: float, after: int) -> None:
        self.factor = factor
        self.after = after
        self.seen = 0
        self.mean = 0.0
        self.variance = 0.0
        self.bad_in_a_row = 0

    def fault(self, loss: float, norm: float, count: float) -> str:
        """Why the update must be skipped; "" if it is sound."""
        why = self._fault(loss, norm, count)
        self.bad_in_a_row = self.bad_in_a_row + 1 if why else 0
        if not why:
            self.seen += 1
            memory = min(self.MEMORY, 1 - 1 / self.seen)
            change = loss - self.mean
            self.mean += (1 - memory) * change
            self.variance = memory * (self.variance + (1 - memory) * change * change)
        return why

    def _fault(self, loss: float, norm: float, count: float) -> str:
        if count <= 0:
            return "nothing in it was scored"
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(norm):
            return f"gradient norm is {norm}"
        if self.factor > 0 and self.seen >= self.after:
            deviation = max(math.sqrt(self.variance), 0.05 * abs(self.mean))
            if loss - self.mean > self.factor * deviation:
                return f"loss {loss:.4g} is a spike over its mean {self.mean:.4g}"
        return ""

    def state(self) -> dict[str, float]:
        return {k: getattr(self, k) for k in ("seen", "mean", "variance", "bad_in_a_row")}

    def load(self, state: dict[str, float]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
