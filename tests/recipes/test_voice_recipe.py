"""The recipe of voice conversion: what its stages start, with programs that only take notes; how it
divides a corpus; its table; and once in earnest on a miniature corpus."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import pytest
from recipe_copy import ROOT, lay_out, run_recipe

from speechssl.corpora.manifest import AudioHeader, JsonlWriter, cut_row
from speechssl.data.fields import cut_rows, field_of


class Copy:
    """The recipes in another place, with an environment whose programs write down their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = lay_out(folder, "mini", "realmini/upstream")
        self.recipe = folder / "egs/mini/vc"
        # What the notes do not write.
        for name, text in (("data/target.txt", "anna\n"), ("exp/speakers.number", "9\n")):
            (self.recipe / name).parent.mkdir(parents=True, exist_ok=True)
            (self.recipe / name).write_text(text)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run_recipe(self.recipe / "run.sh", self.venv, *words)

    def calls(self, *words: str) -> list[str]:
        (self.folder / "calls").write_text("")
        done = self.run(*words)
        assert done.returncode == 0, done.stderr[-2000:]
        return (self.folder / "calls").read_text().splitlines()

    def has_ssl(self, folder: str = "egs/mini/ssl/exp") -> None:
        for name in ("km_mfcc/labels", "seed1/asr_pretrained/sweep"):
            (self.folder / folder / name).mkdir(parents=True)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def verbs(calls: list[str]) -> list[str]:
    """The verb of each call, or the module or script that python runs."""
    found = []
    for call in calls:
        words = call.split()
        at = 2 if words[1] == "-m" else 1
        found.append(words[at].removeprefix("speechssl.bin."))
    return found


def option(call: str, name: str) -> list[str]:
    return re.findall(rf"--{re.escape(name)} (\S+)", call)


def test_each_upstream_is_pretrained_tuned_converted_and_scored(copy: Copy) -> None:
    copy.has_ssl()
    calls = copy.calls("--jobs", "1", "--steps", "7")
    assert verbs(calls[:2]) == ["synth", "local/divide.py"] and "--parallel true" in calls[0]
    pretrained = [c for c in calls if "bin.pretrain" in c]
    assert [option(c, "output")[0] for c in pretrained] == [
        f"exp/seed1/{name}/encoder" for name in ("hubert", "contentvec", "wavlm")
    ]
    assert all("--data.labels.kmeans ../ssl/exp/km_mfcc/labels" in c for c in pretrained)
    assert all("--objective.encoder.mel_hop_samples 320 " in c for c in pretrained)
    assert ["--objective.speakers 9" in c for c in pretrained] == [False, True, False]
    assert [option(c, "init_from") for c in pretrained] == [[], ["exp/seed1/hubert/encoder"], []]
    tuned = {option(c, "output")[0]: c for c in calls if "bin.finetune" in c}
    verifier = tuned.pop("exp/verifier")
    assert "conf/verifier.yaml" in verifier and "cuts_verifier_train" in verifier
    starts = {
        "logmel": "--config ../../realmini/upstream/logmel.yaml",
        "random": "--config ../ssl/conf/scratch.yaml --encoder.mel_hop_samples 320",
        "hubert": "--init exp/seed1/hubert/encoder --data",
        "hubert_units": "--init exp/seed1/hubert/encoder --head.layer 3 "
        "--head.clusters exp/seed1/hubert_units/clusters",
        "wavlm": "--init exp/seed1/wavlm/encoder",
        "contentvec": "--init exp/seed1/contentvec/encoder",
    }
    assert list(tuned) == [f"exp/seed1/{name}" for name in starts]
    for name, start in starts.items():
        call = tuned[f"exp/seed1/{name}"]
        assert start in call and "--train.steps 7" in call and "conf/convnext.yaml" in call
        # The head hears the target alone.
        assert option(call, "data.train") == ["[data/cuts_target_train.jsonl.gz]"]
    converted = [c for c in calls if c.startswith("speechssl convert-voice")]
    assert [option(c, "output")[0] for c in converted] == [f"{t}/converted" for t in tuned]
    wanted = "--vocoder exp/vocoder --refine 16 --input data/cuts_source_test"
    assert all(wanted in c for c in converted)
    scored = [c for c in calls if c.startswith("speechssl score-conversion")]
    assert [option(c, "converted")[0] for c in scored] == [
        "exp/copy_griffin_lim", "exp/copy_vocoder", *(f"{t}/converted" for t in tuned)
    ]  # fmt: skip
    assert all("--dtw false" in c for c in scored[:2])
    assert all("--target anna --match [sentence]" in c for c in scored[2:])
    assert verbs(calls)[-2:] == ["local/table.py", "report"]


