"""What `speechssl finetune` does with a head: goes on with another run's, says how much learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.bin.finetune import _shown, _sizes, load_head
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
