"""`speechssl prepare <corpus> ...`: make Lhotse cut manifests from a corpus."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path


def corpora() -> dict[str, str]:
    """Corpus name -> first line of its module's docstring, read without importing the module."""
    import speechssl.corpora

    found = {}
    for path in sorted(Path(speechssl.corpora.__path__[0]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "prepare" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def usage() -> str:
    known = corpora()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    return (
        "usage: speechssl prepare <corpus> [options]\n\n"
        "Write cuts_<split>.jsonl.gz (Lhotse manifests) and a summary.\n\ncorpora:\n"
        + "\n".join(lines)
        + "\n\n`speechssl prepare <corpus> --help` lists the options of a corpus."
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name = argv[0].replace("-", "_")
    if name not in corpora():
        print(
            f"speechssl prepare: found corpus {argv[0]!r}, want one of: {', '.join(corpora())}",
            file=sys.stderr,
        )
        return 2
    return run(name, argv[1:], prog=f"speechssl prepare {name}")


def run(name: str, argv: list[str], *, prog: str) -> int:
    """Parse the options of one corpus and prepare it; problems with the data end with status 1."""
    from speechssl.config import parse

    module = importlib.import_module(f"speechssl.corpora.{name}")
    description = (module.__doc__ or "").split("\n")[0]
    config = parse(module.Config, argv, prog=prog, description=description)
    try:
        paths = module.prepare(config)
    except ValueError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    for path in paths.values():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
