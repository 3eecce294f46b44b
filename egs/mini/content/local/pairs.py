"""EER of all pairs of utterances by the cosine of their embeddings, less their mean."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from speechssl.data.fields import field_values
from speechssl.score.verification import eer, unit


def embeddings(folder: Path) -> dict[str, np.ndarray]:
    """By cut: of `speechssl decode`, or of `speechssl extract --pool mean` with one layer."""
    if (folder / "embeddings.jsonl").is_file():
        lines = (folder / "embeddings.jsonl").read_text().splitlines()
        matrix = np.load(folder / "embeddings.npy")
        return {json.loads(line)["id"]: x for line, x in zip(lines, matrix, strict=True)}
    found = {}
    for line in (folder / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["id"]] = np.load(folder / row["file"]).reshape(-1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embeddings", required=True, type=Path)
    parser.add_argument("--cuts", required=True, help="manifest with speakers")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    found = embeddings(options.embeddings)
    speakers = field_values([options.cuts], "speaker")
    names = [name for name in found if name in speakers]
    x = np.stack([found[name] for name in names]).astype(np.float64)
    x = unit(x - x.mean(0))
    who = np.array([speakers[name] for name in names])
    one, other = np.triu_indices(len(names), 1)
    rate, _ = eer((x @ x.T)[one, other], who[one] == who[other])
    result = {"eer": rate, "pairs": len(one), "utterances": len(names), "width": x.shape[1]}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{options.output}: EER {100 * rate:.2f} % of {len(one)} pairs")


if __name__ == "__main__":
    main()
