"""The tools that make conversations, mixtures and texts of cuts."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.data.fields import cut_rows, field_of
from speechssl.data.label_store import LabelStore

ROOT = Path(__file__).parents[2]


def tool(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")


def corpus(folder: Path, name: str, speakers: int, custom: dict[str, Any] | None = None) -> Path:
    """Two noises per speaker, between 0.1 s of near silence at both ends."""
    random = np.random.default_rng(len(name))
    writer = JsonlWriter(folder / f"{name}.jsonl.gz")
    for i in range(2 * speakers):
        loud = 0.1 * random.standard_normal(random.integers(6400, 9600))
        wave = np.concatenate([1e-4 * random.standard_normal(1600), loud, np.zeros(1600)])
        path = folder / f"{name}{i}.flac"
        soundfile.write(path, wave, 16000)
        header, who = read_header(path), f"s{i // 2}"
        writer.write(cut_row(id=f"{name}{i}", audio=path, header=header, speaker=who, text="x",
                             custom=custom))  # fmt: skip
    writer.close()
    return folder / f"{name}.jsonl.gz"


def test_conversations_and_their_labels_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = corpus(tmp_path, "talk", 3)
    for folder in ("a", "b"):
        tool(monkeypatch, "make_dialogues.py", "--cuts", cuts, "--number", 6, "--overlap", 0.8,
             "--output", tmp_path / folder / "c",
             "--labels", tmp_path / folder / "labels")  # fmt: skip
    store = LabelStore.open(tmp_path / "a/labels")
    rows = list(cut_rows([str(tmp_path / "a/c/cuts.jsonl.gz")]))
    assert len(rows) == len(store) == 6 and store.classes == 4
    both = 0
    for row in rows:
        wave, rate = soundfile.read(row["recording"]["sources"][0]["source"])
        again = Path(str(row["recording"]["sources"][0]["source"]).replace("/a/c/", "/b/c/"))
        assert (
            rate == 16000
            and again.read_bytes() == (tmp_path / "a/c/audio" / again.name).read_bytes()
        )
        turns = row["supervisions"]
        names = list(dict.fromkeys(s["speaker"] for s in turns))
        assert len(names) == 2 and 4 <= len(turns) <= 8
        active = np.zeros((2, -(-len(wave) // 160)), dtype=bool)
        for s in turns:
            begin, end = round(16000 * s["start"]), round(16000 * (s["start"] + s["duration"]))
            assert begin % 160 == end % 160 == 0
            own = active[names.index(s["speaker"]), begin // 160 : end // 160]
            assert not own.any()  # nobody talks over themselves
            own[:] = True
            assert end <= len(wave) and np.square(wave[begin:end]).mean() > 1e-5
        labels = store.frames(row["id"])
        assert labels.tolist() == (active[0] + 2 * active[1]).tolist()
        silent = np.repeat(labels == 0, 160)[: len(wave)]
        assert np.abs(wave[silent]).max(initial=0) < 1e-4
        both += int((labels == 3).sum())
    assert both > 0


@pytest.mark.parametrize("noise", [True, False])
def test_mixtures_are_the_sum_of_their_sources(
    noise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts, more = corpus(tmp_path, "talk", 3), corpus(tmp_path, "noises", 2)
    words = ["--noise", more] if noise else []
    tool(monkeypatch, "make_mixtures.py", "--cuts", cuts, *words, "--number", 5, "--ratio-db", 0, 5,
         "--output", tmp_path / "out")  # fmt: skip
    rows = list(cut_rows([str(tmp_path / "out/cuts.jsonl.gz")]))
    assert len(rows) == 5
    speakers = {r["id"]: field_of(r, "speaker") for r in cut_rows([str(cuts)])}
    for row in rows:
        custom = row["supervisions"][0]["custom"]
        mixed = soundfile.read(row["recording"]["sources"][0]["source"])[0]
        waves = [soundfile.read(path)[0] for path in custom["sources"]]
        assert len(waves) == (1 if noise else 2) and 0 <= custom["ratio_db"] <= 5
        added = mixed - waves[0] if noise else waves[1]
        assert np.abs(mixed - waves[0] - added).max() < 1e-4
        ratio_db = 10 * np.log10(np.square(waves[0]).mean() / np.square(added).mean())
        assert ratio_db == pytest.approx(custom["ratio_db"], abs=0.05)
        if not noise:
            assert speakers[custom["of"][0]] != speakers[custom["of"][1]]


def test_a_babble_is_the_sum_of_several_as_loud_as_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone's own part is found in it by projection: independent noises are near orthogonal."""
    cuts, more = corpus(tmp_path, "talk", 2), corpus(tmp_path, "noises", 4)
    for name, number in (("a/out", 9), ("b/out", 9), ("c/out", 4)):
        tool(monkeypatch, "make_mixtures.py", "--cuts", cuts, "--noise", more, "--number", number,
             "--noise-count", 2, 5, "--ratio-db", 13, 20,
             "--output", tmp_path / name)  # fmt: skip
    noises = {r["id"]: soundfile.read(r["recording"]["sources"][0]["source"])[0]
              for r in cut_rows([str(more)])}  # fmt: skip
    numbers = set()
    for row in cut_rows([str(tmp_path / "a/out/cuts.jsonl.gz")]):
        custom = row["supervisions"][0]["custom"]
        names, path = custom["of"][1:], row["recording"]["sources"][0]["source"]
        mixed, clean = soundfile.read(path)[0], soundfile.read(custom["sources"][0])[0]
        added = mixed - clean
        ratio_db = 10 * np.log10(np.square(clean).mean() / np.square(added).mean())
        assert ratio_db == pytest.approx(custom["ratio_db"], abs=0.05) and 13 <= ratio_db <= 20
        assert len(set(names)) == len(names)
        shares = []
        for name in noises:
            tracks = np.correlate(np.pad(added, len(noises[name])), noises[name], "valid")
            shares.append(np.abs(tracks).max() / np.linalg.norm(noises[name]))
        there = np.array([n in names for n in noises])
        own, others = np.array(shares)[there], np.array(shares)[~there]
        equal = np.linalg.norm(added) / np.sqrt(len(names))
        assert own.min() > 0.7 * equal and own.max() < 1.3 * equal and others.max() < 0.5 * equal
        numbers.add(len(names))
        again = Path(path.replace("/a/out/", "/b/out/"))
        assert again.read_bytes() == Path(path).read_bytes()
    assert len(numbers) > 2 and numbers <= {2, 3, 4, 5}
    # Fewer mixtures are the first of more.
    fewer = sorted((tmp_path / "c/out/mixed").iterdir())
    assert len(fewer) == 4
    assert all(p.read_bytes() == (tmp_path / "a/out/mixed" / p.name).read_bytes() for p in fewer)


