"""What `speechssl finetune` does with a head: goes on with another run's, says how much learns,
and ends the same whether it was stopped or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from speechssl.bin import finetune
from speechssl.bin.finetune import _shown, _sizes, load_head
from speechssl.config import to_dict
from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.data.text import tokenizer_from_texts
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.heads.slots import SlotsConfig
from speechssl.model_file import save_model
from speechssl.nn.adapters import AdapterConfig

ENCODER = LogMelConfig(mel_bins=8, deltas=0)
VALUES = {"slots": ["size", "drink"], "values": [["none", "big"], ["latte", "mocha"]]}


def saved(folder: Path, config: Any, tokenizer: dict | None = None) -> Any:
    torch.manual_seed(1)
    head = config.build(ENCODER.build())
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(
        folder, ENCODER, head.encoder.state_dict(), head_config=config, head_state=own,
        tokenizer=tokenizer,
    )  # fmt: skip
    return head


def test_the_same_tokens_in_the_same_order(tmp_path: Path) -> None:
    first, other = (tokenizer_from_texts([text], kind="letters").to_dict() for text in ("AB", "AC"))
    config = CtcConfig(vocab_size=len(first["symbols"]))
    given = saved(tmp_path, config, first)
    assert len(other["symbols"]) == len(first["symbols"])
    head = config.build(ENCODER.build())
    with pytest.raises(ValueError, match="found other tokens"):
        load_head(head, str(tmp_path), other)
    assert not torch.equal(head.output.weight, given.output.weight)
    load_head(head, str(tmp_path), first)
    assert torch.equal(head.output.weight, given.output.weight)


def test_the_same_slots_with_the_same_values(tmp_path: Path) -> None:
    given = saved(tmp_path, SlotsConfig(projection_dim=4, **VALUES))
    turned = VALUES | {"values": [["none", "big"], ["mocha", "latte"]]}
    head = SlotsConfig(projection_dim=4, **turned).build(ENCODER.build())
    with pytest.raises(ValueError, match=r"head.values \[\['none', 'big'\], \['latte'"):
        load_head(head, str(tmp_path))
    head = SlotsConfig(projection_dim=4, **VALUES).build(ENCODER.build())
    load_head(head, str(tmp_path))
    assert torch.equal(head.output.weight, given.output.weight)


@pytest.mark.parametrize(("kind", "inside"), [("lora", 294_912), ("bitfit", 101_376)])
def test_the_share_that_learns_inside_the_encoder_is_said(kind: str, inside: int) -> None:
    options = AdapterConfig(kind=kind, dim=8)  # pyright: ignore
    with torch.device("meta"):
        config = CtcConfig(vocab_size=32, freeze_encoder_steps=-1, adapters=options)
        sizes = _sizes(config.build(TransformerConfig().build()))
    output = 769 * 32
    assert sizes["adapters"] + sizes["encoder_learning"] == inside
    assert sizes["head"] == sizes["head_learning"] == sizes["adapters"] + output
    share = 100 * inside / sizes["encoder"]
    assert f"inside the encoder {inside:,}, {share:.3f} % of its own" in _shown(sizes)
    assert 94e6 < sizes["encoder"] < 95e6
    plain = sizes | {"adapters": 0, "encoder_learning": 0}
    assert "inside" not in _shown(plain)
    assert "inside" not in _shown(plain | {"encoder_learning": sizes["encoder"]})


def noisy_cuts(folder: Path) -> str:
    random = np.random.default_rng(0)
    writer = JsonlWriter(folder / "cuts.jsonl.gz")
    for i in range(8):
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.1 * random.standard_normal(4000 + 600 * i), 16000)
        header = read_header(path)
        row = cut_row(id=f"c{i}", audio=path, header=header, speaker="a", text="AB"[i % 2] * 2,
                      custom={"age": i, "size": -(i**2)})  # fmt: skip
        writer.write(row)
    writer.close()
    return str(folder / "cuts.jsonl.gz")


HEADS: dict[str, dict[str, Any]] = {
    "regress.RegressConfig": {"dimensions": ["age", "size"], "pooling": "transformer",
                              "projection_dim": 8, "dropout": 0.2},
    "asr_ctc.CtcConfig": {"weighted_layers": True, "freeze_encoder_steps": -1, "hidden": "blstm",
                          "mask_probability": 0.0, "hidden_dim": 6, "projection_dim": 5,
                          "spec_augment": {"frame_masks": 2, "channel_masks": 1}},
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_run_in_two_parts_is_the_run_in_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    cuts = noisy_cuts(tmp_path)
    values = {
        "data": {"train": [cuts], "valid": [cuts], "batch_seconds": 1, "max_batch_seconds": 0.6,
                 "max_seconds": 0.6, "min_seconds": 0.1, "num_workers": 0},
        "head": {"class_path": f"speechssl.heads.{name}", "init_args": HEADS[name]},
        "encoder": to_dict(ENCODER),
        "train": {"learning_rate": 1e-2, "device": "cpu", "tensorboard": False,
                  "schedule": "constant", "warmup_fraction": 0.0, "log_every": 1,
                  "valid_every": 3, "save_every": 3},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    words = ["--config", str(tmp_path / "config.yaml"), "--export", "last", "--output"]
    for folder, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        more = [str(tmp_path / folder), "--train.steps", str(steps)]
        assert finetune.main([*words, *more]) == 0
    states = [load_file(tmp_path / f / "model.safetensors") for f in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    if name.startswith("regress"):
        assert states[0]["head.moments"].any()
    else:  # features that are kept teach the same, masks included
        more = [str(tmp_path / "kept"), "--train.steps", "6", "--cache", str(tmp_path / "cache")]
        assert finetune.main([*words, *more]) == 0
        kept = load_file(tmp_path / "kept" / "model.safetensors")
        assert all(torch.equal(states[0][k], kept[k]) for k in kept)
