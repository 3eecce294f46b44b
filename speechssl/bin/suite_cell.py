"""One cell of `speechssl suite`: an upstream on a task with one seed, from cuts to its score."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechssl.bin.suite_task import Fold, TaskConfig
from speechssl.config import to_dict

KEPT = ("predictions.jsonl", "hyp.jsonl", "values.jsonl", "slots.jsonl", "segments.jsonl",
        "answers.jsonl")  # fmt: skip
"""Answers per utterance that folds are pooled of."""


@dataclasses.dataclass(frozen=True)
class Upstream:
    """name: of its row. arguments: what it adds to `speechssl finetune`. stamp: of its files."""

    name: str
    arguments: tuple[str, ...]
    stamp: str


def find_upstream(text: str) -> Upstream:
    """`[NAME=]logmel`, `[NAME=]random`, a YAML file of an encoder, or a model's folder.

    Raises `ValueError` for anything else, and for a name that cannot be a folder's.
    """
    # A path may hold = itself.
    plain = "=" not in text or Path(text).exists()
    name, _, what = ("", "", text) if plain else text.partition("=")
    if "/" in name or name in (".", ".."):
        raise ValueError(f"upstreams: found the name {name!r}, want one without /: it is a folder")
    path = Path(what)
    if what == "logmel":
        kind = "speechssl.encoders.log_mel.LogMelConfig"
        return Upstream(name or what, ("--encoder", kind), what)
    if what == "random":
        kind = "speechssl.encoders.transformer.TransformerConfig"
        return Upstream(name or what, ("--encoder", kind), what)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return Upstream(name or path.stem, ("--config", what), path.read_text())
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".bin"))
        stamp = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        return Upstream(name or path.resolve().name, ("--init", what), json.dumps(stamp))
    raise ValueError(
        f"upstreams: found {text!r}, want logmel, random (HuBERT Base with random weights), a "
        "YAML file with `encoder:` (random weights), or a folder: own (model.json) or of "
        "transformers (config.json); NAME=... gives another name"
    )


def arguments(
    upstream: Upstream, task: TaskConfig, fold: Fold, seed: int, options: Any, output: str
) -> list[str]:
    """Options of `speechssl finetune` for a fold; the task's own are in OUTPUT.yaml."""
    own = shlex.split(options.overrides)
    words = ["--config", output + ".yaml", *upstream.arguments, *own]
    words += ["--data.train", f"[{fold.train}]", "--data.valid", f"[{fold.valid}]"]
    words += ["--data.seed", str(seed), "--train.seed", str(seed), "--output", output]
    if options.cache and task.cache:
        words += ["--cache", str(Path(options.output) / "features" / upstream.name)]
        words += ["--cache_dtype", options.cache_dtype]
    if options.steps:
        words += ["--train.steps", str(options.steps)]
    rates = options.rates or task.rates
    if rates:
        words += ["--rates", json.dumps(rates)]
    return words


