"""`speechssl export`: a checkpoint or a public model as files for here or for other libraries."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from speechssl.config import parse

DESCRIPTION = """Write a checkpoint or a public model as files that other programs open.

Training writes model.safetensors and model.json itself at its end; export serves runs that were
stopped, other checkpoints of a run, models of other libraries, and other forms. With --fuse several
encoders become one, whose frames are theirs side by side: an upstream like any other. Heads with
their adapters, --form head, are small files, and go on their encoder again with --head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    checkpoint: str | None = None
    """Folder of a run (exp/x), or one of its checkpoints (exp/x/checkpoints/step_N)."""
    model: str | None = None
    """Instead of a checkpoint: any model that opens here, such as fairseq's .pt."""
    fuse: list[str] = dataclasses.field(default_factory=list)
    """Instead of either: two encoders or more to be joined, such as '[exp/hubert,logmel.yaml]':
    models that open here, or YAML files with `encoder`."""
    head: str | None = None
    """With model: folder of form head, whose head is put on that model's encoder."""
    output: str | None = None
    """Where to write; default: the run's folder."""
    which: Literal["last", "best", "average"] = "last"
    """Of a run's folder: its newest checkpoint, that of its best validation, or the mean of those
    of its best validations that train.keep_best kept."""
    form: Literal["speechssl", "head", "transformers", "torchaudio", "onnx", "torch"] = "speechssl"
    """head: what a run on a frozen encoder has learnt, alone: the head, adapters and tuned biases;
    transformers: a folder that AutoModel or AutoModelForCTC opens; torchaudio: a state dict with
    its settings beside; onnx, torch (torch.export's .pt2): graphs with open time axis."""
    layers: list[int] | None = None
    """Layers that a graph gives, as '[6,9]'; default the last."""
    parity: bool = False
    """Also print how far every layer is from transformers' (which must be installed)."""

    def __post_init__(self) -> None:
        given = [self.checkpoint is not None, self.model is not None, bool(self.fuse)]
        if sum(given) != 1:
            raise ValueError(f"checkpoint, model, fuse: found {sum(given)}, want one of them")
        if self.fuse and (len(self.fuse) < 2 or self.form != "speechssl" or self.output is None):
            raise ValueError(
                f"fuse: found {len(self.fuse)} with form {self.form} and output {self.output}, "
                "want two encoders or more, form speechssl, and a folder"
            )
        alone = self.head is None or (self.model is not None and self.form == "speechssl")
        if not alone or (self.output is None and (self.head or self.form == "head")):
            raise ValueError(
                f"head, form: found head {self.head} with model {self.model}, form {self.form} and "
                f"output {self.output}, want a model and form speechssl with a head, and a folder "
                "for it and for form head"
            )


def main(argv: list[str] | None = None) -> int:
    config = parse(ExportConfig, argv, prog="speechssl export", description=DESCRIPTION)
    try:
        print(run(config))
        return 0
    except ValueError as error:
        print(f"speechssl export: error: {error}", file=sys.stderr)
        return 2


def run(config: ExportConfig) -> str:
    """Export, and return what was written."""
    if config.fuse:
        return _fused(config.fuse, str(config.output))
    if config.head is not None:
        from speechssl.hub.fuse import open_encoder
        from speechssl.hub.head_file import join_head

        join_head(open_encoder(str(config.model)), config.head, str(config.output))
        return str(config.output)
    if config.checkpoint is not None and config.form == "speechssl" and not config.parity:
        return _from_checkpoint(config, config.output)
    with tempfile.TemporaryDirectory() as scratch:
        source = config.model
        if source is None:
            source = _from_checkpoint(config, scratch)
        return _from_model(config, source)


