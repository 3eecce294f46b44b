"""IEMOCAP: what is started for which folds, how folds are joined, and all in earnest once."""

from __future__ import annotations

import json
import re
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_copy import ROOT, RecipeCopy, run_in_earnest

from speechssl.bin import score
from speechssl.bin.finetune import FinetuneConfig
from speechssl.config import parse
from speechssl.corpora import iemocap
from speechssl.data.fields import cut_rows, field_of
from speechssl.score.regression import ccc

sys.path.append(str(Path(__file__).parents[1] / "corpora"))
from test_superb_corpora import make_iemocap

RECIPE = ROOT / "egs/iemocap/emotion"


def tool(monkeypatch: pytest.MonkeyPatch, path: Path, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [path.name, *map(str, words)])
    runpy.run_path(str(path), run_name="__main__")


def write_decoding(folder: Path, file: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / file).write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "decode.json").write_text(json.dumps({"classes": ["angry"], "head": {}}))
    return folder


def classes(fold: int, count: int, slots: bool = False) -> list[dict[str, Any]]:
    random = np.random.default_rng(fold)
    rows = []
    for i in range(count):
        ref, hyp = (str(x) for x in random.choice(["angry", "happy", "neutral", "sad"], 2))
        ref, hyp = ref, ref if i % 2 else hyp
        if slots:
            ref, hyp = ({"emotion": x, "gender": "female"} for x in (ref, hyp))
        rows.append({"id": f"{fold}-{i}", "ref": ref, "hyp": hyp})
    return rows


