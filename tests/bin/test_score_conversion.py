"""`speechssl score-conversion` on generated voices: figures, rows, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.bin.score_conversion import main
from speechssl.corpora.manifest import AudioHeader, JsonlWriter, cut_row

RATE = 16000
VOICES = {"anna": 210.0, "bert": 110.0, "carl": 130.0}
VOWELS = {"a": (730.0, 1090.0, 2440.0), "i": (270.0, 2290.0, 3010.0), "u": (300.0, 870.0, 2240.0)}
SENTENCES = ("aiu", "uia", "iau")


def say(sentence: str, hz: float, tempo: float = 1.0) -> np.ndarray:
    """Vowels in a row, at an F0 that falls."""
    parts = []
    for place, vowel in enumerate(sentence):
        count = round(0.15 * tempo * RATE)
        f0 = hz * (1 - 0.1 * place) * np.linspace(1, 0.95, count)
        phase = 2 * np.pi * np.cumsum(f0) / RATE
        wave = np.zeros(count)
        for h in range(1, int(7000 / hz) + 1):
            level = sum(1 / (1 + ((hz * h - f) / 80) ** 2) for f in VOWELS[vowel]) + 1e-3
            wave += level * np.cos(h * phase + 1.3 * h * h)
        parts.append(wave)
    wave = np.concatenate(parts)
    return 0.3 * wave / np.abs(wave).max()


class Corpus:
    """Three voices that say three sentences, and conversions of two of them to the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "audio").mkdir()
        self.cuts = str(folder / "cuts.jsonl.gz")
        writer = JsonlWriter(Path(self.cuts))
        for speaker, hz in VOICES.items():
            for number, sentence in enumerate(SENTENCES):
                name = f"{speaker}-{number}"
                wave = say(sentence, hz, 1.0 if speaker == "anna" else 1.2)
                path = folder / f"audio/{name}.wav"
                soundfile.write(path, wave, RATE)
                row = cut_row(
                    id=name,
                    audio=path,
                    header=AudioHeader(len(wave), RATE, 1),
                    text=" ".join(sentence),
                    speaker=speaker,
                    custom={"sentence": number},
                )
                writer.write(row)
        writer.close()
        self.converted = folder / "converted"
        self.converted.mkdir()
        self.convert(lambda sentence: say(sentence, 205.0, 1.2))

    def convert(self, how, rate: int = RATE) -> None:
        rows = []
        for speaker in ("bert", "carl"):
            for number, sentence in enumerate(SENTENCES):
                name = f"{speaker}-{number}"
                soundfile.write(self.converted / f"{name}.wav", how(sentence), rate)
                rows.append({"id": name, "audio": f"{name}.wav", "target": "anna"})
        self.index(rows)

    def index(self, rows: list[dict]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.converted / "index.jsonl").write_text(text)

    def embeddings(self, name: str, vectors: dict[str, np.ndarray]) -> str:
        """A decoding of a speaker model."""
        folder = self.folder / name
        folder.mkdir()
        np.save(folder / "embeddings.npy", np.stack(list(vectors.values())).astype(np.float32))
        lines = [json.dumps({"id": i, "speaker": i.split("-")[0]}) + "\n" for i in vectors]
        (folder / "embeddings.jsonl").write_text("".join(lines))
        return str(folder)

    def transcripts(self, name: str, hyps: dict[str, str]) -> str:
        folder = self.folder / name
        folder.mkdir()
        lines = [
            json.dumps({"id": i, "ref": " ".join(SENTENCES[int(i[-1])]), "hyp": h}) + "\n"
            for i, h in hyps.items()
        ]
        (folder / "hyp.jsonl").write_text("".join(lines))
        return str(folder)

    def score(self, *words: str) -> int:
        return main(["--converted", str(self.converted), "--sources", self.cuts,
                     "--targets", self.cuts, *words])  # fmt: skip

    def results(self) -> dict:
        return json.loads((self.converted / "results.json").read_text())

    def rows(self, name: str = "conversions") -> list[dict]:
        lines = (self.converted / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_a_good_conversion_is_nearer_to_the_target_than_its_source(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert corpus.score() == 0
    shown = capsys.readouterr().out
    results = corpus.results()
    assert results["compared"] == results["utterances"] == 6 and results["troubles"] == []
    assert results["mcd"] < 0.7 * results["source"]["mcd"]
    assert results["f0_rmse_hz"] < 12 < 60 < results["source"]["f0_rmse_hz"]
    assert results["gross_pitch_error"] == 0 and results["source"]["gross_pitch_error"] > 0.9
    assert results["f0_correlation"] > 0.9
    assert results["duration_difference_s"] == pytest.approx(0.09, abs=0.02)
    assert results["settings"]["dtw"] is True and results["settings"]["order"] == 24
    assert list(results["by_target"]) == ["anna"]
    assert "MCD without c0, dB" in shown and "MCD with c0, dB" in shown and "DTW on" in shown
    for row, track in zip(corpus.rows(), corpus.rows("f0"), strict=True):
        assert row["reference"] == f"anna-{row['id'][-1]}" and row["source"] == row["id"]
        assert Path(row["audio"]).is_file() and Path(row["reference_audio"]).is_file()
        f0 = [x for x in track["converted"] if x > 0]
        assert 150 < np.median(f0) < 206 and track["id"] == row["id"]
        assert len(track["reference"]) == pytest.approx(0.45 / 0.005, abs=2)


def test_the_reference_itself_is_no_distance_away(corpus: Corpus) -> None:
    corpus.convert(lambda sentence: say(sentence, VOICES["anna"]))
    assert corpus.score("--dtw", "false") == 0
    results = corpus.results()
    assert results["mcd"] == pytest.approx(0, abs=0.01)
    assert results["mcd_c0"] == pytest.approx(0, abs=0.01)
    assert results["f0_rmse_hz"] == pytest.approx(0, abs=0.05)
    assert results["settings"]["dtw"] is False


def test_files_of_other_rates_and_channels_are_compared_all_the_same(corpus: Corpus) -> None:
    import soxr

    def studio(sentence: str) -> np.ndarray:
        wave = soxr.resample(say(sentence, VOICES["anna"]), RATE, 44100)
        return np.stack([wave, wave], axis=1)

    corpus.convert(studio, 44100)
    assert corpus.score() == 0
    assert corpus.results()["mcd"] < 0.5


def test_other_fields_may_say_what_is_the_same_sentence(corpus: Corpus) -> None:
    assert corpus.score("--match", "[sentence]") == 0
    assert corpus.results()["compared"] == 6


def test_what_cannot_be_compared_is_listed_and_the_rest_is(corpus: Corpus) -> None:
    soundfile.write(corpus.converted / "bert-0.wav", np.zeros(8000), RATE)
    (corpus.converted / "bert-1.wav").unlink()
    assert corpus.score() == 0
    results = corpus.results()
    assert results["utterances"] == 6 and results["compared"] == 4
    assert "bert-0: wave: found digital silence" in results["troubles"][0]
    assert "no such file" in results["troubles"][1]
    assert all(np.isfinite(v) for v in (results["mcd"], results["f0_rmse_hz"]))


def test_whose_voice_and_what_was_said(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    centre = {"anna": np.eye(8)[0], "bert": np.eye(8)[1], "carl": np.eye(8)[2]}
    natural = {
        f"{s}-{n}": centre[s] + 0.05 * random.standard_normal(8) for s in VOICES for n in range(3)
    }
    ids = [f"{s}-{n}" for s in ("bert", "carl") for n in range(3)]
    # The last conversion kept the source's voice.
    made = {i: centre["carl"] if i == ids[-1] else centre["anna"] for i in ids}
    right = {i: " ".join(SENTENCES[int(i[-1])]) for i in ids}
    words = [
        "--embeddings", corpus.embeddings("made", made),
        "--natural", corpus.embeddings("natural", natural),
        "--transcripts", corpus.transcripts("asr", right | {ids[0]: "a i"}),
        "--source_transcripts", corpus.transcripts("asr_sources", right),
    ]  # fmt: skip
    assert corpus.score(*words) == 0
    speaker, asr = corpus.results()["speaker"], corpus.results()["asr"]
    assert speaker["utterances"] == 6 and speaker["natural_eer"] == 0
    assert speaker["closer_to_target"] == speaker["accept_rate"] == pytest.approx(5 / 6)
    assert asr["wer"] == pytest.approx(1 / 18) and asr["source_wer"] == 0
    rows = corpus.rows()
    assert rows[-1]["speaker"]["closer_to_target"] is False
    assert rows[0]["cer"] > 0 == rows[0]["source_cer"] and rows[0]["hyp"] == "a i"
    shown = capsys.readouterr().out
    assert "closer to target than to source 83.3 %" in shown and "WER 5.6 %" in shown


def test_a_self_pair_says_nothing_of_the_voice(corpus: Corpus) -> None:
    """The target's own recording, converted to the target, is left out of the speaker figures."""
    rows = [{"id": "bert-0", "audio": "bert-0.wav", "target": "anna"},
            {"id": "bert-1", "audio": "bert-1.wav", "target": "bert"}]  # fmt: skip
    corpus.index(rows)
    vectors = {f"{s}-{n}": np.eye(4)[i] for i, s in enumerate(VOICES) for n in range(3)}
    words = ["--embeddings", corpus.embeddings("made", {r["id"]: np.eye(4)[0] for r in rows}),
             "--natural", corpus.embeddings("natural", vectors)]  # fmt: skip
    assert corpus.score(*words) == 0
    assert corpus.results()["speaker"]["utterances"] == 1
    assert "speaker" not in corpus.rows()[1]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ([], (), "found no line"),
        ([{"id": "bert-0"}], (), "line 1 without id or audio"),
        ([{"id": "dora-0", "audio": "bert-0.wav", "target": "anna"}], (), "one of --sources"),
        ([{"id": "bert-0", "audio": "bert-0.wav"}], (), "want --target"),
        (None, ("--target", "dora"), "found no recording by the target speakers"),
        (None, ("--transcripts", "nowhere"), "found no nowhere/hyp.jsonl"),
    ],
)
def test_what_does_not_fit_is_named(
    corpus: Corpus, rows: list[dict] | None, words: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if rows is not None:
        corpus.index(rows)
    assert corpus.score(*words) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_conversions_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--converted", str(tmp_path), "--sources", "x", "--targets", "x"]
    assert main(words) == 2
    assert "speechssl convert-voice" in capsys.readouterr().err
