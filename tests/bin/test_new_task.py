"""A task that the project does not know: one file with a head and its figures, and one YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from test_utterance_tasks import PITCHES, tone

import speechssl.heads
from speechssl.bin import score, suite

HEAD = '''
"""How high a tone is, as a place between the lowest and the highest."""

from __future__ import annotations

import dataclasses

from torch.nn import functional as F

from speechssl.contract import Loss
from speechssl.heads.pooled import PooledHead, PooledConfig
from speechssl.heads.utterance import batch_classes
from torch import nn
import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeightConfig(PooledConfig):
    field: str = ""
    classes: list[str] = dataclasses.field(default_factory=list)

    def build(self, encoder):
        return HeightHead(self, encoder)


class HeightHead(PooledHead):
    def __init__(self, config, encoder):
        super().__init__(config, encoder)
        self.output = nn.Linear(self.pooled_dim, 1)

    def forward(self, batch):
        wanted = batch_classes(batch, len(self.config.classes)).float()
        errors = (self.answer(batch.wave, batch.wave_lengths)[0][:, 0] - wanted).square()
        count = torch.tensor(len(wanted))
        return Loss(errors.sum(), count, {"squares": (errors.detach().sum(), count)})

    def answer(self, wave, wave_lengths):
        return self.output(self.pooled(wave, wave_lengths)).float(), None

    def row(self, cut, answer):
        named = cut["supervisions"][0]["custom"][self.config.field]
        return {"ref": self.config.classes.index(named), "hyp": float(answer[0])}


def results(rows):
    return {"distance": sum(abs(r["ref"] - r["hyp"]) for r in rows) / len(rows)}
'''

TASK = {
    "about": "heights of tones", "protocol": "other speakers", "folders": ["tiny"],
    "obtain": "make it", "prepare": "jsonl", "metric": "distance", "best": "lowest",
    "options": {"source": "{corpora}", "only": ["tiny"]},
    "split": {"kind": "folds", "folds": 3, "run": [1, 2]},
    "finetune": {
        "data": {"batch_seconds": 5, "max_batch_seconds": 5, "min_seconds": 0.1, "max_seconds": 2,
                 "num_workers": 0},
        "head": {"class_path": "speechssl.heads.height_of_tones.HeightConfig",
                 "init_args": {"field": "pitch", "projection_dim": 8}},
        "train": {"steps": 60, "device": "cpu", "tensorboard": False, "valid_every": 20,
                  "learning_rate": 3e-2, "best_metric": "squares", "best_is": "lowest"},
    },
}  # fmt: skip


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads/height_of_tones.py").write_text(HEAD)
    where = [*speechssl.heads.__path__, str(tmp_path / "heads")]
    monkeypatch.setattr(speechssl.heads, "__path__", where)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/height.yaml").write_text(yaml.safe_dump(TASK))
    (tmp_path / "tiny/audio").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = []
    for who in range(6):
        for take, pitch in enumerate([*PITCHES, *PITCHES]):
            name = f"{who}-{take}"
            wave = tone(PITCHES[pitch], 0.1 * who, random)
            soundfile.write(tmp_path / f"tiny/audio/{name}.wav", wave, 16000)
            place = sorted(PITCHES, key=PITCHES.__getitem__).index(pitch)
            rows.append(json.dumps({"id": name, "audio": f"audio/{name}.wav", "split": "train",
                                    "speaker": f"s{who}", "pitch": f"{place}"}) + "\n")  # fmt: skip
    (tmp_path / "tiny/manifest.jsonl").write_text("".join(rows))
    return tmp_path


def test_one_file_and_one_yaml_are_a_task_of_the_suite(corpora: Path, capsys: Any) -> None:
    words = ["--tasks", str(corpora / "tasks"), "--corpora", str(corpora), "--upstreams",
             "[logmel]", "--energy", "none", "--output", str(corpora / "out")]  # fmt: skip
    assert suite.main(words) == 0
    (cell,) = json.loads((corpora / "out/suite.json").read_text())["cells"]
    assert cell["scored"] == 24 and len(cell["fold_scores"]) == 2
    assert cell["score"] < 0.4  # of 0 to 2; the middle one throughout has 0.67
    assert "height, distance ↓" in (corpora / "out/table.md").read_text()
    # A folder of a stranger may not name other code to run.
    tested = corpora / "out/runs/logmel/height/seed1/fold1/test"
    how = json.loads((tested / "decode.json").read_text())
    how["head"]["class_path"] = "os.path"
    (tested / "decode.json").write_text(json.dumps(how))
    assert score.main(["--decode", str(tested)]) == 2
    assert "want one of speechssl.heads" in capsys.readouterr().err
