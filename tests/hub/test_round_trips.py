"""Ours -> transformers -> ours, through files and the command line: not a bit changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import speechssl
from speechssl.bin.export import main
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.export import write
from speechssl.hub.model import Model
from speechssl.model_file import save_model

SMALL: dict[str, Any] = {
    "layers": 2, "dim": 32, "ffn_dim": 64, "heads": 4, "front_dim": 16, "pos_conv_kernel": 16,
    "pos_conv_groups": 4,
}  # fmt: skip
LARGE: dict[str, Any] = {"front_norm": "layer", "pre_norm": True, "normalize_wave": True}
KINDS = {
    "hubert base": TransformerConfig(**SMALL),
    "hubert base, normalised": TransformerConfig(**SMALL, normalize_wave=True),
    "hubert large": TransformerConfig(**SMALL, **LARGE, conv_bias=True),
    "wavlm base": TransformerConfig(**SMALL, relative_buckets=320),
    "wavlm large": TransformerConfig(**SMALL, **LARGE, relative_buckets=320),
    "data2vec": TransformerConfig.data2vec_base(**SMALL | {"pos_conv_kernel": 7}),
    "other strides": TransformerConfig(
        **SMALL, conv_kernels=(10, 4, 4, 2), conv_strides=(5, 4, 4, 2)
    ),
}
COMPUTED = (
    "front_norm", "front_dim", "conv_kernels", "conv_strides", "conv_bias", "normalize_wave",
    "layers", "dim", "ffn_dim", "heads", "pre_norm", "pos_conv_kernel", "pos_conv_groups",
    "pos_conv_depth", "relative_buckets", "relative_max_distance",
)  # fmt: skip


def _random(config: TransformerConfig) -> Model:
    """No tensor at its initial value: norms and gates as identities would hide a mix-up."""
    encoder = config.build()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model(encoder)


def _assert_same(found: Model, want: Model) -> None:
    states = found.encoder.state_dict(), want.encoder.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
    configs = (dataclasses.asdict(m.encoder.config) for m in (found, want))
    assert len({tuple(c[k] for k in COMPUTED) for c in configs}) == 1
    wave = 0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0))
    pair = (m.extract(wave, rate=16000)[0].hidden for m in (found, want))
    first, second = pair
    assert all((first[k] == v).all() for k, v in second.items())


@pytest.mark.parametrize("kind", KINDS)
def test_to_transformers_and_back_changes_no_bit(kind: str, tmp_path: Path) -> None:
    model = _random(KINDS[kind])
    write(model, tmp_path / "theirs", "transformers")
    _assert_same(speechssl.load(tmp_path / "theirs"), model)


@pytest.mark.parametrize("form", ["transformers", "torchaudio"])
@pytest.mark.parametrize("kind", ["hubert base", "wavlm large"])
def test_own_folders_go_out_and_back_by_command(kind: str, form: str, tmp_path: Path) -> None:
    model = _random(KINDS[kind])
    if form == "torchaudio":  # which does not keep the learnt mask vector
        generator = torch.Generator().manual_seed(0)
        model.encoder.mask_emb.data = torch.rand(32, generator=generator)  # type: ignore[union-attr]
    save_model(tmp_path / "own", model.encoder.config, model.encoder.state_dict())  # type: ignore[arg-type]
    out = str(tmp_path / ("x.pth" if form == "torchaudio" else "theirs"))
    assert main(["--model", str(tmp_path / "own"), "--form", form, "--output", out]) == 0
    assert main(["--model", out, "--output", str(tmp_path / "again")]) == 0
    again = speechssl.load(tmp_path / "again")
    assert again.provenance["format"] == form
    _assert_same(again, model)


def test_transformers_gives_the_same_hidden_states(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for number, (kind, config) in enumerate(KINDS.items()):
        model = _random(config)
        write(model, tmp_path / str(number), "transformers")
        theirs = transformers.AutoModel.from_pretrained(tmp_path / str(number)).eval()
        processor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / str(number))
        wave = 0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0)) + 0.01
        given = processor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values
        with torch.no_grad():
            output = theirs(given, output_hidden_states=True)
        want = (*output.hidden_states[:-1], output.last_hidden_state)
        found = model.extract(wave, rate=16000)[0].hidden
        assert len(want) == len(found) == 3
        for layer, values in enumerate(want):
            scale = max(1.0, float(values.abs().max()))
            difference = (torch.from_numpy(found[layer]) - values[0]).abs().max()
            assert difference < 1e-4 * scale, (kind, layer)
