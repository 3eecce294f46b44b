"""`speechssl score --trials`: PLDA, AS-norm and calibration over decodings of known embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechssl.bin import score
from speechssl.score.verification import as_norm, cohort_statistics, cosine, eer, unit

WIDTH = 6


def decoding(folder: Path, who: str, speakers: int, times: int, seed: int) -> Path:
    """Speakers differ in the last dimensions; the first is loud noise of the recording."""
    random = np.random.default_rng(seed)
    voices = np.repeat(random.standard_normal((speakers, WIDTH)), times, axis=0)
    loudness = np.array([6.0] + [0.4] * (WIDTH - 1))
    x = voices * (loudness < 1) + loudness * random.standard_normal(voices.shape)
    folder.mkdir()
    np.save(folder / "embeddings.npy", x.astype(np.float32))
    rows = [
        {"id": f"{who}{i}", "speaker": f"{who}-s{i // times}", "duration": 1.0 + random.random()}
        for i in range(len(x))
    ]
    (folder / "embeddings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    trials = [
        f"{int(i // times == j // times)} {who}{i} {who}{j}\n"
        for i in range(len(x))
        for j in range(i)
    ]
    (folder / "trials.txt").write_text("".join(trials))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("decodings")
    return {
        "train": decoding(folder / "train", "t", 40, 6, 0),
        "dev": decoding(folder / "dev", "d", 12, 4, 1),
        "test": decoding(folder / "test", "e", 12, 4, 2),
    }


def words(folders: dict[str, Path], *more: Any) -> list[str]:
    test = folders["test"]
    return ["--decode", str(test), "--trials", str(test / "trials.txt"), *map(str, more)]


def scored(folders: dict[str, Path], *more: Any) -> tuple[dict[str, Any], np.ndarray]:
    assert score.main(words(folders, *more)) == 0
    lines = (folders["test"] / "scores.txt").read_text().splitlines()
    found = np.array([float(line.split()[3]) for line in lines])
    return json.loads((folders["test"] / "results.json").read_text()), found


def test_plda_learns_from_the_training_decoding(folders: dict[str, Path], capsys: Any) -> None:
    plain, _ = scored(folders)
    assert "cosine" not in plain
    better, scores = scored(folders, "--plda", folders["train"])
    assert better["scores"] == "PLDA" and better["cosine"]["eer"] == plain["eer"]
    assert better["eer"] < 0.6 * plain["eer"]
    assert better["plda"] == {"utterances": 240, "speakers": 40, "dim": WIDTH}
    narrow, _ = scored(folders, "--plda", folders["train"], "--lda_dim", 5)
    assert narrow["plda"]["dim"] == 5 and narrow["eer"] != better["eer"]
    assert "PLDA: EER" in capsys.readouterr().out
    trials = [x.split()[0] == "1" for x in (folders["test"] / "trials.txt").open()]
    assert eer(scores, np.array(trials))[0] == pytest.approx(better["eer"], abs=1e-3)


def test_the_first_numbers_of_embeddings_alone(folders: dict[str, Path], capsys: Any) -> None:
    x = np.load(folders["test"] / "embeddings.npy")
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    found, scores = scored(folders, "--dims", 3)
    expected = [cosine(x[i : i + 1, :3], x[j : j + 1, :3])[0] for i, j in pairs]
    assert scores == pytest.approx(np.array(expected), abs=1e-5) and found["dims"] == 3
    more = ("--plda", folders["train"], "--cohort", folders["train"], "--dims", 4)
    assert scored(folders, *more)[0]["plda"]["dim"] == 4
    assert "dims" not in scored(folders)[0]
    assert score.main(words(folders, "--dims", 7)) == 2
    assert "dims: found 7, want 1 to 6" in capsys.readouterr().err


def test_as_norm_follows_its_formula_over_either_score(folders: dict[str, Path]) -> None:
    _, found = scored(folders, "--cohort", folders["train"], "--top", 20)
    x, cohort = (np.load(folders[k] / "embeddings.npy") for k in ("test", "train"))
    mean, deviation = cohort_statistics(unit(x) @ unit(cohort).T, 20)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    one, two = np.array(pairs).T
    sides = [(mean[i], deviation[i]) for i in (one, two)]
    assert found == pytest.approx(as_norm(cosine(x[one], x[two]), *sides), abs=1e-5)
    both, other = scored(folders, "--plda", folders["train"], "--cohort", folders["train"])
    assert both["scores"] == "PLDA, AS-norm" and not np.allclose(other, found, atol=0.1)
    assert both["cohort"] == both["top"] == 240


def test_the_cohort_may_be_its_speakers_means(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--cohort", folders["train"], "--cohort_means", "true", "--top", 15)
    found, scores = scored(folders, *more)
    assert found["cohort"] == 40 and found["top"] == 15
    x, cohort = (np.load(folders[k] / "embeddings.npy") for k in ("test", "train"))
    means = unit(cohort).reshape(40, 6, WIDTH).mean(1)
    mean, deviation = cohort_statistics(unit(x) @ unit(means).T, 15)
    one, two = np.array([(i, j) for i in range(len(x)) for j in range(i)]).T
    sides = [(mean[i], deviation[i]) for i in (one, two)]
    assert scores == pytest.approx(as_norm(cosine(x[one], x[two]), *sides), abs=1e-5)
    monkeypatch.setattr("speechssl.bin.score_trials.BLOCK", 5)
    assert np.array_equal(scored(folders, *more)[1], scores)
    _, learnt = scored(folders, *more, "--plda", folders["train"])
    assert not np.allclose(learnt, scores, atol=0.1)


def test_calibration_is_learnt_of_other_speakers(folders: dict[str, Path], capsys: Any) -> None:
    dev = folders["dev"]
    more = ["--calibrate", dev, "--calibrate_trials", dev / "trials.txt"]
    plain, before = scored(folders, "--plda", folders["train"])
    found, ratios = scored(folders, "--plda", folders["train"], *more)
    weight, offset = found["calibration"]["weights"], found["calibration"]["offset"]
    assert ratios == pytest.approx(weight[0] * before + offset, abs=1e-4)
    assert found["eer"] == pytest.approx(plain["eer"]) and found["min_cllr"] < found["cllr"] < 0.8
    assert found["min_dcf"]["0.05"] <= found["act_dcf"]["0.05"]
    assert "calibrated: Cllr" in capsys.readouterr().out
    timed, _ = scored(folders, *more, "--calibrate_durations", "true")
    assert len(timed["calibration"]["weights"]) == 3


def test_mistakes_are_named(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    def refused(*more: Any) -> str:
        assert score.main(words(folders, *more)) == 2
        return capsys.readouterr().err

    assert "want both" in refused("--calibrate", folders["dev"])
    same = ["--calibrate", folders["test"], "--calibrate_trials", folders["test"] / "trials.txt"]
    assert "found 12 speakers of `trials` there too" in refused(*same)
    for option in ("cohort", "plda"):
        shown = refused(f"--{option}", folders["test"])
        assert f"{option}: found 12 speakers of" in shown and "'e-s0', want others" in shown
    own = ["--calibrate", folders["dev"], "--calibrate_trials", folders["dev"] / "trials.txt"]
    assert "plda: found 12 speakers of" in refused("--plda", folders["dev"], *own)
    assert "lda_dim: found 7" in refused("--plda", folders["train"], "--lda_dim", 7)
    assert "embeddings: found no" in refused("--plda", tmp_path)
    bare = decoding(tmp_path / "bare", "b", 3, 2, 3)
    lines = (bare / "embeddings.jsonl").read_text()
    (bare / "embeddings.jsonl").write_text(lines.replace('"speaker"', '"x"').replace("tion", ""))
    assert "without speaker" in refused("--plda", bare)
    assert "without speaker" in refused("--cohort", bare, "--cohort_means", "true")
    more = ["--calibrate", bare, "--calibrate_trials", bare / "trials.txt"]
    assert "without duration" in refused(*more, "--calibrate_durations", "true")
