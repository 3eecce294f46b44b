"""`speechssl align` on tones: where they begin, what is left out, and the programs that read it."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.bin.align import Mfcc, Utterance, main, read, utterances
from speechssl.labels.align_config import AlignOptions
from speechssl.labels.measure import alignments
from speechssl.labels.pronunciations import read_lexicon

PHONES = {"AA": (300, 900), "IY": (500, 2500), "S": (5200, 6800), "M": (200, 1400)}
"""Pairs of frequencies, in Hz."""
WORDS = {"sea": "S IY1", "ma": "M AA1", "seem": "S IY1 M", "as": "AA1 S"}
SECONDS = 0.12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 cuts of three words each, and a lexicon; three more cuts that cannot be aligned."""
    folder = tmp_path_factory.mktemp("align")
    rows = [row(folder, number) for number in range(30)]
    strange, mute, broken = (row(folder, number) for number in (30, 31, 32))
    strange["supervisions"][0]["text"] = "sea zebra"
    mute["supervisions"][0]["text"] = None
    Path(broken["recording"]["sources"][0]["source"]).write_bytes(b"no audio")
    write(folder / "cuts.jsonl.gz", [*rows, strange, mute, broken])
    (folder / "lexicon.txt").write_text("".join(f"{w} {p}\n" for w, p in WORDS.items()))
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)


def row(folder: Path, number: int) -> dict[str, Any]:
    """A cut whose `custom` states when its phones begin."""
    rng = np.random.default_rng(number)
    said = [list(WORDS)[i] for i in rng.integers(0, len(WORDS), 3)]
    pieces, begins = [np.zeros(int(rng.integers(2000, 5000)))], []
    for word in said:
        for phone in WORDS[word].split():
            begins.append(sum(map(len, pieces)) / 16000)
            time = np.arange(int(16000 * SECONDS * rng.uniform(0.7, 1.6))) / 16000
            tones = [np.sin(2 * np.pi * f * time) for f in PHONES[phone.rstrip("1")]]
            pieces.append(0.2 * sum(tones))
        if rng.random() < 0.5:
            pieces.append(np.zeros(3200))
    wave = np.concatenate([*pieces, np.zeros(3000)])
    wave += 0.003 * rng.standard_normal(len(wave))
    path = folder / f"{number}.wav"
    soundfile.write(path, wave, 16000)
    duration = len(wave) / 16000
    recording = {
        "id": f"u{number}", "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": 16000, "num_samples": len(wave), "duration": duration, "channel_ids": [0],
    }  # fmt: skip
    spoken = {"id": f"u{number}", "recording_id": f"u{number}", "start": 0.0, "duration": duration,
              "channel": 0, "text": " ".join(said), "speaker": f"s{number % 3}",
              "custom": {"begins": begins}}  # fmt: skip
    return {"id": f"u{number}", "start": 0.0, "duration": duration, "channel": 0,
            "recording": recording, "supervisions": [spoken], "type": "MonoCut"}  # fmt: skip


def run(folder: Path, output: Path, *more: str) -> int:
    return main(["--cuts", f"[{folder / 'cuts.jsonl.gz'}]", "--output", str(output),
                 "--lexicon", str(folder / "lexicon.txt"), "--gaussians", "40", *more])  # fmt: skip


@pytest.fixture(scope="module")
def aligned(folder: Path) -> Path:
    assert run(folder, folder / "out", "--iterations", "12") == 0
    return folder / "out"


def test_tones_begin_where_they_do(aligned: Path) -> None:
    errors, words = [], 0
    for cut, items in alignments([str(aligned / "cuts.jsonl.gz")], "phone"):
        if not items:
            continue
        (spoken,) = cut.supervisions
        assert items[0][0] == 0.0 and items[-1][1] == pytest.approx(cut.duration, abs=1e-4)
        assert all(a[1] == pytest.approx(b[0], abs=1e-4) for a, b in itertools.pairwise(items))
        phones = [item for item in items if item[2] != "sil"]
        wanted = [p for w in spoken.text.split() for p in WORDS[w].replace("1", "").split()]
        assert [p for _, _, p in phones] == wanted
        errors += [begin - true for (begin, _, _), true in zip(phones, spoken.custom["begins"])]
        own = spoken.alignment["word"]
        assert [item.symbol for item in own] == spoken.text.split()
        starts = {round(begin, 4) for begin, _, _ in phones}
        assert {round(item.start, 4) for item in own} <= starts
        words += len(own)
    assert words == 90
    # Slopes reach over an edge, and a tone that always follows another may begin there.
    assert np.mean(np.abs(errors) < 0.04) > 0.95
    assert abs(np.median(errors)) < 0.02


def test_what_cannot_be_aligned_is_listed_and_written_as_it_is(aligned: Path) -> None:
    listed = dict(line.split("\t") for line in (aligned / "left_out.tsv").read_text().splitlines())
    assert listed["u30"] == "not in the lexicon: zebra"
    assert listed["u31"] == "no transcript"
    assert listed.keys() == {"u30", "u31", "u32"}
    cuts = {cut.id: items for cut, items in alignments([str(aligned / "cuts.jsonl.gz")], "phone")}
    assert len(cuts) == 33
    assert [name for name, items in cuts.items() if not items] == ["u30", "u31", "u32"]
    report = json.loads((aligned / "align.json").read_text())
    assert report["aligned"] == 30 and report["left_out"] == 3
    assert report["phones"] == ["sil", "AA", "IY", "M", "S"]


