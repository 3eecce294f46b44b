"""Encoders joined by `speechssl export --fuse` and `speechssl finetune --fuse`, as upstreams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_utterance_tasks import config, write_cuts

import speechssl
from speechssl.bin import decode, export, finetune
from speechssl.encoders.fusion import FusionEncoder
from speechssl.encoders.transformer import TransformerConfig
from speechssl.model_file import open_model, save_model

OWN = TransformerConfig(
    front_end="log_mel", front_dim=16, layers=3, dim=16, ffn_dim=24, heads=2, pos_conv_kernel=8,
    pos_conv_groups=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpus")
    sizes = {"train": ([0, 3, 6], 36), "valid": ([0, 3, 6], 9), "test": ([2, 5], 12)}
    return {split: write_cuts(folder, split, *given) for split, given in sizes.items()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of ours, a public one, and log-mel."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    save_model(folder / "own", OWN, OWN.build().state_dict(), provenance={"step": 3})
    public = transformers.HubertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.HubertModel(public).save_pretrained(folder / "public")
    settings = {"do_normalize": False, "sampling_rate": 16000}
    (folder / "public/preprocessor_config.json").write_text(json.dumps(settings))
    mel = {"class_path": "speechssl.encoders.log_mel.LogMelConfig",
           "init_args": {"mel_bins": 20, "deltas": 0}}  # fmt: skip
    (folder / "mel.yaml").write_text(yaml.safe_dump({"encoder": mel}))
    return {name: str(folder / name) for name in ("own", "public", "mel.yaml")}


def test_a_fused_folder_opens_like_any_model(sources: dict[str, str], tmp_path: Path) -> None:
    paths = ",".join(sources.values())
    assert export.main(["--fuse", f"[{paths}]", "--output", str(tmp_path / "fused")]) == 0
    model = speechssl.load(tmp_path / "fused")
    assert model.dim == 16 + 24 + 20 and model.num_layers == 3 and model.frame_rate_hz == 50
    assert model.provenance["fused"] == list(sources.values())
    wave = 0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0))
    (found,) = model.extract([wave], rate=16000)
    own = speechssl.load(sources["own"])
    (alone,) = own.extract([wave], rate=16000)
    # Of the part with the longest window, frames are its own.
    assert own.encoder.receptive_field_samples == model.encoder.receptive_field_samples
    for layer in range(4):
        assert found.hidden[layer].shape == (len(alone.hidden[layer]), 60)
        assert abs(found.hidden[layer][:, :16] - alone.hidden[layer]).max() < 1e-5
    # The public model's are some samples off, and log-mel has twice as many frames.
    assert all(abs(found.hidden[2][:, at]).max() > 0.1 for at in (20, 50))
    again = speechssl.load(tmp_path / "fused")
    assert all(map(torch.equal, again.encoder.parameters(), model.encoder.parameters()))


def run(words: list[str], folder: Path, *more: str) -> dict[str, Any]:
    args = [*words, *more]
    assert finetune.main(args) == 0
    return json.loads((folder / "model.json").read_text())


def test_heads_learn_on_several_upstreams_and_decode_with_them(
    corpus: dict[str, str], sources: dict[str, str], tmp_path: Path
) -> None:
    head = {"class_path": "speechssl.heads.classify.ClassifyConfig",
            "init_args": {"field": "pitch", "projection_dim": 16}}  # fmt: skip
    words = config(corpus, tmp_path, head, steps=20, valid_every=10, save_every=10)
    words += ["--data.speeds", "[]"]
    fuse = ("--fuse", f"[{sources['own']},{sources['public']}]", "--cache", str(tmp_path / "cache"))
    info = run(words, tmp_path / "run", *fuse)
    assert info["encoder"]["class_path"] == "speechssl.encoders.fusion.FusionConfig"
    opened = open_model(tmp_path / "run")
    assert isinstance(opened.encoder, FusionEncoder) and opened.encoder.part_dims == (20, 16, 24)
    weights = opened.head.layer_sum.weights  # pyright: ignore
    assert weights.shape == (4, 3) and bool(weights[:, 1:].any())
    kept = speechssl.load(sources["public"]).encoder.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in opened.encoder.parts[2].state_dict().items())
    test = ["--model", str(tmp_path / "run"), "--cuts", corpus["test"]]
    assert decode.main([*test, "--output", str(tmp_path / "test")]) == 0
    lines = (tmp_path / "test/predictions.jsonl").read_text().splitlines()
    right = [json.loads(line)["hyp"] == json.loads(line)["ref"] for line in lines]
    assert len(right) == 12 and sum(right) >= 9
    assert len(json.loads((tmp_path / "test/decode.json").read_text())["layer_weights"]) == 4
    # The same again: the whole configuration is known to a run that goes on.
    assert finetune.main([*words, *fuse]) == 0
    assert finetune.main(words) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fuse", "[a]", "--output", "o"], "fuse: found 1 with form speechssl"),
        (["--fuse", "[a,b]"], "want two encoders or more, form speechssl, and a folder"),
        (["--fuse", "[a,b]", "--model", "m", "--output", "o"], "checkpoint, model, fuse: found 2"),
        (["--output", "o"], "checkpoint, model, fuse: found 0"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        export.main(words)
    assert message in capsys.readouterr().err


def test_files_that_hold_no_encoder_are_named(
    sources: dict[str, str], tmp_path: Path, capsys
) -> None:
    (tmp_path / "x.yaml").write_text("train: {steps: 3}\n")
    for path, message in (("x.yaml", "has train, want `encoder`"), ("y.yaml", "found no ")):
        words = ["--fuse", f"[{sources['own']},{tmp_path / path}]", "--output", str(tmp_path / "o")]
        assert export.main(words) == 2
        assert message in capsys.readouterr().err