def test_what_ssl_has_not_made_is_made_by_its_recipe(copy: Copy) -> None:
    calls = copy.calls("--stage", "5", "--stop-stage", "5", "--jobs", "1")
    assert verbs(calls)[0] == "synth" and "pretrain" in verbs(calls) and "lm" in verbs(calls)
    assert "score" not in verbs(calls)
    done = copy.run("--stage", "5", "--stop-stage", "5", "--ssl", "elsewhere")
    assert done.returncode == 2 and "found no elsewhere/km_mfcc/labels" in done.stderr
    copy.has_ssl("elsewhere")
    there = str(copy.folder / "elsewhere")
    assert copy.calls("--stage", "5", "--stop-stage", "5", "--ssl", there) == []


def test_griffin_lim_and_fewer_upstreams_need_less(copy: Copy) -> None:
    copy.has_ssl()
    calls = copy.calls("--vocoder", "griffin_lim", "--upstreams", "logmel", "--jobs", "1")
    found = verbs(calls)
    assert "vocoder" not in found and "pretrain" not in found and "cluster" not in found
    assert sum("local/copy_synthesis.py" in c for c in calls) == 1
    (converted,) = (c for c in calls if "convert-voice" in c)
    assert "--vocoder griffin_lim --refine 0" in converted


def test_a_second_run_does_nothing_but_the_table(copy: Copy) -> None:
    copy.has_ssl()
    assert len(copy.calls("--upstreams", "hubert random")) > 15
    assert verbs(copy.calls("--upstreams", "hubert random")) == ["local/table.py", "report"]


@pytest.mark.parametrize("words", [("--upstreams", "hubert bogus"), ("--head", "bogus")])
def test_an_unknown_name_stops_the_recipe_at_once(copy: Copy, words: tuple[str, str]) -> None:
    done = copy.run(*words)
    assert done.returncode == 2 and "found bogus" in done.stderr
    assert not (copy.folder / "calls").exists()