def test_what_trains_is_spread_evenly_and_means_are_of_all(folder: Path) -> None:
    options = AlignOptions(cuts=[str(folder / "cuts.jsonl.gz")], output="unused")
    lexicon = read_lexicon(str(folder / "lexicon.txt"))
    means, chosen = read(options, lexicon, 0.25)
    assert [u.id for u, _ in chosen] == [f"u{n}" for n in range(0, 30, 4)]
    assert len(read(options, lexicon, 1e-9)[1]) == 1 and not read(options, lexicon, 0.0)[1]
    found = [u for _, u in utterances("", options.cuts, options, lexicon)]
    own = [Mfcc()(u) for u in found if isinstance(u, Utterance) and u.speaker == "s1"][:10]
    np.testing.assert_allclose(means["s1"], np.concatenate(own).mean(0), rtol=1e-4)
    assert means.keys() == {"s0", "s1", "s2"} and len(own) == 10


def test_a_model_aligns_alike_later_and_elsewhere(folder: Path, aligned: Path) -> None:
    assert run(folder, folder / "again", "--model", str(aligned)) == 0
    file = "cuts.jsonl.gz"
    assert (folder / "again" / file).read_bytes() == (aligned / file).read_bytes()
    assert not (folder / "again/monophones.json").exists()
    lacking = folder / "lacking.txt"
    lacking.write_text((folder / "lexicon.txt").read_text().replace("IY1", "UW1"))
    output = folder / "lacks"
    assert main(["--cuts", f"[{folder / file}]", "--output", str(output), "--model", str(aligned),
                 "--lexicon", str(lacking)]) == 0  # fmt: skip
    assert "phones that the model lacks: UW" in (output / "left_out.tsv").read_text()


def test_a_supervision_is_aligned_where_it_lies(folder: Path, aligned: Path) -> None:
    """Speech before and behind it is not its own; nor is what lies before and behind a cut."""
    from lhotse import CutSet

    from speechssl.labels.cuts import alignment_of

    plain, inside, part, outside, long = (row(folder, 0) for _ in range(5))
    wave, _ = soundfile.read(folder / "0.wav", dtype="int16")
    other, _ = soundfile.read(folder / "1.wav", dtype="int16")
    soundfile.write(folder / "inside.wav", np.concatenate([other, wave, other]), 16000)
    for number, one in enumerate((plain, inside, part, outside, long)):
        one["id"] = one["recording"]["id"] = f"c{number}"
        one["supervisions"][0] |= {"recording_id": f"c{number}", "speaker": f"c{number}"}
    start = len(other) / 16000
    for one in (inside, part):
        one["recording"] |= {"duration": plain["duration"] + 2 * start,
                             "num_samples": len(wave) + 2 * len(other)}  # fmt: skip
        one["recording"]["sources"][0]["source"] = str(folder / "inside.wav")
    inside["duration"] = plain["duration"] + 2 * start
    inside["supervisions"][0]["start"] = part["start"] = start
    outside["supervisions"][0]["start"] = -0.2
    long["duration"] = long["supervisions"][0]["duration"] = 301.0
    write(folder / "parts.jsonl.gz", [plain, inside, part, outside, long])
    output = folder / "parts"
    assert main(["--cuts", f"[{folder}/parts.jsonl.gz]", "--output", str(output), "--model",
                 str(aligned), "--lexicon", str(folder / "lexicon.txt")]) == 0  # fmt: skip
    file = str(output / "parts.jsonl.gz")
    cuts = list(CutSet.from_file(file))
    for kind in ("phone", "word"):
        whole, within, cut, *rest = (items for _, items in alignments([file], kind))
        assert rest == [[], []]
        padding = 9.0 - plain["duration"]
        for found, later in (
            (cut, 0.0), (within, start),
            # Lhotse's own operations keep this right.
            (alignment_of(cuts[1].truncate(offset=start), kind), 0.0),
            (alignment_of(cuts[2].pad(9.0, direction="left"), kind), padding),
        ):  # fmt: skip
            assert [s for *_, s in found] == [s for *_, s in whole]
            moved = [(a + later, b + later) for a, b, _ in whole]
            np.testing.assert_allclose([t[:2] for t in found], moved, atol=3e-5)
        items = cuts[2].supervisions[0].alignment[kind]
        assert items[0].start == pytest.approx(start + whole[0][0])
    listed = (output / "left_out.tsv").read_text()
    assert "c3\tits supervision is from -0.2 to" in listed and "c4\t301 s, want 300 s" in listed


