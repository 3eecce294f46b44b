"""Fine-tuning from a pretrained model and from scratch, to an exported recogniser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from test_pretrain import ENCODER
from train_corpus import make_corpus

from speechssl.bin import export, finetune
from speechssl.config import EncoderConfig, from_class_path
from speechssl.data.text import Tokenizer
from speechssl.model_file import open_model, save_model

HEAD = {
    "class_path": "speechssl.heads.asr_ctc.CtcConfig",
    "init_args": {"freeze_front_end": False, "mask_probability": 0.0},
}
TRAIN = {"steps": 60, "learning_rate": 3e-3, "device": "cpu", "tensorboard": False,
         "log_every": 10, "valid_every": 20, "save_every": 20, "best_metric": "cer"}  # fmt: skip


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    train, _ = make_corpus(folder, "train", 40, 1)
    valid, _ = make_corpus(folder, "valid", 6, 2)
    data = {"train": [train], "valid": [valid], "batch_seconds": 10, "max_batch_seconds": 5,
            "max_seconds": 2, "num_workers": 0}  # fmt: skip
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump({"data": data, "head": HEAD, "train": TRAIN}))
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("pretrained")
    config = from_class_path(EncoderConfig, ENCODER)
    save_model(folder, config, config.build().state_dict())
    return folder


def scratch(folder: Path) -> list[str]:
    path = folder / "scratch.yaml"
    path.write_text(yaml.safe_dump({"encoder": ENCODER}))
    return ["--config", str(path)]


def test_from_scratch_to_a_recogniser_with_its_tokenizer(config_file, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--config", str(config_file), *scratch(tmp_path), "--output", str(run)]
    assert finetune.main(words) == 0
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [x for x in lines if x["split"] == "valid"]
    assert valid[-1]["loss"] < valid[0]["loss"] and 0 <= valid[-1]["cer"] <= 1.5
    opened = open_model(run)
    assert opened.tokenizer is not None and opened.head is not None
    tokenizer = Tokenizer.from_dict(opened.tokenizer)
    assert set(tokenizer.symbols[1:]) == set("ABC ")
    log_probs, _ = opened.head.log_probs(torch.zeros(1, 16000), torch.tensor([16000]))
    assert log_probs.shape[-1] == tokenizer.size
    best = min(valid, key=lambda x: x["cer"])["step"]
    assert opened.provenance["best"]["step"] == best
    # Export of the best checkpoint gives the same tensors as training's own.
    again = ["--checkpoint", str(run), "--which", "best", "--output", str(tmp_path / "x")]
    assert export.main(again) == 0
    a, b = opened.head.state_dict(), open_model(tmp_path / "x").head.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_mean_of_the_best_checkpoints_is_exported(config_file, tmp_path: Path, capsys) -> None:
    run, out = tmp_path / "run", tmp_path / "x"
    words = ["--config", str(config_file), *scratch(tmp_path), "--output", str(run),
             "--train.steps", "4", "--train.valid_every", "1", "--train.best_metric", "loss",
             "--train.schedule", "constant", "--export", "average"]  # fmt: skip
    with pytest.raises(SystemExit):
        finetune.main(words)
    assert "train.keep_best 1" in capsys.readouterr().err
    assert finetune.main([*words, "--train.keep_best", "2"]) == 0
    assert export.main(["--checkpoint", str(run), "--which", "average", "--output", str(out)]) == 0
    best = ["--checkpoint", str(run), "--which", "best", "--output", str(tmp_path / "best")]
    assert export.main(best) == 0
    ours, same, alone = (open_model(f).head.state_dict() for f in (run, out, tmp_path / "best"))
    assert all(torch.equal(ours[k], same[k]) for k in ours)
    assert not all(torch.equal(ours[k], alone[k]) for k in ours)
    assert open_model(out).provenance["which"] == "average"
    step = next((run / "checkpoints").glob("step_*"))
    assert export.main(["--checkpoint", str(step), "--which", "average"]) == 2


def test_from_a_pretrained_encoder_with_other_dropout(config_file, pretrained, tmp_path) -> None:
    run = tmp_path / "run"
    words = ["--config", str(config_file), "--init", str(pretrained), "--output", str(run),
             "--encoder_overrides", "{dropout: 0.3, layerdrop: 0}", "--train.steps", "1",
             "--train.learning_rate", "0", "--export", "last"]  # fmt: skip
    assert finetune.main(words) == 0
    opened = open_model(run)
    assert opened.encoder.config.dropout == 0.3 and opened.encoder.config.layerdrop == 0
    before = open_model(pretrained).encoder.state_dict()
    after = opened.encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_frozen_encoders_stay_as_they_were(config_file, pretrained, tmp_path) -> None:
    run = tmp_path / "run"
    words = ["--config", str(config_file), "--init", str(pretrained), "--output", str(run),
             "--train.steps", "6", "--head.freeze_encoder_steps", "3"]  # fmt: skip
    assert finetune.main(words) == 0
    moved = open_model(run).encoder.state_dict()
    before = open_model(pretrained).encoder.state_dict()
    assert not all(torch.equal(before[k], moved[k]) for k in before)
    words[-1] = "-1"
    words[words.index(str(run))] = str(tmp_path / "frozen")
    assert finetune.main(words) == 0
    kept = open_model(tmp_path / "frozen").encoder.state_dict()
    assert all(torch.equal(before[k], kept[k]) for k in before)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "init, encoder"),
        (["--init", "nowhere"], "nowhere"),
        (["--init", "PRETRAINED", "--encoder_overrides", "{dropuot: 0.3}"], "dropuot"),
        (["--init", "PRETRAINED", "--encoder_overrides", "{layers: 3}"], "missing layers.2"),
        (["--init", "PRETRAINED", "--head.vocab_size", "9"], "head.vocab_size"),
        (["--init", "PRETRAINED", "--train.best_metric", "wer"], "train.best_metric"),
    ],
)
def test_mistakes_are_named(config_file, pretrained, tmp_path, capsys, more, message) -> None:
    more = [str(pretrained) if w == "PRETRAINED" else w for w in more]
    words = ["--config", str(config_file), "--output", str(tmp_path / "run"), *more]
    try:
        status = finetune.main([*words, "--train.steps", "2"])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_init_from_a_transformers_folder(config_file, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    transformers.HubertModel(small).save_pretrained(tmp_path / "hf")
    words = ["--config", str(config_file), "--init", str(tmp_path / "hf"), "--output",
             str(tmp_path / "run"), "--train.steps", "2"]  # fmt: skip
    assert finetune.main(words) == 0
    assert open_model(tmp_path / "run").encoder.num_layers == 2
    assert export.main(
        ["--checkpoint", str(tmp_path / "run"), "--form", "transformers",
         "--output", str(tmp_path / "back")]
    ) == 0  # fmt: skip
    transformers.HubertModel.from_pretrained(tmp_path / "back")
