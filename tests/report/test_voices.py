"""Converted voices in the report: figures, players, pictures."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_page import _check

from speechssl.report import voices as module
from speechssl.report.page import render
from speechssl.report.pictures import flac, palette, png, spectrogram
from speechssl.report.read import find_experiments
from speechssl.report.voices import choose, f0_overlay, read_conversions, voices

RATE = 16000


def tone(hz: float, seconds: float = 0.3) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def conversions(folder: Path, shift: float) -> None:
    """An experiment with four scored conversions; `shift` makes one better than another."""
    made = folder / "converted"
    (made / "audio").mkdir(parents=True)
    (folder / "config.yaml").write_text("head: {class_path: x.VoiceConvNextConfig}\n")
    rows, tracks = [], []
    for number in range(4):
        paths = {}
        for name, hz in (("source", 200.0), ("reference", 400.0), ("converted", 390.0)):
            paths[name] = str(made / f"audio/{number}-{name}.wav")
            soundfile.write(paths[name], tone(hz + number), RATE)
        rows.append({
            "id": f"u{number}", "source": f"s{number}", "source_speaker": "bert <b>",
            "target": "anna", "text": "fish & chips", "audio": paths["converted"],
            "source_audio": paths["source"], "reference_audio": paths["reference"],
            "mcd": 4 + number + shift, "hyp": "fish <chips>",
            "speaker": {"target_cosine": 0.81},
        })  # fmt: skip
        track = [0.0] * 10 + [200.0] * 20 + [0.0] * 10 + [210.0] * 20
        tracks.append({"id": f"u{number}", "hop_s": 0.005, "converted": track, "source": track,
                       "reference": track})  # fmt: skip
    results = {
        "kind": "conversion", "compared": 4, "mcd": 5.5 + shift, "mcd_c0": 6.0, "f0_rmse_hz": 12.0,
        "source": {"mcd": 9.25}, "asr": {"wer": 0.25, "source_wer": 0.125},
        "speaker": {"closer_to_target": 0.975},
        "settings": {"order": 24, "spectrum": "a <window>", "alpha": 0.42, "threshold_db": -20.0,
                     "dtw": True}, "troubles": ["u9: found <nothing>"],
    }  # fmt: skip
    (made / "results.json").write_text(json.dumps(results))
    for name, lines in (("conversions.jsonl", rows), ("f0.jsonl", tracks)):
        (made / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    conversions(tmp_path / "exp/hubert", 0.0)
    conversions(tmp_path / "exp/logmel", 2.0)
    return tmp_path / "exp"


def test_figures_players_and_pictures_are_in_the_page(exp: Path) -> None:
    page = render(find_experiments([exp]), "now")
    _check(page)
    for wanted in ("Converted voices", "<td>9.25</td>", "<td>5.50</td>", "<td>7.50</td>", "12.5",
                   "fish &amp; chips", "fish &lt;chips&gt;", "a &lt;window&gt;", "DTW on",
                   "cosine with target 0.81", "1 conversions were not compared"):  # fmt: skip
        assert wanted in page, wanted
    # Three utterances; each has source, target and two conversions.
    assert page.count("<audio controls") == page.count("image/png") == 3 * 4
    assert page.count('aria-label="F0 over time"') == 3
    assert len(page) < 600_000


def test_the_sound_of_the_page_is_that_of_the_file(exp: Path) -> None:
    section = voices(find_experiments([exp]))
    sounds = re.findall(r"data:audio/flac;base64,([A-Za-z0-9+/=]+)", section)
    found, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    assert rate == RATE and np.abs(found - tone(200.0)).max() < 2 / 32768


def test_nearest_middle_and_farthest_are_chosen_of_what_all_have(exp: Path) -> None:
    found = [c for e in find_experiments([exp]) for c in read_conversions(e)]
    assert [c.name for c in found] == ["hubert", "logmel"]
    assert choose(found) == ["u0", "u2", "u3"] and choose(found, 2) == ["u0", "u3"]
    del found[1].rows["u0"]  # type: ignore[attr-defined]
    assert choose(found)[0] == "u1"


def test_a_page_without_conversions_says_nothing_of_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    page = render(find_experiments([tmp_path]), "now")
    assert "Converted" not in page


def test_what_is_missing_or_silent_is_shown_as_that(exp: Path) -> None:
    audio = exp / "hubert/converted/audio"
    (audio / "0-source.wav").unlink()
    soundfile.write(audio / "0-converted.wav", np.zeros(3000), RATE)
    (audio / "3-converted.wav").write_text("no audio")
    page = voices(find_experiments([exp]))
    # u0's and u3's own, which only this folder has.
    assert page.count("no recording here") == 2
    _check(render(find_experiments([exp]), "now"))


def test_long_recordings_are_cut_and_pages_end(exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    page = voices(find_experiments([exp]))
    sounds = re.findall(r"data:audio/flac;base64,([A-Za-z0-9+/=]+)", page)
    assert len(sounds) == 4 and "Further examples are left out" in page
    assert len(soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))[0]) == 1600


def test_f0_has_gaps_where_nothing_is_voiced() -> None:
    values = [0.0, 100.0, 110.0, 0.0, 0.0, 120.0, 130.0, 140.0, 0.0, 150.0]
    svg = f0_overlay([("a", values), ("b", [0.0] * 10)], 0.01)
    (path,) = re.findall(r'd="([^"]*)"', svg)
    # Two runs; a single frame is no line, and nothing is drawn for what has no voice.
    assert path.count("M") == 2 and path.count("L") == 3
    assert svg.count("<span>") == 2 and ">b<" in svg
    assert "nothing voiced" in f0_overlay([("b", [0.0])], 0.01)


def chunks(data: bytes) -> dict[bytes, bytes]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        found[kind] = body
        at += 12 + size
    return found


def pixels(data: bytes) -> np.ndarray:
    found = chunks(data)
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_a_png_holds_the_pixels_it_was_given() -> None:
    given = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    data = png(given, palette())
    assert np.array_equal(pixels(data), given)
    assert np.array_equal(np.frombuffer(chunks(data)[b"PLTE"], np.uint8).reshape(256, 3), palette())
    lightness = palette().astype(int) @ [0.3, 0.59, 0.11]
    assert (np.diff(lightness) >= 0).all()


def test_a_spectrogram_is_brightest_at_the_tone_and_dark_in_silence() -> None:
    found = pixels(spectrogram(np.concatenate([tone(3000.0), np.zeros(4800)]), RATE))
    assert found.shape == (128, 61)
    rows = found[:, 5:25].argmax(0)
    assert (np.abs((127.5 - rows) * 8000 / 128 - 3000) < 63).all()
    assert found[:, 5:25].max() > 240 and found[:, 40:].max() == 0
    assert pixels(spectrogram(np.zeros(1600), RATE)).max() == 0


def test_flac_clips_rather_than_wraps() -> None:
    found, _ = soundfile.read(io.BytesIO(flac(np.array([2.0, -2.0, 0.5]), RATE)))
    assert found[0] > 0.99 and found[1] < -0.99 and found[2] == pytest.approx(0.5, abs=1e-4)
