"""The recipe over all objectives: what its stages start, with programs that only take notes, and
once in earnest on a miniature corpus."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from recipe_copy import ROOT, lay_out, run_recipe

RECIPE = ROOT / "egs/mini/objectives"
NOTE = """#!/usr/bin/env bash
[[ $1 == -c ]] && exec {python} "$@"
echo "$(basename "$0") $*" >>{log}
[[ ! -f {log}.fail || ! "$*" =~ $(cat {log}.fail) ]]
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A recipe whose programs write down how they were called."""
    lay_out(tmp_path, "mini", note=NOTE.replace("{python}", sys.executable))
    return tmp_path / "egs/mini/objectives"


def calls(folder: Path) -> list[str]:
    return (folder.parents[2] / "calls").read_text().splitlines()


def noted(folder: Path, *words: str) -> list[str]:
    """The calls that a run of the recipe makes."""
    (folder.parents[2] / "calls").write_text("")
    done = run_recipe(folder / "run.sh", folder.parents[2] / "venv", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return calls(folder)


def default(name: str) -> list[str]:
    found = re.search(rf'^{name}="([^"]*)"', (RECIPE / "run.sh").read_text(), re.MULTILINE)
    assert found
    return found.group(1).split()


def test_the_recipe_pretrains_every_configuration() -> None:
    """A new objective's YAML belongs into the list, and every name of the list has one."""
    there = [p.stem for p in RECIPE.glob("conf/*.yaml") if "\nobjective:" in p.read_text()]
    listed = default("objectives")
    assert sorted(listed) == sorted(there)


def test_every_objective_has_the_same_budget_of_audio() -> None:
    """The recipe sets the number of updates; their size is the configurations' own."""
    import yaml

    seconds = {
        name: yaml.safe_load((RECIPE / f"conf/{name}.yaml").read_text())["data"]["batch_seconds"]
        for name in default("objectives")
    }
    assert set(seconds.values()) == {24}, seconds


def test_each_objective_gets_what_it_stands_on(notes: Path) -> None:
    found = noted(
        notes, "--objectives", "discrete_bert hubert data2vec unispeech", "--seeds", "3",
        "--steps", "7", "--stage", "4",
    )  # fmt: skip
    training = [c for c in found if "bin.pretrain" in c]
    order = [c.split("--output exp/")[1].split()[0] for c in training]
    # The units come before what reads them, though they were not asked for.
    wanted = ["hubert", "data2vec", "unispeech", "random_w2v_bert_conformer", "random_vq_wav2vec"]
    wanted += ["vq_wav2vec", "discrete_bert", "random_discrete_bert", "random_continuous_bert"]
    assert order == [f"seed3/{name}" for name in wanted]
    by_name = dict(zip(order, training))
    for name, call in by_name.items():
        untrained = "/random_" in name
        assert "--data.seed 3 --train.seed 3 " in call
        assert f"--train.steps {0 if untrained else 7} " in call
        assert f"--config conf/{name.split('/')[1].removeprefix('random_')}.yaml" in call
        kmeans = "--data.labels.kmeans exp/km_mfcc/labels" in call
        assert kmeans == name.endswith("/hubert")
        assert ("--data.tokenizer exp/partly/letters.json" in call) == name.endswith("unispeech")
        assert ("[exp/partly/cuts_train.jsonl.gz]" in call) == name.endswith("unispeech")
        units = "--objective.units exp/seed3/vq_wav2vec" in call
        assert units == name.endswith(("discrete_bert", "continuous_bert"))
    # vq_wav2vec is no row of the table, so nothing else is done with it.
    tuned = [c.split("--output ")[1].split()[0] for c in found if "bin.finetune" in c]
    rows = ["discrete_bert", "hubert", "data2vec", "unispeech", *default("baselines")]
    assert tuned == [f"exp/seed3/asr_{name}" for name in rows]
    probed = [c for c in found if c.startswith("speechssl probe")]
    assert len(probed) == len(rows)
    assert sum("--model exp/seed3/random_vq_wav2vec" in c for c in probed) == 1
    assert sum("--random conf/hubert.yaml --random_seed 3" in c for c in probed) == 1
    assert sum("--features logmel" in c for c in probed) == 1
    assert found[-2].startswith("python local/table.py") and "speechssl report" in found[-1]


