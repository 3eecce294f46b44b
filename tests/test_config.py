"""Configuration: precedence, errors, and what a checkpoint's configuration may name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from speechssl.config import EncoderConfig, from_class_path, from_dict, parse, save_yaml, to_dict
from speechssl.encoders.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 1.0
    """Some rate."""

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate: found {self.rate}, want more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    name: str = "x"
    part: Part = dataclasses.field(default_factory=Part)
    encoder: EncoderConfig = dataclasses.field(default_factory=TransformerConfig)
    layers: list[int] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)
    sample_frames: int = 1
    some: list[int] | None = None


def test_the_last_of_files_and_options_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\npart: {rate: 1.0e-3}\n")
    (tmp_path / "b.yaml").write_text("name: b\n")
    words = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    found = parse(Options, [*words, "--part.rate", "2e-3"])
    assert (found.name, found.part.rate) == ("b", 2e-3)


@pytest.mark.parametrize("words", [["--layers", "6,9"], ["--layers=[6, 9]"], ["--layers=6,9"]])
def test_a_list_needs_no_brackets(words: list[str]) -> None:
    assert parse(Options, words).layers == [6, 9]
    assert parse(Options, ["--files", "a.jsonl.gz"]).files == ["a.jsonl.gz"]
    assert parse(Options, ["--some", "2,-1"]).some == [2, -1]


def test_a_name_may_be_written_with_dashes() -> None:
    found = parse(Options, ["--sample-frames", "-2", "--name", "--x-y"[2:]])
    assert (found.sample_frames, found.name) == (-2, "x-y")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nmae", "y"], "nmae"),
        (["--part.rate", "fast"], "fast"),
        (["--part.rate", "-1"], "want more than 0"),
        (["--encoder.layers", "six"], "six"),
        (["--encoder.bogus", "1"], "bogus"),
    ],
)
def test_a_wrong_option_is_named_with_status_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Options, words, prog="speechssl x")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message


def test_an_unknown_key_of_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("part: {speed: 1}\n")
    with pytest.raises(SystemExit):
        parse(Options, ["--config", str(tmp_path / "a.yaml")])
    assert "speed" in capsys.readouterr().err


def test_yaml_and_dict_round_trip(tmp_path: Path) -> None:
    config = Options(name="y", encoder=TransformerConfig.large(layers=3), layers=[1])
    assert from_dict(Options, to_dict(config)) == config
    save_yaml(config, tmp_path / "c.yaml")
    assert parse(Options, ["--config", str(tmp_path / "c.yaml")]) == config


def test_a_checkpoints_configuration_may_not_import_foreign_code() -> None:
    with pytest.raises(ValueError, match=r"speechssl\."):
        from_class_path(EncoderConfig, {"class_path": "os.system", "init_args": {}})
    with pytest.raises(ValueError, match=r"speechssl\."):
        from_dict(Options, {"encoder": {"class_path": "evil.Config"}})
