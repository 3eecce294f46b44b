"""Start-up: `speechssl --help` and every verb's --help, against `import torch`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


def best_seconds(command: list[str], repeats: int) -> float:
    """Least wall time of `repeats` runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True)
        best = min(best, time.perf_counter() - start)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.decode()[-2000:]}")
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the seconds here")
    options = parser.parse_args()
    from speechssl.bin.__main__ import VERBS

    python = [sys.executable]
    calls = {
        "python -c pass": [*python, "-c", "pass"],
        "python -c 'import torch'": [*python, "-c", "import torch"],
        "speechssl --help": [*python, "-m", "speechssl.bin", "--help"],
    }
    for verb in VERBS:
        calls[f"speechssl {verb} --help"] = [*python, "-m", "speechssl.bin", verb, "--help"]
    seconds = {}
    for name, command in calls.items():
        seconds[name] = best_seconds(command, options.repeats)
        ratio = seconds[name] / seconds.get("python -c 'import torch'", float("nan"))
        print(f"{name:<28} {seconds[name]:7.3f} s   {ratio:6.2f} of import torch", flush=True)
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
