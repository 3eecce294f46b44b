"""An opened model, of whichever format, into the formats of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from speechssl.encoders.graph import EncoderGraph
from speechssl.encoders.transformer import TransformerEncoder
from speechssl.hub.graph import write_exported, write_onnx
from speechssl.hub.model import Model
from speechssl.hub.tensor_names import CtcTensors
from speechssl.hub.torchaudio_format import write_torchaudio
from speechssl.hub.transformers_format import write_transformers

FORMS = ("transformers", "torchaudio", "onnx", "torch")


def transformer_encoder(model: Model) -> TransformerEncoder:
    """The model's encoder, or a `ValueError` if it is of a kind of our own."""
    if not isinstance(model.encoder, TransformerEncoder):
        raise ValueError(
            f"{model.name}: found a {type(model.encoder).__name__}, want a TransformerEncoder, the "
            "only kind that other libraries have"
        )
    return model.encoder


def output_layer(model: Model) -> nn.Linear | None:
    """The linear layer that makes a recogniser's scores of the encoder's last layer.

    Raises `ValueError` if the head is more than that.
    """
    head: Any = model.head
    if head is None or not hasattr(head, "log_probs"):
        return None
    if isinstance(getattr(head, "linear", None), nn.Linear):
        return head.linear
    config = getattr(head, "config", None)
    plain = {"layer": (-1, model.num_layers), "weighted_layers": (False,), "upsample": (1,)}
    plain |= {
        "hidden": ("none",),
        "projection_dim": (0,),
        "normalise_layers": (False,),
        "standardise": (False,),
    }
    wrong = [k for k, wanted in plain.items() if getattr(config, k, None) not in wanted]
    if wrong:
        raise ValueError(
            f"{model.name}: found a head with other settings of {', '.join(wrong)} than a linear "
            "layer on the last layer, which is the only head that other libraries have"
        )
    return head.output


def ctc_tensors(model: Model) -> CtcTensors | None:
    """The recogniser's head as tensors with its vocabulary, None for a bare encoder."""
    linear = output_layer(model)
    if linear is None:
        return None
    bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(len(linear.weight))
    return CtcTensors(linear.weight.detach(), bias.detach(), model.blank, model.vocabulary)


def write(
    model: Model, output: str | Path, form: str, *, layers: Sequence[int] | None = None
) -> Path:
    """Write `model` in one of `FORMS`; returns the path written.

    output: a folder for transformers; a file, or a folder to hold it, for the others.
    layers: hidden states that a graph (onnx, torch) gives; default the last.
    """
    model.fold_adapters()
    encoder = transformer_encoder(model)
    output = Path(output)
    if form == "transformers":
        write_transformers(output, encoder.config, encoder.state_dict(), ctc_tensors(model))
        return output
    names = {"torchaudio": "model.pth", "onnx": "model.onnx", "torch": "model.pt2"}
    if form not in names:
        raise ValueError(f"form: found {form!r}, want one of {', '.join(FORMS)}")
    path = output if output.suffix == Path(names[form]).suffix else output / names[form]
    if form == "torchaudio":
        write_torchaudio(path, encoder.config, encoder.state_dict(), ctc_tensors(model))
        return path
    wanted = model.resolve_layers(list(layers) if layers else [-1])
    model.to("cpu")
    graph = EncoderGraph(encoder, wanted, output_layer(model))
    (write_onnx if form == "onnx" else write_exported)(path, graph)
    return path
