"""CTC beam search with an n-gram language model, over a lexicon of words or over free tokens.

The search is flashlight-text's; the language model any ARPA or KenLM binary file, whose scores
are log10, so `lm_weight` weighs log10 probabilities against natural ones of the acoustics.

Over a lexicon every word is spelled with the space that ends it, since only inside the lexicon's
tree may a token last several frames. The last word of an utterance has no space behind it: one
frame is appended in which the space is certain.

Source: Collobert et al. 2016 (wav2letter), section 2.3; Hannun et al. 2014 for beams over CTC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN = "<unk>"
WORD_BOUNDARY = "▁"
"""How a space is written in lexicons and in language models over tokens."""
IMPOSSIBLE = -1e4


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamOptions:
    beam: int = 100
    """Hypotheses kept per frame."""
    beam_tokens: int = 40
    """Most probable tokens tried per frame."""
    beam_threshold: float = 30.0
    """Hypotheses this far below the best are dropped (natural log)."""
    lm_weight: float = 1.0
    """Weight of the language model's log10 probability."""
    word_score: float = 0.0
    """Added for each word (with a lexicon), in natural log."""
    space_score: float = 0.0
    """Added for each frame of space between words."""

    def __post_init__(self) -> None:
        if self.beam < 1 or self.beam_tokens < 1 or self.beam_threshold <= 0:
            raise ValueError(
                f"beam, beam_tokens, beam_threshold: found {self.beam}, {self.beam_tokens}, "
                f"{self.beam_threshold}; want at least 1, at least 1, more than 0"
            )


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """words: empty without a lexicon. tokens: without blanks. score: the search's, weights in."""

    words: tuple[str, ...]
    tokens: tuple[int, ...]
    score: float


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What a search runs over: language model and lexicon, loaded once for any weights."""

    tokens: int
    blank: int
    space: int | None
    lm: Any
    trie: Any = None
    words: Any = None


def flashlight() -> Any:
    """The decoder module of flashlight-text, or a `ValueError` that says how to get it."""
    try:
        import flashlight.lib.text.decoder as decoder
    except ImportError as error:
        raise ValueError(
            f"method: found beam, but flashlight-text does not import ({error}); want `pip "
            "install 'speechssl[decode]'` (Python 3.13: build flashlight-text from source with "
            "CMake), or method greedy"
        ) from None
    return decoder


def lexicon_space(
    lexicon: Mapping[str, Sequence[Sequence[int]]],
    *,
    tokens: int,
    space: int,
    lm: str | Path | None = None,
    blank: int = 0,
) -> SearchSpace:
    """Search over words. lexicon: word -> its spellings in token ids, without spaces.

    lm: over words; None gives all words the same score.
    """
    decoder = flashlight()
    from flashlight.lib.text.dictionary import Dictionary

    if not lexicon:
        raise ValueError("lexicon: found no word, want at least one")
    words = Dictionary()
    for word in lexicon:
        words.add_entry(word)
    words.add_entry(UNKNOWN)
    words.set_default_index(words.get_index(UNKNOWN))
    model = _language_model(lm, words)
    trie = decoder.Trie(tokens, space)
    start = model.start(False)
    if lm is not None:
        _check_names(model, words, f"word of the lexicon (such as {next(iter(lexicon))!r})", lm)
    for word, spellings in lexicon.items():
        index = words.get_index(word)
        _, score = model.score(start, index)
        for spelling in spellings:
            wrong = [i for i in spelling if not 0 <= i < tokens or i in (blank, space)]
            if wrong or not spelling:
                raise ValueError(
                    f"lexicon: found the spelling {list(spelling)} of {word!r}, want token ids "
                    f"below {tokens}, without blank ({blank}) and space ({space})"
                )
            trie.insert([*spelling, space], index, score)
    # Each inner node knows the best word below it, so that pruning sees the model early.
    trie.smear(decoder.SmearingMode.MAX)
    return SearchSpace(tokens, blank, space, model, trie, words)


def token_space(
    symbols: Sequence[str], *, lm: str | Path | None = None, blank: int = 0
) -> SearchSpace:
    """Search over any token sequence. lm: over tokens named as in `token_name`."""
    flashlight()
    from flashlight.lib.text.dictionary import Dictionary

    names = Dictionary()
    for symbol in symbols:
        names.add_entry(token_name(symbol))
    names.add_entry(UNKNOWN)
    space = symbols.index(" ") if " " in symbols else None
    model = _language_model(lm, names)
    if lm is not None:
        _check_names(model, names, "token (a model over words needs a lexicon)", lm)
    return SearchSpace(len(symbols), blank, space, model)


def token_name(symbol: str) -> str:
    """How a token is written in lexicons and language models: spaces visible."""
    return symbol.replace(" ", WORD_BOUNDARY)


def read_lexicon(
    path: str | Path, symbols: Sequence[str], spell: Any
) -> tuple[dict[str, list[list[int]]], list[str]]:
    """Read `WORD token token ...` lines; a word alone is spelled by `spell(word) -> ids`.

    Returns the lexicon and the words left out because the tokens do not cover them.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"lexicon: found no file {path}, want what `speechssl lm --lexicon` wrote")
    ids = {token_name(s): i for i, s in enumerate(symbols)}
    lexicon: dict[str, list[list[int]]] = {}
    left_out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *names = line.split() or [""]
        if not word:
            continue
        try:
            spelling = [ids[name] for name in names] if names else list(spell(word))
        except (KeyError, ValueError):
            left_out.append(word)
            continue
        known = lexicon.setdefault(word, [])
        if spelling not in known:
            known.append(spelling)
    if not lexicon:
        raise ValueError(
            f"lexicon: found {len(left_out)} words in {path} and none that the model's tokens can "
            f"spell (such as {left_out[:3]}), want the case and letters of its tokenizer"
        )
    return lexicon, left_out


