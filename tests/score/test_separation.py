"""SI-SDR against its closed form, its invariances and torchmetrics; PESQ and STOI."""

from __future__ import annotations

import numpy as np
import pytest

from speechssl.score.separation import (
    MOST_DB,
    best_order,
    pesq,
    separation_results,
    si_sdr,
    stoi,
    wave_figures,
)


def waves(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape)
    return x - x.mean(-1, keepdims=True)


def test_the_ratio_of_orthogonal_noise_is_that_of_powers() -> None:
    truth, noise = waves(0, 2, 4000)
    noise -= truth * (noise @ truth) / (truth @ truth)
    for gain in (0.1, 1.0, 3.0):
        expected = 10 * np.log10((truth @ truth) / (gain**2 * (noise @ noise)))
        assert si_sdr(truth + gain * noise, truth) == pytest.approx(expected)


def test_gain_and_offset_do_not_matter_and_the_order_of_arguments_does() -> None:
    truth, noise = waves(1, 2, 500)
    found = truth + 0.3 * noise
    plain = si_sdr(found, truth)
    for changed in (5 * found, -0.2 * found, found + 3.0):
        assert si_sdr(changed, truth) == pytest.approx(plain)
    assert si_sdr(found, 7 * truth - 2) == pytest.approx(plain)
    assert si_sdr(truth, truth) == 100 and si_sdr(np.zeros(500), truth) == -100


def test_it_is_that_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    audio = pytest.importorskip("torchmetrics.functional.audio")
    found, truth = waves(2, 2, 300) + 0.5
    theirs = audio.scale_invariant_signal_distortion_ratio(
        torch.from_numpy(found), torch.from_numpy(truth), zero_mean=True
    )
    assert si_sdr(found, truth) == pytest.approx(theirs.item(), abs=1e-6)


def test_the_order_of_sources_does_not_matter() -> None:
    truth = waves(3, 3, 400)
    found = truth[[2, 0, 1]] + 0.2 * waves(4, 3, 400)
    assert best_order(found, truth) == [1, 2, 0]
    mixture = truth.sum(0)
    one, two = (wave_figures(mixture, x, truth) for x in (found, found[::-1]))
    assert one == two
    assert one[1]["si_sdr_db"] == pytest.approx(si_sdr(found[2], truth[1]))
    gain = si_sdr(found[2], truth[1]) - si_sdr(mixture, truth[1])
    assert one[1]["si_sdr_improvement_db"] == pytest.approx(gain)
    means = separation_results(one, 1)
    assert means["sources"] == 3
    assert means["si_sdr_db"] == pytest.approx(np.mean([r["si_sdr_db"] for r in one]))
    # The mixture itself improves nothing.
    same = wave_figures(mixture, np.stack([mixture] * 3), truth)
    assert all(r["si_sdr_improvement_db"] == 0 for r in same)


def test_perceptual_measures_prefer_less_noise() -> None:
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    time = np.arange(32000) / 16000
    speechlike = np.sin(2 * np.pi * 150 * time) * (1 + np.sin(2 * np.pi * 4 * time))
    for harmonic in range(2, 20):
        speechlike += np.sin(2 * np.pi * 150 * harmonic * time) / harmonic
    noise = 0.2 * waves(5, 32000)
    for measure in (pesq, stoi):
        assert measure(speechlike + 0.1 * noise, speechlike) > measure(
            speechlike + 5 * noise, speechlike
        )
    figures = wave_figures(speechlike + noise, speechlike[None], speechlike[None], ("pesq", "stoi"))
    assert figures[0]["stoi"] == pytest.approx(1.0, abs=1e-4)


def test_a_silent_estimate_has_no_pesq_and_does_not_stop_the_others() -> None:
    pytest.importorskip("pesq")
    noise = waves(3, 2, 32000)
    truth, silence = noise[0], np.zeros(32000)
    assert pesq(silence, truth) is None and pesq(truth[:3000], truth[:3000]) is None
    rows = wave_figures(noise[1], silence[None], truth[None], ("pesq",))
    assert rows[0]["si_sdr_db"] == -MOST_DB and rows[0]["pesq"] is None


def test_a_figure_that_some_sources_lack_is_the_mean_of_the_others() -> None:
    rows = [{"si_sdr_db": 1.0, "pesq": 2.0}, {"si_sdr_db": 3.0, "pesq": None}]
    found = separation_results(rows, 2)
    assert found["si_sdr_db"] == 2 and found["pesq"] == 2 and found["undefined"] == {"pesq": 1}
    assert separation_results(rows[1:], 1)["pesq"] is None
    assert separation_results(rows[:1], 1)["undefined"] == {}


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="silence"):
        si_sdr(np.ones(4), np.ones(4))
    with pytest.raises(ValueError, match=r"\(4,\), \(5,\)"):
        si_sdr(np.ones(4), np.ones(5))
    with pytest.raises(ValueError, match="no source"):
        separation_results([], 0)
