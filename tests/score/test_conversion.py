"""Distortion, time warping, F0 and speaker figures of conversions, against closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speechssl.score.cepstrum import (
    ALPHA,
    DECIBEL,
    distances,
    distortions,
    frame_powers,
    mel_cepstra,
    power_spectra,
    smooth_over_pitch,
    warped,
)
from speechssl.score.conversion import (
    Analysis,
    Settings,
    analyse,
    averages,
    compare,
    natural_threshold,
    pairs,
    speaker_scores,
)
from speechssl.score.dtw import warp
from speechssl.score.pitch import PitchConfig, track
from speechssl.score.verification import unit

RATE = 16000


def complex_tone(hz: float | np.ndarray, seconds: float, formants: tuple[float, ...] = (),
                 rate: int = RATE) -> np.ndarray:  # fmt: skip
    """Harmonics of a (moving) F0, falling as 1/h, or shaped by peaks at `formants`."""
    count = round(seconds * rate)
    f0 = np.broadcast_to(np.asarray(hz, dtype=float), (count,))
    phase = 2 * np.pi * np.cumsum(f0) / rate
    wave = np.zeros(count)
    for h in range(1, int(0.45 * rate / f0.max()) + 1):
        level = 1.0 / h
        if formants:
            level = sum(1 / (1 + ((f0 * h - f) / 80) ** 2) for f in formants) + 1e-3
        wave += level * np.cos(h * phase + 1.7 * h * h)
    return 0.3 * wave / np.abs(wave).max()


# Time warping ---------------------------------------------------------------------------------


def every_path(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    if rows == columns == 1:
        return [[(0, 0)]]
    found = []
    for i, j in ((rows - 1, columns), (rows, columns - 1), (rows - 1, columns - 1)):
        if i and j:
            found += [[*path, (rows - 1, columns - 1)] for path in every_path(i, j)]
    return found


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (4, 1), (3, 3), (5, 4), (2, 5)])
def test_the_warp_is_the_cheapest_of_all_paths(rows: int, columns: int) -> None:
    random = np.random.default_rng(rows * 10 + columns)
    paths = every_path(rows, columns)
    for _ in range(20):
        cost = random.random((rows, columns))
        one, two = warp(cost)
        assert list(zip(one.tolist(), two.tolist(), strict=True)) in paths
        best = min(sum(cost[i, j] for i, j in path) for path in paths)
        assert cost[one, two].sum() == pytest.approx(best)


def test_a_stretched_copy_is_paired_with_itself() -> None:
    frames = np.random.default_rng(0).standard_normal((12, 3))
    times = np.repeat(np.arange(12), np.arange(12) % 3 + 1)
    one, two = warp(np.linalg.norm(frames[times][:, None] - frames[None], axis=-1))
    assert np.array_equal(times[one], two)


def test_equal_costs_go_along_the_diagonal() -> None:
    one, two = warp(np.zeros((5, 5)))
    assert np.array_equal(one, np.arange(5)) and np.array_equal(two, np.arange(5))


@pytest.mark.parametrize("cost", [np.zeros((0, 3)), np.zeros(3), np.full((2, 2), np.nan),
                                  np.full((2, 2), -1.0)])  # fmt: skip
def test_costs_that_are_none_are_refused(cost: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cost: found"):
        warp(cost)


# Mel-cepstra ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", sorted(ALPHA))
def test_a_spectrum_made_of_cosines_has_their_amplitudes_as_cepstrum(rate: int) -> None:
    omega = np.linspace(0, np.pi, 513)
    true = np.random.default_rng(1).standard_normal(25) * 0.3
    log_amplitude = np.cos(np.outer(warped(omega, ALPHA[rate]), np.arange(25))) @ true
    found = mel_cepstra(np.exp(2 * log_amplitude)[None], 24, ALPHA[rate])
    assert np.allclose(found[0], true, atol=1e-9)


def test_warping_is_near_the_mel_scale_and_keeps_the_ends() -> None:
    omega = np.linspace(0, np.pi, 200)
    found = warped(omega, ALPHA[RATE])
    mel = np.log1p(omega / np.pi * RATE / 2 / 700)
    assert np.abs(found / np.pi - mel / mel[-1]).max() < 0.07
    errors = {a: np.abs(warped(omega, a) / np.pi - mel / mel[-1]).max() for a in (0.3, 0.42, 0.55)}
    assert errors[0.3] > errors[0.42] < errors[0.55]
    assert found[0] == 0 and found[-1] == pytest.approx(np.pi) and (np.diff(found) > 0).all()


def test_one_coefficient_apart_is_that_far_in_decibel() -> None:
    a = np.random.default_rng(2).standard_normal((7, 25))
    b = a.copy()
    b[:, 3] += 0.5
    closed = 10 / np.log(10) * np.sqrt(2 * 0.5**2)
    assert np.allclose(distortions(a, b, include_c0=False), closed)
    assert np.allclose(distortions(a, b, include_c0=True), closed)
    b[:, 0] -= 0.25
    assert np.allclose(distortions(a, b, include_c0=False), closed)
    both = 10 / np.log(10) * np.sqrt(2 * (0.5**2 + 0.25**2))
    assert np.allclose(distortions(a, b, include_c0=True), both)
    full = distances(a, b)
    each = [distortions(a[i : i + 1], b[j : j + 1], include_c0=False)[0]
            for i, j in itertools.product(range(7), range(7))]  # fmt: skip
    assert np.allclose(full.ravel(), each, atol=1e-6)


def test_distortion_is_the_root_mean_square_of_log_spectra_over_the_warped_axis() -> None:
    difference = np.random.default_rng(3).standard_normal(24) * 0.2
    axis = np.linspace(0, np.pi, 4001)
    decibel = 2 * DECIBEL * np.cos(np.outer(axis, np.arange(1, 25))) @ difference
    mean = np.trapezoid(decibel**2, axis) / np.pi
    found = distortions(np.zeros((1, 25)), np.append(0, difference)[None], include_c0=False)
    assert found[0] == pytest.approx(np.sqrt(mean), rel=1e-6)


def test_power_of_frames_is_that_of_the_wave() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    spectra = power_spectra(noise, RATE)
    assert spectra.shape == (RATE // 80 + 1, 513)
    # Within the wave: padding takes part in the outermost frames.
    assert frame_powers(spectra)[5:-5].mean() == pytest.approx(0.01, rel=0.03)


def test_smoothing_keeps_a_constant_and_flattens_a_comb() -> None:
    flat = np.full((3, 513), 2.5)
    f0 = np.array([0.0, 110.0, 433.3])
    assert np.allclose(smooth_over_pitch(flat, f0, RATE), 2.5)
    comb = np.zeros((1, 513))
    comb[0, ::16] = 1.0  # 16 bins of 15.625 Hz: 250 Hz
    smooth = smooth_over_pitch(comb, np.array([250.0]), RATE)
    assert np.allclose(smooth, 1 / 16, rtol=1e-9)


def test_harmonics_do_not_count_as_timbre() -> None:
    """One vowel at two pitches is nearer than two vowels at one pitch."""
    vowels = {"a": (730.0, 1090.0, 2440.0), "i": (270.0, 2290.0, 3010.0)}
    low, high, other = (
        analyse(complex_tone(hz, 0.4, vowels[v])) for hz, v in ((120, "a"), (190, "a"), (120, "i"))
    )
    same, different = (compare(x, low)["mcd"] for x in (high, other))
    assert same < 0.4 * different


# Files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Something that moves as speech does: vowels, noise and a pause, F0 from 100 to 180 Hz."""
    random = np.random.default_rng(5)
    glide = np.linspace(100, 180, round(0.5 * RATE))
    parts = [
        complex_tone(glide, 0.5, (730.0, 1090.0, 2440.0)),
        0.02 * random.standard_normal(round(0.15 * RATE)),
        1e-4 * random.standard_normal(round(0.2 * RATE)),
        complex_tone(glide[::-1], 0.5, (270.0, 2290.0, 3010.0)),
    ]
    return np.concatenate(parts)


