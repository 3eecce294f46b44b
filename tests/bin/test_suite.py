"""`speechssl suite` on a miniature corpus: table, page, missing corpora, going on after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from test_utterance_tasks import PITCHES, tone

from speechssl.bin import energy, suite
from speechssl.bin.energy import added
from speechssl.bin.suite_cell import _pooled, figure, find_upstream
from speechssl.bin.suite_task import Fold, TaskConfig, make_cuts, read_tasks
from speechssl.data.fields import cut_rows, field_of
from speechssl.encoders.transformer import TransformerConfig
from speechssl.model_file import save_model
from speechssl.report.suite import markdown, render_suite, scores_of
from speechssl.score.aggregate import pins_of

TRAIN = {"steps": 20, "device": "cpu", "tensorboard": False, "log_every": 10, "valid_every": 10,
         "save_every": 5, "learning_rate": 1e-2}  # fmt: skip
DATA = {"batch_seconds": 5, "max_batch_seconds": 5, "min_seconds": 0.1, "max_seconds": 2,
        "num_workers": 0}  # fmt: skip


def head(name: str, **values: Any) -> dict[str, Any]:
    module = {"ClassifyConfig": "classify", "SpeakerConfig": "speaker", "CtcConfig": "asr_ctc"}
    return {"class_path": f"speechssl.heads.{module[name]}.{name}", "init_args": values}


def task(heads: dict[str, Any], metric: str, best: str, **more: Any) -> dict[str, Any]:
    scored = {"uar": "accuracy", "eer": "accuracy", "wer": "cer"}[metric]
    train = TRAIN | {"best_metric": scored, "best_is": "lowest" if scored == "cer" else "highest"}
    return {
        "about": "pitches of tones", "protocol": "speakers <never> heard", "folders": ["tiny"],
        "obtain": "make it", "prepare": "jsonl", "metric": metric, "best": best, "chance": 0.3,
        "options": {"source": "{corpora}", "only": ["tiny"]},
        "finetune": {"data": DATA, "head": heads, "train": train},
    } | more  # fmt: skip


TASKS = {
    "pitch": task(head("ClassifyConfig", field="pitch", projection_dim=8), "uar", "highest",
                  rates=[1e-6, 3e-2]),
    "folds": task(head("ClassifyConfig", field="pitch", projection_dim=8), "uar", "highest",
                  split={"kind": "folds", "folds": 3, "run": [1, 3], "balance": ["gender"]},
                  also=["accuracy", "no.such"]),
    "speakers": task(head("SpeakerConfig", network="pooled", embedding_dim=8, attention_dim=4),
                     "eer", "lowest",
                     split={"kind": "verification", "test": ["valid", "test"],
                            "same": ["gender"], "share": 0.2}),
    "letters": task(head("CtcConfig", freeze_encoder_steps=-1, mask_probability=0.0), "wer",
                    "lowest", split={"fraction": 0.5}),
    "whales": task(head("ClassifyConfig", field="pitch"), "uar", "highest", folders=["whales"],
                   obtain="whales are at https://example.org/whales"),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "tiny" / "audio").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = []
    for who in range(9):
        split = ["train", "train", "train", "train", "train", "valid", "valid", "test", "test"][who]
        for take, pitch in enumerate([*PITCHES, *PITCHES]):
            name = f"{who}-{take}"
            path = folder / "tiny" / "audio" / f"{name}.wav"
            soundfile.write(path, tone(PITCHES[pitch], 0.1 * who, random), 16000)
            row = {"id": name, "audio": f"audio/{name}.wav", "split": split, "speaker": f"s{who}",
                   "gender": "f", "pitch": pitch, "text": pitch[0].upper()}  # fmt: skip
            rows.append(json.dumps(row) + "\n")
    (folder / "tiny" / "manifest.jsonl").write_text("".join(rows))
    (folder / "tasks").mkdir()
    for name, values in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    config = TransformerConfig(
        front_end="log_mel", front_norm="layer", front_dim=16, layers=2, dim=16, ffn_dim=16,
        heads=2, pos_conv_kernel=8, pos_conv_groups=2,
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(folder / "encoder", config, config.build().state_dict())
    return folder


def words(corpora: Path, output: Path, *more: str) -> list[str]:
    return ["--tasks", str(corpora / "tasks"), "--corpora", str(corpora), "--output", str(output),
            "--energy", "none", *more]  # fmt: skip


@pytest.fixture(scope="module")
def done(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("suite")
    upstreams = f"[logmel,small={corpora / 'encoder'}]"
    assert suite.main(words(corpora, output, "--upstreams", upstreams)) == 0
    return output


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / "suite.json").read_text())


def test_every_upstream_is_scored_on_every_task_whose_corpus_is_there(done: Path) -> None:
    found = read(done)
    cells = {(c["upstream"], c["task"]): c for c in found["cells"]}
    names = ["folds", "letters", "pitch", "speakers"]
    assert sorted(cells) == sorted((u, t) for u in ("logmel", "small") for t in names)
    assert list(found["missing"]) == ["whales"] and not found["failed"]
    assert "https://example.org/whales" in found["missing"]["whales"]
    pitch = cells["small", "pitch"]
    assert cells["logmel", "pitch"]["learning_rates"] == [3e-2]
    assert cells["logmel", "pitch"]["score"] > 0.9 and pitch["scored"] == 12
    assert set(pitch["sweeps"][0]) == {"1e-06", "0.03"}
    assert len(pitch["layer_weights"]) == 3 and sum(pitch["layer_weights"]) == pytest.approx(1)
    assert pitch["trained_parameters"] == 3 + 17 * 8 + 9 * 3
    assert pitch["encoder_parameters"] > 0 == cells["logmel", "pitch"]["encoder_parameters"]
    folds = cells["logmel", "folds"]
    assert folds["scored"] == 36 and folds["folds"] == 2 and len(folds["fold_scores"]) == 2
    assert folds["also"] == {"accuracy": pytest.approx(folds["score"]), "no.such": None}
    assert len(cells["small", "letters"]["layer_weights"]) == 0
    assert cells["small", "speakers"]["cost"]["cpu_s"] > 0
    assert "energy_kwh" not in cells["small", "speakers"]["cost"]
    # Trials are of the other speakers alone; features are gone when they are not needed.
    trials = (done / "data/speakers/fold1/trials.txt").read_text().split()
    assert {t.split("-")[1] for t in trials if t.startswith("tiny-")} == {"5", "6", "7", "8"}
    assert not list((done / "features").iterdir())


def test_the_table_and_the_page(corpora: Path, done: Path) -> None:
    table = (done / "table.md").read_text()
    assert "| logmel | 0 |" in table and "pitch, UAR % ↑" in table and "speakers, EER % ↓" in table
    assert "whales are at" in table and "| chance |" in table and table.count("**") >= 8
    page = (done / "index.html").read_text()
    assert "speakers &lt;never&gt; heard" in page and "weights of layers" in page
    # Refers to nothing outside itself.
    assert "src=" not in page and set(re.findall(r'href="([^"]*)"', page)) == {
        f"#task{i}" for i in range(4)
    }
    assert str(corpora / "encoder") in page  # what the row `small` is
    assert f"{os.cpu_count()} cores" in page
    assert "Validation: accuracy of each learning rate" in page


def test_what_is_done_is_not_done_again_and_a_seed_adds_to_it(
    corpora: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechssl.train.trainer import Trainer

    updates: list[int] = []
    update = Trainer._update
    monkeypatch.setattr(Trainer, "_update", lambda *a: updates.append(1) or update(*a))
    before = read(done)["cells"]
    upstreams = ("--upstreams", f"[logmel,small={corpora / 'encoder'}]")
    assert suite.main(words(corpora, done, *upstreams)) == 0
    assert read(done)["cells"] == before and not updates
    more = ("--upstreams", "[logmel]", "--only", "[letters]", "--seeds", "[1,2]")
    assert suite.main(words(corpora, done, *more)) == 0
    assert len(updates) == 20 and [c["seed"] for c in read(done)["cells"]] == [1, 2]
    assert "±" in (done / "table.md").read_text()


def test_other_options_in_the_same_folder_are_refused(
    corpora: Path, done: Path, capsys: Any
) -> None:
    more = ("--upstreams", "[logmel]", "--only", "[letters]", "--steps", "5")
    assert suite.main(words(corpora, done, *more)) == 1
    assert "of other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--upstreams", "[nowhere]"], "NAME="),
        (["--upstreams", "[a/b=logmel]"], "'a/b'"),
        (["--upstreams", "[logmel,logmel]"], "one name twice"),
        (["--upstreams", "[logmel]", "--only", "[knitting]"], "want knitting"),
        (["--upstreams", "[logmel]", "--pins", "nowhere.yaml"], "no file nowhere.yaml"),
    ],
)
def test_mistakes_are_named(
    corpora: Path, tmp_path: Path, capsys: Any, more: list[str], message: str
) -> None:
    assert suite.main(words(corpora, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_a_task_with_an_unknown_field_is_refused(
    corpora: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(TASKS["pitch"] | {"metrik": "uar"}))
    assert suite.main([*words(corpora, tmp_path, "--upstreams", "[logmel]"), "--tasks",
                       str(tmp_path)]) == 2  # fmt: skip
    assert "x.yaml" in (shown := capsys.readouterr().err) and "metrik" in shown


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"finetune": TASKS["pitch"]["finetune"] | {"data": DATA | {"batch_secs": 3}}},
         "batch_secs"),
        ({"decode": {"medium": 3}}, "medium"),
        ({"score": ["--togs", "true"]}, "--togs"),
        ({"prepare": "jsonll"}, "jsonll"),
        ({"options": {"source": "{corpora}", "onyl": ["tiny"]}}, "onyl"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_task_ends_it_before_it_starts(
    corpora: Path, tmp_path: Path, capsys: Any, changed: dict[str, Any], names: str
) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(TASKS["pitch"] | changed))
    given = [*words(corpora, tmp_path / "out", "--upstreams", "[logmel]"), "--tasks", str(tmp_path)]
    try:
        status = suite.main(given)
    except SystemExit as stopped:
        status = stopped.code
    shown = capsys.readouterr().err
    assert status == 2 and "task x" in shown and names in shown
    assert not (tmp_path / "out").exists()


def test_whatever_breaks_in_one_cell_the_others_run_on(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from speechssl.bin import finetune

    run = finetune.run

    def out_of_memory(config: Any) -> int:
        if "letters" in config.output:
            raise RuntimeError("out of memory")
        return run(config)

    monkeypatch.setattr(finetune, "run", out_of_memory)
    more = ("--upstreams", "[logmel]", "--only", "[letters,pitch]", "--rates", "[0.03]")
    assert suite.main(words(corpora, tmp_path, *more)) == 1
    found = read(tmp_path)
    assert [c["task"] for c in found["cells"]] == ["pitch"]
    assert found["failed"] == {"logmel, letters, seed 1": "RuntimeError: out of memory"}
    assert "Traceback" in capsys.readouterr().err


def test_without_a_validation_split_a_share_of_the_training_cuts_validates(
    corpora: Path, tmp_path: Path
) -> None:
    values = TASKS["pitch"] | {"split": {"valid": [], "field": "pitch", "share": 0.2}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
    task = read_tasks(tmp_path, [])["x"]
    (fold,) = make_cuts(task, str(corpora), tmp_path / "data")
    parts = {s: list(cut_rows([getattr(fold, s)])) for s in ("train", "valid", "test")}
    assert {s: len(x) for s, x in parts.items()} == {"train": 24, "valid": 6, "test": 12}
    ids = [{r["id"] for r in x} for x in parts.values()]
    assert not (ids[0] & ids[1] or ids[2] & (ids[0] | ids[1]))
    assert {field_of(r, "pitch") for r in parts["valid"]} == set(PITCHES)
    # Splits of other options are gone: folds would take them too.
    (tmp_path / "data/all/cuts_old.jsonl.gz").write_bytes(b"")
    folded = dataclasses.replace(task.split, kind="folds", field="speaker", folds=3)
    assert len(make_cuts(dataclasses.replace(task, split=folded), str(corpora),
                         tmp_path / "data")) == 3  # fmt: skip


def test_trials_that_are_not_there_are_missed_before_anything_is_trained(
    corpora: Path, tmp_path: Path
) -> None:
    split = TASKS["speakers"]["split"] | {"trials": "{corpora}/tiny/trials.txt"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(TASKS["speakers"] | {"split": split}))
    task = read_tasks(tmp_path, [])["x"]
    with pytest.raises(ValueError, match=r"tiny/trials.txt, want it; make it"):
        make_cuts(task, str(corpora), tmp_path / "data")


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "lr=1e-3").mkdir()
    for text, name in ((f"{tmp_path}/lr=1e-3", "lr=1e-3"), (f"it={tmp_path}/lr=1e-3", "it")):
        found = find_upstream(text)
        assert found.name == name and found.arguments == ("--init", f"{tmp_path}/lr=1e-3")


@pytest.fixture
def stopped(corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite of one task, killed at the end of its sweep: the model is there, sweep.json says
    nothing yet of the rate that was chosen."""
    from speechssl.bin import sweep

    write = sweep._write

    def killed(path: Path, config: Any, rows: Any, chosen: float | None) -> None:
        if chosen is not None:
            raise KeyboardInterrupt
        write(path, config, rows, chosen)

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "_write", killed)
        more = ("--upstreams", "[logmel]", "--only", "[pitch]", "--rates", "[0.01,0.03]")
        with pytest.raises(KeyboardInterrupt):
            suite.main(words(corpora, tmp_path, *more))
    return tmp_path


