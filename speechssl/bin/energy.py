"""What a step costs: seconds, CPU seconds and energy, which is marked measured or estimated.

Energy comes from codecarbon (offline) where it is installed. Its CPU figure is measured where the
processor's counters (RAPL) can be read; elsewhere it is codecarbon's estimate from a rated power
and the load. Without codecarbon it is CPU seconds times `watts_per_core`, or left out.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")
CPU_INFO = Path("/proc/cpuinfo")


@dataclasses.dataclass
class Meter:
    """Measures what happens between entering and leaving it.

    energy: "auto" (codecarbon if it is installed), "codecarbon" or "none".
    country: three-letter code for codecarbon, which looks up nothing on the network then.
    watts_per_core: of a busy core, for the estimate without codecarbon; None: no estimate.
    Raises `ValueError` for energy "codecarbon" where it is not installed.
    """

    energy: str = "auto"
    country: str = "USA"
    watts_per_core: float | None = None

    def __post_init__(self) -> None:
        self.installed = importlib.util.find_spec("codecarbon") is not None
        if self.energy == "codecarbon" and not self.installed:
            raise ValueError(
                "energy: found codecarbon, which is not installed, want `pip install "
                "'speechssl[energy]'`, or energy auto"
            )
        self.cost: dict[str, Any] = {}

    def __enter__(self) -> Meter:
        self._tracker = None
        if self.energy != "none" and self.installed:
            from codecarbon import OfflineEmissionsTracker

            self._tracker = OfflineEmissionsTracker(
                country_iso_code=self.country, save_to_file=False, log_level="error",
                tracking_mode="process", allow_multiple_runs=True,
            )  # fmt: skip
            self._tracker.start()
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        cpu = _cpu_seconds() - self._cpu
        self.cost = {"wall_s": time.perf_counter() - self._wall, "cpu_s": cpu}
        if self._tracker is not None:
            self._tracker.stop()
            data = self._tracker.final_emissions_data
            measured = any(os.access(p, os.R_OK) for p in RAPL.glob("*rapl*/energy_uj"))
            self.cost |= {
                "energy_kwh": float(data.energy_consumed),
                "energy_how": "codecarbon, " + ("measured" if measured else "estimated"),
            }
        elif self.energy != "none" and self.watts_per_core is not None:
            without = ", without the GPU" if _gpu_name() else ""
            self.cost |= {
                "energy_kwh": cpu * self.watts_per_core / 3.6e6,
                "energy_how": f"estimated, {self.watts_per_core:g} W per busy core{without}",
            }


def added(before: dict[str, Any], cost: dict[str, Any]) -> dict[str, Any]:
    """The sum of two costs; energy only where both have it, of one kind."""
    if not before:
        return dict(cost)
    total = {k: before[k] + cost[k] for k in ("wall_s", "cpu_s")}
    if before.get("energy_how") == cost.get("energy_how") is not None:
        total["energy_kwh"] = before["energy_kwh"] + cost["energy_kwh"]
        total["energy_how"] = cost["energy_how"]
    return total


def machine() -> str:
    """Processor, its cores, and the GPU where one is in use: what costs are measured on."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    named = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    name = next(named, platform.processor() or platform.machine())
    parts = [f"{name}, {os.cpu_count()} cores", _gpu_name()]
    return ", ".join(part for part in parts if part)


def _gpu_name() -> str:
    """Empty where none is in use."""
    torch = sys.modules.get("torch")  # without it none can be
    if torch is None or not torch.cuda.is_initialized():
        return ""
    return torch.cuda.get_device_name()


def _cpu_seconds() -> float:
    """Of this process and the children it has waited for."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