def test_a_file_is_no_distance_from_itself(speech: np.ndarray) -> None:
    one = analyse(speech)
    for dtw in (True, False):
        found = compare(one, one, dtw=dtw)
        assert found["mcd"] == found["mcd_c0"] == 0
        assert found["f0_rmse_hz"] == found["voicing_error"] == found["gross_pitch_error"] == 0
        assert found["f0_correlation"] == pytest.approx(1)
        assert found["duration_difference_s"] == 0
        assert found["pairs"] == one.loud.sum() < 0.9 * len(one.loud)


def test_a_gain_moves_c0_alone(speech: np.ndarray) -> None:
    found = compare(analyse(0.5 * speech), analyse(speech), dtw=False)
    assert found["mcd"] == pytest.approx(0, abs=1e-9)
    assert found["mcd_c0"] == pytest.approx(DECIBEL * np.sqrt(2) * np.log(2), rel=1e-9)
    assert found["f0_rmse_hz"] == 0


def test_without_warping_the_distortion_is_symmetric(speech: np.ndarray) -> None:
    tilted = np.convolve(speech, [1.0, -0.6])[: len(speech)]
    a, b = analyse(speech), analyse(tilted)
    one, two = compare(a, b, dtw=False), compare(b, a, dtw=False)
    assert one["mcd"] == two["mcd"] > 1 and one["mcd_c0"] == two["mcd_c0"]
    assert compare(a, b)["mcd"] <= one["mcd"] + 0.2


