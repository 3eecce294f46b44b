"""Every objective starts from the weights of a run, and of a public model, and learns on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import FOUND, SMALL, batch_for, build, every

from speechssl.bin.pretrain import started
from speechssl.contract import Objective
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.load import load
from speechssl.model_file import save_model

WAVES = TransformerConfig(
    front_dim=16, layers=2, dim=32, ffn_dim=48, heads=4, pos_conv_kernel=8, pos_conv_groups=4,
    dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layerdrop=0.0,
)  # fmt: skip
"""What the public model below is, with dropout that only training reads."""
ON_WAVES = [
    k for k in FOUND if "encoder" not in SMALL.get(k.__name__, {}) and k.__name__ != "TeraConfig"
]
"""Objectives on any Transformer; TERA alters filterbanks, which a model on waves has not."""


def check(objective: Objective, held: dict[str, torch.Tensor]) -> None:
    """It has the weights, and so has its teacher if it has one; a step moves the encoder."""
    state = objective.encoder.state_dict()
    assert state.keys() == held.keys()
    if type(objective.config).__name__ == "Data2vec2Config":  # masked frames are 0, by design
        held = held | {"mask_emb": torch.zeros_like(held["mask_emb"])}
    assert all(torch.equal(state[name], held[name]) for name in held)
    teacher = getattr(objective, "teacher", None)
    if teacher is not None:
        begun = getattr(teacher, "encoder", teacher).state_dict()
        begun.pop("mask_emb", None)  # it hears all
        assert begun and all(torch.equal(begun[name], held[name]) for name in begun)
    objective.train()
    objective(batch_for(objective)).total.backward()
    moved = [n for n, p in objective.encoder.named_parameters() if p.grad is not None]
    assert any(n.startswith("layers.") or ".layers." in n for n in moved), moved
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@every
def test_from_a_run_of_its_own_encoder(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(7)
    other = build(kind).encoder
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01 * torch.randn_like(p))
    save_model(tmp_path, other.config, other.state_dict())
    objective = started(build(kind).config, str(tmp_path)).build()
    check(objective, other.state_dict())


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("public")
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.HubertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ON_WAVES, ids=lambda k: k.__name__)
def test_from_a_public_model(kind: Any, public: Path) -> None:
    config = build(kind, encoder=WAVES).config
    objective = started(config, str(public)).build()
    check(objective, load(public).encoder.state_dict())
