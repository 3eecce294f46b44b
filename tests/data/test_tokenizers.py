from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from speechssl.data.text import Tokenizer, normalise, tokenizer_from_texts

TEXTS = ["Hello, world: it's me!", "the quick brown fox", "jumps over the lazy dog", "héllo"] * 3


@pytest.mark.parametrize(("kind", "size"), [("letters", None), ("bpe", 60), ("unigram", 45)])
def test_decode_inverts_encode_and_the_blank_never_occurs(
    kind: str, size: int | None, tmp_path: Path
) -> None:
    tokenizer = tokenizer_from_texts(TEXTS, kind, size)  # pyright: ignore
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert 0 not in ids and max(ids) < tokenizer.size
        assert tokenizer.decode(ids) == tokenizer.normalise(text)
        assert loaded.encode(text) == ids
        assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == ids
        assert tokenizer.decode([0, *ids, 0, 0]) == tokenizer.normalise(text)
    assert loaded == tokenizer and loaded.symbols[0] == "<blank>"


def test_normalisation_folds_forms_that_look_alike() -> None:
    assert normalise("Cafe\u0301  l’été, n'est-ce pas?'") == "CAFÉ L'ÉTÉ N'EST CE PAS"
    assert normalise("A-b", case="keep", strip_punctuation=False) == "A-b"
    assert normalise("A-b", case="lower") == "a b"


@pytest.mark.parametrize(("kind", "size"), [("letters", None), ("bpe", 60)])
def test_unknown_characters_are_named(kind: str, size: int | None) -> None:
    tokenizer = tokenizer_from_texts(TEXTS, kind, size)  # pyright: ignore
    with pytest.raises(ValueError, match="'Ž'"):
        tokenizer.encode("the ž fox")


def test_wrong_requests_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        tokenizer_from_texts(["", " ,"])
    with pytest.raises(ValueError, match="want letters, bpe"):
        tokenizer_from_texts(TEXTS, "words")  # pyright: ignore
    with pytest.raises(ValueError, match=r"want a tokenizer\.json"):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="size: found 5"):
        tokenizer_from_texts(TEXTS, "bpe", 5)
