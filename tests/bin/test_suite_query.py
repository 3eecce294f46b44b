"""A task of `speechssl suite` in which spoken queries are found: layers, resume, options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from test_utterance_tasks import PITCHES, tone

from speechssl.bin import query_search, suite
from speechssl.bin.suite_task import read_tasks
from speechssl.encoders.transformer import TransformerConfig
from speechssl.model_file import save_model

TASK = {
    "about": "tones found by example", "protocol": "other speakers", "folders": ["tiny"],
    "obtain": "make it", "prepare": "jsonl", "metric": "map", "best": "highest", "also": ["mtwv"],
    "options": {"source": "{corpora}", "only": ["tiny"]}, "query": {"field": "pitch"},
}  # fmt: skip


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    (tmp_path / "tiny/audio").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = []
    for who, split in enumerate(["train", "valid", "test", "test"]):
        for take, pitch in enumerate([*PITCHES, *PITCHES]):
            name = f"{who}-{take}"
            wave = tone(PITCHES[pitch], 0.1 * who, random)
            soundfile.write(tmp_path / f"tiny/audio/{name}.wav", wave, 16000)
            rows.append(json.dumps({"id": name, "audio": f"audio/{name}.wav", "split": split,
                                    "speaker": f"s{who}", "pitch": pitch}) + "\n")  # fmt: skip
    (tmp_path / "tiny/manifest.jsonl").write_text("".join(rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/tones.yaml").write_text(yaml.safe_dump(TASK))
    config = TransformerConfig(
        front_end="log_mel", front_norm="layer", front_dim=16, layers=2, dim=16, ffn_dim=16,
        heads=2, pos_conv_kernel=8, pos_conv_groups=2,
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(tmp_path / "encoder", config, config.build().state_dict())
    return tmp_path


def words(corpora: Path) -> list[str]:
    return ["--tasks", str(corpora / "tasks"), "--corpora", str(corpora), "--energy", "none",
            "--upstreams", f"[logmel,small={corpora}/encoder]",
            "--output", str(corpora / "out")]  # fmt: skip


def test_the_layer_is_chosen_with_other_queries_and_nothing_is_trained(
    corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple[int, str]] = []
    figures = query_search.query_figures

    def noted(encoder: Any, layer: int, queries: list[str], *more: Any) -> Any:
        searched.append((layer, Path(queries[0]).name))
        return figures(encoder, layer, queries, *more)

    monkeypatch.setattr(query_search, "query_figures", noted)
    assert suite.main(words(corpora)) == 0
    plain, small = json.loads((corpora / "out/suite.json").read_text())["cells"]
    assert plain["score"] > 0.45 and plain["trained_parameters"] == 0  # by chance: 0.33
    assert plain["scored"] == 6 and set(plain["also"]) == {"mtwv"}
    assert list(small["sweeps"][0]) == ["layer 0", "layer 1", "layer 2"]
    best = max(range(3), key=lambda n: (small["sweeps"][0][f"layer {n}"], -n))
    assert small["head"] == f"warping (layer {best})"
    train, valid = "cuts_train.jsonl.gz", "cuts_valid.jsonl.gz"
    assert searched == [(0, train), (0, valid), (0, train), (1, train), (2, train), (best, valid)]
    page = (corpora / "out/index.html").read_text()
    assert "Validation: map of each layer" in page and "mAP %" in page
    # What was searched is not searched again.
    (corpora / "out/runs/small/tones/seed1/cell.json").unlink()
    (corpora / "out/runs/small/tones/seed1/fold1/test/results.json").unlink()
    searched.clear()
    assert suite.main(words(corpora)) == 0 and searched == [(best, valid)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": {"label": "pitch"}}, "want field"),
        ({"finetune": {"data": {}}}, "found finetune too"),
        ({"split": {"kind": "folds"}}, "another split"),
    ],
)
def test_mistakes_are_named(corpora: Path, changed: dict[str, Any], message: str) -> None:
    (corpora / "tasks/tones.yaml").write_text(yaml.safe_dump(TASK | changed))
    with pytest.raises(ValueError, match=message):
        read_tasks(corpora / "tasks", [])
