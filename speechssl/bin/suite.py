"""`speechssl suite`: upstreams on tasks, as one table, suite.json and a page."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechssl.config import parse

if TYPE_CHECKING:
    from speechssl.bin.suite_cell import Upstream
    from speechssl.bin.suite_task import TaskConfig
    from speechssl.score.aggregate import Pins

DESCRIPTION = """Run upstreams on tasks and compare them in one table:
speechssl suite --tasks egs/realmini/suite/tasks --corpora DIR --upstreams "[logmel,PATH]"
--output exp/suite

A task is one YAML file: its corpus, how that is divided, a head (or a search), a metric. An
upstream is logmel, random, a YAML file of an encoder (random weights), or a model's folder, own or
of transformers. It stays frozen: it runs once per utterance, and heads of all learning rates read
its features.

Interrupted anywhere, the same command goes on. A missing corpus is named, and the other tasks run.
suite.json, table.md and index.html are written after each cell; they show the tasks, upstreams and
seeds that were asked for, though more may lie in the folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    tasks: str
    """Folder of tasks, one YAML file each."""
    corpora: str
    """Folder that holds the corpora's folders."""
    upstreams: list[str]
    """What to compare, one row each; NAME=... names a row."""
    output: str
    """Folder for everything that is made."""
    only: list[str] = dataclasses.field(default_factory=list)
    """Tasks to run, in this order; empty: all."""
    seeds: list[int] = dataclasses.field(default_factory=lambda: [1])
    """Seeds of each cell; several give a mean and a deviation."""
    rates: list[float] = dataclasses.field(default_factory=list)
    """Learning rates to choose from, in place of each task's own."""
    steps: int = 0
    """Updates of each head, in place of each task's own; 0: the task's."""
    overrides: str = ""
    """Further options of finetune, separated by blanks: --overrides="--train.valid_every 50"."""
    cache: bool = True
    """Keep the features of each frozen upstream while its tasks run; false: compute them again in
    every update."""
    cache_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number type of those features."""
    keep_features: bool = False
    """Leave them on disk when an upstream's tasks are done."""
    pins: str | None = None
    """YAML file with a baseline's and the best known figures of tasks, for SUPERB's score over all
    of them: egs/superb/pins.yaml."""
    energy: Literal["auto", "codecarbon", "none"] = "auto"
    """Energy of each cell by codecarbon (offline), if it is installed."""
    country: str = "USA"
    """Three-letter code of the country, which codecarbon asks for; it changes no kWh."""
    watts_per_core: float | None = None
    """Without codecarbon: power of a busy core, for an estimate from CPU seconds; none: no
    estimate."""

    def __post_init__(self) -> None:
        if not self.upstreams or not self.seeds:
            raise ValueError("upstreams, seeds: found none, want one or more of each")


def main(argv: list[str] | None = None) -> int:
    options = parse(SuiteOptions, argv, prog="speechssl suite", description=DESCRIPTION)
    try:
        return run(options)
    except ValueError as error:
        print(f"speechssl suite: error: {error}", file=sys.stderr)
        return 2


def run(options: SuiteOptions) -> int:
    """0 if every cell whose corpus is there was scored, else 1, or that of a signal."""
    from speechssl.bin.energy import Meter
    from speechssl.bin.suite_cell import find_upstream
    from speechssl.bin.suite_task import missing_folders, read_tasks

    tasks = read_tasks(options.tasks, options.only)
    upstreams = [find_upstream(text) for text in options.upstreams]
    if len({u.name for u in upstreams}) < len(upstreams):
        raise ValueError(
            f"upstreams: found one name twice in {[u.name for u in upstreams]}, want NAME=... "
            "before one of them"
        )
    # Both refuse before it starts.
    Meter(options.energy, options.country, options.watts_per_core)
    pins = None if options.pins is None else _read_pins(options.pins)
    _check(options, tasks, upstreams)
    suite = _Suite(options, tasks, upstreams, pins)
    for name, task in tasks.items():
        missing = missing_folders(task, options.corpora)
        if missing:
            suite.missing[name] = (
                f"found no folder {', '.join(missing)} in {options.corpora}; {task.obtain}"
            )
            print(f"task {name} is left out: {suite.missing[name]}", file=sys.stderr)
    return suite.run()


def _read_pins(path: str) -> Pins:
    import yaml

    from speechssl.score.aggregate import pins_of

    if not Path(path).is_file():
        raise ValueError(f"pins: found no file {path}, want one such as egs/superb/pins.yaml")
    return pins_of(yaml.safe_load(Path(path).read_text()))