def test_the_corpus_is_that_of_the_other_recipe(notes: Path) -> None:
    found = noted(notes, "--stop-stage", "1")
    assert "speechssl synth --output data/synth" in found[0]
    assert "speechssl synth --output ../ssl/data/probe" in found[-1] and "--seed 2" in found[-1]
    # Those that the other recipe has made are taken as they are.
    other = run_recipe(notes.parent / "ssl/run.sh", notes.parents[2] / "venv", "--stop-stage", "1")
    assert other.returncode == 0 and calls(notes) == found
    elsewhere = noted(notes, "--stop-stage", "1", "--data", str(notes.parents[2] / "d"))
    assert any("d/synth" in call for call in elsewhere)


def test_a_second_run_does_nothing_but_the_table(notes: Path) -> None:
    words = ("--objectives", "tera", "--baselines", "random")
    first = noted(notes, *words)
    assert len(first) > 15
    second = noted(notes, *words)
    ends = [c.split()[:2] for c in second]
    assert ends == [["python", "local/table.py"], ["speechssl", "report"]]
    more = noted(notes, "--objectives", "tera bestrq", "--baselines", "random")
    assert all("bestrq" in c or "local/table.py" in c or " report " in c for c in more)


def test_an_objective_that_fails_is_named_and_the_others_go_on(notes: Path) -> None:
    words = ("--objectives", "dinosr tera continuous_bert", "--baselines", "random logmel",
             "--seeds", "1 2", "--stage", "6")  # fmt: skip
    log = notes.parents[2] / "calls"
    log.with_name("calls.fail").write_text("bin.pretrain .*seed1/(vq_wav2vec|dinosr) ")
    done = run_recipe(notes / "run.sh", notes.parents[2] / "venv", *words)
    assert done.returncode == 1
    text = "FAILED, seed/objective: 1/dinosr 1/vq_wav2vec 1/continuous_bert;"
    assert text in done.stderr
    found = calls(notes)
    assert any("probe --model exp/seed1/tera" in c for c in found)
    # Nothing is made of those that failed, nor of what stands on them; and all of the other seed.
    gone = ("exp/seed1/dinosr", "exp/seed1/asr_dinosr", "exp/seed1/continuous_bert")
    assert [c.split()[2] for c in found if any(name in c for name in gone)] == [
        "speechssl.bin.pretrain"
    ]
    assert sum("exp/seed2/continuous_bert" in c for c in found) == 3
    log.with_name("calls.fail").unlink()
    again = noted(notes, *words)
    assert all("seed1/" in c or "table.py" in c or " report " in c for c in again)
    assert any("exp/seed1/continuous_bert " in c for c in again)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objectives", "hubert nothing"), "found nothing, want names of conf/NAME.yaml"),
        (("--objectives", "finetune_logmel"), "found finetune_logmel"),
        (("--baselines", "mfcc"), "found mfcc, want random, logmel or random_NAME"),
        (("--baselines", "random_mfcc"), "found random_mfcc, want random"),
    ],
)
def test_unknown_names_stop_the_recipe_at_once(
    notes: Path, words: tuple[str, ...], message: str
) -> None:
    done = run_recipe(notes / "run.sh", notes.parents[2] / "venv", *words)
    assert done.returncode == 2 and message in done.stderr
    assert not (notes.parents[2] / "calls").exists()


