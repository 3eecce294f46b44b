"""Multiply-accumulates of the published encoders: closed forms, and the published savings."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig

TOOL: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[2] / "tools/bench/resolutions.py"), run_name="resolutions"
)


def closed_form(config: TransformerConfig, seconds: float) -> float:
    """Of convolutions, projection, positions, layers and attention, one by one."""
    samples, rows, total, channels = 16000 * seconds, 16000 * seconds, 0.0, 1
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        rows = (rows - kernel) // stride + 1
        total += rows * kernel * channels * config.front_dim
        channels = config.front_dim
    frames = (samples - 400) // 320 + 1
    assert rows == frames
    dim = config.dim
    total += frames * config.front_dim * dim
    total += frames * config.pos_conv_kernel * dim * dim // config.pos_conv_groups
    layer = frames * (4 * dim**2 + 2 * dim * config.ffn_dim) + 2 * frames**2 * dim
    return total + config.layers * layer


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_flat_encoders_products_are_those_of_its_layers(size: str) -> None:
    config = TransformerConfig() if size == "base" else TransformerConfig.large()
    # The front end has a row or two more, and statistics of a few channels.
    assert TOOL["macs"](config, 5.0) == pytest.approx(closed_form(config, 5.0), rel=0.01)


@pytest.mark.parametrize(
    ("flat", "several", "low", "high"),
    [
        (TransformerConfig(), MultiresConfig(), 0.09, 0.10),
        (TransformerConfig.large(), MultiresConfig.large(), 0.13, 0.14),
    ],
)
def test_two_rates_save_what_is_published(flat: Any, several: Any, low: float, high: float) -> None:
    """9 % of Base, 13 % of Large."""
    saved = 1 - TOOL["macs"](several, 5.0) / TOOL["macs"](flat, 5.0)
    assert low <= saved <= high


def test_small_encoders_are_counted_and_timed_by_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small: dict[str, Any] = {"dim": 32, "ffn_dim": 64, "heads": 4, "front_dim": 16,
                             "pos_conv_groups": 4}  # fmt: skip
    sizes = {"base": {"flat": TransformerConfig(layers=3, **small),
                      "two": MultiresConfig(stacks=(1, 1, 1), **small)}}  # fmt: skip
    monkeypatch.setitem(TOOL["main"].__globals__, "SIZES", sizes)
    words = ["resolutions.py", "--sizes", "base", "--seconds", "0.5,1", "--rounds", "2",
             "--output", str(tmp_path / "rows.json")]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    TOOL["main"]()
    lines = [line for line in capsys.readouterr().out.splitlines() if "M |" in line]
    assert len(lines) == 4 and all(" - |" not in line for line in lines)
    assert "| base | flat |" in lines[0] and lines[0].endswith("| 1.000 |")
    monkeypatch.setattr("sys.argv", [*words[:2], "huge"])
    with pytest.raises(SystemExit, match="found huge, want some of base"):
        TOOL["main"]()