def test_silence_is_no_noise_and_wrong_numbers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts, more = corpus(tmp_path, "talk", 1), corpus(tmp_path, "noises", 1)
    silent = corpus(tmp_path, "silent", 1)
    for row in cut_rows([str(silent)]):
        size = row["recording"]["num_samples"]
        soundfile.write(row["recording"]["sources"][0]["source"], np.zeros(size), 16000)
    words = ["make_mixtures.py", "--cuts", cuts, "--number", 8, "--output", tmp_path / "out"]
    tool(monkeypatch, *words, "--noise", more, silent)
    for row in cut_rows([str(tmp_path / "out/cuts.jsonl.gz")]):
        assert row["supervisions"][0]["custom"]["of"][1].startswith("noises")
    for more_words, told in (
        (["--noise", silent], "found silence 100 times"),
        (["--noise", more, "--noise-count", 2, 3], "from 1 to 2: as many noises"),
        (["--noise-count", 1, 2], "found fewer than two speakers"),
    ):
        with pytest.raises(SystemExit, match=told):
            tool(monkeypatch, *words, *more_words)
    two = corpus(tmp_path, "two", 2)
    with pytest.raises(SystemExit, match="from 1 to 1: there is no --noise"):
        tool(monkeypatch, *words, "--cuts", two, "--noise-count", 1, 2)
    with pytest.raises(SystemExit, match="found silence in silent0"):
        tool(monkeypatch, *words, "--cuts", silent, "--noise", more)


def test_phones_become_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = corpus(tmp_path, "p", 1, {"phones": ["F_B IH0_I SH_E", "AH1_S"]})
    tool(monkeypatch, "phone_text.py", "--cuts", cuts, "--output", tmp_path / "out.jsonl.gz")
    table = json.loads((tmp_path / "out.jsonl.gz.phones.json").read_text())
    assert len(table) == len(set(table.values())) == 39
    for row in cut_rows([str(tmp_path / "out.jsonl.gz")]):
        text = row["supervisions"][0]["text"]
        assert [[table[c] for c in word] for word in text.split()] == [["F", "IH", "SH"], ["AH"]]
    bad = corpus(tmp_path, "bad", 1, {"phones": ["F_B Q_E"]})
    with pytest.raises(SystemExit, match="found the phone 'Q'"):
        tool(monkeypatch, "phone_text.py", "--cuts", bad, "--output", tmp_path / "x.jsonl.gz")


def test_another_field_becomes_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = corpus(tmp_path, "song", 1, {"label_string": "iab"})
    words = ["--cuts", cuts, "--output", tmp_path / "out.jsonl.gz", "--field"]
    tool(monkeypatch, "field_text.py", *words, "label_string")
    rows = list(cut_rows([str(tmp_path / "out.jsonl.gz")]))
    assert [r["supervisions"][0]["text"] for r in rows] == ["iab"] * 2
    with pytest.raises(SystemExit, match="no 'other'"):
        tool(monkeypatch, "field_text.py", *words, "other")


def test_goodness_is_judged_by_humans_where_they_did() -> None:
    names = runpy.run_path(str(ROOT / "tools/goodness.py"))
    assert names["_flat"]([[2, 1.5], [0]]) == names["_flat"]([2, 1.5, 0]) == [2.0, 1.5, 0.0]
    rows = [{"gop": [-1.0, -3.0], "human": [2.0, 0.0], "said": [True, True]},
            {"gop": [-2.0], "human": [1.0], "said": [True]}]  # fmt: skip
    judged = names["figures"](rows)
    assert judged["pearson"] == pytest.approx(1.0) and "auc" not in judged
    rows = [{"gop": [-1.0, -3.0, -0.5], "human": None, "said": [True, False, True]}]
    assert names["figures"](rows)["auc"] == 1.0
    with pytest.raises(SystemExit, match="without scores"):
        names["_flat"](None)
