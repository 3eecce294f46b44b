"""Typed configuration: frozen dataclasses from YAML files and command-line overrides.

Every program of `speechssl.bin` states its options as one frozen, keyword-only dataclass and
calls `parse`. Nothing here imports torch, so `--help` stays fast.

Polymorphic parts (which encoder, which objective, which head) are chosen in YAML by the dotted
name of their config class:

    objective:
      class_path: speechssl.objectives.hubert.HubertConfig
      init_args: {classes: 100}

There is no registry: the module is imported when it is named. Only classes below `speechssl.`
are accepted from files that accompany a checkpoint (`from_dict`), since importing a module
runs its code.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from speechssl.contract import Encoder, Objective

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Base of every encoder's configuration; `build` returns the module."""

    def build(self) -> Encoder:
        raise ValueError(
            f"encoder: found the abstract {type(self).__name__}, want a concrete class, such as "
            "class_path: speechssl.encoders.transformer.TransformerConfig"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Base of every pretraining objective's configuration; `build` returns the module."""

    def build(self) -> Objective:
        raise ValueError(
            f"objective: found the abstract {type(self).__name__}, want a concrete class, such as "
            "class_path: speechssl.objectives.hubert.HubertConfig"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Base of every downstream head's configuration; `build` puts the head on an encoder."""

    tensors: ClassVar[tuple[str, ...]] = ("",)
    """How the names of its tensors begin, beside the encoder's, in a run that may hold others."""

    def build(self, encoder: Encoder) -> Objective:
        raise ValueError(
            f"head: found the abstract {type(self).__name__}, want a concrete class, such as "
            "class_path: speechssl.heads.asr_ctc.CtcConfig"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """Base of every vocoder's configuration; `build` makes it for a mel definition."""

    def build(self, mel: Any) -> Any:
        raise ValueError(
            f"vocoder: found the abstract {type(self).__name__}, want a concrete class, such as "
            "class_path: speechssl.vocoder.config.SpectralConfig"
        )


def _parser(config_class: type, prog: str | None, description: str | None) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(
        subclasses_enabled=[EncoderConfig, ObjectiveConfig, HeadConfig, VocoderConfig],
        docstring_parse_attribute_docstrings=True,
    )
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument(
        "--config", action="config", help="YAML file of options; may be repeated, the last wins."
    )
    parser.add_class_arguments(config_class, None)
    return parser


def parse(
    config_class: type[ConfigT],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
) -> ConfigT:
    """Read options from `argv` (default: the command line) into a `config_class`.

    Order of precedence: defaults, each `--config FILE` in turn, each `--field value`.
    A wrong option ends the program with status 2 and one message that names the field, what was
    found and what is wanted; a `ValueError` of a `__post_init__` is reported the same way.
    """
    from jsonargparse import ArgumentError

    parser = _parser(config_class, prog, description)
    words = _forgive(parser, list(sys.argv[1:] if argv is None else argv))
    try:
        namespace = parser.parse_args(words)
        return _build(config_class, parser, namespace)
    except (ArgumentError, ValueError, TypeError) as error:
        name = prog or Path(sys.argv[0]).name
        print(f"{name}: error: {error}\nSee `{name} --help`.", file=sys.stderr)
        raise SystemExit(2) from None


def _holds_list(hint: Any) -> bool:
    if typing.get_origin(hint) in (list, tuple):
        return True
    return type(None) in typing.get_args(hint) and any(map(_holds_list, typing.get_args(hint)))


def _forgive(parser: ArgumentParser, words: list[str]) -> list[str]:
    """Take dashes in names of options, and lists without brackets: `--layers 6,9`."""
    lists = {
        name
        for action in parser._actions
        for name in action.option_strings
        if _holds_list(getattr(action, "_typehint", None))
    }

    def bracket(value: str) -> str:
        return value if value.startswith(("[", "-")) else f"[{value}]"

    result: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = f"--{name[2:].replace('-', '_')}{equals}{value}"
        name, equals, value = word.partition("=")
        if equals and name in lists:
            result.append(f"{name}={bracket(value)}")
        elif result and result[-1] in lists:
            result.append(bracket(word))
        else:
            result.append(word)
    return result


def _build(config_class: type[ConfigT], parser: ArgumentParser, namespace: Any) -> ConfigT:
    built = parser.instantiate(namespace)
    return config_class(**{f.name: built[f.name] for f in dataclasses.fields(config_class)})


def from_dict(config_class: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Build a `config_class` from plain nested values, strictly (the inverse of `to_dict`).

    Raises `ValueError` for an unknown key, a wrong type, or a `class_path` outside `speechssl.`
    """
    from jsonargparse import ArgumentError

    _refuse_foreign_classes(values)
    parser = _parser(config_class, None, None)
    try:
        return _build(config_class, parser, parser.parse_object(dict(values)))
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"{config_class.__name__}: {error}") from None


def from_class_path(base: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Build the subclass of `base` that `{"class_path": ..., "init_args": {...}}` names."""
    # make_dataclass has a parameter `module` from Python 3.12 on only.
    holder = dataclasses.make_dataclass(
        "Holder", [("value", base)], frozen=True, kw_only=True, namespace={"__module__": __name__}
    )
    return from_dict(holder, {"value": dict(values)}).value  # pyright: ignore


def _refuse_foreign_classes(values: Any) -> None:
    if isinstance(values, Mapping):
        path = values.get("class_path")
        if path is not None and not str(path).startswith("speechssl."):
            raise ValueError(
                f"class_path: found {path!r}, want a class below 'speechssl.'; a checkpoint's "
                "configuration may not make this program import other code"
            )
        for value in values.values():
            _refuse_foreign_classes(value)
    elif isinstance(values, list | tuple):
        for value in values:
            _refuse_foreign_classes(value)


def to_dict(config: Any) -> Any:
    """Plain nested values of a config: dicts, lists, scalars; polymorphic parts keep class_path."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        if isinstance(config, EncoderConfig | ObjectiveConfig | HeadConfig | VocoderConfig):
            kind = type(config)
            return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": fields}
        return fields
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(v) for v in config]
    if isinstance(config, Path):
        return str(config)
    return config


def save_yaml(config: Any, path: str | Path) -> None:
    """Write the resolved configuration as YAML; the same file is accepted by `--config`."""
    import yaml

    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
