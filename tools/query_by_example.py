"""Find spoken queries in recordings by dynamic time warping of an encoder's frames; no training.

python tools/query_by_example.py --model FOLDER --layer 6 --queries cuts_valid.jsonl.gz \\
  --recordings cuts_test.jsonl.gz --field label --output exp/qbe

A recording holds a query if both have one value of --field. Writes OUTPUT/scores.npy (queries by
recordings) and OUTPUT/results.json: mean average precision, and the maximum term-weighted value of
QUESST 2014. Choose the layer on other recordings than you report.

With --stdlist true the scores go to OUTPUT/benchmark.stdlist.xml instead, each query's mean and
deviation removed, for the scorer of QUESST 2014, which alone knows what holds what.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.bin.query_search import query_figures, search
from speechssl.data.fields import cut_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="what speechssl.load opens, or encoder.yaml")
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--queries", nargs="+", required=True)
    parser.add_argument("--recordings", nargs="+", required=True)
    parser.add_argument("--field", default="label")
    parser.add_argument("--stdlist", choices=("true", "false"), default="false")
    parser.add_argument("--seed", type=int, default=1, help="of random weights")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    encoder = opened(options.model, options.seed)
    layer = encoder.num_layers if options.layer == -1 else options.layer
    both = (options.queries, options.recordings)
    if options.stdlist == "true":
        ids = [dict.fromkeys(row["id"] for row in cut_rows(cuts)) for cuts in both]
        scores, queries, recordings = search(encoder, layer, ids[0], ids[1], both)
        options.output.mkdir(parents=True, exist_ok=True)
        write_stdlist(options.output / "benchmark.stdlist.xml", scores, queries, recordings)
        print(f"{options.output}: {len(queries)} queries in {len(recordings)} recordings")
        return
    scores, results = query_figures(encoder, layer, *both, options.field)
    results["decode"] = {
        "model": options.model, "layer": layer, "field": options.field,
        "head": {"class_path": f"dtw.layer{layer}", "init_args": {}},
        "trainable_parameters": 0,
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    np.save(options.output / "scores.npy", scores.astype(np.float32))
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(
        f"layer {layer}: mAP {100 * results['map']:.2f} % (chance {100 * results['chance_map']:.2f}"
        f" %)   MTWV {results['mtwv']:.4f}   {results['utterances']} queries in "
        f"{results['recordings']} recordings"
    )


def write_stdlist(path: Path, scores: np.ndarray, queries: list[str], names: list[str]) -> None:
    """NIST's list of detections: every recording for each query; two deviations above is a yes."""
    import xml.etree.ElementTree as tree

    spread = np.maximum(scores.std(1, keepdims=True), 1e-12)
    even = (scores - scores.mean(1, keepdims=True)) / spread
    about = {"termlist_filename": path.name, "indexing_time": "1.00", "language": "english",
             "index_size": "1", "system_id": "benchmark"}  # fmt: skip
    root = tree.Element("stdlist", about)
    for query, row in zip(queries, even.tolist(), strict=True):
        terms = tree.SubElement(root, "detected_termlist", termid=query, term_search_time="1.0",
                                oov_term_count="1")  # fmt: skip
        for name, score in zip(names, row, strict=True):
            where = {"file": name, "channel": "1", "tbeg": "0.000", "dur": "0.00"}
            decision = "YES" if score > 2 else "NO"
            tree.SubElement(terms, "term", where, score=f"{score:.4f}", decision=decision)
    tree.indent(root)
    tree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)


def opened(model: str, seed: int) -> Any:
    """An encoder; of a YAML file with `encoder:`, as finetune reads it, one of random weights."""
    if model.endswith(".yaml"):
        import torch
        import yaml

        from speechssl.config import EncoderConfig, from_class_path

        torch.manual_seed(seed)
        values = yaml.safe_load(Path(model).read_text(encoding="utf-8"))["encoder"]
        return from_class_path(EncoderConfig, values).build()
    from speechssl.hub.load import load

    return load(model).encoder


if __name__ == "__main__":
    main()
