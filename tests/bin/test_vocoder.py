"""`speechssl vocoder`: from audio to a vocoder that load_vocoder opens; both stages; resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from train_corpus import make_corpus

from speechssl.bin import vocoder
from speechssl.nn.speech_mel import SpeechMelConfig
from speechssl.train.log import TIMING
from speechssl.vocoder.config import SpectralConfig
from speechssl.vocoder.load import load_vocoder

SPECTRAL = {
    "class_path": "speechssl.vocoder.config.SpectralConfig",
    "init_args": {"dim": 24, "hidden_dim": 48, "blocks": 2},
}
HIFIGAN = {
    "class_path": "speechssl.vocoder.config.HifiganConfig",
    "init_args": {"channels": 16, "kernels": [3], "dilations": [1, 3]},
}
CRITIC = {"periods": [2, 3], "period_channels": [4, 8], "windows": [160], "window_channels": 4,
          "segment_seconds": 0.1}  # fmt: skip


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    train, _ = make_corpus(folder, "train", 6, 1)
    valid, _ = make_corpus(folder, "valid", 2, 2)
    values = {
        "data": {"train": [train], "valid": [valid], "batch_seconds": 1.2,
                 "max_batch_seconds": 1.2, "max_seconds": 0.3, "min_seconds": 0.2,
                 "num_workers": 0, "buckets": 1},
        "loss": {"windows": [160, 640]},
        "train": {"steps": 12, "learning_rate": 4e-3, "device": "cpu", "tensorboard": False,
                  "warmup_fraction": 0.0, "schedule": "constant", "log_every": 2,
                  "valid_every": 6, "save_every": 5},
    }  # fmt: skip
    path = folder / "vocoder.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(config: Path, output: Path, *more: str, kind: dict | None = SPECTRAL) -> list[str]:
    words = ["--config", str(config), "--output", str(output), *more]
    return words + (["--vocoder", json.dumps(kind)] if kind else [])


def lines(folder: Path) -> list[dict]:
    found = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in TIMING} for x in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_vocoder(folder).state_dict()


@pytest.mark.parametrize("kind", [SPECTRAL, HIFIGAN], ids=["spectral", "hifigan"])
def test_a_vocoder_learns_and_is_what_load_vocoder_opens(kind, config_file, tmp_path) -> None:
    run = tmp_path / "run"
    steps = ["--train.steps", "40" if kind is SPECTRAL else "12"]
    assert vocoder.main(command(config_file, run, *steps, kind=kind)) == 0
    train = [x["loss"] for x in lines(run) if x["split"] == "train"]
    assert train[-1] < (0.75 if kind is SPECTRAL else 0.97) * train[0]
    assert lines(run)[-1]["split"] == "valid" and {"mel", "stft"} < set(lines(run)[-1])
    opened = load_vocoder(run, SpeechMelConfig())
    info = json.loads((run / "model.json").read_text())
    assert info["provenance"]["config"]["vocoder"]["init_args"]["kernels" if kind is HIFIGAN else
                                                                "dim"]  # fmt: skip
    wave = opened.decode(torch.full((1, 20, 80), -4.0))
    assert wave.shape == (1, 19 * 160) and wave.isfinite().all()


def test_a_stopped_run_resumes_bit_equal_in_both_stages(config_file, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert vocoder.main(command(config_file, first, "--train.steps", "4")) == 0
    second = ["--init_from", str(first), "--critic", json.dumps(CRITIC), "--train.ema_decay", "0.9"]
    for name, stage, kind in (("a", [], SPECTRAL), ("b", second, None)):
        whole, parts = tmp_path / f"{name}_whole", tmp_path / f"{name}_parts"
        assert vocoder.main(command(config_file, whole, *stage, kind=kind)) == 0
        for steps in ("6", "12"):
            more = [*stage, "--train.steps", steps]
            assert vocoder.main(command(config_file, parts, *more, kind=kind)) == 0
        a, b = weights(whole), weights(parts)
        assert all(torch.equal(a[k], b[k]) for k in a)
        ends = [lines(run) for run in (whole, parts)]
        assert ends[0] == ends[1] and ends[0]
        names = {"critic_loss", "critic_real", "deception", "matching"}
        assert (names < set(ends[0][0])) is bool(stage)
    a, b = weights(first), weights(tmp_path / "b_whole")
    assert any(not torch.equal(a[k], b[k]) for k in a)


def test_what_does_not_fit_is_named(config_file, tmp_path: Path, capsys) -> None:
    def error(*more: str, kind: dict | None = SPECTRAL) -> str:
        assert vocoder.main(command(config_file, tmp_path / "x", *more, kind=kind)) == 2
        return capsys.readouterr().err

    first = tmp_path / "first"
    assert vocoder.main(command(config_file, first, "--train.steps", "1")) == 0
    other = {**SPECTRAL, "init_args": {**SPECTRAL["init_args"], "dim": 8}}
    assert "found SpectralConfig(dim=8" in error("--init_from", str(first), kind=other)
    assert "found no model.json" in error("--init_from", str(tmp_path / "none"))
    assert "want the folder of a trained vocoder" in error("--init_from", "griffin_lim")
    assert "want audio only" in error("--data.labels", "{a: b}")
    assert vocoder.main(command(config_file, first, "--train.learning_rate", "1")) == 2
    assert "train.learning_rate: found 1.0, before 0.004" in capsys.readouterr().err


def test_the_default_vocoder_is_the_spectral_one() -> None:
    from speechssl.data.config import DataConfig

    config = vocoder.VocoderTrainConfig(data=DataConfig(), output="x")
    assert vocoder.built(config).config == SpectralConfig()
