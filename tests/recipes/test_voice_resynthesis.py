"""egs/mini/vc/resynthesis.sh: what its stages start, with programs that only take notes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from recipe_copy import lay_out, run_recipe


class Copy:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = lay_out(folder, "mini/vc", "realmini/upstream", "realmini/vc")
        self.recipe = folder / "egs/mini/vc"
        (self.recipe / "data").mkdir()
        (self.recipe / "data/target.txt").write_text("anna\n")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run_recipe(self.recipe / "resynthesis.sh", self.venv, *words)

    def calls(self, *words: str) -> list[str]:
        (self.folder / "calls").write_text("")
        done = self.run(*words)
        assert done.returncode == 0, done.stderr[-2000:]
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    found = Copy(tmp_path)
    for name in (
        "vc/exp/seed1/hubert/encoder",
        "vc/exp/verifier",
        "ssl/exp/seed1/asr_pretrained/sweep",
    ):
        (tmp_path / "egs/mini" / name).mkdir(parents=True)
    return found


def test_each_representation_is_learnt_alike_and_made_again_twice(copy: Copy) -> None:
    calls = copy.calls("--jobs", "1", "--layers", "0 2", "--classes", "50 200", "--steps", "7")
    heads = [c for c in calls if "bin.finetune" in c]
    starts = {
        "logmel": "--config ../../realmini/upstream/logmel.yaml --data",
        "layer0": "--init exp/seed1/hubert/encoder --head.layer 0 --data",
        "layer2": "--init exp/seed1/hubert/encoder --head.layer 2 --data",
        "units50": "--head.layer 3 --head.clusters exp/resynthesis/clusters50 --data",
        "units200": "--head.layer 3 --head.clusters exp/resynthesis/clusters200 --data",
        "units200_f0": "--head.layer 3 --head.clusters exp/resynthesis/clusters200 --data",
    }
    assert len(heads) == len(starts)
    for call, (name, start) in zip(heads, starts.items(), strict=True):
        assert start in call and f"--output exp/resynthesis/heads/{name}" in call
        assert "--head.embeddings exp/resynthesis/embeddings" in call and "--train.steps 7" in call
        assert f"--head.pitch {'true' if name.endswith('_f0') else 'false'}" in call
    fits = [c for c in calls if "cluster fit" in c]
    assert [c.split("--classes ")[1].split()[0] for c in fits] == ["50", "200"]
    made = [c for c in calls if "convert-voice" in c]
    assert len(made) == 2 * len(starts) and all("--target anna" in c for c in made)
    inputs = ["cuts_target_test" in c for c in made]
    assert inputs == [True, False] * len(starts)
    scored = [c for c in calls if "score-conversion" in c]
    assert ["--dtw false" in c for c in scored] == inputs
    assert ["--embeddings" in c for c in scored] == [not own for own in inputs]
    tables = [c for c in calls if "local/table.py" in c]
    assert [c.split()[3] for c in tables] == ["exp/resynthesis/own", "exp/resynthesis/others"]
    assert all(c.endswith(" ".join(starts)) for c in tables)


def test_what_the_recipe_before_has_not_made_is_named(copy: Copy) -> None:
    done = copy.run("--upstream", "wavlm")
    assert done.returncode == 2
    assert "found no exp/seed1/wavlm/encoder; want what ./run.sh makes" in done.stderr


def test_a_second_run_does_nothing_but_tables_and_reports(copy: Copy) -> None:
    assert len(copy.calls("--jobs", "1")) > 50
    calls = copy.calls("--jobs", "1")
    assert len(calls) == 4 and all("table.py" in c or "report" in c for c in calls)
