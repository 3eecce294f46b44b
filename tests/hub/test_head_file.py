"""A head without its encoder, put on it again: adapters, low-rank changes, tuned biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechssl.bin.export import main
from speechssl.data.text import tokenizer_from_texts
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.model_file import open_model, save_model
from speechssl.nn.adapters import AdapterConfig

SMALL = TransformerConfig(
    front_end="log_mel", front_norm="layer", front_dim=16, layers=2, dim=32, ffn_dim=64, heads=4,
    pos_conv_kernel=8, pos_conv_groups=4,
)  # fmt: skip


def base(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    save_model(folder, SMALL, SMALL.build().state_dict())
    return str(folder)


def tuned(folder: Path, start: str, **options: Any) -> str:
    """A recogniser of which all that learns has moved."""
    tokenizer = tokenizer_from_texts(["AB"], kind="letters")
    encoder = open_model(start).encoder
    adapters = AdapterConfig(**options)
    config = CtcConfig(vocab_size=tokenizer.size, freeze_encoder_steps=-1, adapters=adapters)
    head = config.build(encoder)
    torch.manual_seed(3)
    for p in head.parameters():
        p.data += 0.1 * torch.randn_like(p) * p.requires_grad
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(
        folder, SMALL, encoder.state_dict(), head_config=config, head_state=own,
        tokenizer=tokenizer.to_dict(), provenance={"init": start},
    )  # fmt: skip
    return str(folder)


KINDS: list[dict[str, Any]] = [
    {"kind": "none"}, {"kind": "lora", "dim": 2}, {"kind": "houlsby", "dim": 3}, {"kind": "bitfit"},
    {"kind": "layer_norm"},
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS, ids=lambda o: o["kind"])
def test_a_head_comes_back_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    start = base(tmp_path / "base")
    whole, alone, joined = (str(tmp_path / name) for name in ("whole", "alone", "joined"))
    tuned(Path(whole), start, **options)
    assert main(["--model", whole, "--form", "head", "--output", alone]) == 0
    kept = load_file(Path(alone) / "head.safetensors")
    sizes = [(Path(f) / n).stat().st_size for f, n in ((alone, "head.safetensors"),
                                                      (whole, "model.safetensors"))]  # fmt: skip
    assert sizes[0] < 0.2 * sizes[1] and "head.output.weight" in kept
    assert any(k.startswith("encoder.") for k in kept) == (
        options["kind"] in ("bitfit", "layer_norm")
    )
    assert main(["--model", start, "--head", alone, "--output", joined]) == 0
    before, after = (load_file(Path(f) / "model.safetensors") for f in (whole, joined))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    infos = [json.loads((Path(f) / "model.json").read_text()) for f in (whole, joined)]
    assert infos[0] == infos[1]
    wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1))
    heads: Any = [open_model(f).head for f in (whole, joined)]
    scores = [h.log_probs(wave, torch.tensor([8000]))[0] for h in heads]
    assert torch.equal(*scores)


def test_other_encoders_and_heads_are_refused(tmp_path: Path, capsys: Any) -> None:
    start, other = base(tmp_path / "base"), base(tmp_path / "other", seed=9)
    whole, alone = str(tmp_path / "whole"), str(tmp_path / "alone")
    tuned(Path(whole), start, kind="bitfit")
    assert main(["--model", whole, "--form", "head", "--output", alone]) == 0

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main([*words, "--output", str(tmp_path / "x")]) == 2
        return capsys.readouterr().err

    assert "TransformerEncoder of other weights" in refused("--model", other, "--head", alone)
    assert "found no head.json" in refused("--model", start, "--head", other)
    assert "head: found none" in refused("--model", start, "--form", "head")
    model = open_model(start)
    config = CtcConfig(vocab_size=4, freeze_encoder_steps=0)
    head = config.build(model.encoder)
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    state = model.encoder.state_dict()
    save_model(whole, SMALL, state, head_config=config, head_state=own)
    assert "whole encoder was tuned" in refused("--model", whole, "--form", "head")
    with pytest.raises(SystemExit):
        main(["--checkpoint", whole, "--head", alone, "--output", "x"])
    with pytest.raises(SystemExit):
        main(["--model", whole, "--form", "head"])
