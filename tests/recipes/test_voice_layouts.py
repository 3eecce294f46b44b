"""Recipes of voice conversion on real corpora: what their stages start, with programs that only
take notes; how they divide; and once in earnest on miniature corpora of the true layouts."""

from __future__ import annotations

import argparse
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from recipe_copy import ROOT, RecipeCopy

from speechssl.corpora.manifest import AudioHeader, JsonlWriter, cut_row
from speechssl.data.fields import cut_rows

RECIPES = ("vcc2020", "vctk", "realmini")
RATE = 16000


class Copy(RecipeCopy):
    """With files beside the recipes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "mini/vc", "realmini", "vcc2020", "vctk")

    def write(self, name: str, text: str = "x\n") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def starting(calls: list[str], words: str) -> list[str]:
    return [c for c in calls if words in c]


def test_vcc2020_learns_each_target_and_converts_all_sources_to_it(copy: Copy) -> None:
    for name in ("corpus", "hubert", "verifier", "asr"):
        (copy.folder / name).mkdir()
    words = ["--corpus-dir", str(copy.folder / "corpus"), "--upstream", str(copy.folder / "hubert"),
             "--verifier", str(copy.folder / "verifier")]  # fmt: skip
    calls = copy.calls("vcc2020/vc", *words, "--targets", "TEF1 TEM1", "--steps", "5")
    assert "prepare vcc2020" in calls[0]
    vocoders = starting(calls, "speechssl.bin.vocoder")
    assert len(vocoders) == 2 and "--critic" not in vocoders[0]
    assert "--init_from exp/vocoder_start --critic.kind least_squares" in vocoders[1]
    heads = starting(calls, "speechssl.bin.finetune")
    assert ["cuts_TEF1_train" in c for c in heads] == [True, False]
    assert all("--train.steps 5" in c and "conf/taco2ar.yaml" in c for c in heads)
    made = starting(calls, "speechssl convert-voice")
    assert all("--vocoder exp/vocoder --input data/cuts_source_test.jsonl.gz" in c for c in made)
    scored = starting(calls, "score-conversion")
    assert ["--target TEF1" in c for c in scored] == [True, False] and len(scored) == 2
    assert all("--embeddings" in c and "--transcripts" not in c for c in scored)
    assert "report exp/hubert/seed1/TEF1 exp/hubert/seed1/TEM1" in calls[-1]


def test_vctk_tells_the_head_its_speakers_and_the_conversion_its_references(copy: Copy) -> None:
    (copy.folder / "hubert").mkdir()
    for name in ("p225", "p226"):
        copy.write(f"egs/vctk/vc/data/references_{name}.txt", "a/1.wav\na/2.wav\n")
    words = ["--vctk", str(copy.folder), "--upstream", str(copy.folder / "hubert"),
             "--unseen", "p225 p226", "--vocoder", "griffin_lim"]  # fmt: skip
    calls = copy.calls("vctk/vc", *words)
    assert "--name vctk" in calls[0] and "use_edinburgh_vctk_url: true, mic_id: mic2" in calls[0]
    assert not starting(calls, "speechssl.bin.vocoder")
    verifier, head = starting(calls, "speechssl.bin.finetune")
    assert "conf/verifier.yaml" in verifier and "--head.embeddings exp/embeddings" in head
    made = starting(calls, "speechssl convert-voice")
    assert len(made) == 2
    assert "--target_audio [a/1.wav,a/2.wav] --verifier exp/verifier" in made[0]
    assert "--input data/cuts_to_p225.jsonl.gz" in made[0]
    older = copy.calls("vctk/vc", *words, "--release", "0.80", "--stop-stage", "1")
    assert "--arguments {}" in older[0]


def test_realmini_divides_a_parallel_corpus_and_takes_lj_as_a_target_without_one(
    copy: Copy,
) -> None:
    copy.write("egs/realmini/vc/data/vctk_sample/target.txt", "anna\n")
    words = ["--corpus-dir", str(copy.folder), "--vocoder", "griffin_lim"]
    calls = copy.calls("realmini/vc", *words, "--match", "[text,emotion]")
    (divide,) = starting(calls, "local/divide.py")
    assert "--field sentence --target 0 --test 2 --valid 1" in divide
    (scored,) = starting(calls, "score-conversion")
    assert "--match [text,emotion]" in scored and "--target anna" in scored
    (head,) = (c for c in calls if "convnext.yaml" in c)
    assert "--head.changed_voices 1 --head.voice.formant_ratio 1.4 " in head
    own = "egs/realmini/vc/data/ljspeech_sample"
    for name in ("cuts_train", "cuts_test", "sources/cuts_test"):
        copy.write(f"{own}/{name}.jsonl.gz")
    calls = copy.calls("realmini/vc", *words, "--corpus", "ljspeech_sample")
    assert not starting(calls, "local/divide.py")
    assert "--target ljspeech_sample-LJ" in starting(calls, "score-conversion")[0]


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("vcc2020", ("--upstream", "nowhere"), "found no folder 'nowhere'"),
        ("vcc2020", ("--upstream", ".", "--verifier", "nowhere"), "--verifier, --recogniser"),
        ("vcc2020", ("--upstream", "."), "--corpus-dir: found ''"),
        ("vctk", ("--upstream", ".", "--release", "1.0"), "want 0.92 or 0.80"),
        ("vctk", ("--upstream", ".",), "--vctk: found ''"),
        ("realmini", ("--upstream", "nowhere"), "found no folder 'nowhere'"),
        ("realmini", (), "--corpus-dir: found ''"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(
    copy: Copy, recipe: str, words: tuple[str, ...], message: str
) -> None:
    code, shown = copy.run(f"{recipe}/vc", *words)
    assert code == 2 and message in shown
    assert not (copy.folder / "calls").exists()


def local(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / "egs" / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cuts(path: Path, rows: list[tuple[str, str, str]]) -> str:
    """(id, speaker, text) as a manifest."""
    writer = JsonlWriter(path)
    for name, speaker, text in rows:
        writer.write(
            cut_row(
                id=name,
                audio=f"{name}.wav",
                header=AudioHeader(RATE, RATE, 1),
                text=text,
                speaker=speaker,
            )
        )
    writer.close()
    return str(path)


def test_unseen_speakers_of_vctk_stay_unseen(tmp_path: Path) -> None:
    rows = [
        (f"{s}_{n:03d}", s, f"shared {n}" if n < 4 else f"own of {s}, {n}")
        for s in ("p1", "p2", "p3", "p4")
        for n in range(8)
    ]
    found = list(cut_rows([cuts(tmp_path / "cuts.jsonl.gz", rows)]))
    options = argparse.Namespace(unseen=["p2", "p4"], test=2, references=3)
    module = local("vctk/vc/local/divide.py")
    parts, references = module.divide(found, options)
    ids = {name: [r["id"] for r in part] for name, part in parts.items()}
    assert {i.split("_")[0] for i in ids["train"] + ids["valid"]} == {"p1", "p3"}
    # What the unseen speakers say together is not learnt from anybody.
    assert all(int(i.split("_")[1]) >= 4 for i in ids["train"] + ids["valid"])
    assert ids["valid"] == ["p1_004", "p3_004"]
    assert ids["unseen"] == ["p2_000", "p2_001", "p4_000", "p4_001"]
    assert ids["to_p2"] == ["p4_000", "p4_001"] and ids["to_p4"] == ["p2_000", "p2_001"]
    assert references["p2"] == ["p2_002.wav", "p2_003.wav", "p2_004.wav"]
    for values, message in (
        ({"unseen": ["p2", "p9"]}, "p9 of --unseen"),
        ({"unseen": ["p2"]}, "want two or more"),
        ({"test": 5}, "found 4 texts"),
    ):
        with pytest.raises(SystemExit, match=message):
            module.divide(found, argparse.Namespace(**{**vars(options), **values}))


def script(monkeypatch: pytest.MonkeyPatch, path: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [path, *map(str, words)])
    runpy.run_path(str(ROOT / "egs" / path), run_name="__main__")


def test_speakers_are_chosen_and_every_tenth_cut_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"{s}-{n:02d}", s, "x") for s in ("TEF1", "TEM1") for n in range(23)]
    source = cuts(tmp_path / "cuts.jsonl.gz", rows)
    kept, held = tmp_path / "kept.jsonl.gz", tmp_path / "held.jsonl.gz"
    name = "vcc2020/vc/local/choose.py"
    words = ("--cuts", source, "--output", kept)
    script(monkeypatch, name, *words, "--speakers", "TEF1", "--held", held)
    assert [r["id"] for r in cut_rows([str(held)])] == ["TEF1-09", "TEF1-19"]
    assert len(list(cut_rows([str(kept)]))) == 21
    script(monkeypatch, name, *words, "--speakers", "TEF1", "TEM1")
    assert len(list(cut_rows([str(kept)]))) == 46
    with pytest.raises(SystemExit, match="found no cut of TEF9"):
        script(monkeypatch, name, *words, "--speakers", "TEF9")


def test_the_vocoder_hears_no_test_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = cuts(
        tmp_path / "all.jsonl.gz", [("a", "s", "x"), ("b", "s", "y"), ("c", "t", "x")]
    )
    held = cuts(tmp_path / "held.jsonl.gz", [("a", "s", "x")])
    rest = tmp_path / "rest.jsonl.gz"
    script(monkeypatch, "realmini/vc/local/without.py", "--cuts", everything, "--without", held,
           "--output", rest)  # fmt: skip
    assert [r["id"] for r in cut_rows([str(rest)])] == ["b"]


# In earnest --------------------------------------------------------------------------------------


def voice(random: np.random.Generator, hz: float, seconds: float, rate: int) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    glide = 2 * np.pi * hz * (time + 0.05 * np.sin(2 * np.pi * time))
    wave = sum(np.cos(h * glide) / h for h in range(1, 12))
    return 0.1 * wave * (1 + 0.5 * np.sin(9 * time)) + 0.002 * random.standard_normal(len(time))


def write_vcc2020(folder: Path) -> None:
    random = np.random.default_rng(0)
    for place, speaker, sentences in (
        ("source", "SEF1", ("E10001",)), ("target_task1", "TEF1", None),
        ("evaluation", "SEF1", ("E30001", "E30002")), ("evaluation", "SEM1", ("E30001", "E30002")),
        ("groundtruth", "TEF1", ("E30001", "E30002")),
    ):  # fmt: skip
        own = [f"E1{n:04d}" for n in range(51, 55)] + [f"E2{n:04d}" for n in range(1, 9)]
        for name in sentences or own:
            path = folder / place / speaker / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            hz = {"S": 130.0, "T": 220.0}[speaker[0]]
            soundfile.write(path, voice(random, hz, 1.2, 24000), 24000)


def write_vctk(folder: Path) -> None:
    random = np.random.default_rng(1)
    (folder / "txt").mkdir(parents=True)
    lines = ["ID  AGE  GENDER  ACCENTS  REGION"]
    for place, speaker in enumerate(("p225", "p226", "p227", "p228")):
        lines.append(f"{speaker}  23  {'FM'[place % 2]}  English  Southern England")
        for number in range(1, 9):
            text = f"shared {number}" if number < 3 else f"words of {speaker} {number}"
            path = folder / f"txt/{speaker}/{speaker}_{number:03d}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + "\n")
            audio = folder / f"wav48_silence_trimmed/{speaker}/{speaker}_{number:03d}_mic2.flac"
            audio.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(audio, voice(random, 100 + 30 * place, 1.2, 48000), 48000)
    (folder / "speaker-info.txt").write_text("\n".join(lines) + "\n")


def write_sample(folder: Path) -> None:
    """A corpus with manifest.jsonl, as those of egs/realmini."""
    random = np.random.default_rng(2)
    for corpus in ("vctk_sample", "an4"):
        rows = []
        (folder / corpus / "audio").mkdir(parents=True)
        for who in range(4):
            for number in range(6):
                row = {"id": f"{who}_{number}", "audio": f"audio/{who}_{number}.flac",
                       "speaker": f"p{who}", "sentence": f"{number:03d}", "split": "train",
                       "text": f"words {number}"}  # fmt: skip
                wave = voice(random, 100 + 40 * who, 1.2, RATE)
                soundfile.write(folder / corpus / row["audio"], wave, RATE)
                rows.append(json.dumps(row))
        (folder / corpus / "manifest.jsonl").write_text("\n".join(rows) + "\n")


def encoder(folder: Path) -> str:
    from speechssl.encoders.transformer import TransformerConfig
    from speechssl.model_file import save_model

    config = TransformerConfig(
        front_end="log_mel", front_norm="layer", front_dim=16, layers=1, dim=16, ffn_dim=16,
        heads=2, pos_conv_kernel=8, pos_conv_groups=2,
    )  # fmt: skip
    save_model(folder, config, config.build().state_dict())
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_stage_runs_on_a_miniature_corpus(copy: Copy, recipe: str) -> None:
    corpus = copy.folder / "corpus"
    small = "--data.num_workers 0 --data.batch_seconds 8 --data.max_batch_seconds 12"
    words = ["--upstream", encoder(copy.folder / "tiny"), "--steps", "2", "--vocoder",
             "griffin_lim", "--overrides", small, "--head", "convnext"]  # fmt: skip
    if recipe == "vcc2020":
        write_vcc2020(corpus)
        words += ["--corpus-dir", str(corpus), "--targets", "TEF1", "--sources", "SEF1 SEM1"]
    elif recipe == "vctk":
        write_vctk(corpus)
        words += ["--vctk", str(corpus), "--unseen", "p225 p226", "--test-sentences", "2",
                  "--verifier-steps", "2"]  # fmt: skip
    else:
        write_sample(corpus)
        words += ["--corpus-dir", str(corpus), "--vocoder-corpora", "vctk_sample,an4",
                  "--verifier-corpora", "an4", "--verifier-steps", "2"]  # fmt: skip
    code, shown = copy.run(f"{recipe}/vc", *words, venv=Path(sys.prefix))
    assert code == 0, shown
    exp = copy.folder / f"egs/{recipe}/vc/exp"
    found = [json.loads(p.read_text()) for p in exp.rglob("converted/results.json")]
    assert len(found) == {"vcc2020": 1, "vctk": 2, "realmini": 1}[recipe]
    for results in found:
        assert results["compared"] == {"vcc2020": 4, "vctk": 2, "realmini": 6}[recipe]
        assert np.isfinite(results["mcd"]) and ("speaker" in results) == (recipe != "vcc2020")
    (report,) = exp.rglob("report.html")
    assert "data:audio" in report.read_text()
