"""Phones in time: the likeliest path against all paths, mixtures against torch, and training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import distributions as D

from speechssl.labels.align_graph import best_path, even_path, graph
from speechssl.labels.align_model import Monophones, train
from speechssl.labels.pronunciations import read_lexicon, transcribed

WORDS = [[(1, 2), (3,)], [(2,)]]
"""Two words, the first with two pronunciations."""


def test_a_graph_says_every_pronunciation_with_and_without_pauses() -> None:
    """All orders of phones that lead from a beginning to an end, and what they weigh."""
    g = graph(WORDS)
    found: dict[tuple[int, ...], float] = {}

    def walk(state: int, said: tuple[int, ...], chance: float) -> None:
        said = (*said, int(g.kind[state])) if g.kind[state] % 3 == 0 else said
        if np.isfinite(g.last[state]):
            phones = tuple(k // 3 for k in said)
            found[phones] = found.get(phones, 0.0) + np.exp(chance + g.last[state])
        for after in range(len(g.kind)):
            for other, p in zip(g.before[after][1:], g.enter[after][1:]):
                if other == state and np.isfinite(p):
                    walk(after, said, chance + p)

    for state in np.flatnonzero(np.isfinite(g.first)):
        walk(int(state), (), float(g.first[state]))
    wanted = {
        tuple(p for part in (a, way, b, (2,), c) for p in part)
        for a, b, c in itertools.product([(), (0,)], repeat=3)
        for way in ((1, 2), (3,))
    }
    assert found.keys() == wanted
    assert sum(found.values()) == pytest.approx(1.0)
    assert found[(1, 2, 2)] == pytest.approx(0.5**3 / 2)


def test_the_best_path_is_the_best_of_all_paths() -> None:
    g = graph([[(1,)]])
    rng = np.random.default_rng(0)
    frames, states = 7, len(g.kind)
    emitted = rng.standard_normal((frames, states))
    stay = rng.uniform(0.2, 0.8, 6)

    def weight(path: tuple[int, ...]) -> float:
        total = g.first[path[0]] + g.last[path[-1]] + np.log1p(-stay[g.kind[path[-1]]])
        for t, state in enumerate(path):
            total += emitted[t, state]
            if t == 0:
                continue
            before = path[t - 1]
            if before == state:
                total += np.log(stay[g.kind[state]])
                continue
            ways = [p for o, p in zip(g.before[state][1:], g.enter[state][1:]) if o == before]
            total += max(ways, default=-np.inf) + np.log1p(-stay[g.kind[before]])
        return float(total)

    monotone = itertools.combinations_with_replacement(range(states), frames)
    best = max(monotone, key=weight)
    own = np.arange(states)
    path, score = best_path(g, emitted, own, stay)
    assert tuple(path) == best
    assert score == pytest.approx(weight(best))
    assert best_path(g, emitted[: g.shortest - 1], own, stay)[1] == -np.inf
    assert np.isfinite(best_path(g, emitted[: g.shortest], own, stay)[1])


def test_an_even_start_shares_frames_and_needs_as_many_as_states() -> None:
    g = graph(WORDS)
    states = even_path(g, 30)
    assert states is not None
    phones = [g.parts[g.part[s]].phone for s in states]
    assert [p for p, _ in itertools.groupby(phones)] == [0, 1, 2, 0]
    assert np.bincount(states)[np.unique(states)].tolist() == [2] * 15
    assert even_path(g, 14) is None


def test_likelihoods_are_those_of_torch() -> None:
    rng = np.random.default_rng(1)
    kind = np.array([0, 0, 1, 2, 2, 2])
    weight = np.array([0.3, 0.7, 1.0, 0.2, 0.3, 0.5])
    mean, variance = rng.standard_normal((6, 4)), rng.uniform(0.5, 2, (6, 4))
    model = Monophones(("sil",), kind, np.log(weight), mean, variance, np.full(3, 0.5))
    x = rng.standard_normal((9, 4))
    found = model.likelihoods(x, np.array([0, 2]))
    for column, k in enumerate((0, 2)):
        own = torch.from_numpy(kind == k)
        parts = D.Independent(
            D.Normal(torch.from_numpy(mean)[own], torch.from_numpy(variance)[own].sqrt()), 1
        )
        mixture = D.MixtureSameFamily(D.Categorical(torch.from_numpy(weight)[own]), parts)
        np.testing.assert_allclose(found[:, column], mixture.log_prob(torch.from_numpy(x)))


def test_training_finds_the_phones_and_never_gets_worse(tmp_path) -> None:
    """Frames around one point per state: boundaries to a frame, from words and even starts."""
    rng = np.random.default_rng(2)
    centres = 4 * rng.standard_normal((4 * 3, 5))
    words = {"ab": (1, 2), "ca": (3, 1), "b": (2,), "cb": (3, 2)}
    graphs, features, truths = [], [], []
    for _ in range(40):
        said = [list(words)[i] for i in rng.integers(0, 4, 4)]
        pauses = [True, *(rng.random(3) < 0.3), True]
        phones = [0] * pauses[0]
        for word, pause in zip(said, pauses[1:]):
            phones += [*words[word], *([0] if pause else [])]
        kinds = np.concatenate([np.repeat(3 * p + np.arange(3), rng.integers(1, 6, 3))
                                for p in phones])  # fmt: skip
        graphs.append(graph([[words[w]] for w in said]))
        features.append(centres[kinds] + rng.standard_normal((len(kinds), 5)))
        truths.append(kinds // 3)
    scores: list[float] = []
    model = train(["sil", "a", "b", "c"], graphs, features, iterations=9, gaussians=12, seed=0,
                  progress=lambda i, score: scores.append(score))  # fmt: skip
    assert len(scores) == 9
    assert np.diff(scores).min() > -1e-3, "the prior of staying is smoothed; else never worse"
    paths = [model.align(g, x) for g, x in zip(graphs, features)]
    right = [g.kind[p[0]] // 3 == t for g, p, t in zip(graphs, paths, truths) if p is not None]
    assert len(right) == 40 and np.concatenate(right).mean() > 0.98
    assert len(model.kind) == 12
    grown = train(["sil", "a", "b", "c"], graphs, features, iterations=9, gaussians=30, seed=0)
    assert 24 <= len(grown.kind) <= 32, "shares are rounded"
    for k in range(12):
        assert np.exp(grown.log_weight[grown.kind == k]).sum() == pytest.approx(1.0)
    grown.save(tmp_path, note=1)
    loaded = Monophones.load(tmp_path)
    assert loaded.phones == grown.phones
    np.testing.assert_array_equal(loaded.mean, grown.mean)
    with pytest.raises(ValueError, match="fewer frames than their transcripts"):
        train(["sil", "a", "b", "c"], graphs[:1], [features[0][:4]], iterations=1, gaussians=1,
              seed=0)  # fmt: skip
    with pytest.raises(ValueError, match="want a folder that `speechssl align` wrote"):
        Monophones.load(tmp_path / "none")


def test_a_lexicon_has_variants_and_drops_stress(tmp_path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text(";;; remark\nREAD  R IY1 D\nread(2)  R EH1 D\n\nON AA1_B N_E\n")
    lexicon = read_lexicon(str(path))
    assert lexicon == {"READ": (("R", "IY", "D"), ("R", "EH", "D")), "ON": (("AA", "N"),)}
    path.write_text("\ufeffREAD 0.75 R EH1 D\nON\t1.0\t0.2\tAA1 N\n")
    assert read_lexicon(str(path)) == {"READ": (("R", "EH", "D"),), "ON": (("AA", "N"),)}
    path.write_bytes(b"D\xc9J\xc0 D EY2\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_lexicon(str(path))
    path.write_text("ON\n")
    with pytest.raises(ValueError, match="line 1: found 'ON', want a word and its phones"):
        read_lexicon(str(path))
    with pytest.raises(ValueError, match=r"found no .*none\.txt"):
        read_lexicon(str(tmp_path / "none.txt"))


def test_words_are_looked_up_as_they_stand_bare_and_parted() -> None:
    lexicon = {w: ((w,),) for w in ("IT'S", "WELL", "KNOWN", "'TIS", "X-RAY")}

    def words(text: str | None, **custom: object) -> list[str]:
        cut = {"supervisions": [{"text": text, "custom": custom}]}
        return [word for word, _ in transcribed(cut, "phones", lexicon)]

    assert words("“It's well-known, 'tis -- X-ray!") == ["It's", "well", "known", "'tis", "X-ray"]
    assert words("‘It’s,’ 'known' ' well—known.'") == ["It's", "known", "well", "known"]
    with pytest.raises(ValueError, match="not in the lexicon: KNOW"):
        words("it's KNOW")
    with pytest.raises(ValueError, match="no transcript"):
        words(None)
    with pytest.raises(ValueError, match="2 supervisions"):
        transcribed({"supervisions": [{}, {}]}, "phones", lexicon)
    stated = {"supervisions": [{"text": "ON IT", "custom": {"phones": ["AA0_B N_E", "IH0 T"]}}]}
    for wrong in ("AA0 N", ["AA0 N", ""], [["AA0", "N"]], 3):
        with pytest.raises(ValueError, match="in 'phones', want a list of words, each its phones"):
            words("IT'S", phones=wrong)
    assert words("IT'S", other="AA0 N", phones=[]) == ["IT'S"]
    assert transcribed(stated, "phones", {}) == [("ON", (("AA", "N"),)), ("IT", (("IH", "T"),))]
