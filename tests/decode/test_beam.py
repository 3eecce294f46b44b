"""Beam search: never worse than the best path, and held to its lexicon and language model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.decode.beam import (
    BeamOptions,
    BeamSearch,
    lexicon_space,
    read_lexicon,
    token_space,
)
from speechssl.decode.greedy import greedy
from speechssl.decode.ngram import estimate

SYMBOLS = ["<blank>", " ", "a", "b", "c", "d"]
IDS = {s: i for i, s in enumerate(SYMBOLS)}


def spell(text: str) -> list[int]:
    return [IDS[c] for c in text]


def noise(frames: int, seed: int, scale: float = 2.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    logits = scale * random.standard_normal((frames, len(SYMBOLS)))
    return torch.tensor(logits, dtype=torch.float32).log_softmax(-1).numpy()


def speak(text: str, confidence: float = 6.0, frames: int = 3) -> np.ndarray:
    """Log-probabilities of frames that say `text`, each letter held for some frames."""
    path = [i for c in text for i in [IDS[c]] * frames + [0]]
    logits = np.zeros((len(path), len(SYMBOLS)), dtype=np.float32)
    logits[range(len(path)), path] = confidence
    return torch.tensor(logits).log_softmax(-1).numpy()


def likelihood(log_probs: np.ndarray, tokens: list[int]) -> float:
    x = torch.tensor(log_probs)[:, None]
    lengths = torch.tensor([len(log_probs)]), torch.tensor([len(tokens)])
    target = torch.tensor([tokens], dtype=torch.int64).reshape(1, -1)
    return -float(torch.nn.functional.ctc_loss(x, target, *lengths, reduction="sum"))


def lexicon(words: list[str]) -> dict[str, list[list[int]]]:
    return {w: [spell(w)] for w in words}


def test_greedy_merges_repeats_and_drops_blanks() -> None:
    tokens, score = greedy(speak("ab ba"))
    assert tokens == spell("ab ba") and score < 0
    assert greedy(np.zeros((0, 6), dtype=np.float32)) == ([], 0.0)
    with pytest.raises(ValueError, match="log_probs"):
        greedy(np.zeros(6))


def test_a_free_beam_finds_text_at_least_as_likely_as_the_best_path() -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    search = BeamSearch(token_space(SYMBOLS), BeamOptions(beam=200, lm_weight=0.0))
    better = 0
    for seed in range(30):
        log_probs = noise(12, seed)
        ours = likelihood(log_probs, list(search(log_probs)[0].tokens))
        plain = likelihood(log_probs, greedy(log_probs)[0])
        assert ours >= plain - 1e-4
        better += ours > plain + 1e-4
    assert better > 3


def test_a_free_beam_finds_the_most_likely_text_of_all() -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    search = BeamSearch(token_space(SYMBOLS), BeamOptions(beam=2000, lm_weight=0.0))
    for seed in range(3):
        log_probs = noise(4, seed, scale=1.0)
        every = [
            list(t) for n in range(5) for t in itertools.product(range(1, len(SYMBOLS)), repeat=n)
        ]
        best = max(likelihood(log_probs, t) for t in every)
        assert likelihood(log_probs, list(search(log_probs)[0].tokens)) == pytest.approx(
            best, abs=1e-4
        )


def test_only_words_of_the_lexicon_are_found() -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    words = ["ab", "abc", "cab", "d", "dad"]
    search = BeamSearch(
        lexicon_space(lexicon(words), tokens=6, space=1), BeamOptions(lm_weight=0.0)
    )
    for seed in range(20):
        for found in search(noise(25, seed), best=5):
            assert set(found.words) <= set(words)


@pytest.mark.parametrize("text", ["ab", "ab cab", "dad d abc", "cab cab ab", "aa a"])
def test_clear_speech_is_heard_word_for_word(text: str) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    words = ["ab", "abc", "cab", "d", "dad", "a", "aa"]
    space = lexicon_space(lexicon(words), tokens=6, space=1)
    search = BeamSearch(space, BeamOptions(lm_weight=0.0))
    for frames in (1, 2, 4):  # a last letter may last, with or without a space behind it
        assert " ".join(search(speak(text, frames=frames))[0].words) == text
        assert " ".join(search(speak(text + " ", frames=frames))[0].words) == text


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    words = ["ab", "ac", "d"]
    heard = speak("d ab")
    heard[6:, [3, 4]] = heard[6:, [3, 4]].mean(1, keepdims=True)  # b and c alike
    for likely in ("ab", "ac"):
        estimate([["d", likely]] * 9 + [["d", "d"], ["ab"], ["ac"]], 2).write_arpa(
            tmp_path / "lm.arpa"
        )
        space = lexicon_space(lexicon(words), tokens=6, space=1, lm=tmp_path / "lm.arpa")
        found = BeamSearch(space, BeamOptions(lm_weight=2.0))(heard)
        assert " ".join(found[0].words) == f"d {likely}"


def test_a_language_model_over_letters_needs_no_lexicon(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    heard = speak("ab", confidence=1.0)
    heard[4:, [3, 4]] = heard[4:, [3, 4]].mean(1, keepdims=True)  # b and c alike
    for likely in "bc":
        estimate([["a", likely]] * 9 + [["a", "a"], ["b", "c"]], 2).write_arpa(tmp_path / "lm.arpa")
        search = BeamSearch(token_space(SYMBOLS, lm=tmp_path / "lm.arpa"), BeamOptions(lm_weight=3))
        assert list(search(heard)[0].tokens) == spell("a" + likely)


def test_a_high_word_score_gives_more_words() -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    space = lexicon_space(lexicon(["a", "b", "ab", "ba"]), tokens=6, space=1)
    counts = []
    for score in (-8.0, 0.0, 8.0):
        search = BeamSearch(space, BeamOptions(word_score=score, lm_weight=0.0))
        counts.append(sum(len(search(noise(30, seed))[0].words) for seed in range(10)))
    assert counts[0] < counts[1] < counts[2]


def test_hypotheses_come_best_first() -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    found = BeamSearch(token_space(SYMBOLS), BeamOptions(lm_weight=0.0))(noise(10, 1), best=5)
    scores = [h.score for h in found]
    assert len(found) == 5 and scores == sorted(scores, reverse=True)


def test_lexicon_files_name_spellings_or_leave_them_to_the_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("ab\ta b\nba\nzz\tz z\nab\ta a b\n\n", encoding="utf-8")
    found, left_out = read_lexicon(path, SYMBOLS, spell)
    assert found == {"ab": [[2, 3], [2, 2, 3]], "ba": [[3, 2]]}
    assert left_out == ["zz"]
    path.write_text("ZZ\nYY\n")
    with pytest.raises(ValueError, match="none that the model's tokens"):
        read_lexicon(path, SYMBOLS, lambda w: [IDS[c] for c in w])


def test_wrong_input_is_named(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    with pytest.raises(ValueError, match="no file"):
        token_space(SYMBOLS, lm=tmp_path / "none.arpa")
    (tmp_path / "bad.arpa").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="KenLM cannot read"):
        token_space(SYMBOLS, lm=tmp_path / "bad.arpa")
    estimate([["AB", "BA"]], 2).write_arpa(tmp_path / "upper.arpa")
    with pytest.raises(ValueError, match="needs a lexicon"):
        token_space(SYMBOLS, lm=tmp_path / "upper.arpa")
    with pytest.raises(ValueError, match="knows no word"):
        lexicon_space(lexicon(["ab", "ba"]), tokens=6, space=1, lm=tmp_path / "upper.arpa")
    with pytest.raises(ValueError, match="spelling"):
        lexicon_space({"a b": [spell("a b")]}, tokens=6, space=1)
    with pytest.raises(ValueError, match="log_probs"):
        BeamSearch(token_space(SYMBOLS), BeamOptions())(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="beam"):
        BeamOptions(beam=0)
