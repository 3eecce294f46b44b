"""A class with transcripts and a further field, from cuts to scores, by the programs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_utterance_ranks import torchrun
from test_utterance_tasks import config, decoded, write_cuts

from speechssl.bin import finetune, score
from speechssl.bin.utterance_labels import with_targets
from speechssl.data.config import DataConfig
from speechssl.data.label_store import LabelStore
from speechssl.heads.multitask import MultitaskConfig
from speechssl.model_file import open_model

HEAD: dict[str, Any] = {
    "class_path": "speechssl.heads.multitask.MultitaskConfig",
    "init_args": {"field": "pitch", "projection_dim": 16, "pooling": "mean_std",
                  "further": ["loud"], "further_weights": [0.3]},
}  # fmt: skip


def rewrite(path: str, changes: list[dict[str, Any] | None]) -> None:
    """Change the supervision of each cut, in turn; None takes its fields away."""
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    for i, row in enumerate(rows):
        own = changes[i % len(changes)]
        if own is None:
            row["supervisions"][0].pop("custom")
            continue
        custom = row["supervisions"][0]["custom"] | own.get("custom", {})
        row["supervisions"][0] |= {**own, "custom": custom}
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of a pitch is a letter; one cut of seven has no class and no further field, and
    another no transcript."""
    folder = tmp_path_factory.mktemp("corpus")
    found = {}
    for split, count in (("train", 42), ("valid", 12), ("test", 12)):
        found[split] = write_cuts(folder, split, [0, 3], count)
        texts = ["a", "b", "c"]  # as the pitches, in turn
        rows: list[dict[str, Any] | None] = [
            {"text": texts[i % 3], "custom": {"loud": "yn"[i % 2]}} for i in range(count)
        ]
        if split != "test":
            rows[0] = None
            rows[1] = {"custom": {"loud": "n"}}
        rewrite(found[split], rows)
    return found