def test_unknown_words_have_a_phone_of_their_own(folder: Path, aligned: Path) -> None:
    output = folder / "unknown"
    assert run(folder, output, "--iterations", "4", "--unknown", "spn") == 0
    cuts = {cut.id: items for cut, items in alignments([str(output / "cuts.jsonl.gz")], "phone")}
    assert [p for _, _, p in cuts["u30"] if p != "sil"] == ["S", "IY", "spn"]
    assert not any(p == "spn" for _, _, p in cuts["u0"])
    assert "u30" not in (output / "left_out.tsv").read_text()


def test_manifests_called_alike_are_told_apart_by_their_folders(folder: Path) -> None:
    rows = [row(folder, number) for number in range(8)]
    write(folder / "a/cuts.jsonl.gz", rows[:4])
    write(folder / "b/cuts.jsonl.gz", rows[4:])
    cuts = f"[{folder}/a/cuts.jsonl.gz,{folder}/b/cuts.jsonl.gz]"
    words = ["--lexicon", str(folder / "lexicon.txt"), "--iterations", "2", "--gaussians", "1"]
    assert main(["--cuts", cuts, "--output", str(folder / "ab"), *words]) == 0
    assert {p.name for p in (folder / "ab").glob("*.gz")} == {"a_cuts.jsonl.gz", "b_cuts.jsonl.gz"}


def test_clear_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "cuts.jsonl.gz").read_bytes()
    assert run(folder, folder, "--iterations", "1") == 2
    assert "want another folder than theirs" in capsys.readouterr().err
    assert (folder / "cuts.jsonl.gz").read_bytes() == before
    assert main(["--cuts", f"[{folder}/cuts.jsonl.gz]", "--output", str(folder / "x")]) == 2
    error = capsys.readouterr().err
    assert "found none whose phones are known" in error and "give --lexicon" in error
    assert not (folder / "x").exists()
    assert main(["--cuts", f"[{folder}]", "--output", str(folder / "x")]) == 2
    assert "align before `speechssl shard`" in capsys.readouterr().err
    damaged = folder / "damaged"
    damaged.mkdir()
    (damaged / "monophones.json").write_text('{"phones": ["sil"]}')
    assert run(folder, folder / "x", "--model", str(damaged)) == 2
    assert "model: found damage in" in capsys.readouterr().err
    short = row(folder, 40)
    short["supervisions"][0]["text"] = "sea " * 100
    write(folder / "short/cuts.jsonl.gz", [short])
    assert main(["--cuts", f"[{folder}/short/cuts.jsonl.gz]", "--output", str(folder / "x"),
                 "--lexicon", str(folder / "lexicon.txt")]) == 2  # fmt: skip
    assert "with fewer frames than their transcripts" in capsys.readouterr().err
    still = row(folder, 41)
    soundfile.write(folder / "41.wav", np.zeros(round(still["duration"] * 16000)), 16000)
    write(folder / "still/cuts.jsonl.gz", [still])
    assert main(["--cuts", f"[{folder}/still/cuts.jsonl.gz]", "--output", str(folder / "x"),
                 "--lexicon", str(folder / "lexicon.txt")]) == 2  # fmt: skip
    assert "stays the same in all frames" in capsys.readouterr().err


@pytest.mark.slow
def test_phones_of_synthetic_speech_begin_where_it_says(tmp_path: Path) -> None:
    """Half an hour of 60 voices, whose own times the aligner is not shown."""
    pytest.importorskip("espeakng_loader")
    from speechssl.bin.synth import main as synth

    assert synth(["--output", str(tmp_path), "--hours", "0.5", "--languages", "[en-us]",
                  "--valid_share", "0.05", "--test_share", "0.05", "--seed", "2"]) == 0  # fmt: skip
    rows, truth = [], {}
    with gzip.open(tmp_path / "cuts_train.jsonl.gz", "rt") as file:
        for one in map(json.loads, file):
            spoken = one["supervisions"][0]
            times = spoken.pop("alignment")
            truth[one["id"]] = [p for p in times["phone"] if p[0] != "sil"]
            spoken["text"] = " ".join(word for word, *_ in times["word"])
            spoken["custom"]["phones"] = [
                " ".join(p for p, at, long, _ in truth[one["id"]] if a <= at + long / 2 < a + b)
                for _, a, b, _ in times["word"]
            ]
            if all(spoken["custom"]["phones"]):
                rows.append(one)
    write(tmp_path / "in/cuts.jsonl.gz", rows)
    output = tmp_path / "out"
    assert main(["--cuts", f"[{tmp_path}/in/cuts.jsonl.gz]", "--output", str(output)]) == 0
    errors = []
    for cut, items in alignments([str(output / "cuts.jsonl.gz")], "phone"):
        begins = [begin for begin, _, phone in items if phone != "sil"]
        if len(begins) == len(truth[cut.id]):
            errors += [b - true for b, (_, true, _, _) in zip(begins, truth[cut.id])]
    size = np.abs(errors)
    print(f"{len(size)} phones: within 20 ms {np.mean(size < 0.02):.3f}, 50 ms "
          f"{np.mean(size < 0.05):.3f}, median {1000 * np.median(errors):+.1f} ms")  # fmt: skip
    assert len(errors) > 10000
    assert np.mean(size < 0.02) > 0.72 and np.mean(size < 0.05) > 0.96
    assert abs(np.median(errors)) < 0.01
