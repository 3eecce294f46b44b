"""A fold of `speechssl suite` in which spoken queries are found, and nothing is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechssl.bin.suite_task import Fold, TaskConfig
from speechssl.config import EncoderConfig, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamConfig:
    """What `speechssl finetune` knows of an upstream."""

    init: str | None = None
    encoder: EncoderConfig | None = None
    fuse: list[str] = dataclasses.field(default_factory=list)
    encoder_overrides: dict[str, float] = dataclasses.field(default_factory=dict)


def run_query(
    arguments: Sequence[str], task: TaskConfig, fold: Fold, seed: int, folder: Path
) -> None:
    """Search with each layer, choose one, and write FOLDER/test/results.json.

    arguments: the upstream's, as for finetune. Layers that were searched are not searched again.
    """
    import torch

    from speechssl.bin.finetune import build_encoder
    from speechssl.bin.query_search import query_figures
    from speechssl.bin.suite_cell import figure, write_json

    config: Any = parse(UpstreamConfig, list(arguments), prog="speechssl suite, upstream")
    torch.manual_seed(seed)
    encoder = build_encoder(config).to("cuda" if torch.cuda.is_available() else "cpu")
    layers = task.query.get("layers") or list(range(encoder.num_layers + 1))
    path = folder / "layers.json"
    tried = json.loads(path.read_text()) if path.is_file() else {}
    for layer in layers:
        if str(layer) not in tried:
            _, found = query_figures(encoder, layer, [fold.train], [fold.test], task.query["field"])
            value = figure(found, task.metric)
            if value is None:
                raise ValueError(f"metric: found no {task.metric}, want one of {', '.join(found)}")
            tried[str(layer)] = value
            write_json(path, tried)
    sign = 1 if task.best == "lowest" else -1
    chosen = min(layers, key=lambda n: (sign * tried[str(n)], n))
    _, results = query_figures(encoder, chosen, [fold.valid], [fold.test], task.query["field"])
    results["described"] = {
        "learning_rates": [],
        "sweeps": [{f"layer {n}": tried[str(n)] for n in layers}],
        "layer_weights": [],
        "head": f"warping (layer {chosen})",
        "trained_parameters": 0,
        "encoder_parameters": sum(p.numel() for p in encoder.parameters()),
        "steps": 0,
    }
    write_json(folder / "test" / "results.json", results)