def test_warping_takes_a_change_of_tempo_and_a_lead_out(speech: np.ndarray) -> None:
    vowel = (730.0, 1090.0, 2440.0)
    rise = [complex_tone(np.linspace(100, 180, round(s * RATE)), s, vowel) for s in (0.5, 0.75)]
    lead = np.zeros(round(0.3 * RATE))
    found = compare(analyse(np.concatenate([lead, rise[1]])), analyse(rise[0]))
    assert found["mcd"] < 1.0 and found["f0_correlation"] > 0.95
    assert found["duration_difference_s"] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("rate", sorted(ALPHA))
def test_both_rates_see_the_same_speech_alike(rate: int, speech: np.ndarray) -> None:
    import soxr

    wave = soxr.resample(speech, RATE, rate)
    found = analyse(wave, Settings(rate=rate))
    reference = analyse(speech)
    assert len(found.f0) == pytest.approx(len(reference.f0), abs=1)
    one, two = found.f0[:260], reference.f0[:260]
    shared = (one > 0) & (two > 0)
    assert shared.sum() > 150 and np.abs(one[shared] / two[shared] - 1).max() < 0.02


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(8000), "digital silence"),
        (np.zeros(0), "digital silence"),
        (np.full(800, np.nan), "not finite"),
        (np.ones((2, 800)), r"want \(L,\)"),
    ],
)
def test_what_is_no_speech_is_named(wave: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyse(wave)


def test_a_tenth_of_a_second_is_enough(speech: np.ndarray) -> None:
    found = compare(analyse(speech[:1600]), analyse(speech))
    assert all(v is None or np.isfinite(v) for v in found.values())


def test_noise_has_no_pitch_to_compare(speech: np.ndarray) -> None:
    noise = analyse(np.random.default_rng(0).standard_normal(8000) * 0.1)
    found = compare(noise, noise)
    assert found["f0_rmse_hz"] is found["f0_correlation"] is found["gross_pitch_error"] is None
    assert found["voicing_error"] == 0 and found["voiced_pairs"] == 0


def test_other_lengths_want_warping(speech: np.ndarray) -> None:
    with pytest.raises(ValueError, match="want the same timing"):
        pairs(analyse(speech), analyse(speech[:-3200]), dtw=False)


def test_errors_of_pitch_are_counted_as_they_are_defined() -> None:
    loud = np.ones(10, dtype=bool)
    cepstra = np.random.default_rng(0).standard_normal((10, 25))
    true = np.array([100.0] * 5 + [200.0] * 3 + [0.0] * 2)
    mine = np.array([100.0, 110.0, 121.0, 79.0, 0.0, 200.0, 210.0, 410.0, 100.0, 0.0])
    found = compare(Analysis(cepstra, mine, loud), Analysis(cepstra, true, loud), dtw=False)
    assert found["voicing_error"] == pytest.approx(2 / 10)
    assert found["gross_pitch_error"] == pytest.approx(3 / 7)
    errors = np.array([0, 10, 21, -21, 0, 10, 210])
    assert found["f0_rmse_hz"] == pytest.approx(np.sqrt(np.mean(errors**2.0)))


def test_averages_leave_out_what_was_not_measured() -> None:
    rows = [{"a": 1.0, "duration_difference_s": -1.0}, {"a": None, "duration_difference_s": 3.0}]
    found = averages(rows, ("a", "b", "duration_difference_s"))
    assert found == {"a": 1.0, "b": None, "duration_difference_s": 2.0}


# F0 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [65.0, 80.0, 123.4, 200.0, 333.3, 480.0])
@pytest.mark.parametrize("kind", ["tone", "harmonics", "missing fundamental"])
def test_f0_of_steady_sounds_is_within_a_percent(hz: float, kind: str) -> None:
    n = np.arange(RATE // 2) / RATE
    orders = {"tone": [1], "harmonics": range(1, 16), "missing fundamental": range(2, 8)}[kind]
    wave = sum(np.cos(2 * np.pi * hz * h * n + h * h) / h for h in orders if hz * h < 7500)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(n))
    found = track(wave + noise, RATE, 80)[10:-10]
    assert (found > 0).all() and np.abs(found / hz - 1).max() < 0.01


def test_f0_follows_a_glide_and_knows_silence_and_noise() -> None:
    glide = 120 * 2 ** (np.linspace(0, 1, RATE))
    wave = np.concatenate([np.zeros(4000), complex_tone(glide, 1.0), np.zeros(4000)])
    found = track(wave, RATE, 80)
    true = np.concatenate([np.zeros(4000), glide, np.zeros(4001)])[: len(wave) + 1 : 80]
    inside = np.arange(len(found))[60:240]
    assert np.abs(found[inside] / true[inside] - 1).max() < 0.01
    assert not found[:40].any() and not found[-40:].any()
    assert not track(np.zeros(800), RATE, 80).any() and track(np.zeros(0), RATE, 80).shape == (1,)
    noise = np.random.default_rng(0).standard_normal(RATE)
    assert (track(noise, RATE, 80) > 0).mean() < 0.02


def test_f0_does_not_change_with_gain_or_offset() -> None:
    wave = complex_tone(np.linspace(90, 220, RATE // 2), 0.5)
    found = track(wave, RATE, 80)
    assert np.allclose(track(0.01 * wave, RATE, 80), found, rtol=1e-6)
    offset = track(wave + 0.2, RATE, 80)
    assert np.allclose(offset[10:-10], found[10:-10], rtol=1e-3)


def test_a_range_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="floor_hz, ceiling_hz: found 300 and 200"):
        PitchConfig(floor_hz=300, ceiling_hz=200)


@pytest.mark.slow
@pytest.mark.corpora
def test_f0_of_real_speech_is_that_of_pyin() -> None:
    import os
    from pathlib import Path

    import soundfile

    librosa = pytest.importorskip("librosa")
    if "SPEECHSSL_CORPORA" not in os.environ:
        pytest.skip("SPEECHSSL_CORPORA names no folder")
    for name in ("p225/p225_003", "p226/p226_003"):
        path = Path(os.environ["SPEECHSSL_CORPORA"]) / f"vctk_sample/audio/{name}.flac"
        if not path.is_file():
            continue
        wave, rate = soundfile.read(path)
        mine = track(wave, rate, 160)
        theirs, _, _ = librosa.pyin(wave, fmin=60, fmax=500, sr=rate, frame_length=1024,
                                    hop_length=160, resolution=0.2, fill_na=0.0)  # fmt: skip
        # pYIN compares the first half of its 64 ms with later ones: it is about 10 ms behind.
        count = min(len(mine), len(theirs) - 1)
        mine, theirs = mine[:count], theirs[1 : count + 1]
        assert ((mine > 0) == (theirs > 0)).mean() > 0.85
        both = (mine > 0) & (theirs > 0)
        apart = np.abs(mine[both] / theirs[both] - 1)
        assert np.median(apart) < 0.015 and (apart < 0.2).mean() > 0.95


# Speakers -------------------------------------------------------------------------------------


def test_the_threshold_lies_between_the_cosines_of_same_and_other_speakers() -> None:
    random = np.random.default_rng(0)
    centres = unit(random.standard_normal((4, 30)))
    speakers = [f"s{i % 4}" for i in range(20)]
    natural = np.stack([centres[i % 4] + 0.05 * random.standard_normal(30) for i in range(20)])
    rate, threshold = natural_threshold(natural, speakers)
    cosines = unit(natural) @ unit(natural).T
    same = np.array(speakers)[:, None] == np.array(speakers)[None]
    others = ~np.eye(20, dtype=bool)
    assert rate == 0
    assert cosines[~same].max() < threshold <= cosines[same & others].min()
    with pytest.raises(ValueError, match="want two speakers"):
        natural_threshold(natural[:4], speakers[:4])
    with pytest.raises(ValueError, match="want two speakers"):
        natural_threshold(natural[::4], speakers[::4])


def test_whose_voice_it_is() -> None:
    target = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0]])
    source = np.array([0.0, 0.0, 3.0])
    found = speaker_scores(np.array([2.0, 0.0, 0.0]), target, source, threshold=0.9)
    assert found["target_cosine"] == pytest.approx(0.9) and found["source_cosine"] == 0
    assert found["accept_rate"] == 0.5 and found["closer_to_target"] is True
    assert speaker_scores(source, target, source, 0.9)["closer_to_target"] is False
