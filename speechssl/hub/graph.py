"""The encoder as a graph for other runtimes: ONNX, and torch.export's program.

The graph takes `wave` (batch, samples) float32 and `lengths` (batch,) int64, both axes open, and
gives `layer_<i>` (batch, frames, width) for the layers asked for, `log_probs` of a recogniser, and
`frame_lengths` (batch,). Padding is inert in it as in the encoder. An utterance needs two frames
(720 samples) or more.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from speechssl.encoders.graph import EncoderGraph

OPSET = 20


def exported_program(graph: EncoderGraph, *, samples: int = 12000) -> torch.export.ExportedProgram:
    """torch.export's program of the graph, for 1 or more utterances of 2 frames or more."""
    example = torch.randn(2, samples), torch.tensor([samples, samples - 2000])
    least = graph.encoder.receptive_field_samples + graph.encoder.hop_samples
    shapes = (
        {0: torch.export.Dim("batch", min=1, max=4096),
         1: torch.export.Dim("samples", min=least, max=2**24)},
        {0: torch.export.Dim("batch", min=1, max=4096)},
    )  # fmt: skip
    with torch.no_grad():
        return torch.export.export(graph.eval(), example, dynamic_shapes=shapes)


def write_exported(path: str | Path, graph: EncoderGraph) -> None:
    """Write a .pt2 file that `torch.export.load(path).module()` opens."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp.pt2")
    torch.export.save(exported_program(graph), temporary)
    os.replace(temporary, path)


def write_onnx(path: str | Path, graph: EncoderGraph) -> None:
    """Write an ONNX file (weights beside it in <name>.data if they exceed what one file holds).

    Raises `ValueError` if onnx and onnxscript are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError("form: onnx needs two packages; pip install 'speechssl[onnx]'") from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    program: Any = torch.onnx.export(
        exported_program(graph),
        input_names=["wave", "lengths"],
        output_names=graph.output_names,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    temporary = path.with_name("." + path.name)
    program.save(temporary)
    os.replace(temporary, path)