def _from_checkpoint(config: ExportConfig, output: str | None) -> str:
    """Write model.safetensors and model.json of a checkpoint; returns their folder."""
    import yaml

    from speechssl.train import checkpoint
    from speechssl.train.folder import export, versions

    path, averaged = Path(str(config.checkpoint)), config.which == "average"
    if not (path / "state.json").is_file():
        path = checkpoint.find(path / "checkpoints", "last" if averaged else config.which)
    elif averaged:
        raise ValueError(f"which: found average with the checkpoint {path}, want a run's folder")
    folder = path.parent.parent
    step = int(checkpoint.Reader(path).state["step"])
    origin = versions() | {"step": step} | ({"which": "average"} if averaged else {})
    if (folder / "config.yaml").is_file():
        origin["config"] = yaml.safe_load((folder / "config.yaml").read_text())
    output = output or str(folder)
    state = checkpoint.read_average(path.parent) if averaged else checkpoint.read_weights(path)
    export(folder, output, state, origin)
    return output


def _fused(paths: list[str], output: str) -> str:
    """One encoder of several, as one of our folders."""
    from speechssl.hub.fuse import fuse, open_encoder
    from speechssl.model_file import save_model
    from speechssl.train.folder import versions

    encoder = fuse([open_encoder(path) for path in paths])
    origin = versions() | {"fused": paths}
    save_model(output, encoder.config, encoder.state_dict(), provenance=origin)
    return output


def _from_model(config: ExportConfig, source: str) -> str:
    from speechssl import load
    from speechssl.hub.export import output_layer, write
    from speechssl.labels.stream import say

    output = config.output
    if config.form == "head":
        from speechssl.hub.head_file import write_head
        from speechssl.model_file import open_model

        write_head(open_model(source), str(output))
        return str(output)
    if output is None:
        if config.form != "speechssl" or config.checkpoint is None:
            raise ValueError(
                f"output: found none, want a place of its own for --form {config.form}"
            )
        output = str(Path(str(config.checkpoint)))
    model = load(source)
    if config.parity:
        from speechssl.hub.parity import parity_report

        report = parity_report(model)
        print(report)
        if not report.passed:
            raise ValueError("parity: the layers differ from the reference's; nothing was written")
    if config.form != "speechssl":
        if model.head is not None and output_layer(model) is None:
            kind = type(model.head).__name__
            name = config.checkpoint or source
            say(f"the head of {name}, a {kind}, is left out: form {config.form} has none such")
        return str(write(model, output, config.form, layers=config.layers))
    if config.checkpoint is not None:
        return _from_checkpoint(config, config.output)
    if (Path(source) / "model.json").is_file():
        return _copied(Path(source), Path(output))
    _write_own(model, output)
    return output


def _copied(source: Path, output: Path) -> str:
    """One of our own folders, whatever its head is, as it is."""
    output.mkdir(parents=True, exist_ok=True)
    if not output.samefile(source):
        for name in ("model.safetensors", "model.json"):
            shutil.copyfile(source / name, output / name)
    return str(output)


def _write_own(model: Any, output: str) -> None:
    """A public model as one of ours; its blank becomes id 0."""
    import torch

    from speechssl.data.text import BLANK, Tokenizer
    from speechssl.heads.asr_ctc import CtcConfig
    from speechssl.hub.export import ctc_tensors
    from speechssl.model_file import save_model

    model.fold_adapters()
    encoder = model.encoder
    ctc = ctc_tensors(model)
    head: dict[str, Any] = {}
    if ctc is not None:
        order = [ctc.blank, *(i for i in range(len(ctc.bias)) if i != ctc.blank)]
        built = CtcConfig(vocab_size=len(order)).build(encoder)
        state = {k: v for k, v in built.state_dict().items() if not k.startswith("encoder.")}
        state |= {"output.weight": ctc.weight[torch.tensor(order)].clone()}
        state |= {"output.bias": ctc.bias[torch.tensor(order)].clone()}
        head = {"head_config": built.config, "head_state": state}
        if ctc.vocabulary is not None:
            names = {i: " " if s == "|" else s for s, i in ctc.vocabulary.items()}
            symbols = (BLANK, *(names.get(i, f"<{i}>") for i in order[1:]))
            head["tokenizer"] = Tokenizer(kind="letters", symbols=symbols).to_dict()
    save_model(output, encoder.config, encoder.state_dict(), provenance=model.provenance, **head)


if __name__ == "__main__":
    sys.exit(main())