def write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_the_table_says_mean_deviation_and_who_fails(tmp_path: Path) -> None:
    for seed in (1, 2):
        for name, phones, wer in (("hubert", 0.6, 0.2), ("tera", 0.3 + 0.1 * seed, 0.3),
                                  ("random", 0.45, 0.4)):  # fmt: skip
            there = tmp_path / f"seed{seed}"
            layers = [
                {"layer": 0, "rankme": 10.0, "pnmi": 0.3, "phone_accuracy": 0.9,
                 "speaker_accuracy": 0.8},
                {"layer": 1, "rankme": 20.0, "pnmi": 0.2, "phone_accuracy": phones,
                 "speaker_accuracy": 0.1},
            ]  # fmt: skip
            # Chosen on dev: the best on the test part is not looked at.
            best = {"phone_dev_accuracy": 1, "speaker_dev_accuracy": 0, "pnmi": 0}
            write_json(there / f"probe_{name}/probe.json", {"layers": layers, "best": best})
            score = {"wer": wer, "wer_ci95": [wer - 0.03, wer + 0.05]}
            write_json(there / f"asr_{name}/beam/results.json", score)
            if name == "random":
                continue
            step = 0.5 if name == "hubert" else 0.5 + 0.1 * seed
            lines = [
                {"step": 50, "split": "train", "update_seconds": 9.0},
                {"step": 100, "split": "train", "update_seconds": step},
                {"step": 100, "split": "valid", "loss": float(seed), "code_perplexity": 7.0},
            ]
            (there / name).mkdir()
            (there / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = subprocess.run(
        [sys.executable, RECIPE / "local/table.py", "--exp", tmp_path, "--objectives",
         "hubert tera random"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    head, _, hubert, tera, random, *rest = (tmp_path / "table.md").read_text().splitlines()
    names = [x.strip() for x in head.strip("|").split("|")]
    rows = [dict(zip(names, (c.strip() for c in r.strip("|").split("|")))) for r in
            (hubert, tera, random)]  # fmt: skip
    assert done.stdout.startswith(head)
    assert rows[0]["native loss"] == "1.500 ± 0.707" and rows[0]["code perplexity"] == "7.0 ± 0.0"
    assert rows[1]["phones %"] == "45.0 ± 7.1 †" and rows[1]["speakers %"] == "80.0 ± 0.0"
    assert rows[1]["RankMe"] == "20.0 ± 0.0" and rows[1]["PNMI"] == "0.300 ± 0.000"
    assert rows[1]["step / HuBERT"] == "1.30 ± 0.14" and rows[0]["step / HuBERT"] == "1.00 ± 0.00"
    assert rows[0]["hours"] == f"{50 * 9.5 / 3600:.2f} ± 0.00" and rows[2]["step s"] == "-"
    assert rows[0]["WER greedy %"] == "-" and rows[2]["WER beam %"] == "40.0 ± 0.0"
    assert rows[0]["phones %"] == "60.0 ± 0.0" and rows[1]["WER beam %"] == "30.0 ± 0.0"
    text = "\n".join(rest)
    # Student's t at one degree of freedom, 12.706, times 7.07 over the root of 2.
    assert "phones %: not better with every seed: tera (+0.0 ± 63.5)." in text
    assert "WER beam %: all better." in text and "WER greedy %" not in text


def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", RECIPE / "local/figures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "half", "mark"),
    [
        # Three seeds: Student's t at two degrees of freedom, 4.303, times 0.01 over the root of 3.
        ((0.55, 0.56, 0.57), (0.5, 0.5, 0.5), 0.06, 0.024844, ""),
        ((0.51, 0.52, 0.53), (0.5, 0.5, 0.5), 0.02, 0.024844, "‡"),
        ((0.49, 0.56, 0.63), (0.5, 0.5, 0.5), 0.06, 0.173905, "†"),
        # Paired: what seeds have in common is no spread.
        ((0.2, 0.5, 0.9), (0.1, 0.4, 0.8), 0.1, 0.0, ""),
        # One seed has no spread; equal is not better.
        ((0.6,), (0.5,), 0.1, None, "‡"),
        ((0.5,), (0.5,), 0.0, None, "†"),
        # Seeds that only one of both has say nothing.
        ((None, 0.55, 0.57, 0.99), (0.5, 0.5, 0.5, None), 0.06, 0.127060, "‡"),
    ],
)
def test_a_gain_is_sure_beyond_the_interval_over_seeds(
    ours: tuple, theirs: tuple, mean: float, half: float | None, mark: str
) -> None:
    for sign in (1, -1):
        rows = [[{"x": None if v is None else sign * v} for v in side] for side in (ours, theirs)]
        found = figures().gain(*rows, "x", sign)
        assert found.mean == pytest.approx(mean, abs=1e-9) and found.mark == mark
        assert found.half == (None if half is None else pytest.approx(half, abs=1e-5))
    assert figures().gain([{}], [{"x": 0.5}], "x", 1) is None


def test_a_gain_is_no_surer_than_the_test_utterances_allow() -> None:
    def rows(rates: tuple[float, ...], half: float) -> list[dict]:
        return [{"wer": r, "wer ci95": [r - half, r + half]} for r in rates]

    # The root of 0.03 squared and 0.04 squared, however well the seeds agree.
    for seeds, mark in (((0.42,), ""), ((0.46,), "‡"), ((0.46, 0.46, 0.46), "‡")):
        found = figures().gain(rows(seeds, 0.03), rows((0.5,) * len(seeds), 0.04), "wer", -1)
        assert found.half == pytest.approx(0.05) and found.mark == mark


def test_errors_are_compared_on_the_same_utterances(tmp_path: Path) -> None:
    """Each result's own interval is wide; one word less in every utterance is a sure gain."""
    f, found = figures(), []
    for name, fewer in (("ours", 1), ("random", 0)):
        lines = []
        for n in range(20):
            hyp = ["no"] * (2 + n % 5 - fewer) + ["yes"] * 9
            lines.append({"id": f"u{n}", "ref": " ".join(["yes"] * 9), "hyp": " ".join(hyp)})
        (tmp_path / name).mkdir()
        (tmp_path / name / "hyp.jsonl").write_text("\n".join(map(json.dumps, lines)))
        counts = f.error_counts(tmp_path / name)["wer"]
        assert counts["u7"] == (4 - fewer, 9)
        rate = sum(e for e, _ in counts.values()) / 180
        found.append({"wer": rate, "wer ci95": [0.0, 1.0], "wer by cut": counts})
    gain = f.gain(found[:1], found[1:], "wer", -1)
    assert gain.mean == pytest.approx(1 / 9) and gain.half < 1e-9 and gain.mark == ""
    assert f.error_counts(tmp_path) == {}


def test_rows_with_missing_seeds_say_so() -> None:
    f = figures()
    known = {"random": (0.5, 0.4, 0.3), "a": (0.6, None, 0.6), "b": (None,) * 3, "c": (0.1,) * 3}
    rows = {name: [{"x": v} if v is not None else {} for v in seen] for name, seen in known.items()}
    lines = f.table(rows, {"x": (100, 1)}, {"x": 1})
    assert "| a | 60.0 ± 0.0 (2 of 3) ‡ |" in lines and "| b | - |" in lines
    assert "| random | 40.0 ± 10.0 |" in lines and "| c | 10.0 ± 0.0 † |" in lines
    text = "Gain over random weights, x: not better with every seed: c (-30.0 ± 24.8); better, not "
    text += "beyond the interval: a (+20.0 ± 127.1); not known: b; with fewer seeds: a (2 of 3)."
    assert lines[-1] == text and f.LEGEND in lines
    # Random weights of the same architecture come before those of another.
    rows["random_c"] = [{"x": 0.09}] * 3
    lines = f.table(rows, {"x": (100, 1)}, {"x": 1})
    assert "| c | 10.0 ± 0.0 |" in lines and "| random_c | 9.0 ± 0.0 |" in lines
    del rows["random_c"]
    # Without random weights there is nothing to compare with.
    del rows["random"]
    assert len(f.table(rows, {"x": (100, 1)}, {"x": 1})) == 5


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_stage_runs_on_a_miniature_corpus(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("flashlight.lib.text")
    lay_out(tmp_path, "mini")
    folder = tmp_path / "egs/mini/objectives"
    done = run_recipe(
        folder / "run.sh", Path(sys.prefix),
        "--objectives", "hubert unispeech discrete_bert", "--steps", "2", "--finetune-steps", "2",
        "--hours", "0.05", "--speakers", "14", "--probe-hours", "0.03", "--probe-speakers", "12",
        "--overrides", "--data.num_workers 0 --data.batch_seconds 12",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((folder / "exp/table.json").read_text())
    assert list(rows) == ["hubert", "unispeech", "discrete_bert", *default("baselines")]
    for name, (row,) in rows.items():
        wanted = ["RankMe", "PNMI", "phones %", "speakers %", "WER greedy %", "WER beam %"]
        if name in ("hubert", "unispeech", "discrete_bert"):
            wanted += ["native loss", "step s", "step / HuBERT", "hours"]
        assert all(row[column] is not None for column in wanted), (name, row)
    assert rows["unispeech"][0]["code perplexity"] and rows["discrete_bert"][0]["code perplexity"]
    cuts = (folder / "exp/partly/train.log").read_text()
    kept, total = map(int, re.findall(r"\d+", cuts)[:2])
    assert 0 < kept < total
    assert "Phones against speakers" in (folder / "exp/seed1/report.html").read_text()
