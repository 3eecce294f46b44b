"""Text <-> integers for recognisers: letters or sentencepiece units, with id 0 for the blank.

A tokenizer is one `tokenizer.json`; a sentencepiece model lies inside it as base64, so that it
travels in model.json.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

BLANK = "<blank>"
Case = Literal["upper", "lower", "keep"]
Kind = Literal["letters", "bpe", "unigram"]


class UnknownCharacterError(ValueError):
    """A text holds characters that the tokenizer has no unit for."""


def normalise(text: str, *, case: Case = "upper", strip_punctuation: bool = True) -> str:
    """NFC, one case, single spaces; punctuation dropped, except apostrophes inside words."""
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'")
    if case == "upper":
        text = text.upper()
    elif case == "lower":
        text = text.lower()
    if strip_punctuation:
        text = "".join(_without_punctuation(text))
    return " ".join(text.split())


def _without_punctuation(text: str) -> Iterator[str]:
    for at, char in enumerate(text):
        if char == "'":
            inside = 0 < at < len(text) - 1 and text[at - 1].isalnum() and text[at + 1].isalnum()
            yield char if inside else " "
        else:
            # A dash or a slash parts words, so punctuation becomes a space.
            yield " " if unicodedata.category(char)[0] in "PS" else char


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Units of one kind over normalised text.

    symbols: unit of each id; symbols[0] is the blank. Letters have " " between words;
        sentencepiece units mark a word's start by U+2581.
    """

    kind: Kind
    symbols: tuple[str, ...]
    case: Case = "upper"
    strip_punctuation: bool = True
    model: bytes | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("letters", "bpe", "unigram"):
            raise ValueError(f"tokenizer: found kind {self.kind!r}, want letters, bpe or unigram")
        if not self.symbols or self.symbols[0] != BLANK:
            raise ValueError(f"tokenizer: found symbols {self.symbols[:3]}, want {BLANK} first")
        ids = {s: i for i, s in enumerate(self.symbols)}
        if len(ids) != len(self.symbols):
            raise ValueError("tokenizer: found a symbol twice, want each once")
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_pieces", None)

    @property
    def size(self) -> int:
        """Number of ids, the blank's included."""
        return len(self.symbols)

    def normalise(self, text: str) -> str:
        """The form of a text that encode sees; references are scored in it."""
        return normalise(text, case=self.case, strip_punctuation=self.strip_punctuation)

    def encode(self, text: str) -> list[int]:
        """Ids of the normalised text, never 0.

        Raises `UnknownCharacterError` (a `ValueError`) that names the unknown characters.
        """
        text = self.normalise(text)
        if self.kind == "letters":
            found = [self._ids.get(c, 0) for c in text]  # pyright: ignore
            unknown = {c for c, i in zip(text, found) if i == 0}
        else:
            found = self._processor().encode(text)
            unknown = set(text) - set("".join(self.symbols[1:])) - {" "} if 0 in found else set()
        if 0 in found:
            raise UnknownCharacterError(
                f"text: found characters {sorted(unknown)} in {text[:60]!r}, want those of the "
                "tokenizer's own training text; train one on all texts, or correct the text"
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; blanks are left out. The inverse of encode on normalised text."""
        symbols = [self.symbols[int(i)] for i in ids if int(i) != 0]
        if self.kind == "letters":
            return "".join(symbols).strip()
        return "".join(symbols).replace("\u2581", " ").strip()

    def _processor(self) -> Any:
        if self._pieces is None:  # pyright: ignore
            import sentencepiece

            pieces = sentencepiece.SentencePieceProcessor(model_proto=self.model)
            object.__setattr__(self, "_pieces", pieces)
        return self._pieces  # pyright: ignore

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tokenizer.from_dict, (self.to_dict(),))

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "format": 1,
            "kind": self.kind,
            "case": self.case,
            "strip_punctuation": self.strip_punctuation,
            "symbols": list(self.symbols),
        }
        if self.model is not None:
            values["model"] = base64.b64encode(self.model).decode()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tokenizer:
        """The inverse of `to_dict`; raises `ValueError` for another format."""
        if values.get("format") != 1:
            raise ValueError(f"tokenizer: found format {values.get('format')!r}, want 1")
        model = values.get("model")
        return cls(
            kind=values["kind"],
            symbols=tuple(values["symbols"]),
            case=values["case"],
            strip_punctuation=values["strip_punctuation"],
            model=None if model is None else base64.b64decode(model),
        )

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json, under a temporary name that is then renamed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json; raises `ValueError` if it is absent or something else."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"tokenizer: found no file {path}, want a tokenizer.json")
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def tokenizer_from_texts(
    texts: Iterable[str],
    kind: Kind = "letters",
    size: int | None = None,
    *,
    case: Case = "upper",
    strip_punctuation: bool = True,
) -> Tokenizer:
    """Make a tokenizer that covers `texts`; deterministic.

    size: number of ids, blank included; for sentencepiece kinds only, an upper bound there when
        the texts do not yield as many units.
    """
    normal = [normalise(t, case=case, strip_punctuation=strip_punctuation) for t in texts]
    normal = [t for t in normal if t]
    if not normal:
        raise ValueError("texts: found no text, want transcripts; look at the cuts' supervisions")
    if kind == "letters":
        if size is not None:
            raise ValueError(f"size: found {size} for letters, want none: the texts decide")
        symbols = (BLANK, *sorted(set("".join(normal)) | {" "}))
        return Tokenizer("letters", symbols, case, strip_punctuation)
    if kind not in ("bpe", "unigram"):
        raise ValueError(f"kind: found {kind!r}, want letters, bpe or unigram")
    model = _train_pieces(normal, kind, size or 1000)
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    symbols = (BLANK, *(pieces.id_to_piece(i) for i in range(1, pieces.get_piece_size())))
    return Tokenizer(kind, symbols, case, strip_punctuation, model)


def _train_pieces(texts: list[str], kind: str, size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        # Piece 0 is sentencepiece's <unk>, which never leaves `encode`: its id is the blank's.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"size: found {size}, sentencepiece cannot make a {kind} model of it from "
            f"{len(texts)} texts: {error}"
        ) from None
    return model.getvalue()
