"""The report's section about probes."""

from __future__ import annotations

import json
from pathlib import Path

from speechssl.report.page import render
from speechssl.report.read import find_experiments


def probe(folder: Path, layers: int, level: float, labels: bool = True) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for n in range(layers):
        row = {"layer": n, "rankme": 20.0 + n, "effective_rank": 9.0, "cka_mel": 0.9 - 0.1 * n}
        if labels:
            row |= {"phone_accuracy": level + 0.01 * n, "pnmi": 0.4}
            row["speaker_accuracy"] = 0.9 - level
        rows.append(row)
    best = {"phone_dev_accuracy": layers - 1, "speaker_dev_accuracy": 0, "pnmi": 0}
    values = {
        "kind": "probe", "layers": rows, "best": best if labels else {},
        "chance": {"phone": 0.123, "speaker": 0.05} if labels else {},
        "data": {"frames": 20000, "utterances": 400},
    }  # fmt: skip
    (folder / "probe.json").write_text(json.dumps(values))
    return folder


def test_probes_get_rows_curves_and_a_trade_off(tmp_path: Path) -> None:
    probe(tmp_path / "hubert", 3, 0.5)
    probe(tmp_path / "logmel", 1, 0.3)
    text = render(find_experiments([tmp_path]), "")
    assert "0.520 (layer 2)" in text and "0.300 (layer 0)" in text and "0.123" in text
    for title in ("Phones against speakers", "RankMe", "Linear CKA with log-mel"):
        assert f"<figcaption>{title}</figcaption>" in text
    assert "hubert, layer 2" in text and "logmel, layer 0" in text
    assert "hubert, layers 0 to 2" in text and "logmel, layers" not in text
    # They are no label sets: those have a section of their own.
    assert "<figcaption>PNMI by layer</figcaption>" not in text
    assert "Missing: no clusters.json" in text


def test_abx_errors_have_columns_and_curves_if_measured(tmp_path: Path) -> None:
    probe(tmp_path / "plain", 3, 0.5)
    assert "ABX error" not in render(find_experiments([tmp_path]), "")
    values = json.loads((tmp_path / "plain/probe.json").read_text())
    for row in values["layers"]:
        row |= {"abx_within": 0.081 - 0.01 * row["layer"], "abx_across": 0.1 + row["layer"] / 100}
    values["best"] |= {"abx_within": 2, "abx_across": 0}
    (tmp_path / "plain/probe.json").write_text(json.dumps(values))
    text = render(find_experiments([tmp_path]), "")
    assert "<figcaption>ABX error of phones within a speaker</figcaption>" in text
    assert "<figcaption>ABX error of phones across speakers</figcaption>" in text
    assert "0.061 (layer 2)" in text and "0.100 (layer 0)" in text


def test_a_probe_inside_a_run_is_found_and_labels_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("train: {steps: 3}\n")
    probe(tmp_path / "run/probe", 2, 0.5, labels=False)
    text = render(find_experiments([tmp_path / "run"]), "")
    assert "<td>run/probe</td>" in text and "20000" in text


def test_without_a_probe_the_section_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 10}\n")
    assert "Missing: no probe.json" in render(find_experiments([tmp_path]), "")
