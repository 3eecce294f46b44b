"""`speechssl topics` from units to topics that training reads and the report shows."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechssl.bin import topics
from speechssl.data.label_store import LabelStore
from speechssl.report.page import render
from speechssl.report.read import find_experiments

sys.path.insert(0, str(Path(__file__).parents[1] / "labels"))
from topic_corpus import row_of, two_worlds, write_cuts, write_store

pytest.importorskip("sklearn")


def run(*words: object) -> int:
    return topics.main([str(w) for w in words])


def fit(folder: Path, output: Path, *more: object) -> int:
    return run(
        "fit", "--labels", folder / "units", "--cuts", f"[{folder / 'cuts.jsonl.gz'}]",
        "--output", output, "--topics", 2, "--passes", 6, "--batch_documents", 32, *more,
    )  # fmt: skip


def apply(folder: Path, model: Path, output: Path, *more: object) -> int:
    return run(
        "apply", "--topics", model, "--labels", folder / "units", "--cuts",
        f"[{folder / 'cuts.jsonl.gz'}]", "--output", output, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Units of two worlds, topics of them in `model`, their labels and posteriors."""
    folder = tmp_path_factory.mktemp("world")
    _, _, worlds = two_worlds(folder)
    assert fit(folder, folder / "model") == 0
    out = folder / "model" / "labels"
    assert apply(folder, folder / "model", out, "--posteriors", folder / "posteriors") == 0
    return folder, worlds


