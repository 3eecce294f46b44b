"""Classes of utterances and speakers, from cuts to scores, by the programs."""

from __future__ import annotations

import gzip
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from speechssl.bin import decode, finetune, score
from speechssl.model_file import open_model
from speechssl.score.verification import read_trials

ROOT = Path(__file__).parents[2]
ENCODER = {
    "class_path": "speechssl.encoders.log_mel.LogMelConfig",
    "init_args": {"mel_bins": 20, "deltas": 0},
}
PITCHES = {"low": 200.0, "middle": 600.0, "high": 1800.0}
TRAIN = {"steps": 40, "learning_rate": 1e-2, "device": "cpu", "tensorboard": False,
         "log_every": 20, "valid_every": 20, "save_every": 20, "best_metric": "accuracy",
         "best_is": "highest"}  # fmt: skip


def tone(pitch: float, overtone: float, random: np.random.Generator) -> np.ndarray:
    time = np.arange(random.integers(4000, 9000)) / 16000
    wave = np.sin(2 * np.pi * pitch * time) + overtone * np.sin(4 * np.pi * pitch * time)
    return (0.2 * wave + 0.01 * random.standard_normal(len(time))).astype(np.float32)


def write_cuts(
    folder: Path, split: str, speakers: list[int], count: int, changes: dict | None = None
) -> str:
    """Tones: the class is the pitch, the speaker the strength of an overtone."""
    random = np.random.default_rng(len(split))
    lines = []
    for i in range(count):
        name = f"{split}{i}"
        pitch = list(PITCHES)[i % 3]
        who = speakers[i // 3 % len(speakers)]
        wave = tone(PITCHES[pitch], 0.3 * who, random)
        soundfile.write(folder / f"{name}.wav", wave, 16000)
        duration = len(wave) / 16000
        span = {"start": 0.0, "duration": duration, "channel": 0}
        supervision = {"id": name, "recording_id": name, **span, "speaker": f"s{who}",
                       "custom": {"pitch": pitch}}  # fmt: skip
        supervision |= changes or {}
        source = {"type": "file", "channels": [0], "source": str(folder / f"{name}.wav")}
        recording = {"id": name, "sources": [source], "sampling_rate": 16000,
                     "num_samples": len(wave), "duration": duration,
                     "channel_ids": [0]}  # fmt: skip
        lines.append({"id": name, **span, "type": "MonoCut", "supervisions": [supervision],
                      "recording": recording})  # fmt: skip
    path = folder / f"cuts_{split}.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpus")
    sizes = {"train": ([0, 3, 6], 36), "valid": ([0, 3, 6], 9), "test": ([2, 5], 12)}
    return {split: write_cuts(folder, split, *given) for split, given in sizes.items()}


def config(corpus: dict[str, str], folder: Path, head: dict[str, Any], **train: Any) -> list[str]:
    data = {"train": [corpus["train"]], "valid": [corpus["valid"]], "batch_seconds": 6,
            "max_batch_seconds": 3, "max_seconds": 2, "min_seconds": 0.1, "num_workers": 0,
            "speeds": [0.99, 1.0, 1.01]}  # fmt: skip
    path = folder / "config.yaml"
    values = {"data": data, "head": head, "train": TRAIN | train, "encoder": ENCODER}
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path), "--output", str(folder / "run")]


CLASSIFY = {
    "class_path": "speechssl.heads.classify.ClassifyConfig",
    "init_args": {"field": "pitch", "projection_dim": 16, "balanced": True},
}
SPEAKER = {
    "class_path": "speechssl.heads.speaker.SpeakerConfig",
    "init_args": {"network": "pooled", "embedding_dim": 8, "attention_dim": 8},
}


