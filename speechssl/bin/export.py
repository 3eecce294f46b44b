"""`speechssl export`: turn a checkpoint into the files that `speechssl.load` opens."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from speechssl.config import parse

DESCRIPTION = """Write model.safetensors and model.json of a checkpoint.

Training does this itself at its end; export serves runs that were stopped, other checkpoints of
a run, and other forms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    checkpoint: str
    """Folder of a run (exp/x), or one of its checkpoints (exp/x/checkpoints/step_N)."""
    output: str | None = None
    """Where to write; default: the run's folder."""
    which: Literal["last", "best"] = "last"
    """Of a run's folder: its newest checkpoint, or that of its best validation."""
    form: Literal["speechssl", "transformers"] = "speechssl"
    """transformers: a folder that its HubertModel or WavLMModel opens; encoders only."""


def main(argv: list[str] | None = None) -> int:
    config = parse(ExportConfig, argv, prog="speechssl export", description=DESCRIPTION)
    try:
        print(run(config))
        return 0
    except ValueError as error:
        print(f"speechssl export: error: {error}", file=sys.stderr)
        return 2


def run(config: ExportConfig) -> str:
    """Export, and return the folder written to."""
    import yaml

    from speechssl.train import checkpoint
    from speechssl.train.folder import export, versions

    path = Path(config.checkpoint)
    if not (path / "state.json").is_file():
        path = checkpoint.find(path / "checkpoints", config.which)
    folder = path.parent.parent
    step = int(checkpoint.Reader(path).state["step"])
    origin = versions() | {"step": step}
    if (folder / "config.yaml").is_file():
        origin["config"] = yaml.safe_load((folder / "config.yaml").read_text())
    state = checkpoint.read_weights(path)
    if config.form == "transformers":
        return _to_transformers(folder, config.output, state)
    output = config.output or str(folder)
    export(folder, output, state, origin)
    return output


def _to_transformers(folder: Path, output: str | None, state: Mapping[str, Any]) -> str:
    from speechssl.hub.transformers_format import write_transformers
    from speechssl.train.folder import read_architecture

    if output is None:
        raise ValueError(
            "output: found none, want a folder of its own for --form transformers, whose files "
            "have the names of ours"
        )
    encoder = read_architecture(folder)[0]
    prefix = "encoder."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    write_transformers(output, cast(Any, encoder), weights)
    return output


if __name__ == "__main__":
    sys.exit(main())