def test_killed_between_model_and_chosen_rate_it_goes_on(corpora: Path, stopped: Path) -> None:
    assert (stopped / "runs/logmel/pitch/seed1/fold1/run/model.json").is_file()
    more = ("--upstreams", "[logmel]", "--only", "[pitch]", "--rates", "[0.01,0.03]")
    assert suite.main(words(corpora, stopped, *more)) == 0
    (cell,) = read(stopped)["cells"]
    assert cell["learning_rates"][0] in (0.01, 0.03)


def test_what_a_killed_run_cost_is_not_taken_for_nothing(corpora: Path, stopped: Path) -> None:
    path = stopped / "runs/logmel/pitch/seed1/cell.json"
    cell = json.loads(path.read_text())
    assert cell["cost"]["cpu_s"] > 0 and "under_way" not in cell
    path.write_text(json.dumps(cell | {"under_way": 1}))  # as SIGKILL leaves it
    more = ("--upstreams", "[logmel]", "--only", "[pitch]")
    assert suite.main(words(corpora, stopped, *more, "--rates", "[0.03]")) == 1  # other options
    assert suite.main(words(corpora, stopped, *more, "--rates", "[0.01,0.03]")) == 0
    assert read(stopped)["cells"][0]["kills"] == 1
    assert "at least" in (stopped / "index.html").read_text()


