"""`speechssl decode` and `score` of further tasks: what is written, whatever the batches."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechssl.bin import decode, decode_tasks, score
from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.heads.diarize import DiarizeConfig
from speechssl.heads.regress import RegressConfig
from speechssl.heads.separate import SeparateConfig
from speechssl.heads.slots import SlotsConfig
from speechssl.model_file import open_model, save_model

ENCODER = LogMelConfig(mel_bins=16)
HEADS = {
    "segments.jsonl": DiarizeConfig(hidden_dim=6),
    "slots.jsonl": SlotsConfig(slots=["size", "who"], values=[["big", "none"], ["x", "y", "z"]]),
    "values.jsonl": RegressConfig(
        dimensions=["age"], lows=[0.0], highs=[9.0], means=[4.0], deviations=[2.0]
    ),
    "estimates.jsonl": SeparateConfig(sources=2, hidden_dim=6, hidden_layers=1),
}
every = pytest.mark.parametrize("file", HEADS)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Mixtures of two, of different lengths; the last is shorter than a frame."""
    folder = tmp_path_factory.mktemp("cuts")
    random = np.random.default_rng(0)
    writer = JsonlWriter(folder / "cuts.jsonl.gz")
    for i, length in enumerate((9000, 16000, 12345, 100)):
        waves = 0.1 * random.standard_normal((2, length))
        paths = [folder / f"{i}.{name}.wav" for name in ("one", "two", "mixed")]
        for path, wave in zip(paths, [*waves, waves.sum(0)], strict=True):
            soundfile.write(path, wave, 16000)
        custom = {"age": i, "sources": [str(p) for p in paths[:2]]} | ({"size": "big"} if i else {})
        row = cut_row(id=f"c{i}", audio=paths[2], header=read_header(paths[2]), speaker="a",
                      custom=custom | {"who": "xyz"[i % 3]})  # fmt: skip
        second = {**row["supervisions"][0], "id": "b", "speaker": "b", "start": 0.2}
        row["supervisions"].append({**second, "duration": row["duration"] - 0.2})
        writer.write(row)
    writer.close()
    return str(folder / "cuts.jsonl.gz")


def model(folder: Path, file: str) -> str:
    torch.manual_seed(0)
    encoder = ENCODER.build()
    head = HEADS[file].build(encoder)
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(folder, ENCODER, encoder.state_dict(), head_config=HEADS[file], head_state=own)
    return str(folder)


def decoded(folder: Path, file: str, cuts: str, *more: str) -> tuple[Path, list[dict[str, Any]]]:
    words = ["--model", model(folder / "model", file), "--cuts", cuts, "--device", "cpu"]
    assert decode.main([*words, "--output", str(folder / "out"), *more]) == 0
    lines = (folder / "out" / file).read_text().splitlines()
    return folder / "out", [json.loads(line) for line in lines]


@every
def test_every_utterance_is_answered_and_scored(
    file: str, cuts: str, tmp_path: Path, capsys: Any
) -> None:
    out, rows = decoded(tmp_path, file, cuts)
    assert [row["id"] for row in rows] == ["c0", "c1", "c2"]
    about = json.loads((out / "decode.json").read_text())
    assert about["skipped"] == ["c3: shorter than one frame (400 samples)"]
    assert about["layer_weights"] == {"0": 1.0} and about["trainable_parameters"] > 0
    assert score.main(["--decode", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["decode"]["head"]["class_path"].startswith("speechssl.heads.")
    wanted = {"segments.jsonl": "der", "slots.jsonl": "slot_f1", "values.jsonl": "ccc",
              "estimates.jsonl": "si_sdr_db"}[file]  # fmt: skip
    assert np.isfinite(results[wanted])


@every
def test_batches_change_no_answer(file: str, cuts: str, tmp_path: Path) -> None:
    one, many = (
        decoded(tmp_path / str(s), file, cuts, "--max_batch_seconds", str(s)) for s in (0.1, 60)
    )
    if file == "estimates.jsonl":
        for a, b in zip(one[1], many[1], strict=True):
            for path, other in zip(a["estimates"], b["estimates"], strict=True):
                waves = [soundfile.read(o / p)[0] for o, p in ((one[0], path), (many[0], other))]
                assert waves[0].shape == waves[1].shape and np.abs(waves[0] - waves[1]).max() < 1e-5
        return
    if file == "values.jsonl":
        found = [[row["hyp"]["age"] for row in rows] for _, rows in (one, many)]
        assert found[0] == pytest.approx(found[1], abs=1e-4)
        return
    assert one[1] == many[1]


def test_references_come_from_the_manifest(cuts: str, tmp_path: Path) -> None:
    _, rows = decoded(tmp_path / "a", "slots.jsonl", cuts)
    assert [row["ref"] for row in rows] == [
        {"size": "none", "who": "x"}, {"size": "big", "who": "y"}, {"size": "big", "who": "z"}
    ]  # fmt: skip
    _, rows = decoded(tmp_path / "b", "values.jsonl", cuts)
    assert [row["ref"] for row in rows] == [{"age": 0.0}, {"age": 1.0}, {"age": 2.0}]
    out, rows = decoded(tmp_path / "c", "segments.jsonl", cuts, "--threshold", "0")
    assert rows[1]["ref"] == [["a", 0.0, 1.0], ["b", 0.2, 1.0]]
    # Above a threshold of 0 both speak throughout.
    assert [h[1] for h in rows[1]["hyp"]] == [0.0, 0.0]
    assert (out / "hyp.rttm").read_text().count("SPEAKER c1 ") == 2


def test_a_search_is_refused(cuts: str, tmp_path: Path, capsys: Any) -> None:
    words = ["--model", model(tmp_path / "m", "slots.jsonl"), "--cuts", cuts, "--method", "beam"]
    assert decode.main([*words, "--output", str(tmp_path)]) == 2
    assert "found beam with a SlotsHead" in capsys.readouterr().err


@every
def test_a_model_that_answers_no_number_is_named(
    file: str, cuts: str, tmp_path: Path, capsys: Any
) -> None:
    folder = Path(model(tmp_path / "model", file))
    opened: Any = open_model(folder)
    own = {k: v for k, v in opened.head.state_dict().items() if not k.startswith("encoder.")}
    own["output.bias"] = torch.full_like(own["output.bias"], float("nan"))
    state = opened.encoder.state_dict()
    save_model(folder, ENCODER, state, head_config=HEADS[file], head_state=own)
    words = ["--model", str(folder), "--cuts", cuts, "--output", str(tmp_path / "out")]
    assert decode.main([*words, "--device", "cpu"]) == 2
    assert "model: found NaN as its answer to 'c" in capsys.readouterr().err


@pytest.mark.parametrize("age", ["old", float("nan")])
def test_a_reference_that_is_no_number_is_named(age: Any) -> None:
    head: Any = types.SimpleNamespace(config=HEADS["values.jsonl"])
    cut = {"id": "c7", "custom": {"age": age}}
    with pytest.raises(ValueError, match=f"age: found '{age}' in the cut 'c7', want a number"):
        decode_tasks._values(cut, np.zeros(1), head, None)
    row = decode_tasks._values({"id": "c8"}, np.ones(1), head, None)
    assert row == {"id": "c8", "ref": {"age": None}, "hyp": {"age": 1.0}}
