"""The suites' tasks: each parses, is frozen and can be cached; both recipes on miniatures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
import yaml
from test_librispeech import write_corpus as write_librispeech

from speechssl.bin.cached_features import check_head
from speechssl.bin.decode import DecodeOptions
from speechssl.bin.finetune import FinetuneConfig
from speechssl.bin.score import ScoreOptions
from speechssl.bin.suite_task import make_cuts, missing_folders, read_tasks
from speechssl.config import parse
from speechssl.corpora import arpabet, librispeech_phones
from speechssl.data.fields import cut_rows, field_of
from speechssl.score.wer import normalise

sys.path.append(str(Path(__file__).parents[1] / "corpora"))
from test_superb_corpora import (
    make_fluent_speech_commands,
    make_iemocap,
    make_speech_commands,
    make_voxceleb1,
)
from test_superb_further import (
    LEXICON,
    make_diarization,
    make_librimix,
    make_snips,
    make_voicebank,
)

ROOT = Path(__file__).parents[2]
SUITES = {name: ROOT / "egs" / name / "tasks" for name in ("realmini/suite", "superb")}
TASKS = [(suite, path.stem) for suite, folder in SUITES.items() for path in folder.glob("*.yaml")]


@pytest.mark.parametrize(("suite", "name"), TASKS)
@pytest.mark.parametrize("upstream", ["logmel", "random"])
def test_every_upstream_serves_every_task(
    suite: str, name: str, upstream: str, tmp_path: Path
) -> None:
    task = read_tasks(SUITES[suite], [name])[name]
    assert task.obtain and task.protocol and task.split.train
    if task.query:
        return  # serves whatever has layers
    assert task.rates
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task.finetune))
    words = ["--config", str(tmp_path / "task.yaml"), "--output", "exp/x",
             "--config", str(ROOT / f"egs/realmini/upstream/{upstream}.yaml")]  # fmt: skip
    kind = task.finetune["head"]["class_path"].rsplit(".", 1)[-1]
    words += ["--head.vocab_size", "90"] if kind == "CtcConfig" else []
    if kind in ("ClassifyConfig", "SpeakerConfig"):
        words += ["--head.classes", "[a,b]", "--head.class_counts", "[1,1]"]
    if kind == "SlotsConfig":
        words += ["--head.values", "[[a,b],[a,b],[a,b]]"]
    config = parse(FinetuneConfig, words)
    assert not config.data.speeds and config.data.mixing is None
    assert (not config.data.mixtures) == task.cache
    assert (config.train.best_is == "lowest") == (config.train.best_metric in ("cer", "der"))
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    if task.cache:
        assert len(check_head(head)) == head.encoder.num_layers + 1
    DecodeOptions(model="m", cuts="c", output="o", **task.decode)
    parse(ScoreOptions, ["--decode", "d", *task.score])
    assert any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize(
    ("suite", "name", "letters"),
    [
        ("realmini/suite", "phones", arpabet.LETTERS.values()),
        ("superb", "phone", librispeech_phones.LETTERS.values()),
    ],
)
def test_no_two_phones_are_one_letter_when_they_are_scored(
    suite: str, name: str, letters: Collection[str]
) -> None:
    task = read_tasks(SUITES[suite], [name])[name]
    options = parse(ScoreOptions, ["--decode", "d", *task.score])
    assert task.finetune["tokenizer"] == {"kind": "letters", "case": "keep"}
    assert len({normalise(x, options.normalisation) for x in letters}) == len(letters)


@pytest.mark.corpora
def test_the_splits_of_real_corpora_hold_what_they_promise(
    corpora_dir: Path, tmp_path: Path
) -> None:
    root = str(corpora_dir)
    for name, task in read_tasks(SUITES["realmini/suite"], []).items():
        if missing_folders(task, root):
            continue
        folds = make_cuts(task, root, tmp_path / name)
        assert len(folds) == (len(task.split.run) or task.split.folds
                              if task.split.kind == "folds" else 1)  # fmt: skip
        for fold in folds:
            rows = {s: list(cut_rows([getattr(fold, s)])) for s in ("train", "valid", "test")}
            ids = [{r["id"] for r in x} for x in rows.values()]
            assert all(ids) and not ids[0] & ids[1] and not ids[2] & (ids[0] | ids[1]), name
            values = [{field_of(r, task.split.field) for r in x} for x in rows.values()]
            if task.split.kind in ("folds", "verification"):
                assert not values[0] & values[2], name
            if task.split.kind == "held_out":
                assert values[0] == values[1] == values[2], name
            head = task.finetune.get("head", {"init_args": task.query})
            field = head["init_args"].get("field")
            if field is not None:
                taught = {field_of(r, field) for r in rows["train"]}
                assert {field_of(r, field) for r in rows["test"] + rows["valid"]} <= taught, name


def run(recipe: str, *words: str) -> str:
    if not (ROOT / ".venv").is_dir() and "SPEECHSSL_VENV" not in os.environ:
        pytest.skip("the recipes use .venv; tools/setup.sh makes it")
    done = subprocess.run(
        ["bash", str(ROOT / "egs" / recipe / "run.sh"), *words],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_superb_runs_on_miniatures_of_the_published_layouts(tmp_path: Path) -> None:
    write_librispeech(tmp_path)
    make_speech_commands(tmp_path / "SpeechCommands1")
    make_voxceleb1(tmp_path / "VoxCeleb1")
    make_iemocap(tmp_path / "IEMOCAP_full_release")
    quick = "--data.num_workers 0 --train.tensorboard false"

    def scored(tasks: str, overrides: str) -> tuple[str, dict[str, int]]:
        shown = run("superb", "--corpus-dir", str(tmp_path), "--steps", "2", "--rates", "1e-3",
                    "--overrides", overrides, "--exp", str(tmp_path / "exp"),
                    "--tasks", tasks)  # fmt: skip
        found = json.loads((tmp_path / "exp/suite.json").read_text())
        assert not found["failed"]
        return shown, {c["task"]: c["scored"] for c in found["cells"]}

    shown, found = scored("keyword intent", quick)
    assert "task intent is left out" in shown and "https://fluent.ai" in shown
    assert found == {"keyword": 8}
    make_fluent_speech_commands(tmp_path / "fluent_speech_commands_dataset")
    shown, found = scored("keyword intent emotion speaker_id speaker_verification", quick)
    assert found == {"keyword": 8, "intent": 6, "emotion": 50, "speaker_id": 6,
                     "speaker_verification": 8}  # fmt: skip
    # SUPERB's recogniser has 35 million parameters.
    assert scored("asr", f"{quick} --head.hidden_dim 8")[1] == {"asr": 5}
    assert (tmp_path / "exp/index.html").is_file()


@pytest.mark.slow
@pytest.mark.corpora
@pytest.mark.timeout(900)
def test_the_suite_on_small_real_corpora_runs(corpora_dir: Path, tmp_path: Path) -> None:
    shown = run("realmini/suite", "--corpus-dir", str(corpora_dir), "--tasks", "sounds gender",
                "--steps", "2", "--rates", "1e-3", "--upstreams", "logmel random",
                "--seeds", "1 2", "--exp", str(tmp_path))  # fmt: skip
    found = json.loads((tmp_path / "suite.json").read_text())
    assert len(found["cells"]) == 8 and not found["failed"] and "| random |" in shown


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_superbs_further_tasks_run_on_miniatures(tmp_path: Path) -> None:
    write_librispeech(tmp_path)
    (tmp_path / "LibriSpeech/librispeech-lexicon.txt").write_text(LEXICON)
    make_snips(tmp_path / "SNIPS")
    make_diarization(tmp_path / "Libri2Mix_sd", tmp_path)
    make_librimix(tmp_path / "Libri2Mix")
    make_voicebank(tmp_path / "VoiceBank-DEMAND")
    quick = "--data.num_workers 0 --train.tensorboard false --head.hidden_dim 8"
    run("superb", "--corpus-dir", str(tmp_path), "--steps", "2", "--rates", "1e-3",
        "--overrides", quick, "--exp", str(tmp_path / "exp"),
        "--tasks", "phone slots diarization separation enhancement")  # fmt: skip
    found = json.loads((tmp_path / "exp/suite.json").read_text())
    assert not found["failed"] and not found["missing"]
    scored = {c["task"]: c["scored"] for c in found["cells"]}
    assert scored == {"phone": 5, "slots": 3, "diarization": 3, "separation": 2, "enhancement": 2}
    table = (tmp_path / "exp/table.md").read_text()
    assert "DER %" in table and "slot type F1 as SUPERB's %" in table
    tests = tmp_path / "exp/runs/logmel"
    results = json.loads((tests / "diarization/seed1/fold1/test/results.json").read_text())
    assert results["decode"]["median"] == 11
