"""QUESST 2014: its lists, the list of detections, and the choice of a layer by its own scorer."""

from __future__ import annotations

import re
import runpy
import sys
import xml.etree.ElementTree as tree
from pathlib import Path

import numpy as np
import pytest
import yaml
from recipe_copy import ROOT, RecipeCopy

from speechssl.corpora import quesst14
from speechssl.data.fields import cut_rows

sys.path.append(str(Path(__file__).parents[1] / "corpora"))
from test_superb_corpora import write_wave

SCORER = """#!/usr/bin/env bash
[[ -d $2 ]] || exit 3
layer=${1##*/layer}
echo "actTWV: 0.01 maxTWV: 0.0${layer%_*} Threshold: 5.1" >"$1/score.out"
"""


def make_quesst(source: Path) -> None:
    for name, folder, count in (("utterances", "Audio", 3), ("dev", "dev_queries", 2),
                                ("eval", "eval_queries", 2)):  # fmt: skip
        lines = ""
        for number in range(count):
            language = "nnenglish" if number < 2 else "czech"
            file = f"{name}{10**number}.wav"
            write_wave(source / folder / file, 1.0 if name == "utterances" else 0.7)
            lines += f"quesst14Database/{folder}/{file} {language}\n"
        (source / "scoring").mkdir(exist_ok=True)
        (source / "scoring" / f"language_key_{name}.lst").write_text(lines)
    for part in ("dev", "eval"):
        (source / f"scoring/groundtruth_quesst14_{part}").mkdir()
    (source / "scoring/score-TWV-Cnxe.sh").write_text(SCORER)
    (source / "scoring/score-TWV-Cnxe.sh").chmod(0o755)


def test_lists_say_what_is_english(tmp_path: Path) -> None:
    make_quesst(tmp_path)
    given = {"source": str(tmp_path), "output": str(tmp_path / "out")}
    paths = quesst14.prepare(quesst14.Config(**given))
    ids = {s: [r["id"] for r in cut_rows([str(p)])] for s, p in paths.items()}
    assert ids == {"recordings": ["utterances1", "utterances10"], "dev": ["dev1", "dev10"],
                   "eval": ["eval1", "eval10"]}  # fmt: skip
    with pytest.raises(ValueError, match=r"found no 'welsh' in .*want one of czech, nnenglish"):
        quesst14.prepare(quesst14.Config(**given, language="welsh"))
    with pytest.raises(ValueError, match=re.escape("quesst14Database.tgz")):
        quesst14.prepare(quesst14.Config(source=str(tmp_path / "x"), output=str(tmp_path / "out")))


def test_detections_of_every_query_and_recording_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quesst(tmp_path / "q")
    given = {"source": str(tmp_path / "q"), "output": str(tmp_path / "cuts")}
    paths = quesst14.prepare(quesst14.Config(**given))
    encoder = {"class_path": "speechssl.encoders.log_mel.LogMelConfig",
               "init_args": {"mel_bins": 10, "deltas": 0}}  # fmt: skip
    (tmp_path / "encoder.yaml").write_text(yaml.safe_dump({"encoder": encoder}))
    words = ["query_by_example.py", "--model", str(tmp_path / "encoder.yaml"), "--stdlist", "true",
             "--queries", str(paths["dev"]), "--recordings", str(paths["recordings"]),
             "--output", str(tmp_path / "found")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "tools/query_by_example.py"), run_name="__main__")
    root = tree.parse(tmp_path / "found/benchmark.stdlist.xml").getroot()
    assert [x.get("termid") for x in root] == ["dev1", "dev10"]
    for terms in root:
        assert [x.get("file") for x in terms] == ["utterances1", "utterances10"]
        scores = np.array([float(x.get("score")) for x in terms])
        assert scores.mean() == pytest.approx(0, abs=1e-3)
        assert scores.std() == pytest.approx(1, abs=1e-3)
        assert {x.get("decision") for x in terms} == {"NO"}


def test_the_best_layer_of_development_answers_the_evaluation(tmp_path: Path) -> None:
    copy = RecipeCopy(tmp_path, "superb", "realmini/upstream")
    make_quesst(tmp_path / "q")
    words = ["--quesst", str(tmp_path / "q"), "--layers", "2 7 5"]
    calls = copy.calls("superb/query", *words)
    assert calls[0] == f"speechssl prepare quesst14 --source {tmp_path}/q --output data"
    searched = [c for c in calls if "query_by_example.py" in c]
    assert [re.search(r"--layer=(\d+)", c)[1] for c in searched] == ["2", "7", "5", "7"]
    assert ["cuts_eval.jsonl.gz" in c for c in searched] == [False, False, False, True]
    assert all("--stdlist true" in c and "upstream/logmel.yaml" in c for c in searched)
    folder = tmp_path / "egs/superb/query/exp/logmel"
    assert "maxTWV: 0.07" in (folder / "layer7_eval/score.out").read_text()
    code, shown = copy.run("superb/query", "--quesst", "nowhere")
    assert code == 2 and "quesst14Database.tgz" in shown.splitlines()[-1]