def test_folds_of_numbers_and_of_slots_are_pooled_as_the_task_is_scored(tmp_path: Path) -> None:
    task = TaskConfig(
        about="", protocol="", folders=[], obtain="", prepare="jsonl", metric="slots.slot_f1",
        best="highest", score=["--tags", "true"],
    )  # fmt: skip
    texts = {1: "<A> x </A>", 2: "<A> y </A>"}
    for fold, text in texts.items():
        test = tmp_path / "texts" / f"fold{fold}" / "test"
        test.mkdir(parents=True)
        row = {"id": f"u{fold}", "ref": text, "hyp": texts[1], "duration": 1.0, "speaker": None}
        (test / "hyp.jsonl").write_text(json.dumps(row) + "\n")
        (test / "decode.json").write_text("{}")
    folds = [Fold(fold, "", "", "") for fold in texts]
    pooled = _pooled(task, folds, tmp_path / "texts")
    assert figure(pooled, "slots.slot_f1") == 0.5 and figure(pooled, "slots") is None
    for fold in texts:
        test = tmp_path / "numbers" / f"fold{fold}" / "test"
        test.mkdir(parents=True)
        rows = [{"id": f"{fold}{i}", "ref": {"x": fold + i}, "hyp": {"x": fold + i}}
                for i in range(3)]  # fmt: skip
        (test / "values.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (test / "decode.json").write_text("{}")
    plain = dataclasses.replace(task, score=[])
    assert figure(_pooled(plain, folds, tmp_path / "numbers"), "ccc") == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_it_goes_on_to_the_same_scores(corpora: Path, done: Path, tmp_path: Path) -> None:
    more = ("--upstreams", "[logmel]", "--only", "[pitch,letters]")
    command = [sys.executable, "-m", "speechssl", "suite", *words(corpora, tmp_path, *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for mark in (
        "pitch/seed1/fold1/run/sweep/rate_0.03/checkpoints/step_10",
        "pitch/seed1/cell.json",
    ):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while not (tmp_path / "runs/logmel" / mark).exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert suite.main(command[4:]) == 0
    whole = {c["task"]: c for c in read(done)["cells"] if c["upstream"] == "logmel"}
    if "pitch" not in whole:  # another test has asked for fewer tasks since
        assert suite.main(words(corpora, done, *more)) == 0
        whole = {c["task"]: c for c in read(done)["cells"]}
    for cell in read(tmp_path)["cells"]:
        for name in ("score", "ci95", "sweeps", "layer_weights", "learning_rates"):
            assert cell[name] == whole[cell["task"]][name], name


def test_costs_add_up_and_energy_only_of_one_kind() -> None:
    one = {"wall_s": 1.0, "cpu_s": 2.0, "energy_kwh": 3.0, "energy_how": "measured"}
    assert added({}, one) == one
    assert added(one, one) == {"wall_s": 2.0, "cpu_s": 4.0, "energy_kwh": 6.0,
                               "energy_how": "measured"}  # fmt: skip
    assert added(one, {"wall_s": 1.0, "cpu_s": 1.0}) == {"wall_s": 2.0, "cpu_s": 3.0}


def test_an_estimate_of_a_processor_is_none_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = energy.Meter("auto", watts_per_core=10)
    monkeypatch.setattr(meter, "installed", False)
    for name, how in (("", "W per busy core"), ("Some GPU", "core, without the GPU")):
        monkeypatch.setattr(energy, "_gpu_name", lambda name=name: name)
        with meter:
            sum(range(10_000))
        assert meter.cost["energy_how"].endswith(how)
        assert meter.cost["energy_kwh"] == pytest.approx(meter.cost["cpu_s"] * 10 / 3.6e6)
        assert energy.machine().endswith(name or " cores")


def test_means_and_the_best_of_a_column() -> None:
    task = {"metric": "wer", "best": "lowest", "chance": None, "about": "", "protocol": ""}
    cell = {"task": "t", "ci95": None, "encoder_parameters": 1000, "sweeps": [], "head": "h",
            "steps": 1, "learning_rates": [0.1], "trained_parameters": 5, "scored": 7, "folds": 1,
            "layer_weights": [], "cost": {"wall_s": 1, "cpu_s": 1}}  # fmt: skip
    scores = {"a": (0.1, 0.3), "b": (0.25, 0.35)}
    cells = [
        cell | {"upstream": u, "seed": i, "score": s}
        for u, own in scores.items()
        for i, s in enumerate(own)
    ]
    values = {"cells": cells, "upstreams": ["a", "b", "c"], "tasks": {"t": task}, "missing": {},
              "failed": {"b, u": "<burst>"}, "options": {"seeds": [0, 1]}, "made": ""}  # fmt: skip
    assert "| a | 1,000 | **20.00 ± 14.14** |\n| b | 1,000 | 30.00 ± 7.07 |\n" in markdown(values)
    assert "&lt;burst&gt;" in render_suite(values)
    pins = pins_of({"name": "<p>", "about": "x|y", "tasks": {"t": {"wer": [0.4, 0.2]},
                    "u": {"wer": [1, 0]}}})  # fmt: skip
    values["tasks"]["t"] = task | {"also": []}
    values |= {"pins": dataclasses.asdict(pins), "scores": scores_of(values, pins)}
    assert values["scores"]["b"] == {"score": pytest.approx(500), "tasks": ["t"]}
    assert "| a | 1,000 | 1000 (1 of 2 tasks) | **20.00" in markdown(values)
    assert "&lt;p&gt;" in render_suite(values) and "500 (1 of 2 tasks)" in render_suite(values)