@pytest.fixture(scope="module")
def classifier(corpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    assert finetune.main(config(corpus, folder, CLASSIFY)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def speakers(corpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speakers")
    assert finetune.main(config(corpus, folder, SPEAKER)) == 0
    return folder / "run"


def decoded(model: Path, cuts: str, output: Path, *more: str) -> Path:
    words = ["--model", str(model), "--cuts", cuts, "--output", str(output), *more]
    assert decode.main(words) == 0
    return output


def test_classes_are_learnt_and_recognised(
    corpus: dict[str, str], classifier: Path, tmp_path: Path, capsys: Any
) -> None:
    head = open_model(classifier).head
    assert head.config.classes == ["high", "low", "middle"]
    assert head.config.class_counts == [12, 12, 12]
    folder = decoded(classifier, corpus["test"], tmp_path)
    rows = [json.loads(x) for x in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == [f"test{i}" for i in range(12)]
    for r in rows:
        assert sum(r["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert max(r["probabilities"], key=r["probabilities"].get) == r["hyp"]
    assert {r["speaker"] for r in rows} == {"s2", "s5"}
    assert score.main(["--decode", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"] == results["uar"] == results["macro_f1"] == 1.0
    assert results["decode"]["trainable_parameters"] == sum(
        p.numel() for p in head.parameters() if p.requires_grad
    )
    assert results["decode"]["layer_weights"] == {"0": 1.0}
    assert results["decode"]["head"]["init_args"]["projection_dim"] == 16
    assert "UAR      100.00 %" in capsys.readouterr().out


def test_batching_does_not_change_what_is_answered(
    corpus: dict[str, str], classifier: Path, speakers: Path, tmp_path: Path
) -> None:
    for model, file in ((classifier, "predictions.jsonl"), (speakers, "embeddings.npy")):
        one = decoded(model, corpus["test"], tmp_path / "a", "--max_batch_seconds", "0.1")
        many = decoded(model, corpus["test"], tmp_path / "b")
        if file == "embeddings.npy":
            assert np.abs(np.load(one / file) - np.load(many / file)).max() < 1e-5
        else:
            found = [
                [json.loads(x)["probabilities"] for x in (d / file).read_text().splitlines()]
                for d in (one, many)
            ]
            assert found[0] == [pytest.approx(p, abs=1e-5) for p in found[1]]


def test_a_resumed_run_keeps_its_classes_and_other_labels_are_refused(
    corpus: dict[str, str], classifier: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["--config", str(classifier.parent / "config.yaml"), "--output", str(classifier)]
    before = open_model(classifier).head.state_dict()
    assert finetune.main(words) == 0
    after = open_model(classifier).head.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    other = write_cuts(tmp_path, "train", [0, 3], 36, {"custom": {"pitch": "flat"}})
    assert finetune.main([*words, "--data.train", f"[{other}]", "--force", "true"]) == 2
    assert "pitch: found high, low, middle" in capsys.readouterr().err


def test_a_class_never_trained_counts_as_an_error(classifier: Path, tmp_path: Path) -> None:
    cuts = write_cuts(tmp_path, "odd", [0], 6, {"custom": {"pitch": "ultra"}})
    folder = decoded(classifier, cuts, tmp_path / "out")
    assert score.main(["--decode", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"] == 0 and results["unseen_classes"] == {"ultra": 6}


def make_trials(monkeypatch: pytest.MonkeyPatch, cuts: str, output: Path, *more: str) -> None:
    words = ["make_trials.py", "--cuts", cuts, *more, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "tools/make_trials.py"), run_name="__main__")


def test_speakers_never_heard_are_verified(
    corpus: dict[str, str],
    speakers: Path,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trials = tmp_path / "trials.txt"
    make_trials(monkeypatch, corpus["test"], trials, "--same", "pitch")
    found = read_trials(trials)
    assert sum(t.target for t in found) == 6 and len(found) == 18
    test = decoded(speakers, corpus["test"], tmp_path / "test")
    cohort = decoded(speakers, corpus["train"], tmp_path / "cohort")
    embeddings = np.load(test / "embeddings.npy")
    assert embeddings.shape == (12, 8) and embeddings.dtype == np.float32
    words = ["--decode", str(test), "--trials", str(trials)]
    assert score.main(words) == 0
    plain = json.loads((test / "results.json").read_text())
    assert plain["eer"] < 0.3 and plain["targets"] == 6
    assert score.main([*words, "--cohort", str(cohort), "--top", "12"]) == 0
    normed = json.loads((test / "results.json").read_text())
    assert normed["cosine"]["eer"] == plain["eer"] and normed["cohort"] == 36
    lines = (test / "scores.txt").read_text().splitlines()
    assert len(lines) == 18 and lines[0].split()[1:3] == [found[0].enrol, found[0].test]
    assert "AS-norm: EER" in capsys.readouterr().out


def test_voices_at_other_speeds_are_learnt_as_speakers_and_the_classes_go_on_without_them(
    corpus: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    given = {**SPEAKER, "init_args": SPEAKER["init_args"] | {"other_speeds": [0.99, 1.01]}}
    words = config(corpus, tmp_path, given, steps=4, valid_every=4, save_every=4)
    assert finetune.main(words) == 0
    first = open_model(tmp_path / "run").head
    assert first.config.classes == ["s0", "s3", "s6"] and first.margin.weight.shape == (9, 8)
    folder = decoded(tmp_path / "run", corpus["test"], tmp_path / "test")
    assert np.load(folder / "embeddings.npy").shape == (12, 8)
    plain = [*words, "--data.speeds", "[]", "--output", str(tmp_path / "on")]
    with pytest.raises(SystemExit):
        finetune.main(plain)
    told = "want data.speeds [0.99, 1.0, 1.01]; none at all only with init_head"
    assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        finetune.main([*words, "--data.speeds", "[0.9,1.0]", "--output", str(tmp_path / "x")])
    assert "head.other_speeds: found [0.99, 1.01] with data.speeds [0.9" in capsys.readouterr().err
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["encoder"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    on = [*plain, "--init", str(tmp_path / "run"), "--init_head", "true", "--train.steps", "1"]
    assert finetune.main([*on, "--train.learning_rate", "1e-6"]) == 0
    weight = open_model(tmp_path / "on").head.margin.weight
    assert weight.shape == (9, 8) and torch.allclose(weight, first.margin.weight, atol=1e-4)


def test_trials_agree_and_differ_in_the_fields_asked_for(
    corpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pitch = {f"test{i}": list(PITCHES)[i % 3] for i in range(12)}
    speaker = {f"test{i}": [2, 5][i // 3 % 2] for i in range(12)}
    make_trials(monkeypatch, corpus["test"], tmp_path / "a", "--different", "pitch")
    found = read_trials(tmp_path / "a")
    assert all(pitch[t.enrol] != pitch[t.test] for t in found)
    assert all(t.target == (speaker[t.enrol] == speaker[t.test]) for t in found)
    make_trials(monkeypatch, corpus["test"], tmp_path / "b", "--different", "pitch")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("head", "more", "message"),
    [
        ({"field": "pich"}, [], "no 'pich' in the cut 'train0'"),
        ({"field": ""}, [], "head.field"),
        ({"classes": ["high", "low"]}, [], "found middle (1 values)"),
        ({"balanced": False}, ["--data.classes", "x"], "data.classes"),
    ],
)
def test_mistakes_in_training_are_named(
    corpus: dict[str, str], tmp_path: Path, capsys: Any, head: dict, more: list[str], message: str
) -> None:
    given = {**CLASSIFY, "init_args": CLASSIFY["init_args"] | head}
    assert finetune.main([*config(corpus, tmp_path, given), *more]) == 2
    assert message in capsys.readouterr().err


def test_a_valid_class_that_training_lacks_is_named(
    corpus: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    other = write_cuts(tmp_path, "valid", [9], 3)
    words = [*config(corpus, tmp_path, SPEAKER), "--data.valid", f"[{other}]"]
    assert finetune.main(words) == 2
    assert "speaker: found s9" in capsys.readouterr().err


def test_mistakes_in_decoding_and_scoring_are_named(
    corpus: dict[str, str], classifier: Path, speakers: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["--model", str(classifier), "--cuts", corpus["test"], "--output", str(tmp_path)]
    assert decode.main([*words, "--method", "beam"]) == 2
    assert "found beam with a ClassifyHead" in capsys.readouterr().err
    folder = decoded(speakers, corpus["test"], tmp_path / "x")
    assert score.main(["--decode", str(folder)]) == 2
    assert "trials: found none" in capsys.readouterr().err
    (tmp_path / "trials").write_text("1 test0 nobody\n0 test0 test1\n")
    assert score.main(["--decode", str(folder), "--trials", str(tmp_path / "trials")]) == 2
    assert "'nobody'" in capsys.readouterr().err
    (folder / "predictions.jsonl").write_text('{"id": "a", "ref": "x"}\n')
    assert score.main(["--decode", str(folder)]) == 2
    assert "predictions.jsonl:1: found no 'hyp'" in capsys.readouterr().err


def test_a_head_goes_on_from_that_of_another_run(
    corpus: dict[str, str], speakers: Path, tmp_path: Path, capsys: Any
) -> None:
    words = config(corpus, tmp_path, SPEAKER, steps=1, learning_rate=0.0, valid_every=0)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["encoder"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    start = ["--init", str(speakers)]
    assert finetune.main([*words, *start, "--init_head", "true", "--head.margin", "0.5"]) == 0
    given, kept = (open_model(d).head for d in (speakers, tmp_path / "run"))
    for name, tensor in given.state_dict().items():
        assert name == "step" or torch.equal(tensor, kept.state_dict()[name]), name
    assert int(kept.step) == 1 and kept.config.margin == 0.5
    words[-1] = str(tmp_path / "fresh")
    assert finetune.main([*words, *start]) == 0
    fresh = open_model(tmp_path / "fresh").head
    assert not torch.equal(fresh.network.output.weight, given.network.output.weight)
    few = write_cuts(tmp_path, "few", [0, 3], 36)
    words[-1] = str(tmp_path / "few")
    refused = [*words, *start, "--init_head", "true", "--data.train", f"[{few}]"]
    assert finetune.main([*refused, "--data.valid", "[]"]) == 2
    assert "found a SpeakerHead of 3 classes" in capsys.readouterr().err
