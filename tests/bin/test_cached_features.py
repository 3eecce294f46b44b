"""Cached features of frozen encoders, and sweeps of learning rates, by the programs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_utterance_tasks import TRAIN, write_cuts
from train_corpus import make_corpus

from speechssl.bin import cached_features, decode, finetune
from speechssl.bin.sweep import best_of
from speechssl.data.feature_cache import FeatureCache
from speechssl.data.index import CutRecord
from speechssl.encoders.transformer import TransformerConfig
from speechssl.model_file import open_model, save_model

CLASSIFY = {
    "class_path": "speechssl.heads.classify.ClassifyConfig",
    "init_args": {"field": "pitch", "projection_dim": 8, "pooling": "attentive"},
}
CTC = {
    "class_path": "speechssl.heads.asr_ctc.CtcConfig",
    "init_args": {"freeze_encoder_steps": -1, "mask_probability": 0.0, "weighted_layers": True,
                  "normalise_layers": True, "hidden": "blstm", "hidden_dim": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("corpus")
    tones = {s: write_cuts(folder, s, [0, 3, 6], n) for s, n in (("train", 24), ("valid", 9))}
    texts = {s: make_corpus(folder / s, s, 12, i)[0] for i, s in enumerate(("train", "valid"))}
    return {"classify": tones, "ctc": texts}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    config = TransformerConfig(
        front_end="log_mel", front_norm="layer", front_dim=16, layers=2, dim=16, ffn_dim=16,
        heads=2, pos_conv_kernel=8, pos_conv_groups=2, dropout=0.1, layerdrop=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(folder, config, config.build().state_dict())
    return str(folder)


def arguments(
    cuts: dict[str, str], folder: Path, task: str, encoder: str, *more: str, **data: Any
) -> list[str]:
    values = {
        "data": {"train": [cuts["train"]], "valid": [cuts["valid"]], "batch_seconds": 4,
                 "max_batch_seconds": 3, "max_seconds": 2, "min_seconds": 0.1,
                 "num_workers": 0} | data,
        "head": {"classify": CLASSIFY, "ctc": CTC}[task],
        "train": TRAIN | {"steps": 12, "valid_every": 6, "log_every": 1,
                          "best_metric": "accuracy" if task == "classify" else "cer",
                          "best_is": "highest" if task == "classify" else "lowest"},
        "init": encoder,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return ["--config", str(folder / "config.yaml"), "--output", str(folder / "run"), *more]


def losses(run: Path) -> list[float]:
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("task", ["classify", "ctc"])
def test_cached_features_give_the_same_losses_and_the_same_model(
    corpora: Any, encoder: str, tmp_path: Path, task: str
) -> None:
    plain = arguments(corpora[task], tmp_path / "plain", task, encoder)
    cached = arguments(corpora[task], tmp_path / "cached", task, encoder,
                       "--cache", str(tmp_path / "features"))  # fmt: skip
    assert finetune.main(plain) == 0 and finetune.main(cached) == 0
    one, two = losses(tmp_path / "plain/run"), losses(tmp_path / "cached/run")
    assert len(one) == 14 and one == pytest.approx(two, rel=1e-5)
    states = [load_file(tmp_path / name / "run/model.safetensors") for name in ("plain", "cached")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0.01, atol=2e-3)
    sizes = open_model(tmp_path / "cached/run").provenance["parameters"]
    assert sizes["encoder"] > 0 == sizes["encoder_learning"] and sizes["head_learning"] > 0
    # What was learnt on features serves on waves.
    words = ["--model", str(tmp_path / "cached/run"), "--cuts", corpora[task]["valid"]]
    assert decode.main([*words, "--output", str(tmp_path / "decoded")]) == 0


def test_a_crop_is_of_the_same_frames(corpora: Any, encoder: str, tmp_path: Path) -> None:
    """One layer of log-mel frames, which hear no context: a crop of them is that of the wave."""
    values = {"class_path": "speechssl.encoders.log_mel.LogMelConfig",
              "init_args": {"mel_bins": 8, "deltas": 0}}  # fmt: skip
    found = []
    for name, more in (("a", []), ("b", ["--cache", str(tmp_path / "features")])):
        words = arguments(corpora["classify"], tmp_path / name, "classify", encoder, *more,
                          max_seconds=0.33, min_seconds=0.3)  # fmt: skip
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        config["encoder"] = values
        del config["init"]
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        assert finetune.main(words) == 0
        found.append(losses(tmp_path / name / "run"))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_encoder_runs_once_and_a_killed_writer_is_repaired(
    corpora: Any, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = str(tmp_path / "features")
    cuts = corpora["classify"]
    assert finetune.main(arguments(cuts, tmp_path / "a", "classify", encoder, "--cache", root)) == 0
    shown = capsys.readouterr().err
    assert "features of 33 utterances" in shown and "GB free" in shown
    (folder,) = Path(root).iterdir()
    features, index = folder / "features.bin", folder / "index.jsonl"
    whole, lines = features.read_bytes(), index.read_text().splitlines(keepends=True)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["layers"] == [0, 1, 2]
    assert len(whole) == sum(json.loads(x)["frames"] for x in lines) * 3 * 16 * 4
    # Half of a batch of features, and half of a line.
    keep = lines[:20]
    end = sum(json.loads(x)["frames"] for x in keep) * 3 * 16 * 4
    index.write_text("".join(keep) + lines[20][:30])
    features.write_bytes(whole[: end + 1000])
    assert finetune.main(arguments(cuts, tmp_path / "b", "classify", encoder, "--cache", root)) == 0
    assert "features of 13 utterances" in capsys.readouterr().err
    assert len(features.read_bytes()) == len(whole)
    a, b = np.frombuffer(whole, np.float32), np.frombuffer(features.read_bytes(), np.float32)
    assert np.sort(np.abs(a)) == pytest.approx(np.sort(np.abs(b)), abs=1e-4)
    assert losses(tmp_path / "a/run") == pytest.approx(losses(tmp_path / "b/run"), rel=1e-4)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(cached_features, "_compute", never)
    assert finetune.main(arguments(cuts, tmp_path / "c", "classify", encoder, "--cache", root)) == 0


def test_changed_audio_is_refused(tmp_path: Path, encoder: str, capsys: Any) -> None:
    cuts = {s: write_cuts(tmp_path, s, [0, 3], n) for s, n in (("train", 6), ("valid", 6))}
    more = ("--cache", str(tmp_path / "features"))
    assert finetune.main(arguments(cuts, tmp_path / "a", "classify", encoder, *more)) == 0
    late = time.time() + 60
    os.utime(tmp_path / "valid3.wav", (late, late))
    assert finetune.main(arguments(cuts, tmp_path / "b", "classify", encoder, *more)) == 2
    shown = capsys.readouterr().err
    assert "'valid3'" in shown and "stale" in shown and "Delete" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head.freeze_encoder_steps", "0"], "freeze_encoder_steps 0"),
        (["--head.adapters.kind", "bitfit"], "adapters of kind bitfit"),
        (["--data.speeds", "[0.9,1.0]"], "data.speeds"),
        (["--data.mixtures", "[x.jsonl.gz]"], "data.mixtures ['x.jsonl.gz']"),
    ],
)
def test_what_would_change_the_features_is_refused(
    corpora: Any, encoder: str, tmp_path: Path, capsys: Any, words: list[str], message: str
) -> None:
    more = ("--cache", str(tmp_path / "features"), *words)
    cuts = corpora["classify"]
    assert finetune.main(arguments(cuts, tmp_path, "classify", encoder, *more)) == 2
    shown = capsys.readouterr().err
    assert message in shown and "want" in shown


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_number_types(corpora: Any, encoder: str, tmp_path: Path, dtype: str) -> None:
    cuts = corpora["classify"]
    found = []
    for name in ("float32", dtype):
        more = ("--cache", str(tmp_path / "features"), "--cache_dtype", name)
        words = arguments(cuts, tmp_path / name, "classify", encoder, *more)
        assert finetune.main(words) == 0
        found.append(losses(tmp_path / name / "run"))
    assert found[0] == pytest.approx(found[1], rel=0.05) and found[0] != found[1]
    sizes = sorted(p.stat().st_size for p in tmp_path.glob("features/*/features.bin"))
    assert sizes[1] == 2 * sizes[0]


def test_features_out_of_range_are_refused(tmp_path: Path) -> None:
    meta = {"encoder": "x", "layers": [0], "dtype": "float16", "dim": 2, "hop_samples": 160,
            "receptive_field_samples": 400}  # fmt: skip
    cache = FeatureCache(tmp_path, meta)
    record = CutRecord("a", "a", "", 0.0, 1.0, None, 1.0)
    with cache.writing() as writer, pytest.raises(ValueError, match="want bfloat16"):
        writer.add([(record, 16000, torch.full((3, 2), 1e6))])


def test_a_sweep_keeps_the_best_rate_and_every_score(
    corpora: Any, encoder: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = "[1e-5,1e-2,1e12]"
    words = arguments(corpora["classify"], tmp_path, "classify", encoder, "--rates", rates,
                      "--cache", str(tmp_path / "features"), "--train.steps", "40",
                      "--train.max_bad_updates", "2", "--train.warmup_fraction", "0",
                      "--train.spike_after", "3")  # fmt: skip
    assert finetune.main(words) == 0
    found = json.loads((tmp_path / "run/sweep.json").read_text())
    assert found["metric"] == "accuracy" and found["chosen"] == 1e-2
    scores = {row["learning_rate"]: row["score"] for row in found["rates"]}
    assert scores[1e-2] > scores[1e-5] and scores[1e12] is None
    model = open_model(tmp_path / "run")
    assert model.provenance["config"]["train"]["learning_rate"] == 1e-2
    assert "<- best" in capsys.readouterr().err
    # Again: nothing is trained anew, another rate only adds to it.
    from speechssl.bin import sweep as sweeps
    from speechssl.train.trainer import Trainer

    known, write = [], sweeps._write
    monkeypatch.setattr(sweeps, "_write", lambda *a: known.append(len(a[2])) or write(*a))
    updates = []
    update = Trainer._update
    monkeypatch.setattr(Trainer, "_update", lambda *a: updates.append(1) or update(*a))
    assert finetune.main(words) == 0 and not updates
    assert known == [3, 3, 3, 3]  # killed anywhere, it forgets none
    words[words.index(rates)] = "[1e-2,3e-3]"
    assert finetune.main(words) == 0 and len(updates) == 40
    found = json.loads((tmp_path / "run/sweep.json").read_text())
    assert {row["learning_rate"] for row in found["rates"]} == {1e-5, 3e-3, 1e-2, 1e12}
    # Scores of other options are no scores of these.
    assert finetune.main([*words, "--train.clip_norm", "3"]) == 2


def test_the_best_rate() -> None:
    rows = [{"learning_rate": r, "score": s} for r, s in ((1, 0.5), (2, 0.7), (3, 0.7), (4, None))]
    assert best_of(rows, "highest") == 2 and best_of(rows, "lowest") == 1
    with pytest.raises(ValueError, match="want smaller ones; it burst"):
        best_of([{"learning_rate": 1, "score": None, "failed": "it burst"}], "highest")
