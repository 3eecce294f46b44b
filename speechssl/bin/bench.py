"""`speechssl bench`: run a benchmark of tools/bench against other libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path


def folder() -> Path:
    """tools/bench of the checkout that this program lies in; it may be absent."""
    return Path(__file__).resolve().parent.parent.parent / "tools" / "bench"


def benchmarks(place: Path) -> dict[str, str]:
    """Name -> first line of its docstring, without running it."""
    found = {}
    for path in sorted(place.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        try:
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        except SyntaxError as error:
            text = f"cannot be read: {error}"
        found[path.stem] = text.split("\n")[0]
    return found


def usage(known: dict[str, str]) -> str:
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    return (
        "usage: speechssl bench <name> [options]\n\n"
        "Benchmarks against other libraries, each as a ratio within one run; from a checkout of "
        "the source.\n\n"
        + ("\n".join(lines) or f"  none: {folder()} holds no benchmark")
        + "\n\n`speechssl bench <name> --help` explains one."
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    known = benchmarks(folder())
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(known))
        return 0 if argv else 2
    if not known:
        print(
            f"speechssl bench: error: found no {folder()}, want a checkout of the source; the "
            "installed package does not carry the benchmarks",
            file=sys.stderr,
        )
        return 2
    if argv[0] not in known:
        print(
            f"speechssl bench: error: found {argv[0]!r}, want one of: {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    return subprocess.run([sys.executable, str(folder() / f"{argv[0]}.py"), *argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
