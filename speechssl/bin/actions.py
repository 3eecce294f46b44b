"""A verb of several actions, such as `speechssl cluster fit | apply`: help, options, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

Action = tuple[type, str, Callable[[Any], None]]
"""An action's config class, what it does in a line, and the function that does it."""


def run_action(verb: str, about: str, actions: Mapping[str, Action], argv: list[str] | None) -> int:
    """Do the action that argv names first; the exit status: 2 for an unknown one, 1 for bad data.

    argv: None for the program's own. Torch is imported only when an action starts.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(verb, about, actions))
        return 0
    if argv[0] not in actions:
        wanted = ", ".join(actions)
        print(f"speechssl {verb}: found {argv[0]!r}, want one of: {wanted}", file=sys.stderr)
        return 2
    from speechssl.config import parse

    config_class, description, action = actions[argv[0]]
    prog = f"speechssl {verb} {argv[0]}"
    config = parse(config_class, argv[1:], prog=prog, description=description)
    from speechssl import dist

    try:
        action(config)
    except ValueError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    finally:
        dist.shutdown()
    return 0


def _usage(verb: str, about: str, actions: Mapping[str, Action]) -> str:
    width = max(map(len, actions))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text, _) in actions.items())
    return (
        f"usage: speechssl {verb} <action> [options]\n\n{about}\n\n{lines}\n\n"
        f"`speechssl {verb} <action> --help` explains its options."
    )
