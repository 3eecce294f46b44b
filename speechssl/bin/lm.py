"""`speechssl lm`: estimate an n-gram language model, and write the lexicon that goes with it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechssl.config import parse

if TYPE_CHECKING:
    from speechssl.data.text import Tokenizer

DESCRIPTION = """Estimate an n-gram language model (interpolated modified Kneser-Ney) as an ARPA
file, and write the lexicon that goes with it, for `speechssl decode --method beam`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmOptions:
    output: str
    """ARPA file to write."""
    cuts: list[str] | str | None = None
    """Cuts whose transcripts are the text."""
    text: list[str] | str | None = None
    """Text files, one sentence per line."""
    order: int = 3
    """Length of the longest n-grams."""
    unit: Literal["word", "token"] = "word"
    """token: a model over the tokenizer's units, for a beam without lexicon."""
    tokenizer: str | None = None
    """tokenizer.json, or a fine-tuned model's folder: texts are brought to its form."""
    case: Literal["upper", "lower", "keep"] = "upper"
    """Case of the words where no tokenizer is given."""
    lexicon: str | None = None
    """Lexicon file to write: each word with its spelling in the tokenizer's units."""
    words: str | None = None
    """File of further words, one per line: into vocabulary and lexicon."""
    min_count: int = 1
    """Words that occur less often become <unk>, and stay out of the lexicon."""
    valid: list[str] | str | None = None
    """Cuts whose transcripts the model's perplexity is measured on."""

    def __post_init__(self) -> None:
        if not self.cuts and not self.text:
            raise ValueError("cuts, text: found none of both, want at least one source of text")
        if self.unit == "token" and (self.tokenizer is None or self.lexicon or self.words):
            raise ValueError("unit: token wants a tokenizer, and neither lexicon nor words")


def main(argv: list[str] | None = None) -> int:
    options = parse(LmOptions, argv, prog="speechssl lm", description=DESCRIPTION)
    try:
        return run(options)
    except ValueError as error:
        print(f"speechssl lm: error: {error}", file=sys.stderr)
        return 2


def run(options: LmOptions) -> int:
    from speechssl.data.text import normalise
    from speechssl.decode.ngram import UNKNOWN, estimate

    tokenizer = None if options.tokenizer is None else open_tokenizer(options.tokenizer)

    def units(line: str) -> list[str]:
        if tokenizer is None:
            return normalise(line, case=options.case).split()
        if options.unit == "word":
            return tokenizer.normalise(line).split()
        return token_names(tokenizer, line)

    sentences = [units(line) for line in _lines(options)]
    counts = Counter(unit for sentence in sentences for unit in sentence)
    rare = {unit for unit, n in counts.items() if n < options.min_count}
    kept = [[UNKNOWN if u in rare else u for u in sentence] for sentence in sentences]
    extra = _extra_words(options, units)
    model = estimate(kept, options.order, words=extra)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    model.write_arpa(options.output)
    sizes = ", ".join(str(len(level)) for level in model.probabilities)
    print(f"{options.output}: order {model.order}, n-grams by order {sizes}")
    for n, estimated in enumerate(model.estimated, start=1):
        if not estimated:
            print(f"order {n}: too little text to estimate discounts; fixed ones are used")
    if options.valid:
        held_out = [s for s in map(units, transcripts(options.valid)) if s]
        known = set(model.vocabulary)
        total = sum(map(len, held_out))
        unseen = sum(u not in known for s in held_out for u in s)
        print(
            f"held out: perplexity {model.perplexity(held_out):.1f}, {total} units, "
            f"{100 * unseen / max(total, 1):.2f} % unknown"
        )
    if options.lexicon:
        write_lexicon(options.lexicon, (counts.keys() - rare) | set(extra), tokenizer)
    return 0


def open_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a folder with one or with a model.json."""
    from speechssl.data.text import Tokenizer

    folder = Path(path)
    if (folder / "model.json").is_file():
        values = json.loads((folder / "model.json").read_text(encoding="utf-8"))["tokenizer"]
        if values is None:
            raise ValueError(f"tokenizer: found none in {folder}/model.json, want a recogniser")
        return Tokenizer.from_dict(values)
    return Tokenizer.load(folder / "tokenizer.json" if folder.is_dir() else folder)


def token_names(tokenizer: Tokenizer, text: str) -> list[str]:
    """Names of a text's tokens as the decoder's language model knows them."""
    from speechssl.decode.beam import token_name

    return [token_name(tokenizer.symbols[i]) for i in tokenizer.encode(text)]


def transcripts(cuts: list[str] | str) -> Iterator[str]:
    """Texts of all supervisions of some manifests (files, or Shar folders), in order."""
    from speechssl.data.index import manifest_files, read_manifest

    for path in [cuts] if isinstance(cuts, str) else cuts:
        if not Path(path).exists():
            raise ValueError(f"cuts: found no {path}, want a cuts_*.jsonl.gz")
        for file in manifest_files(Path(path)):
            for _, cut in read_manifest(file) if file.suffix != ".tar" else ():
                for supervision in cut.get("supervisions") or []:
                    if supervision.get("text"):
                        yield supervision["text"]


def write_lexicon(path: str, words: set[str], tokenizer: Tokenizer | None) -> None:
    """Write `WORD<tab>l e t t e r s` in order; without tokenizer, the words alone."""
    lines, left_out = [], []
    for word in sorted(words):
        if tokenizer is None:
            lines.append(word)
            continue
        try:
            lines.append(f"{word}\t{' '.join(token_names(tokenizer, word))}")
        except ValueError:
            left_out.append(word)
    temporary = Path(path + ".tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
    print(f"{path}: {len(lines)} words")
    if left_out:
        print(f"left out {len(left_out)} words with other characters, such as {left_out[:3]}")


def _lines(options: LmOptions) -> Iterator[str]:
    if options.cuts:
        yield from transcripts(options.cuts)
    files = [options.text] if isinstance(options.text, str) else options.text or []
    for path in files:
        if not Path(path).is_file():
            raise ValueError(f"text: found no file {path}, want sentences, one per line")
        with open(path, encoding="utf-8") as lines:
            yield from lines


def _extra_words(options: LmOptions, units: Any) -> list[str]:
    if options.words is None:
        return []
    if not Path(options.words).is_file():
        raise ValueError(f"words: found no file {options.words}, want one word per line")
    lines = Path(options.words).read_text(encoding="utf-8").splitlines()
    return sorted({unit for line in lines for unit in units(line)})


if __name__ == "__main__":
    sys.exit(main())