@pytest.fixture(scope="module")
def model(corpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    words = config(corpus, folder, HEAD)
    more = ["--data.untranscribed", "keep", "--head.text_weight", "1.0"]
    assert finetune.main([*words, *more]) == 0
    return folder / "run"


def test_all_tasks_are_learnt_decoded_and_scored(
    corpus: dict[str, str], model: Path, tmp_path: Path, capsys: Any
) -> None:
    head = open_model(model).head
    assert head.config.classes == ["high", "low", "middle"]
    assert head.config.class_counts == [14, 13, 14] and head.config.vocab_size == 5
    assert head.config.further_values == [["n", "y"]]
    lines = [json.loads(x) for x in (model / "metrics.jsonl").read_text().splitlines()]
    assert not (model / "skipped.txt").is_file()
    valid = [x for x in lines if x["split"] == "valid"]
    assert {"nats", "accuracy", "balanced_accuracy", "accuracy_loud", "ctc_nats", "cer"} <= set(
        valid[-1]
    )
    assert valid[-1]["ctc_nats"] < 0.7 * valid[0]["ctc_nats"] and valid[-1]["cer"] < 0.6
    folder = decoded(model, corpus["test"], tmp_path)
    rows = [json.loads(x) for x in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [r["text"]["ref"] for r in rows] == list("abc") * 4
    assert [r["further"]["loud"]["ref"] for r in rows] == list("yn") * 6
    assert all(sum(r["probabilities"].values()) == pytest.approx(1, abs=1e-4) for r in rows)
    capsys.readouterr()
    assert score.main(["--decode", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    right = sum(r["text"]["hyp"].lower() == r["text"]["ref"] for r in rows)
    assert results["uar"] == 1.0 and results["accuracy"] == results["macro_f1"] == 1.0
    assert results["text"]["words"] == 12 and results["text"]["wer"] == pytest.approx(
        1 - right / 12
    )
    # The letter that only the pitch tells, or none: alike frames may all be blank.
    assert all(set(r["text"]["hyp"].lower()) <= {r["text"]["ref"]} for r in rows) and right >= 6
    hits = sum(r["further"]["loud"]["hyp"] == r["further"]["loud"]["ref"] for r in rows)
    assert results["further"]["loud"]["accuracy"] == pytest.approx(hits / 12)
    shown = capsys.readouterr().out
    assert "transcripts: WER" in shown and "loud: UAR" in shown


def test_batching_does_not_change_what_is_answered(
    corpus: dict[str, str], model: Path, tmp_path: Path
) -> None:
    found = []
    for name, seconds in (("a", "0.1"), ("b", "120")):
        folder = decoded(model, corpus["test"], tmp_path / name, "--max_batch_seconds", seconds)
        found.append([json.loads(x) for x in (folder / "predictions.jsonl").open()])
    for one, other in zip(*found, strict=True):
        assert {k: one[k] for k in ("id", "hyp", "text", "further")} == {
            k: other[k] for k in ("id", "hyp", "text", "further")
        }


def test_cuts_without_references_are_decoded_and_left_out_of_scores(
    corpus: dict[str, str], model: Path, tmp_path: Path
) -> None:
    cuts = write_cuts(tmp_path, "some", [0], 6)
    rewrite(cuts, [{"text": "a"}, {}, {}])
    folder = decoded(model, cuts, tmp_path / "out")
    assert score.main(["--decode", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["text"]["utterances"] == 2 and "further" not in results
    assert results["utterances"] == 6
    rewrite(cuts, [{"text": None}])
    folder = decoded(model, cuts, tmp_path / "none")
    assert score.main(["--decode", str(folder)]) == 0
    assert "text" not in json.loads((folder / "results.json").read_text())


def test_without_transcripts_no_tokenizer_is_made_and_features_may_be_kept(
    corpus: dict[str, str], tmp_path: Path
) -> None:
    head = {**HEAD, "init_args": HEAD["init_args"] | {"text_weight": 0.0}}
    words = config(corpus, tmp_path, head, steps=2, valid_every=2, save_every=2)
    assert finetune.main([*words, "--data.speeds", "[]", "--cache", str(tmp_path / "c")]) == 0
    assert not (tmp_path / "run/tokenizer.json").exists()
    folder = decoded(tmp_path / "run", corpus["test"], tmp_path / "test")
    row = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    assert "text" not in row and row["further"]["loud"]["hyp"] in "yn"


def test_kept_features_teach_as_the_encoder_itself(corpus: dict[str, str], tmp_path: Path) -> None:
    states = []
    for more in ([], ["--cache", str(tmp_path / "cache")]):
        folder = tmp_path / str(len(more))
        folder.mkdir()
        words = config(corpus, folder, HEAD, steps=3, valid_every=3, save_every=3)
        given = ["--data.speeds", "[]", "--data.untranscribed", "keep"]
        assert finetune.main([*words, *given, *more]) == 0
        states.append(open_model(folder / "run").head.state_dict())
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][name], atol=1e-5), name


def test_fields_of_the_training_cuts_become_places(tmp_path: Path) -> None:
    def cuts(name: str, customs: list[dict[str, Any]]) -> str:
        path = tmp_path / f"cuts_{name}.jsonl.gz"
        with gzip.open(path, "wt") as out:
            for i, custom in enumerate(customs):
                cut = {"id": f"{name}{i}", "supervisions": [{"custom": custom}]}
                out.write(json.dumps(cut) + "\n")
        return str(path)

    train = cuts("t", [{"e": "sad", "who": "p"}, {"e": "glad", "who": "q"}, {"who": "q"}, {}])
    valid = cuts("v", [{"e": "glad", "who": "new"}])
    data = DataConfig(train=[train], valid=[valid])
    config = MultitaskConfig(field="e", further=["who"])
    for _ in range(2):  # a resumed run keeps the store
        filled, head = with_targets(str(tmp_path / "run"), data, config)
    assert head.classes == ["glad", "sad"] and head.class_counts == [1, 1]
    assert head.further_values == [["p", "q"]]
    store = LabelStore.open(filled.classes)
    found = {i: store.frames(i).tolist() for i in ("t0", "t1", "t2", "t3", "v0")}
    # One behind the last is none; so is a further value that training never showed.
    assert found == {"t0": [1, 0], "t1": [0, 1], "t2": [2, 1], "t3": [2, 2], "v0": [0, 2]}
    wrong = DataConfig(train=[train], valid=[cuts("w", [{"e": "odd"}])])
    for given, told in (
        ((wrong, config), "e: found odd"),
        ((data, MultitaskConfig(field="e", further=["x"])), r"\['x'\] in no training cut"),
        ((data, MultitaskConfig(field="")), "head.field"),
        ((DataConfig(train=[train], classes="x"), config), "data.classes"),
        ((data, MultitaskConfig(field="e", classes=["sad", "bad"])), "e: found glad"),
    ):
        with pytest.raises(ValueError, match=told):
            with_targets(str(tmp_path / "x"), *given)


def test_a_tokenizer_without_permission_says_how_to_keep_cuts_without_text(
    corpus: dict[str, str], tmp_path: Path
) -> None:
    words = config(corpus, tmp_path, HEAD, steps=2, valid_every=2, save_every=2)
    assert finetune.main([*words, "--data.max_unreadable", "1.0"]) == 0
    told = (tmp_path / "run/skipped.txt").read_text()
    assert "data.untranscribed: keep" in told


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_learn_and_answer_as_one(corpus: dict[str, str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    more = ["--data.untranscribed", "keep", "--data.num_workers", "0"]
    words = {
        n: config(corpus, tmp_path / n, HEAD, steps=6, valid_every=3) + more for n in ("one", "two")
    }
    assert finetune.main(words["one"]) == 0
    torchrun("finetune", *words["two"])
    one, two = (open_model(tmp_path / n / "run").head.state_dict() for n in ("one", "two"))
    assert one.keys() == two.keys()
    for k in one:
        assert (one[k].double() - two[k].double()).abs().max() < 1e-4, k
    lines = [
        [json.loads(x) for x in (tmp_path / n / "run/metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    for a, b in zip(*lines, strict=True):
        for name in ("nats", "accuracy", "nats_loud", "ctc_nats", "unalignable", "cer"):
            assert (name in a) == (name in b)
            assert name not in a or a[name] == pytest.approx(b[name], rel=1e-3)
    given = ["--model", str(tmp_path / "one/run"), "--cuts", corpus["test"], "--device", "cpu",
             "--max_batch_seconds", "1", "--output", str(tmp_path / "b")]  # fmt: skip
    folder = decoded(tmp_path / "one/run", corpus["test"], tmp_path / "a")
    torchrun("decode", *given)
    rows = [[json.loads(x) for x in (d / "predictions.jsonl").open()]
            for d in (folder, tmp_path / "b")]  # fmt: skip
    for a, b in zip(*rows, strict=True):
        for name in ("id", "hyp", "text", "further"):
            assert a[name] == b[name]