def _check(options: SuiteOptions, tasks: dict[str, TaskConfig], upstreams: list[Upstream]) -> None:
    """End the program at once, not after hours, where a task's options of a program are wrong."""
    import importlib
    import tempfile

    import yaml

    from speechssl.bin import prepare
    from speechssl.bin.finetune import FinetuneConfig
    from speechssl.bin.score import ScoreOptions
    from speechssl.bin.suite_cell import arguments, decode_options
    from speechssl.bin.suite_task import Fold, prepare_words

    fold, corpora = Fold(1, "train", "valid", "test"), prepare.corpora()
    with tempfile.TemporaryDirectory() as folder:
        for name, task in tasks.items():
            prog = f"speechssl suite: task {name}"
            if task.prepare not in corpora:
                raise ValueError(
                    f"task {name}, prepare: found {task.prepare!r}, want one of "
                    f"{', '.join(corpora)}"
                )
            corpus = importlib.import_module(f"speechssl.corpora.{task.prepare}")
            words = prepare_words(task, options.corpora, Path(folder))
            parse(corpus.Config, words, prog=f"{prog}, prepare")
            if task.query:
                continue
            output = str(Path(folder) / name)
            Path(output + ".yaml").write_text(yaml.safe_dump(task.finetune))
            for upstream in upstreams:
                words = arguments(upstream, task, fold, 1, options, output)
                parse(FinetuneConfig, words, prog=f"{prog}, finetune")
            try:
                decode_options(task, "run", "test", "out")
            except ValueError as error:
                raise ValueError(f"task {name}, decode: {error}") from None
            parse(ScoreOptions, ["--decode", "out", *task.score], prog=f"{prog}, score")


class _Suite:
    """All cells of a run, done or not, and what is written of them."""

    def __init__(
        self,
        options: SuiteOptions,
        tasks: dict[str, TaskConfig],
        upstreams: list[Upstream],
        pins: Pins | None,
    ) -> None:
        self.options, self.tasks, self.upstreams, self.pins = options, tasks, upstreams, pins
        self.output = Path(options.output)
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.cells: list[dict[str, Any]] = []

    def run(self) -> int:
        from speechssl.bin.suite_cell import Interrupted

        try:
            for upstream in self.upstreams:
                for name in self.tasks:
                    if name not in self.missing:
                        for seed in self.options.seeds:
                            self._cell(upstream, name, seed)
                if not self.options.keep_features:
                    shutil.rmtree(self.output / "features" / upstream.name, ignore_errors=True)
        except Interrupted as stopped:
            return stopped.status
        finally:
            self.write()
        print((self.output / "table.md").read_text())
        for name, why in self.failed.items():
            print(f"{name} failed: {why}", file=sys.stderr)
        return 1 if self.failed else 0

    def _cell(self, upstream: Upstream, name: str, seed: int) -> None:
        from speechssl.bin.energy import Meter
        from speechssl.bin.suite_cell import Interrupted, run_cell
        from speechssl.bin.suite_task import make_cuts

        options = self.options

        def meter() -> Meter:
            return Meter(options.energy, options.country, options.watts_per_core)

        print(f"== {upstream.name}, {name}, seed {seed}", file=sys.stderr)
        folder = self.output / "runs" / upstream.name / name / f"seed{seed}"
        try:
            folds = make_cuts(self.tasks[name], options.corpora, self.output / "data" / name)
            cell = run_cell(upstream, self.tasks[name], folds, seed, folder, options, meter)
        except Interrupted:
            raise
        except Exception as error:  # whatever it is, the other cells run on
            known = isinstance(error, ValueError | OSError)
            why = str(error) if known else f"{type(error).__name__}: {error}"
            self.failed[f"{upstream.name}, {name}, seed {seed}"] = why
            print(f"{upstream.name}, {name}, seed {seed} failed: {why}", file=sys.stderr)
            if not known:
                traceback.print_exception(error)
            return
        self.cells.append({"upstream": upstream.name, "task": name, **cell})
        self.write()

    def write(self) -> None:
        import datetime

        from speechssl import __version__
        from speechssl.bin.suite_cell import write_json
        from speechssl.config import to_dict
        from speechssl.report.page import write_page
        from speechssl.report.suite import markdown, render_suite, scores_of

        now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        values = {
            "made": f"speechssl {__version__}, {now}",
            "options": to_dict(self.options),
            "upstreams": [u.name for u in self.upstreams],
            "tasks": {name: to_dict(task) for name, task in self.tasks.items()},
            "missing": self.missing,
            "failed": self.failed,
            "cells": self.cells,
        }
        if self.pins is not None:
            values["pins"] = dataclasses.asdict(self.pins)
            values["scores"] = scores_of(values, self.pins)
        write_json(self.output / "suite.json", values)
        write_page(self.output / "table.md", markdown(values))
        write_page(self.output / "index.html", render_suite(values))


if __name__ == "__main__":
    sys.exit(main())
