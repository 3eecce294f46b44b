"""torchaudio's state dicts: read, written, and refused where their settings are absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speechssl
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.restricted_pickle import read_torch_file
from speechssl.hub.tensor_names import CtcTensors
from speechssl.hub.torchaudio_format import read_torchaudio, write_torchaudio

SMALL: dict[str, Any] = {
    "layers": 3, "dim": 96, "ffn_dim": 192, "heads": 6, "front_dim": 48, "layerdrop": 0.0,
}  # fmt: skip
LARGE = {"front_norm": "layer", "pre_norm": True, "normalize_wave": True}
SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": LARGE,
    "large_bias": {"conv_bias": True, **LARGE},
    "wavlm_base": {"relative_buckets": 320},
    "wavlm_large": {"relative_buckets": 320, **LARGE},
}


def encoder(shape: str) -> Any:
    torch.manual_seed(2)
    model = TransformerConfig(**SMALL, **SHAPES[shape]).build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "gate" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def wave(samples: int = 20000) -> torch.Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_is_read_again_bitwise(shape: str, tmp_path: Path) -> None:
    model = encoder(shape)
    head = CtcTensors(torch.randn(5, 96), torch.randn(5), 0, {"<pad>": 0, "|": 1, "A": 2})
    write_torchaudio(tmp_path / "x.pth", model.config, model.state_dict(), head)
    content = read_torch_file(tmp_path / "x.pth")
    config, state, again, _ = read_torchaudio(content, tmp_path / "x.pth")
    kept = {"conv_gradient_scale": model.config.conv_gradient_scale}
    assert TransformerConfig(**{**config.__dict__, **kept}) == model.config
    want = model.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[k], want[k]) for k in want if k != "mask_emb")
    assert again is not None and torch.equal(again.weight, head.weight)
    assert speechssl.load(tmp_path / "x.pth").transcribe((wave().numpy(), 16000))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_weights_give_the_same_hidden_states_there(shape: str, tmp_path: Path) -> None:
    """Skipped where torchaudio is absent or does not import beside this torch."""
    model = pytest.importorskip("torchaudio.models.wav2vec2.model", exc_type=ImportError)
    ours = encoder(shape)
    write_torchaudio(tmp_path / "x.pth", ours.config, ours.state_dict())
    settings = json.loads((tmp_path / "x.json").read_text())
    normalize = settings.pop("normalize_waveform")
    make = model.wavlm_model if "wavlm" in shape else model.wav2vec2_model
    theirs = make(**settings).eval()
    theirs.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    x = wave()
    given = torch.nn.functional.layer_norm(x, x.shape) if normalize else x
    with torch.no_grad():
        want, _ = theirs.extract_features(given)
    found = speechssl.load(tmp_path / "x.pth").extract((x.numpy(), 16000))[0]
    assert len(want) == 3
    for number, values in enumerate(want, start=1):
        if number == 3 and ours.config.pre_norm:
            # torchaudio leaves the final norm out of its last layer's features.
            norm = ours.layer_norm
            with torch.no_grad():
                values = norm(values)
        assert np.abs(found.hidden[number] - values[0].numpy()).max() < 1e-4


def test_files_of_the_pretraining_wrapper_and_older_names_are_read(tmp_path: Path) -> None:
    model = encoder("base")
    write_torchaudio(tmp_path / "x.pth", model.config, model.state_dict())
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    old = {
        "wav2vec2."
        + k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in state.items()
    }
    old |= {"mask_generator.mask_embedding": model.mask_emb.detach().clone()}
    old |= {"logit_generator.label_embeddings": torch.randn(4, 4)}
    torch.save(old, tmp_path / "x.pth")
    found = speechssl.load(tmp_path / "x.pth").encoder.state_dict()
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())


def test_settings_are_never_guessed(tmp_path: Path) -> None:
    model = encoder("base")
    write_torchaudio(tmp_path / "x.pth", model.config, model.state_dict())
    settings = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").unlink()
    with pytest.raises(ValueError, match=r"do not reveal the number of heads.*want encoder_num_la"):
        speechssl.load(tmp_path / "x.pth")
    assert speechssl.load(tmp_path / "x.pth", settings=settings).num_layers == 3
    with pytest.raises(ValueError, match="found no setting encoder_num_heads"):
        speechssl.load(tmp_path / "x.pth", settings={**settings, "encoder_num_heads": None})
    with pytest.raises(ValueError, match="heads_num"):
        speechssl.load(tmp_path / "x.pth", settings={**settings, "heads_num": 2})
    settings["encoder_num_layers"] = 4
    with pytest.raises(ValueError, match=r"missing encoder\.transformer\.layers\.3"):
        speechssl.load(tmp_path / "x.pth", settings=settings)


def test_encoders_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    for config in (TransformerConfig(front_end="log_mel"), TransformerConfig.data2vec_base()):
        with pytest.raises(ValueError, match="no counterpart"):
            write_torchaudio(tmp_path / "x.pth", config, {})
    torch.save({"something": torch.zeros(2)}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match=r"holds \['something'\]; want an experiment folder"):
        speechssl.load(tmp_path / "y.pt")
