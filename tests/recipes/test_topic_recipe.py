"""The recipe of topics: what its stages start, with programs that only take notes; its table; and
once in earnest on a miniature corpus."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from recipe_copy import ROOT, lay_out, run_recipe


class Copy:
    """The recipe in another place, with an environment whose programs write down their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = lay_out(folder, "mini/ssl", "mini/topics")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.recipe("topics", *words)

    def recipe(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return run_recipe(self.folder / f"egs/mini/{name}/run.sh", self.venv, *words)

    def calls(self, *words: str) -> list[str]:
        (self.folder / "calls").write_text("")
        done = self.run(*words)
        assert done.returncode == 0, done.stderr[-2000:]
        return (self.folder / "calls").read_text().splitlines()

    def touch(self, name: str) -> None:
        path = self.folder / "egs/mini" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_what_is_missing_is_made_by_the_recipe_that_it_belongs_to(copy: Copy) -> None:
    calls = copy.calls("--stop-stage", "4")
    assert [c.split()[1] for c in calls if c.startswith("speechssl")] == [
        "synth", "check", "check", "check", "cluster", "cluster", "cluster"
    ]  # fmt: skip
    for name in ("data/cuts_train.jsonl.gz", "data/cuts_valid.jsonl.gz"):
        copy.touch(f"ssl/{name}")
    copy.touch("ssl/exp/km_mfcc/labels/meta.json")
    assert copy.calls("--stop-stage", "4") == []
    done = copy.run("--stop-stage", "4", "--data", "elsewhere")
    assert done.returncode == 2 and "found no elsewhere/cuts_train.jsonl.gz" in done.stderr
    done = copy.run("--stage", "4", "--stop-stage", "4", "--clusters", "elsewhere")
    assert done.returncode == 2 and "found no elsewhere/labels" in done.stderr


def test_topics_are_fitted_on_training_speech_and_applied_to_both(copy: Copy) -> None:
    words = ("--stage", "5", "--stop-stage", "5", "--topics", "7 9", "--ngrams", "1,2")
    calls = copy.calls(*words)
    assert [c.split()[2] for c in calls] == ["fit", "apply", "show", "show"] * 2
    fit, applied, first, second = calls[:4]
    assert "--cuts [../ssl/data/cuts_train.jsonl.gz] --topics 7 --ngrams [1,2]" in fit
    assert "cuts_valid" not in fit
    both = "[../ssl/data/cuts_train.jsonl.gz,../ssl/data/cuts_valid.jsonl.gz]"
    assert f"--cuts {both} --output exp/topics7/labels" in applied
    assert "cuts_train" in first and "cuts_valid" in second
    assert copy.calls(*words) == []


def test_hubert_and_each_hubertopic_get_the_same_updates(copy: Copy) -> None:
    words = ("--stage", "6", "--stop-stage", "7", "--topics", "5 8", "--weights", "0.1 1")
    calls = copy.calls(*words, "--seeds", "1 2", "--steps", "3")
    assert len(calls) == 2 * (1 + 4) and all("--train.steps 3" in c for c in calls)
    for seed in ("1", "2"):
        own = [c for c in calls if f"--train.seed {seed} " in c]
        baseline, *rest = own
        assert "--objective.topic_weight 0 " in baseline and "labels.topics" not in baseline
        for call, number, weight in zip(rest, "5588", ("0.1", "1") * 2, strict=True):
            assert f"--objective.topics {number} --objective.topic_weight {weight} " in call
            assert f"--data.labels.topics exp/topics{number}/labels" in call
            assert call.endswith(f"exp/seed{seed}/hubertopic_it1_n{number}_w{weight}")
        # But for the topic's options, the calls are one.
        assert len({c.split(" --objective.topics")[0] for c in own}) == 1


def test_resolutions_and_topics_go_together(copy: Copy) -> None:
    words = ("--topics", "5", "--bases", "hubert mr_hubert", "--asr", "true", "--probes", "")
    names = ["hubert_it1", "hubertopic_it1_n5_w0.1", "mr_hubert_it1", "mr_hubertopic_it1_n5_w0.1"]
    calls = copy.calls("--stage", "6", "--stop-stage", "6", *words)
    assert [c.split("--output exp/seed1/")[1] for c in calls] == names
    assert ["--config conf/mr_hubertopic.yaml" in c for c in calls] == [False, False, True, True]
    copy.touch("ssl/data/cuts_asr_labelled.jsonl.gz")
    tuned = copy.calls("--stage", "8", "--stop-stage", "8", *words)
    assert [f"/{n} " in c for c, n in zip(tuned, names, strict=True)] == [True] * 4
    for wrong in ("wavlm,", "mr_hubert' with --iterations 2,"):
        done = copy.run("--bases", wrong.split("'")[0].strip(","), "--iterations", "2")
        assert done.returncode == 2 and f"{wrong} want hubert" in done.stderr


def test_iteration_2_has_topics_of_its_own_units(copy: Copy) -> None:
    words = ("--stage", "7", "--stop-stage", "7", "--topics", "5")
    assert copy.calls(*words) == []
    calls = copy.calls(*words, "--iterations", "2")
    kinds = [c.split()[1] if c.startswith("speechssl") else "pretrain" for c in calls]
    assert kinds == ["cluster"] * 2 + ["topics"] * 4 + ["pretrain"] * 2
    assert "--model exp/seed1/hubert_it1 --layer 2" in calls[0]
    assert "--labels exp/seed1/km_it1/labels" in calls[2]
    assert "--data.labels.kmeans exp/seed1/km_it1/labels" in calls[7]
    assert "--data.labels.topics exp/seed1/km_it1/topics5/labels" in calls[7]


def test_every_encoder_is_probed_in_the_same_way(copy: Copy) -> None:
    models = ("hubert_it1", "hubertopic_it1_n5_w0.1")
    # Of others that lie there, too many to probe, nothing is wanted.
    copy.touch("topics/exp/seed1/hubertopic_it1_n9_w0.1/model.safetensors")
    words = ("--topics", "5", "--weights", "0.1", "--probes", "gender theme", "--probe-steps", "4")
    trained = copy.calls("--stage", "8", "--stop-stage", "8", *words)
    assert [c.split()[c.split().index("--init") + 1] for c in trained] == [
        f"exp/seed1/{m}" for m in models for _ in range(2)
    ]
    assert all("--config conf/probe.yaml" in c and "--train.steps 4" in c for c in trained)
    assert ["gender" in c for c in trained] == [True, False] * 2
    decoded = copy.calls("--stage", "9", "--stop-stage", "9", *words)
    assert [c.split()[1] for c in decoded] == ["decode", "decode", "probe"] * 2
    assert all("cuts_test.jsonl.gz" in c for c in decoded)
    scored = copy.calls("--stage", "10", "--stop-stage", "10", *words)
    kinds = [c.split()[1] for c in scored]
    assert kinds == ["score"] * 4 + ["report", "local/table.py"]
    assert "exp/seed1/hubertopic_it1_n9_w0.1 " in scored[4]


def test_asr_on_few_transcripts_is_tuned_on_validation(copy: Copy) -> None:
    words = ("--topics", "5", "--asr", "true", "--asr-steps", "3", "--probes", "")
    done = copy.run("--data", "elsewhere", *words, "--stage", "8")
    assert done.returncode == 2 and "found no elsewhere/cuts_asr_labelled.jsonl.gz" in done.stderr
    trained = copy.calls("--stage", "8", "--stop-stage", "8", *words)
    assert len(trained) == 2 and all("cuts_asr_labelled" in c for c in trained)
    assert all("--train.steps 3" in c and "/asr" in c for c in trained)
    kinds = [c.split()[1] for c in copy.calls("--stage", "9", "--stop-stage", "9", *words)]
    assert kinds == ["lm", *["probe", "decode", "decode"] * 2]
    copy.touch("topics/exp/lm.done")
    again = copy.calls("--stage", "9", "--stop-stage", "9", "--seeds", "2", *words)
    assert sum("--sweep true" in c for c in again) == 2
    assert sum("cuts_asr_test" in c and "best.json" in c for c in again) == 2
    done = copy.run("--asr", "maybe")
    assert done.returncode == 2 and "--asr: found maybe" in done.stderr


def table_of() -> ModuleType:

    spec = importlib.util.spec_from_file_location("table", ROOT / "egs/mini/topics/local/table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_holds_fields_and_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (20, 5):
        folder = tmp_path / f"topics{number}"
        folder.mkdir()
        fit = {"perplexity": [9.0, 8.0], "coherence": 0.1, "coherence_baseline": 0.0,
               "empty_topics": [3], "topics_used": 4.5}  # fmt: skip
        (folder / "fit.json").write_text(json.dumps(fit))
        rows = {"theme": {"nmi": number / 100, "baseline": 0.01, "z": 12.4}}
        rows |= {"gender": {"nmi": 0.0, "baseline": 0.0, "z": None}} if number == 5 else {}
        (folder / "show_valid.json").write_text(json.dumps({"associations": rows}))
    for seed, accuracy in ((1, 0.2), (2, 0.4)):
        folder = tmp_path / f"seed{seed}/hubertopic_it1_n5_w0.1"
        folder.mkdir(parents=True)
        lines = [{"split": "valid", "step": 1, "topic_accuracy": 0.1},
                 {"split": "valid", "step": 2, "topic_accuracy": accuracy},
                 {"split": "train", "step": 3, "topic_accuracy": 0.9}]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (folder / "probe").mkdir()
        layers = [{"layer": 0, "phone_accuracy": 0.9}, {"layer": 1, "phone_accuracy": 0.5}]
        best = {"phone_dev_accuracy": 1}  # by held-out data, not by what is shown
        (folder / "probe/probe.json").write_text(json.dumps({"layers": layers, "best": best}))
        (folder / "probe_theme/test").mkdir(parents=True)
        (folder / "probe_theme/test/results.json").write_text('{"uar": 0.5}')
        (folder / "asr/beam").mkdir(parents=True)
        (folder / "asr/beam/results.json").write_text(json.dumps({"wer": 10.0 * seed}))
    monkeypatch.setattr(sys, "argv", ["table.py", "--exp", str(tmp_path)])
    table_of().main()
    out = capsys.readouterr().out
    assert "| 5 | 8.0 | 0.100 | 0.000 | 1 | 4.5 |" in out
    assert "| theme | 0.050 (0.010, 12) | 0.200 (0.010, 12) |" in out
    assert "| gender | 0.000 (0.000, -) | - |" in out
    phone = "best layer's phone_accuracy"
    assert f"| model | topic_accuracy | {phone} | theme (UAR) | ASR (WER) |" in out
    figures = "0.300 ± 0.141 | 0.500 ± 0.000 | 0.500 ± 0.000 | 15.000 ± 7.071"
    assert f"| hubertopic_it1_n5_w0.1 | {figures} |" in out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_stage_runs_on_a_miniature_corpus(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("sklearn")
    copy = Copy(tmp_path)
    copy.venv = Path(sys.executable).parents[1]
    small = ("--stop-stage", "5", "--hours", "0.05", "--speakers", "12")
    done = copy.recipe("ssl", *small)
    assert done.returncode == 0, done.stderr[-3000:]
    done = copy.run("--topics", "4", "--weights", "0.2", "--iterations", "2", "--steps", "2",
                    "--probes", "gender language", "--probe-steps", "2", "--asr", "true",
                    "--asr-steps", "2")  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for name in ("hubert_it1", "hubertopic_it1_n4_w0.2", "hubert_it2", "hubertopic_it2_n4_w0.2"):
        assert (tmp_path / f"egs/mini/topics/exp/seed1/{name}/model.safetensors").is_file()
    page = (tmp_path / "egs/mini/topics/exp/report.html").read_text()
    assert "What topics tell: topics4/show_valid.json" in page
    table = json.loads((tmp_path / "egs/mini/topics/exp/table.json").read_text())
    assert table["hubertopic_it1_n4_w0.2"]["topic_accuracy"]
