from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_corpus import make_audio, make_cut, write_cuts

from speechssl.data.config import MixingConfig
from speechssl.data.mixing import Mixer, mean_square, partner_of


def _signals(count: int = 6) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    sizes = draw.integers(4000, 30000, count)
    return [(0.2 * draw.standard_normal(n)).astype(np.float32) for n in sizes]


def _corrupt(mixer: Mixer, signals: list[np.ndarray], own: int, seed: int):
    asked = []

    def read_partner(place: int, share: float, longest: int) -> np.ndarray:
        wave = signals[place]
        size = min(longest, len(wave))
        start = int(share * (len(wave) - size + 1))
        asked.append((place, start, size))
        return wave[start : start + size]

    mixed = signals[own].copy()
    return mixed, mixer.corrupt(mixed, seed, own, len(signals), read_partner), asked


def test_the_measured_ratio_is_the_drawn_one_within_a_thousandth_db() -> None:
    signals, mixer = _signals(), Mixer(MixingConfig(probability=1.0))
    ratios = []
    for seed in range(300):
        own = seed % len(signals)
        clean = signals[own].astype(np.float64)
        mixed, mixture, asked = _corrupt(mixer, signals, own, seed)
        if mixture is None or mixture.length < 200:
            continue
        part = slice(mixture.begin, mixture.begin + mixture.length)
        place, start, size = asked[0]
        added = signals[place][start : start + size].astype(np.float64)
        scale = np.dot(mixed[part] - clean[part], added) / np.dot(added, added)
        measured = 10 * np.log10(mean_square(clean) / (scale**2 * mean_square(added)))
        assert abs(measured - mixture.ratio_db) < 1e-3
        assert np.array_equal(np.delete(mixed, np.r_[part]), np.delete(signals[own], np.r_[part]))
        assert mixture.length <= 0.5 * len(clean) + 1
        ratios.append(measured)
    assert len(ratios) > 250 and min(ratios) < -4.5 and max(ratios) > 4.5


def test_an_utterance_is_never_its_own_partner_and_any_other_can_be() -> None:
    for count in (2, 3, 9):
        for own in range(count):
            partners = {partner_of(seed, own, count) for seed in range(300)}
            assert partners == set(range(count)) - {own}
    assert partner_of(1, 0, 1) is None


def test_the_share_of_mixed_utterances_is_as_configured() -> None:
    signals, mixer = _signals(), Mixer(MixingConfig(probability=0.2))
    mixed = sum(_corrupt(mixer, signals, 0, seed)[1] is not None for seed in range(2000))
    assert 0.17 < mixed / 2000 < 0.23


def test_silence_is_left_alone() -> None:
    signals = [np.zeros(8000, np.float32), np.ones(8000, np.float32)]
    mixer = Mixer(MixingConfig(probability=1.0))
    for own in (0, 1):
        for seed in range(20):
            mixed, mixture, _ = _corrupt(mixer, signals, own, seed)
            assert mixture is None and np.array_equal(mixed, signals[own])


def test_noise_comes_from_its_own_recordings_at_its_own_ratio(tmp_path: Path) -> None:
    make_audio(tmp_path / "n.flac", 1.0, 3)
    cuts = write_cuts(tmp_path / "cuts_noise.jsonl.gz", [make_cut("n", tmp_path / "n.flac", 1.0)])
    config = MixingConfig(
        probability=1.0, noise_probability=1.0, noise_ratio_db=(19.0, 20.0), noise_cuts=cuts
    )
    signals, mixer = _signals(1), Mixer(config)
    done = 0
    for seed in range(50):
        mixed, mixture, asked = _corrupt(mixer, signals, 0, seed)
        assert not asked
        if mixture is not None:
            added = mixed.astype(np.float64) - signals[0]
            part = added[mixture.begin : mixture.begin + mixture.length]
            ratio = 10 * np.log10(mean_square(signals[0]) / max(mean_square(part), 1e-20))
            assert mixture.partner is None and 18.9 < ratio < 20.1
            done += 1
    assert done > 40


def test_reverberation_keeps_time_and_power(tmp_path: Path) -> None:
    rir = np.zeros(4000, np.float32)
    rir[300], rir[900] = 0.9, 0.2
    soundfile.write(tmp_path / "r.wav", rir, 16000, subtype="FLOAT")
    cuts = write_cuts(tmp_path / "cuts_rir.jsonl.gz", [make_cut("r", tmp_path / "r.wav", 0.25)])
    mixer = Mixer(MixingConfig(probability=0.0, rir_probability=1.0, rir_cuts=cuts))
    signals = _signals(1)
    wet, mixture, _ = _corrupt(mixer, signals, 0, 5)
    assert mixture is None
    assert mean_square(wet) == pytest.approx(mean_square(signals[0]), rel=1e-5)
    lags = [np.dot(wet[lag:], signals[0][: len(wet) - lag]) for lag in range(700)]
    assert int(np.argmax(lags)) == 0 and int(np.argsort(lags)[-2]) == 600