class Interrupted(Exception):
    """Training stopped at a signal; `status` is the exit status to end with."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def run_cell(
    upstream: Upstream,
    task: TaskConfig,
    folds: list[Fold],
    seed: int,
    folder: Path,
    options: Any,
    meter: Callable[[], Any],
) -> dict[str, Any]:
    """Train, decode and score every fold; the cell's figures, which also lie in cell.json.

    What is done already is not done again. Raises `ValueError` for a folder of other options or
    another upstream, and `Interrupted`.
    """
    from speechssl.bin.energy import added, machine

    stamp = _stamp(upstream, task, folds, seed, options)
    path = folder / "cell.json"
    cell = json.loads(path.read_text()) if path.is_file() else {"stamp": stamp, "cost": {}}
    if cell["stamp"] != stamp:
        raise ValueError(
            f"output: found {folder} of other options or another upstream, want the same, a new "
            f"output, or that folder deleted"
        )
    for fold in folds if "score" not in cell else ():
        if (folder / f"fold{fold.number}" / "test" / "results.json").is_file() and cell["cost"]:
            continue
        # Written before it begins: a killed run leaves no results under another stamp, and what it
        # cost, which nobody knows then, is not taken for nothing.
        cell["kills"] = cell.get("kills", 0) + ("under_way" in cell)
        write_json(path, cell | {"under_way": fold.number})
        status, measured = 1, meter()
        try:
            with measured:
                status = _run_fold(upstream, task, fold, seed, folder, options)
        finally:
            cell = {k: v for k, v in cell.items() if k != "under_way"}
            if measured.cost:
                cell["cost"] = added(cell["cost"], measured.cost)
            cell["machine"] = machine()
            write_json(path, cell)
        if status:
            raise Interrupted(status)
    if "score" not in cell or list(cell.get("also", {})) != task.also:
        results = _pooled(task, folds, folder)
        described = results["described"] if task.query else _described(folds, folder)
        cell |= _figures(task, results) | described
        cell |= {"seed": seed, "folds": len(folds)}
        cell["fold_scores"] = _fold_scores(task, folds, folder)
        cell["also"] = {name: figure(results, name) for name in task.also}
        write_json(path, cell)
    return cell


def _stamp(upstream: Upstream, task: TaskConfig, folds: list[Fold], seed: int, options: Any) -> str:
    own = to_dict(task)
    del own["also"]  # what is shown beside the score changes nothing
    for name, usual in (("decode", {}), ("score", []), ("cache", True), ("query", {})):
        if own[name] == usual:  # a cell of before there were such options goes on
            del own[name]
    values = [upstream.stamp, upstream.name, own, [f.number for f in folds], seed]
    values += [options.steps, options.rates, options.overrides, options.cache, options.cache_dtype]
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


def _run_fold(
    upstream: Upstream, task: TaskConfig, fold: Fold, seed: int, folder: Path, options: Any
) -> int:
    """0 when the fold is scored, else the status with which training stopped."""
    import yaml

    from speechssl.bin import decode, finetune, score
    from speechssl.bin.suite_query import run_query
    from speechssl.config import parse

    own = folder / f"fold{fold.number}"
    tested = own / "test"
    if (tested / "results.json").is_file():
        return 0
    own.mkdir(parents=True, exist_ok=True)
    if task.query:
        run_query(upstream.arguments, task, fold, seed, own)
        return 0
    run = str(own / "run")
    data = str(Path(fold.train).parents[1] / "all")
    text = yaml.safe_dump(task.finetune, sort_keys=False).replace("{data}", data)
    Path(run + ".yaml").write_text(text)
    if not _trained(own / "run"):
        words = arguments(upstream, task, fold, seed, options, run)
        config = parse(finetune.FinetuneConfig, words, prog="speechssl suite")
        status = finetune.run(config)
        if status:
            return status
    if not (tested / "decode.json").is_file():
        decode.run(decode_options(task, run, fold.test, str(tested)))
    words = ["--decode", str(tested), *task.score]
    if fold.trials:
        words += ["--trials", fold.trials]
    if score.main(words):
        raise ValueError(f"score: found no score of {tested}, want one; see above")
    return 0


def decode_options(task: TaskConfig, model: str, cuts: str, output: str) -> Any:
    """Options of `speechssl decode`; `ValueError` for one of the task's that there is not."""
    from speechssl.bin.decode import DecodeOptions
    from speechssl.config import from_dict

    given = {"model": model, "cuts": cuts, "output": output, **task.decode}
    return from_dict(DecodeOptions, given)


def _trained(run: Path) -> bool:
    """Whether all that a run's folder is to hold is there: a sweep says last what it chose."""
    if not (run / "model.json").is_file():
        return False
    sweep = run / "sweep.json"
    return not sweep.is_file() or json.loads(sweep.read_text())["chosen"] is not None


def _results(folder: Path, fold: Fold) -> dict[str, Any]:
    return json.loads((folder / f"fold{fold.number}" / "test" / "results.json").read_text())


