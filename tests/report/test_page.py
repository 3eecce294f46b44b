"""The report: complete when all is there, honest about what is missing, self-contained always."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import examples
import pytest

from speechssl.report.charts import MAX_POINTS, Series, bars, lines, short, thin, ticks
from speechssl.report.page import render
from speechssl.report.read import count_parameters, find_experiments


class _Checker(HTMLParser):
    """Collects tags left open and references that leave the page."""

    VOID = frozenset({"meta", "img", "br", "rect", "line", "circle", "path", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            if name in ("src", "href") and value:
                if value.startswith("#"):
                    self.links.add(value[1:])
                elif not value.startswith("data:"):
                    self.outside.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()


def _check(text: str) -> _Checker:
    checker = _Checker()
    checker.feed(text)
    assert not checker.open and not checker.outside
    assert not re.search(r"https?://|@import|url\(", text)
    assert checker.links <= checker.ids
    return checker


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    root = tmp_path / "exp"
    examples.clustering(root / "km1")
    examples.pretraining(root / "hubert_it1")
    examples.pretraining(root / "hubert_it2", steps=5000, seed=1)
    examples.finetuning(root / "ctc")
    return root


def test_a_whole_set_of_experiments_makes_one_closed_page(exp: Path) -> None:
    text = render(find_experiments([exp]), "made now")
    _check(text)
    for wanted in (
        "Hubert", "100 classes of mfcc", "5000 of 5000", "(80 %)", "PNMI 0.287", "Learning rate",
        "Gradient norm", "Throughput", "Use of the clusters: km1/fit.json", "PNMI by layer",
        "Word error rate by length", "the 8 worst utterances", "options that differ",
        "beam, LM weight 1.500, RTF 0.051", "1 utterances left out", "hubert_it2/config.yaml",
    ):  # fmt: skip
        assert wanted in text, wanted
    # Texts of a corpus are shown, never run: they are escaped wherever they appear.
    assert "<eh>" not in text and "<small> cake" not in text


def test_the_best_validation_names_value_and_step(exp: Path) -> None:
    (one,) = find_experiments([exp / "hubert_it1"])
    valid = [(m["loss"], m["step"]) for m in one.metrics if m["split"] == "valid"]
    value, step = min(valid)
    assert f"loss {value:.4g} <small>at {step}</small>" in render([one], "")


def test_an_empty_beginning_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 10}\n")
    text = render(find_experiments([tmp_path]), "")
    _check(text)
    for part in ("no metrics.jsonl", "no clusters.json", "no results.json"):
        assert f"Missing: {part}" in text


def test_damaged_files_are_told_and_do_not_stop_the_page(exp: Path) -> None:
    with (exp / "hubert_it1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4020, "split": "train", "loss": NaN}\n{"step": 40')
    (exp / "km1" / "quality.json").write_text("{")
    (exp / "ctc" / "config.yaml").write_text("a: [")
    text = render(find_experiments([exp]), "")
    _check(text)
    assert "metrics.jsonl: 1 lines cannot be read" in text
    assert "quality.json cannot be read" in text and "config.yaml cannot be read" in text


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    lines_ = [{"step": s, "split": "train", "loss": v} for s, v in ((1, 9.0), (2, 8.0), (1, 7.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines_))
    (one,) = find_experiments([tmp_path])
    assert [(m["step"], m["loss"]) for m in one.metrics] == [(1, 7.0), (2, 8.0)]


def test_an_unscored_decoding_is_scored(tmp_path: Path) -> None:
    scored = examples.decoding(tmp_path / "a")
    unscored = examples.decoding(tmp_path / "b", scored=False)
    one, two = find_experiments([scored, unscored])
    assert one.decodings[0].results["wer"] == two.decodings[0].results["wer"] > 0
    assert two.decodings[0].results["worst"]


def test_any_numeric_field_gets_a_chart(tmp_path: Path) -> None:
    rows = [{"step": s, "train/contrastive": 1.0 / s, "valid/contrastive": 2.0 / s} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = render(find_experiments([tmp_path]), "")
    assert text.count("<figcaption>contrastive</figcaption>") == 1


def test_folders_of_equal_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        examples.pretraining(tmp_path / parent / "it1", steps=20)
    found = find_experiments([tmp_path / "a" / "it1", tmp_path / "b" / "it1"])
    assert [e.name for e in found] == ["a/it1", "b/it1"]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no folder"):
        find_experiments([tmp_path / "absent"])
    with pytest.raises(ValueError, match="found nothing of an experiment"):
        find_experiments([tmp_path])


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "m.safetensors")
    assert count_parameters(tmp_path / "m.safetensors") == 17
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    assert count_parameters(tmp_path / "torn.safetensors") is None


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.0, 7.0), (1e-6, 5e-4), (0.0, 123456.0), (0.98, 1.01)]
)
def test_ticks_are_round_inside_and_enough(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert all(float(short(t).replace("k", "e3").replace("M", "e6")) == pytest.approx(t, rel=1e-3)
               for t in found)  # fmt: skip


def test_thinning_keeps_spikes_and_drops_what_is_not_finite() -> None:
    values = [0.0] * 10000
    values[5123], values[77] = 50.0, float("nan")
    xs, ys = thin(list(range(10000)), values)
    assert len(xs) <= MAX_POINTS and max(ys) == 50.0 and xs == sorted(xs)


def test_charts_of_nothing_say_so() -> None:
    assert "no values" in lines("t", [Series("a", [1.0], [float("inf")])])
    assert "no values" in bars("t", [("a", [None])], ["x"])
