"""A run's folder: its configuration, the check on resuming, branches, provenance, the export."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl import dist
from speechssl.config import (
    EncoderConfig,
    HeadConfig,
    from_class_path,
    from_dict,
    save_yaml,
    to_dict,
)
from speechssl.model_file import save_model
from speechssl.train import checkpoint
from speechssl.train.log import say

FREE = {
    "output", "force", "probe_batches", "memory_gb", "export",
    "data.num_workers", "data.prefetch", "train.log_every",
    "train.valid_every", "train.save_every", "train.keep_checkpoints", "train.keep_best",
    "train.tensorboard",
    "train.device", "train.parallel", "train.compile", "train.stop_after",
    "train.max_skip_fraction", "train.max_bad_updates", "train.spike_factor",
    "train.spike_after", "train.deterministic",
}  # fmt: skip
"""Options that may change when a run is continued: they do not say what it computes."""


def open_folder(output: str | Path, config: Any, *, force: bool = False) -> None:
    """Make the folder and write config.yaml; on resuming, compare with the one that lies there.

    Raises `ValueError` that lists the fields that differ, unless they do not matter, or
    train.steps grew, or `force`.
    """
    import yaml

    output = Path(output)
    path = output / "config.yaml"
    done = checkpoint.steps(output / "checkpoints")
    if done and path.is_file() and not force:
        before = flat(_with_new_defaults(type(config), yaml.safe_load(path.read_text())))
        now = flat(to_dict(config))
        differing = _differing(before, now)
        if differing:
            raise ValueError(
                f"{output} holds checkpoints of another configuration: {'; '.join(differing)}. "
                "Give another output folder, restore these fields, or pass --force true"
            )
        _check_anneal(output, before, now, done[-1])
    if dist.is_main():
        output.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name("config.yaml.tmp")
        save_yaml(config, temporary)
        temporary.replace(path)
    dist.barrier()


def _with_new_defaults(config_class: type, values: Mapping[str, Any]) -> Any:
    """The values of an older config.yaml, with defaults for the fields that came since."""
    try:
        return to_dict(from_dict(config_class, values))
    except ValueError:  # a field is gone, or a class is of elsewhere: compare what is written
        return values


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: found {now.get(name)!r}, before {before.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not _allowed(name, before, now)
    ]


def _allowed(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if name == "train.steps":
        return now.get(name, 0) >= before.get(name, 0)
    return name in FREE or name == "train.anneal_steps"


def _check_anneal(
    output: Path, before: Mapping[str, Any], now: Mapping[str, Any], done: int
) -> None:
    """Refuse to change the end of an infinite schedule where the rate would jump."""
    if now.get("train.schedule") != "infinite":
        return
    (last, end), (new_last, new_end) = (
        (x["train.steps"] - x["train.anneal_steps"], x["train.steps"]) for x in (before, now)
    )
    if (last, end) == (new_last, new_end):
        return
    if done > last:
        raise ValueError(
            f"{output}: found a run annealed from update {last} on, want one at its constant rate "
            "to prolong; go on from before the anneal in another folder: --branch-from "
            f"{output}/checkpoints/step_{last}"
        )
    if done > new_last:
        raise ValueError(
            f"train.anneal_steps: found an anneal from update {new_last} on, want it to begin at "
            f"update {done}, which {output} has done, or later; raise train.steps"
        )


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(values, Mapping) or not values:
        return {prefix.rstrip("."): values}
    return {
        k: v for key, value in values.items() for k, v in flat(value, f"{prefix}{key}.").items()
    }


def branch(output: str | Path, source: str | Path, config: Any) -> None:
    """Let a run without checkpoints begin as a copy of another run's checkpoint: rank 0 copies.

    source: a run's folder (its newest checkpoint counts) or one of its checkpoints. Weights,
    optimiser, teachers and step go on; so does the place in the data, if `config.data` is the
    other run's; other data are read from their start, and the loss is judged anew.
    Raises `ValueError` if there is no such checkpoint.
    """
    folder = Path(output) / "checkpoints"
    path = Path(source)
    if not (path / "state.json").is_file():
        path = checkpoint.find(path / "checkpoints", "last")
    if dist.is_main() and not checkpoint.steps(folder):
        import yaml

        before = yaml.safe_load((path.parent.parent / "config.yaml").read_text())
        old, new = ({"data": x.get("data")} for x in (before, to_dict(config)))
        values = json.loads((path / "state.json").read_text())
        values |= {"best": None, "leaders": [], "since_best": 0}
        if _differing(flat(old), flat(new)):
            say(f"branch: other data than those of {path}; they are read from their start")
            values["positions"] = [None] * len(values["positions"])
            values["guard"] = {}
        temporary = folder / f"tmp_branch_{path.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(path, temporary)
        (temporary / "state.json").write_text(json.dumps(values))
        temporary.replace(folder / path.name)
    dist.barrier()


def write_architecture(
    output: str | Path,
    encoder: EncoderConfig,
    head: HeadConfig | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> None:
    """Write architecture.json, with which any checkpoint of the run can be exported alone."""
    values = {
        "encoder": to_dict(encoder),
        "head": None if head is None else to_dict(head),
        "tokenizer": None if tokenizer is None else dict(tokenizer),
    }
    temporary = Path(output) / "architecture.json.tmp"
    temporary.write_text(json.dumps(values, indent=2))
    temporary.replace(Path(output) / "architecture.json")


def export(
    run: str | Path, output: str | Path, state: Mapping[str, Tensor], origin: Mapping[str, Any]
) -> None:
    """Write model.safetensors and model.json to `output` of weights of the run in folder `run`.

    state: the whole state dict, of which the encoder's part and the head's, if any, are kept.
    """
    encoder, head, tokenizer = read_architecture(run)
    prefix = "encoder."
    own = {} if head is None else {k: v for k, v in state.items() if k.startswith(head.tensors)}
    save_model(
        output,
        encoder,
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
        head_config=head,
        head_state={k: v for k, v in own.items() if not k.startswith(prefix)},
        tokenizer=tokenizer,
        provenance=origin,
    )


def read_architecture(
    run: str | Path,
) -> tuple[EncoderConfig, HeadConfig | None, Mapping[str, Any] | None]:
    """Encoder, head and tokenizer of a run, as `write_architecture` left them."""
    path = Path(run) / "architecture.json"
    if not path.is_file():
        raise ValueError(f"export: found no {path}, want the folder of a training run")
    values = json.loads(path.read_text())
    head = values["head"]
    return (
        from_class_path(EncoderConfig, values["encoder"]),
        None if head is None else from_class_path(HeadConfig, head),
        values["tokenizer"],
    )


def provenance(config: Any, step: int) -> dict[str, Any]:
    """What made a model: versions, the commit of this program where known, config and step."""
    return versions() | {"step": step, "config": to_dict(config)}


def versions() -> dict[str, Any]:
    import torch

    import speechssl

    return {
        "speechssl": speechssl.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
