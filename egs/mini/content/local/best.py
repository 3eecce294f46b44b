"""Print the threshold whose boundaries have the best R-value: best.py FOLDER, of FOLDER/valid_*."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    tried = {
        path.parent.name.removeprefix("valid_"): json.loads(path.read_text())["r_value"]
        for path in sorted(folder.glob("valid_*/results.json"))
    }
    if not tried:
        raise SystemExit(f"{folder}: found no valid_*/results.json, want those of stage 9")
    print(max(tried, key=lambda threshold: tried[threshold]))


if __name__ == "__main__":
    main()