def local(name: str) -> ModuleType:
    path = ROOT / f"egs/mini/vc/local/{name}.py"
    spec = importlib.util.spec_from_file_location(f"vc_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def corpus(folder: Path, sentences: int = 12) -> str:
    """Three speakers who say the same, the first sentence twice; one in another language."""
    writer = JsonlWriter(folder / "cuts.jsonl.gz")
    for who, language in (("anna", "en"), ("bert", "en"), ("carl", "en"), ("dora", "es")):
        for number in range(sentences):
            text = f"sentence {number if number != 3 else sentences - 1}"
            row = cut_row(
                id=f"{who}-{number}", audio=f"{who}.wav", header=AudioHeader(16000, 16000, 1),
                text=text, language=language, speaker=who, custom={"sentence": number},
            )  # fmt: skip
            writer.write(row)
    writer.close()
    return str(folder / "cuts.jsonl.gz")


def divided(folder: Path, **values: object) -> dict[str, set[str]]:
    module = local("divide")
    options = argparse.Namespace(
        field="sentence", language="en", target="0", test=3, valid=2, sources=None
    )
    for name, value in values.items():
        setattr(options, name, value)
    rows = [r for r in cut_rows([corpus(folder)]) if field_of(r, "language") == "en"]
    for take in ("x", "y"):  # what one says twice and nobody else is no sentence to convert
        alone = deepcopy(rows[0]) | {"id": f"anna-12{take}"}
        alone["supervisions"][0] |= {"text": "alone", "custom": {"sentence": 12}}
        rows.append(alone)
    parts, target = module.divide(rows, options)
    return {k: {r["id"] for r in v} for k, v in parts.items()} | {"target": {target}}


def test_the_target_never_trains_on_a_sentence_of_the_test(tmp_path: Path) -> None:
    parts = divided(tmp_path)
    assert parts["target"] == {"anna"}
    assert parts["target_test"] == {"anna-9", "anna-10", "anna-11"}
    assert parts["target_valid"] == {"anna-7", "anna-8"}
    # Sentence 3 has the text of sentence 11.
    assert parts["target_train"] == {
        *(f"anna-{n}" for n in (0, 1, 2, 4, 5, 6)), "anna-12x", "anna-12y"
    }  # fmt: skip
    assert parts["source_test"] == {f"{s}-{n}" for s in ("bert", "carl") for n in (9, 10, 11)}
    assert parts["natural"] == parts["source_test"] | parts["target_test"]


def test_the_target_and_the_sources_can_be_chosen(tmp_path: Path) -> None:
    parts = divided(tmp_path, target="carl", sources=1, test=2)
    assert parts["target"] == {"carl"} and parts["source_test"] == {"anna-10", "anna-11"}
    with pytest.raises(SystemExit, match="found no speaker dora among anna, bert, carl"):
        divided(tmp_path, target="dora")
    with pytest.raises(SystemExit, match="found 12 sentences that anna and others say"):
        divided(tmp_path, test=10)


def test_the_table_says_who_meets_what_is_asked(tmp_path: Path) -> None:
    def results(mcd: float, wer: float, closer: float) -> dict:
        return {
            "mcd": mcd, "source": {"mcd": 8.0}, "speaker": {"closer_to_target": closer},
            "asr": {"wer": wer, "source_wer": 0.2}, "conversion": {"timing": {"rtf": 0.1}},
        }  # fmt: skip

    rows = {"hubert": [(5.0, 0.25, 1.0), (5.5, 0.29, 0.95)], "logmel": [(7.0, 0.25, 0.1)] * 2}
    for name, seeds in rows.items():
        for number, values in enumerate(seeds, 1):
            folder = tmp_path / f"seed{number}/{name}/converted"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(results(*values)))
    (tmp_path / "copy_griffin_lim").mkdir()
    copy = {"mcd": 2.0, "asr": {"wer": 0.1}}
    (tmp_path / "copy_griffin_lim/results.json").write_text(json.dumps(copy))
    done = subprocess.run(
        [sys.executable, ROOT / "egs/mini/vc/local/table.py", "--exp", tmp_path, "--upstreams",
         "logmel hubert wavlm"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == (tmp_path / "table.md").read_text()
    lines = done.stdout.splitlines()
    assert lines[0] == "|  | MCD dB | closer to target % | WER % | RTF |"
    assert lines[2] == "| sources, not converted | 8.00 | - | 20.0 | - |"
    assert lines[3] == "| target through griffin_lim | 2.00 | - | 10.0 | - |"
    assert lines[5] == "| hubert | 5.25 ± 0.35 | 98 ± 4 | 27.0 ± 2.8 | 0.100 ± 0.000 |"
    assert "MCD below 0.8 of the sources': hubert." in lines
    assert "WER at most 1.5 times the sources': logmel, hubert." in lines
    assert "At least 90 % closer to target than to source: hubert." in lines


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_stage_runs_on_a_miniature_corpus(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("flashlight.lib.text")
    copy = Copy(tmp_path)
    for name in ("vc/data", "vc/exp"):
        shutil.rmtree(tmp_path / "egs/mini" / name)
    for path in (tmp_path / "egs/mini/ssl/conf").glob("*.yaml"):
        text = re.sub(r"^  steps: \d+", "  steps: 2", path.read_text(), flags=re.MULTILINE)
        path.write_text(text.replace("num_workers: 1", "num_workers: 0"))
    environment = os.environ | {"SPEECHSSL_VENV": sys.prefix, "OMP_NUM_THREADS": "1"}

    def recipe(name: str, *words: str) -> str:
        done = subprocess.run(
            ["bash", str(tmp_path / f"egs/mini/{name}/run.sh"), *words], capture_output=True,
            text=True, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    recipe("ssl", "--stop-stage", "9", "--hours", "0.05", "--speakers", "14")
    names = "logmel hubert_units contentvec"
    steps = [w for n in ("pretrain-", "vocoder-", "verifier-", "") for w in (f"--{n}steps", "2")]
    shown = recipe(
        "vc", "--upstreams", names, *steps, "--sentences", "14", "--speakers", "8",
        "--test-sentences", "2", "--overrides", "--data.num_workers 0 --data.batch_seconds 8",
    )  # fmt: skip
    rows = json.loads((copy.recipe / "exp/table.json").read_text())
    assert [r for r in rows if r in names.split()] == names.split()
    assert {"target through griffin_lim", "target through vocoder"} <= rows.keys()
    for name in names.split():
        wanted = ("MCD dB", "with c0", "voicing err. %", "closer to target %", "WER %", "RTF")
        assert all(rows[name][0][column] is not None for column in wanted), (name, rows[name])
        assert f"| {name} |" in shown
    griffin_lim = rows["target through griffin_lim"][0]["MCD dB"]
    assert griffin_lim < 0.7 * rows["sources, not converted"][0]["MCD dB"]
    assert "data:audio" in (copy.recipe / "exp/seed1/report.html").read_text()