@pytest.mark.parametrize("slots", [False, True])
def test_folds_are_joined_and_their_figures_averaged(
    slots: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = "slots.jsonl" if slots else "predictions.jsonl"
    rows = [classes(fold, count, slots) for fold, count in ((1, 30), (2, 50))]
    folders = [write_decoding(tmp_path / f"f{i}", file, r) for i, r in enumerate(rows)]
    more = ["--slot", "emotion"] if slots else []
    given = ("--decodings", *folders, *more, "--output", tmp_path / "pooled")
    tool(monkeypatch, RECIPE / "local/pool.py", *given)
    assert score.main(["--decode", str(tmp_path / "pooled")]) == 0
    results = json.loads((tmp_path / "pooled/results.json").read_text())
    hits = [[r["ref"] == r["hyp"] for r in own] for own in rows]
    assert results["utterances"] == 80
    assert results["accuracy"] == pytest.approx(sum(map(sum, hits)) / 80)
    figures = json.loads((tmp_path / "pooled/folds.json").read_text())
    own = [statistics.mean(h) for h in hits]
    assert figures["accuracy"] == pytest.approx(own)
    assert f"{statistics.mean(own):.4f} ± {statistics.stdev(own):.4f}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="found 30 utterances in several folds"):
        tool(monkeypatch, RECIPE / "local/pool.py", "--decodings", folders[0], *given[1:])


def test_transcripts_are_joined_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word of two is right in the first fold, none in the second, whose last has no text."""
    texts = [[("a b", "A X"), ("a b", "A X")], [("a b", "X"), (None, "Y")]]
    folders = []
    for fold, pairs in enumerate(texts):
        rows = [{**row, "text": {"ref": ref, "hyp": hyp}}
                for row, (ref, hyp) in zip(classes(fold, 2), pairs, strict=True)]  # fmt: skip
        folders.append(write_decoding(tmp_path / f"f{fold}", "predictions.jsonl", rows))
    tool(monkeypatch, RECIPE / "local/pool.py", "--decodings", *folders, "--output",
         tmp_path / "pooled")  # fmt: skip
    assert json.loads((tmp_path / "pooled/folds.json").read_text())["wer"] == [0.5, 1.0]
    assert score.main(["--decode", str(tmp_path / "pooled")]) == 0
    pooled = json.loads((tmp_path / "pooled/results.json").read_text())
    assert pooled["text"]["wer"] == pytest.approx(4 / 6) and pooled["text"]["utterances"] == 3


def test_numbers_are_joined_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    truth, folders = random.uniform(1, 5, (2, 20)), []
    for fold in range(2):
        rows = [{"id": f"{fold}-{i}", "ref": {"valence": x}, "hyp": {"valence": 0.5 * x + fold}}
                for i, x in enumerate(truth[fold])]  # fmt: skip
        folders.append(write_decoding(tmp_path / f"f{fold}", "values.jsonl", rows))
    tool(monkeypatch, RECIPE / "local/pool.py", "--decodings", *folders, "--output",
         tmp_path / "pooled")  # fmt: skip
    figures = json.loads((tmp_path / "pooled/folds.json").read_text())
    assert figures["ccc_valence"] == pytest.approx(
        [ccc(truth[fold], 0.5 * truth[fold] + fold) for fold in range(2)]
    )
    assert score.main(["--decode", str(tmp_path / "pooled")]) == 0
    pooled = json.loads((tmp_path / "pooled/results.json").read_text())
    both = np.concatenate([0.5 * truth[0], 0.5 * truth[1] + 1])
    assert pooled["ccc"] == pytest.approx(ccc(truth.ravel(), both))


@pytest.mark.parametrize(("by", "count"), [("session", 5), ("speaker", 10)])
def test_no_fold_is_tested_on_speakers_that_it_trains_on(
    by: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_iemocap(tmp_path / "corpus")
    given = {"source": str(tmp_path / "corpus"), "output": str(tmp_path / "cuts")}
    cuts = iemocap.prepare(iemocap.Config(**given))["all"]
    tool(monkeypatch, ROOT / "tools/speaker_folds.py", "--cuts", cuts, "--folds", count,
         "--speaker", by, "--output", tmp_path / "folds")  # fmt: skip
    tested: list[str] = []
    for fold in range(1, count + 1):
        own = {}
        for split in ("train", "valid", "test"):
            path = tmp_path / f"folds/fold{fold}/cuts_{split}.jsonl.gz"
            own[split] = {str(field_of(r, "speaker")) for r in cut_rows([str(path)])}
        assert not own["test"] & (own["train"] | own["valid"]) and not own["train"] & own["valid"]
        assert len(own["test"]) == len(own["valid"]) == 10 // count
        tested += own["test"]
    assert len(tested) == len(set(tested)) == 10


FILLED = {
    "categorical": ["--head.classes", "[a,b,c,d]"],
    "dimensional": [f"--head.{k}=[1,2,1]" for k in ("lows", "highs", "means", "deviations")],
    "gender": ["--head.values", "[[a,b,c,d],[female,male]]"],
    "multitask": ["--head.classes=[a,b,c,d]", "--head.further_values=[[female,male]]",
                  "--head.vocab_size=28"],
}  # fmt: skip
"""What fine-tuning fills in of the cuts."""


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("task", FILLED)
def test_every_task_builds_frozen_and_tuned(task: str, tuned: bool) -> None:
    words = ["--config", str(RECIPE / f"conf/{task}.yaml"), "--output", "exp/x"]
    words += ["--config", str(ROOT / "egs/realmini/upstream/random.yaml"), *FILLED[task]]
    words += ["--config", str(RECIPE / "conf/tuned.yaml")] if tuned else []
    config = parse(FinetuneConfig, words)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    learns = {n for n, p in head.encoder.named_parameters() if p.requires_grad}
    assert bool(learns) == tuned and not any(n.startswith("front.") for n in learns)
    outputs = {"categorical": 4, "dimensional": 3, "gender": 6, "multitask": 4}
    assert head.output.out_features == outputs[task]
    if task == "multitask":
        assert head.text_output.out_features == 28 and head.text_output.in_features == 256
        assert head.further[0].out_features == 2 and config.data.untranscribed == "keep"


def test_the_published_multitask_head_is_an_override() -> None:
    """Cai et al. 2021: the last layer of a tuned encoder, no projection, no further field."""
    words = ["--config", str(RECIPE / "conf/multitask.yaml"), "--output", "exp/x"]
    words += ["--config", str(RECIPE / "conf/tuned.yaml")]
    words += ["--config", str(ROOT / "egs/realmini/upstream/random.yaml")]
    words += ["--head.classes=[a,b,c,d]", "--head.vocab_size=28"]
    text = (RECIPE / "conf/multitask.yaml").read_text().replace("\n# ", " ")
    words += re.search(r'--overrides "([^"]*)"', text)[1].split()
    config = parse(FinetuneConfig, words)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    own = {n.split(".")[0] for n, _ in head.named_parameters()} - {"encoder"}
    assert own == {"output", "text_output"} and len(head.layers) == 1
    assert head.text_output.in_features == head.output.in_features == head.encoder.dim
    assert config.head.text_weight == 0.1


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> RecipeCopy:
    folder = tmp_path_factory.mktemp("recipe")
    found = RecipeCopy(folder, "iemocap/emotion", "realmini/upstream")
    for name in ("corpus", "wavlm"):
        (found.folder / name).mkdir()
    return found


def test_each_task_reads_its_utterances_and_joins_its_folds(copy: RecipeCopy) -> None:
    words = ["--iemocap", str(copy.folder / "corpus"), "--upstream", str(copy.folder / "wavlm")]
    calls = copy.calls("iemocap/emotion", *words)
    assert "--four true" in calls[0] and "--folds 5 --speaker session" in calls[1]
    trained = [c for c in calls if "speechssl.bin.finetune" in c]
    assert len(trained) == 5 and all("tuned" not in c for c in trained)
    for fold, call in enumerate(trained, 1):
        assert f"--data.train [data/four_true/by_session/fold{fold}/cuts_train.jsonl.gz]" in call
    (pooled,) = (c for c in calls if "local/pool.py" in c)
    tests = [f"exp/categorical_by_session/wavlm/seed1/fold{i}/test" for i in range(1, 6)]
    assert f"--decodings {' '.join(tests)} --output" in pooled
    words += ["--task", "gender", "--by", "speaker", "--folds", "3 4", "--tuned", "true"]
    calls = copy.calls("iemocap/emotion", *words)
    assert sum("conf/gender.yaml --config conf/tuned.yaml" in c for c in calls) == 2
    pooled = next(c for c in calls if "local/pool.py" in c)
    assert "wavlm_tuned/seed1/fold3/test" in pooled and "--slot emotion" in pooled
    calls = copy.calls("iemocap/emotion", *words[:4], "--task", "dimensional")
    assert "--four false" in calls[0]
    calls = copy.calls("iemocap/emotion", *words[:4], "--task", "multitask")
    assert not any("--slot" in c for c in calls)
    trained = [c for c in calls if "--config conf/multitask.yaml" in c]
    assert len(trained) == 5 and all("[data/four_true/" in c for c in trained)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--iemocap", "nowhere"], "https://sail.usc.edu/iemocap/iemocap_release.htm"),
        (["--by", "chance"], "want session or speaker"),
        (["--task", "arousal"], "want categorical, dimensional, gender or multitask"),
        (["--tuned", "true"], "want an upstream that learns"),
    ],
)
def test_what_is_missing_is_named(copy: RecipeCopy, words: list[str], told: str) -> None:
    code, shown = copy.run("iemocap/emotion", *words)
    assert code == 2 and told in shown.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", FILLED)
def test_every_stage_runs_on_a_miniature(task: str, tmp_path: Path) -> None:
    make_iemocap(tmp_path / "corpus")
    # The dimensions of a miniature have to differ.
    for number, path in enumerate(sorted(tmp_path.rglob("EmoEvaluation/*.txt"))):
        lines = []
        for i, line in enumerate(path.read_text().splitlines()):
            given = f"[{1 + i % 4}.5, {1 + i // 3 % 3}.0, {1 + number}.0]"
            lines.append(line.replace("[2.5000, 2.5000, 3.0000]", given))
        path.write_text("\n".join(lines) + "\n")
    shown = run_in_earnest(
        "iemocap/emotion", "--iemocap", str(tmp_path / "corpus"), "--task", task, "--folds", "1 2",
        "--steps", "2", "--exp", str(tmp_path / "exp"), "--data", str(tmp_path / "data"),
        "--overrides", "--data.num_workers 0 --train.tensorboard false",
    )  # fmt: skip
    group = tmp_path / f"exp/{task}_by_session/logmel/seed1"
    results = json.loads((group / "pooled/results.json").read_text())
    assert results["utterances"] == (24 if task == "dimensional" else 20)
    assert ("ccc" if task == "dimensional" else "uar") in results
    if task == "multitask":
        folds = json.loads((group / "pooled/folds.json").read_text())
        # Of ten utterances of a session two are laughter alone.
        assert results["text"]["utterances"] == 16 and len(folds["wer"]) == 2
        assert results["further"]["gender"]["utterances"] == 20
    assert "mean over folds" in shown and (group / "report.html").is_file()