def _pooled(task: TaskConfig, folds: list[Fold], folder: Path) -> dict[str, Any]:
    """Results over all folds' answers together, scored once."""
    from speechssl.bin import score

    if len(folds) == 1:
        return _results(folder, folds[0])
    tests = [folder / f"fold{fold.number}" / "test" for fold in folds]
    name = next((n for n in KEPT if (tests[0] / n).is_file()), None)
    if name is None:
        raise ValueError(f"split: found folds of a task without {', '.join(KEPT)}, want own")
    pooled = folder / "pooled"
    pooled.mkdir(exist_ok=True)
    lines = [line for t in tests for line in (t / name).read_text().splitlines(keepends=True)]
    (pooled / name).write_text("".join(lines))
    described = [json.loads((t / "decode.json").read_text()) for t in tests]
    if isinstance(described[0].get("classes"), list):  # a fold may lack a class
        each = [c for one in described for c in one["classes"]]
        described[0]["classes"] = list(dict.fromkeys(each))
    write_json(pooled / "decode.json", described[0])
    if score.main(["--decode", str(pooled), *task.score]):
        raise ValueError(f"score: found no score of {pooled}, want one; see above")
    return json.loads((pooled / "results.json").read_text())


def figure(results: dict[str, Any], name: str) -> float | None:
    """A number of results.json; dots lead into nested ones; None: there is none."""
    value: Any = results
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _fold_scores(task: TaskConfig, folds: list[Fold], folder: Path) -> list[float | None]:
    """Each fold by itself; [] of a single one."""
    return [figure(_results(folder, f), task.metric) for f in folds] if len(folds) > 1 else []


def _figures(task: TaskConfig, results: dict[str, Any]) -> dict[str, Any]:
    value = figure(results, task.metric)
    if value is None:
        known = [k for k, v in results.items() if isinstance(v, int | float)]
        raise ValueError(f"metric: found no {task.metric}, want one of {', '.join(known)}")
    found = {"score": value, "ci95": results.get(f"{task.metric}_ci95")}
    scored = results.get("utterances") or results.get("recordings")
    scored = scored or results.get("targets", 0) + results.get("nontargets", 0)
    return found | {"scored": scored}


def _described(folds: list[Fold], folder: Path) -> dict[str, Any]:
    """Learning rates, layer weights and sizes of each fold's model."""
    rates, sweeps, weights, info = [], [], [], {}
    for fold in folds:
        run = folder / f"fold{fold.number}" / "run"
        info = json.loads((run / "model.json").read_text())
        if (run / "sweep.json").is_file():
            sweep = json.loads((run / "sweep.json").read_text())
            rates.append(sweep["chosen"])
            sweeps.append({str(r["learning_rate"]): r["score"] for r in sweep["rates"]})
        else:
            rates.append(info["provenance"]["config"]["train"]["learning_rate"])
        weights.append(_layer_weights(folder / f"fold{fold.number}" / "test"))
    sizes = info["provenance"]["parameters"]
    return {
        "learning_rates": rates,
        "sweeps": sweeps,
        "layer_weights": [sum(x) / len(x) for x in zip(*weights, strict=True)],
        "head": _short(info["head"]),
        "trained_parameters": sizes["head_learning"] + sizes["encoder_learning"],
        "encoder_parameters": sizes["encoder"],
        "steps": info["provenance"]["config"]["train"]["steps"],
    }


def _short(head: dict[str, Any]) -> str:
    """A head's class and its options that say which network it is."""
    said = ["network", "pooling", "hidden", "hidden_layers", "projection_dim", "channels",
            "standardise"]  # fmt: skip
    options = head["init_args"]
    if options.get("network") == "pooled":
        said.remove("channels")
    if options.get("hidden") == "none":
        said.remove("hidden_layers")
    values = {k: options[k] for k in said if options.get(k) not in (None, 0, "none")}
    shown = ["linear"] if options.get("hidden") == "none" else []
    shown += [k if v is True else f"{k} {v}" for k, v in values.items()]
    name = head["class_path"].rsplit(".", 1)[-1].removesuffix("Config")
    return f"{name} ({', '.join(shown)})" if shown else name


def _layer_weights(tested: Path) -> list[float]:
    """Softmax weights of the layers that are summed; [] where one layer is read."""
    weights = list(json.loads((tested / "decode.json").read_text())["layer_weights"].values())
    return weights if len(weights) > 1 else []


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)
