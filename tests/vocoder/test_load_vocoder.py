"""A vocoder's folder: written and read back the same, and refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speechssl.encoders.transformer import TransformerConfig
from speechssl.model_file import open_model, save_model
from speechssl.nn.mel_inverse import GriffinLim
from speechssl.nn.speech_mel import SpeechMelConfig
from speechssl.vocoder.config import HifiganConfig, SpectralConfig
from speechssl.vocoder.load import load_vocoder, save_vocoder


@pytest.mark.parametrize(
    "config",
    [
        SpectralConfig(dim=8, hidden_dim=16, blocks=1),
        HifiganConfig(channels=16, kernels=[3], dilations=[1]),
    ],
)
def test_what_is_saved_decodes_the_same(config, tmp_path: Path) -> None:
    mel = SpeechMelConfig(low_hz=60.0)
    vocoder = config.build(mel)
    save_vocoder(tmp_path, config, mel, vocoder.state_dict(), {"step": 3})
    opened = load_vocoder(tmp_path, mel)
    assert opened.config == config and opened.mel.config == mel and not opened.training
    x = torch.randn(1, 12, 80)
    assert torch.equal(opened.decode(x), vocoder.decode(x))
    assert json.loads((tmp_path / "model.json").read_text())["provenance"] == {"step": 3}
    with pytest.raises(ValueError, match=r"low_hz: found 60\.0, want 80\.0"):
        load_vocoder(tmp_path, SpeechMelConfig())


def test_griffin_lim_has_a_name() -> None:
    mel = SpeechMelConfig(low_hz=60.0)
    vocoder = load_vocoder("griffin_lim", mel)
    assert isinstance(vocoder, GriffinLim) and vocoder.mel.config == mel


def test_griffin_lim_refines_a_trained_vocoder(tmp_path: Path) -> None:
    config, mel = SpectralConfig(dim=8, hidden_dim=16, blocks=1), SpeechMelConfig()
    save_vocoder(tmp_path, config, mel, config.build(mel).state_dict())
    refined = load_vocoder(tmp_path, mel, refine=2)
    log_mel, lengths = torch.randn(2, 30, 80) - 4, torch.tensor([30, 12])
    wave = refined.decode(log_mel, lengths)
    plain = load_vocoder(tmp_path).decode(log_mel, lengths)
    assert wave.shape == plain.shape and not wave[1, 11 * 160 :].any()
    steps = GriffinLim(mel, iterations=2)
    assert torch.equal(wave, steps.decode(log_mel, lengths, plain))
    assert not torch.allclose(wave, steps.decode(log_mel, lengths))
    with pytest.raises(ValueError, match="no phases to start from"):
        load_vocoder("griffin_lim", refine=2)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no model\.json.*'griffin_lim'"):
        load_vocoder(tmp_path / "none")
    encoder = TransformerConfig(layers=1, dim=8, ffn_dim=8, heads=1, front_dim=8,
                                pos_conv_kernel=2, pos_conv_groups=1)  # fmt: skip
    save_model(tmp_path / "a", encoder, encoder.build().state_dict())
    with pytest.raises(ValueError, match="found an encoder"):
        load_vocoder(tmp_path / "a")
    config, mel = SpectralConfig(dim=8, hidden_dim=16, blocks=1), SpeechMelConfig()
    state = config.build(mel).state_dict()
    save_vocoder(tmp_path / "b", config, mel, state)
    with pytest.raises(ValueError, match="found format vocoder 1, want 1"):
        open_model(tmp_path / "b")
    state["head.bias"] = state["head.bias"][:3]
    save_vocoder(tmp_path / "c", config, mel, state)
    with pytest.raises(ValueError, match=r"head\.bias: found shape \(3,\)"):
        load_vocoder(tmp_path / "c")