def test_topics_of_two_worlds_are_told_and_shown(
    world: tuple[Path, dict[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, worlds = world
    store = LabelStore.open(folder / "model" / "labels")
    found = {name: store.value(name) for name in worlds}
    same = np.mean([found[n] == worlds[n] for n in worlds])
    assert max(same, 1 - same) >= 0.99 and store.classes == 2 and not store.frame_rate_hz
    info = json.loads((folder / "model" / "topics.json").read_text())
    assert store.meta["codebook_hash"] == info["topics_hash"]
    assert info["units"]["codebook_hash"] == "book of 40" and info["documents"] == 120
    report = json.loads((folder / "model" / "fit.json").read_text())
    assert sum(report["documents_of_topic"]) == 120 and not report["empty_topics"]
    assert report["coherence"] > report["coherence_baseline"] + 0.2
    assert report["topics_used"] == pytest.approx(2, abs=0.1)
    assert all(len(t["words"]) == 10 for t in report["topics"])
    assert not (folder / "model" / "state.npz").exists()
    assert not (folder / "model" / "state.json").exists()

    words = ("--topics", folder / "model" / "labels", "--cuts", f"[{folder / 'cuts.jsonl.gz'}]")
    assert run("show", *words, "--output", folder / "model" / "show.json") == 0
    out = capsys.readouterr().out
    shown = json.loads((folder / "model" / "show.json").read_text())
    rows = shown["associations"]
    assert list(rows) == ["speaker", "gender", "theme", "words"]
    assert rows["theme"]["nmi"] > 0.9 and rows["theme"]["z"] > 20
    assert rows["speaker"]["z"] > 10 and rows["speaker"]["explained"] < 0.5
    assert abs(rows["gender"]["z"]) < 4 and rows["words"]["z"] > 10
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["field", "theme"]
    first = [t["fields"]["words"][0]["value"] for t in shown["topics"]]
    assert sorted(first) == ["moon", "sun"]
    svg = (folder / "model" / "show.svg").read_text()
    assert svg.startswith("<svg xmlns=") and "theme: NMI" in svg

    page = render(find_experiments([folder / "model"]), "")
    assert "What topics tell" in page and "Documents of the topics" in page
    assert "http://" not in page
    assert run("show", *words, "--output", tmp_path / "x.json", "--fields", "[gender,mood]") == 1
    assert "no two values of mood" in capsys.readouterr().err
    assert run("show", *words, "--output", tmp_path / "w.json", "--within", "theme") == 0
    within = json.loads((tmp_path / "w.json").read_text())["associations"]
    assert abs(within["speaker"]["z"] or 0.0) < 4
    assert run("show", *words, "--output", tmp_path / "x.json", "--within", "corpus") == 1
    assert "within: found no corpus in the 120 cuts" in capsys.readouterr().err


def test_posteriors_sum_to_one_and_peak_at_the_label(world: tuple[Path, dict[str, int]]) -> None:
    folder, worlds = world
    labels = LabelStore.open(folder / "model" / "labels")
    shares = LabelStore.open(folder / "posteriors")
    assert shares.values == 2 and shares.classes == 65536 and len(shares) == 120
    for name in worlds:
        row = shares.frames(name).astype(int)
        assert abs(row.sum() - 65535) <= 1 and row.argmax() == labels.value(name)


def test_all_utterances_of_a_speaker_may_share_a_topic(
    world: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    folder, worlds = world
    assert fit(folder, tmp_path / "m", "--group", "speaker", "--min_documents", 1) == 0
    assert apply(folder, tmp_path / "m", tmp_path / "l") == 0
    store = LabelStore.open(tmp_path / "l")
    assert store.meta["group"] == "speaker" and len(store) == 120
    found = json.loads((tmp_path / "l" / "apply.json").read_text())
    assert found["documents"] == 8 and found["utterances"] == 120
    same = np.mean([store.value(n) == w for n, w in worlds.items()])
    assert same in (0.0, 1.0)
    # By themselves, with the same model.
    assert apply(folder, tmp_path / "m", tmp_path / "own", "--group", "utterance") == 0
    own = json.loads((tmp_path / "own" / "apply.json").read_text())
    assert own["documents"] == 120


def test_a_second_fit_is_free_and_one_with_other_options_is_refused(
    world: tuple[Path, dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = world
    before = (folder / "model" / "components.npy").stat().st_mtime_ns
    assert fit(folder, folder / "model") == 0
    assert (folder / "model" / "components.npy").stat().st_mtime_ns == before
    assert fit(folder, folder / "model", "--seed", 3) == 1
    assert "other options" in capsys.readouterr().err


def test_a_killed_fit_and_a_killed_apply_go_on(
    world: tuple[Path, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import speechssl.labels.topic_fit as topic_fit
    from speechssl.labels.topic_model import TopicModel

    folder, _ = world
    real = topic_fit._one_pass

    def dies(*args: Any) -> None:
        if args[-1].passes == 4:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(topic_fit, "_one_pass", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(folder, tmp_path / "m")
    assert (tmp_path / "m" / "state.npz").exists()
    monkeypatch.setattr(topic_fit, "_one_pass", real)
    # The state of other options is not gone on from.
    assert fit(folder, tmp_path / "m", "--seed", 9) == 0
    other = np.load(tmp_path / "m" / "components.npy")
    whole = np.load(folder / "model" / "components.npy")
    assert not np.array_equal(other, whole)

    posteriors, calls = TopicModel.posteriors, []

    def dies_later(self: TopicModel, *args: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return posteriors(self, *args)

    small = ("--batch_documents", 16, "--posteriors", tmp_path / "p")
    with monkeypatch.context() as patch:
        patch.setattr(TopicModel, "posteriors", dies_later)
        with pytest.raises(KeyboardInterrupt):
            apply(folder, folder / "model", tmp_path / "l", *small)
    assert apply(folder, folder / "model", tmp_path / "l", *small) == 0
    one, two = LabelStore.open(folder / "model" / "labels"), LabelStore.open(tmp_path / "l")
    assert len(two) == 120 and all(one.value(i) == two.value(i) for i in one.ids())
    rows = LabelStore.open(folder / "posteriors"), LabelStore.open(tmp_path / "p")
    assert all(np.array_equal(rows[0].frames(i), rows[1].frames(i)) for i in one.ids())


def test_units_of_another_clustering_are_refused(
    world: tuple[Path, dict[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = world
    write_store(tmp_path / "units", {"u000": np.arange(20)}, 41)
    write_cuts(tmp_path / "cuts.jsonl.gz", [row_of("u000", 20)])
    assert apply(tmp_path, folder / "model", tmp_path / "l") == 1
    assert "want those of the fit: 40 of book of 40" in capsys.readouterr().err
    assert run("show", "--topics", folder / "units", "--cuts", f"[{folder / 'cuts.jsonl.gz'}]",
               "--output", tmp_path / "s.json") == 1  # fmt: skip
    assert "topics apply" in capsys.readouterr().err
    assert run("show", "--topics", folder / "model", "--cuts", f"[{folder / 'cuts.jsonl.gz'}]",
               "--output", tmp_path / "s.json") == 1  # fmt: skip
    assert "want the output of `speechssl topics apply`" in capsys.readouterr().err
    assert run("fit", "--labels", folder / "model" / "labels", "--cuts",
               f"[{folder / 'cuts.jsonl.gz'}]", "--output", tmp_path / "m") == 1  # fmt: skip
    assert "want units per frame" in capsys.readouterr().err


def test_a_manifest_that_is_not_there_is_named(
    world: tuple[Path, dict[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = world
    labels, topics_of = ("--labels", folder / "units"), ("--topics", folder / "model" / "labels")
    for words in (("fit", *labels), ("show", *topics_of)):
        assert (
            run(*words, "--cuts", f"[{tmp_path / 'no.jsonl.gz'}]", "--output", tmp_path / "m") == 1
        )
        assert "no.jsonl.gz, want a cuts_*.jsonl.gz or a Shar folder" in capsys.readouterr().err


def test_cuts_of_a_shar_folder_are_read(world: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    folder, worlds = world
    rows = gzip.decompress((folder / "cuts.jsonl.gz").read_bytes()).splitlines(keepends=True)
    (tmp_path / "shar").mkdir()
    for number, part in enumerate((rows[:50], rows[50:])):
        with gzip.open(tmp_path / "shar" / f"cuts.{number:06d}.jsonl.gz", "wb") as file:
            file.writelines(part)
    assert run("apply", "--topics", folder / "model", "--labels", folder / "units", "--cuts",
               f"[{tmp_path / 'shar'}]", "--output", tmp_path / "l") == 0  # fmt: skip
    one, two = LabelStore.open(folder / "model" / "labels"), LabelStore.open(tmp_path / "l")
    assert len(two) == 120 and all(one.value(i) == two.value(i) for i in worlds)


@pytest.mark.parametrize(
    ("action", "option", "value"),
    [
        ("fit", "learning_offset", -3),
        ("fit", "repairs", -1),
        ("fit", "min_topic_documents", -1),
        ("apply", "batch_documents", 0),
        ("apply", "jobs", 0),
    ],
)
def test_numbers_out_of_range_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, option: str, value: int
) -> None:
    with pytest.raises(SystemExit):
        run(action, "--topics", 5, "--labels", "l", "--cuts", "[c]", "--output", tmp_path / "o",
            f"--{option}", value)  # fmt: skip
    assert f"{option}: found {float(value) if option == 'learning_offset' else value}, want" in (
        capsys.readouterr().err
    )


def test_an_utterance_without_a_known_word_gets_no_topic_and_is_named(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    units = {f"v{i}": draw.integers(0, 40, 60) for i in range(20)} | {"odd": np.array([39, 39])}
    for name in list(units)[:20]:
        units[name] = units[name] % 39
    write_store(tmp_path / "units", units, 40)
    rows = [row_of(name, len(row)) for name, row in units.items()]
    write_cuts(tmp_path / "cuts.jsonl.gz", rows)
    assert fit(tmp_path, tmp_path / "m") == 0
    assert apply(tmp_path, tmp_path / "m", tmp_path / "l") == 0
    assert "odd" not in LabelStore.open(tmp_path / "l")
    assert json.loads((tmp_path / "l" / "apply.json").read_text())["without_words"] == ["odd"]
    assert json.loads((tmp_path / "m" / "fit.json").read_text())["without_words"] == 1


def test_without_scikit_learn_it_says_what_to_install(
    world: tuple[Path, dict[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = world
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert fit(folder, tmp_path / "m") == 1
    assert "pip install 'speechssl[topics]'" in capsys.readouterr().err
    assert apply(folder, folder / "model", tmp_path / "l") == 1
    assert "found no scikit-learn" in capsys.readouterr().err


def test_actions_are_named_in_help_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0 and run("--help") == 0
    assert "fit" in capsys.readouterr().out
    assert run("fitt") == 2
    assert "found 'fitt', want one of: fit, apply, show" in capsys.readouterr().err