class BeamSearch:
    """Decode single utterances over a search space; cheap to make again with other weights."""

    def __init__(self, space: SearchSpace, options: BeamOptions) -> None:
        decoder = flashlight()
        self.space, self.options = space, options
        shared = {
            "beam_size": options.beam,
            "beam_size_token": min(options.beam_tokens, space.tokens),
            "beam_threshold": options.beam_threshold,
            "lm_weight": options.lm_weight,
            "sil_score": options.space_score,
            "log_add": True,
            "criterion_type": decoder.CriterionType.CTC,
        }
        silence = -1 if space.space is None else space.space
        if space.trie is None:
            self._decoder = decoder.LexiconFreeDecoder(
                decoder.LexiconFreeDecoderOptions(**shared), space.lm, silence, space.blank, []
            )
        else:
            self._decoder = decoder.LexiconDecoder(
                decoder.LexiconDecoderOptions(
                    **shared, word_score=options.word_score, unk_score=-float("inf")
                ),
                space.trie,
                space.lm,
                silence,
                space.blank,
                space.words.get_index(UNKNOWN),
                [],
                False,
            )

    def __call__(self, log_probs: np.ndarray, best: int = 1) -> list[Hypothesis]:
        """(S, V) log-probabilities -> at most `best` hypotheses, best first."""
        if log_probs.ndim != 2 or log_probs.shape[1] != self.space.tokens:
            raise ValueError(
                f"log_probs: found shape {log_probs.shape}, want (frames, {self.space.tokens})"
            )
        emissions = np.maximum(log_probs, IMPOSSIBLE).astype(np.float32)
        if self.space.trie is not None:
            last = np.full((1, self.space.tokens), IMPOSSIBLE, dtype=np.float32)
            last[0, self.space.space] = 0.0
            emissions = np.concatenate([emissions, last])
        emissions = np.ascontiguousarray(emissions)
        if not len(emissions):
            return [Hypothesis((), (), 0.0)]
        found = self._decoder.decode(emissions.ctypes.data, *emissions.shape)
        found = sorted(found, key=lambda r: -r.score)[:best]
        return [self._hypothesis(result) for result in found]

    def _hypothesis(self, result: Any) -> Hypothesis:
        words: tuple[str, ...] = ()
        if self.space.words is not None:
            words = tuple(self.space.words.get_entry(i) for i in result.words if i >= 0)
        # Both ends of the search's token list are its own markers, not frames.
        path = np.asarray(result.tokens[1:-1], dtype=np.int64)
        new = np.ones(len(path), dtype=bool)
        new[1:] = path[1:] != path[:-1]
        tokens = path[new & (path != self.space.blank) & (path >= 0)]
        return Hypothesis(words, tuple(tokens.tolist()), float(result.score))


def _language_model(path: str | Path | None, names: Any) -> Any:
    decoder = flashlight()
    if path is None:
        return decoder.ZeroLM()
    if not Path(path).is_file():
        raise ValueError(f"lm: found no file {path}, want an ARPA or KenLM binary file")
    from flashlight.lib.text.decoder.kenlm import KenLM

    try:
        return KenLM(str(path), names)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"lm: found {path}, which KenLM cannot read: {str(error).strip()[:300]}"
        ) from None


def _check_names(model: Any, names: Any, what: str, path: str | Path) -> None:
    """Raise `ValueError` if every name is unknown to the language model."""
    start = model.start(False)
    unknown = model.score(start, names.get_index(UNKNOWN))[1]
    if all(model.score(start, i)[1] == unknown for i in range(names.index_size())):
        raise ValueError(
            f"lm: {path} knows no {what}; want a model over the same units and of the same case, "
            "such as `speechssl lm --tokenizer` makes"
        )
