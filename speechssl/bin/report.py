"""`speechssl report`: one self-contained HTML page about experiments."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from speechssl.config import parse

DESCRIPTION = """Make one self-contained HTML page about experiments:
speechssl report exp/a exp/b --output report.html

Curves, learning rate, throughput, use and quality of the clusters, error rates, the worst
utterances word by word, configurations. Unfinished experiments are welcome; a folder of
experiments stands for all in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    experiments: list[str] = dataclasses.field(default_factory=list)
    """Folders of experiments; they may also be given first, without this option's name."""
    output: str | None = None
    """HTML file to write; default: report.html in the first folder."""

    def __post_init__(self) -> None:
        if not self.experiments:
            raise ValueError("experiments: found none, want folders such as exp/hubert_it1")


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    folders = []
    while argv and not argv[0].startswith("-"):
        folders.append(argv.pop(0))
    if folders:
        import json

        argv = ["--experiments", json.dumps(folders), *argv]
    options = parse(ReportOptions, argv, prog="speechssl report", description=DESCRIPTION)
    try:
        return run(options)
    except ValueError as error:
        print(f"speechssl report: error: {error}", file=sys.stderr)
        return 2


def run(options: ReportOptions) -> int:
    import datetime

    from speechssl import __version__
    from speechssl.report.page import render, write_page
    from speechssl.report.read import find_experiments

    experiments = find_experiments(options.experiments)
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    text = render(experiments, f"speechssl {__version__}, {now}")
    output = write_page(options.output or Path(options.experiments[0]) / "report.html", text)
    print(f"{len(experiments)} experiments, {len(text) / 1e6:.2f} MB -> {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
