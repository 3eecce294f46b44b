"""`speechssl decode`: transcribe with a fine-tuned recogniser, classify, or embed."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechssl.config import parse, to_dict

if TYPE_CHECKING:  # nothing that imports torch: the parser evaluates these lines for --help
    import numpy as np

    from speechssl.data.text import Tokenizer
    from speechssl.decode.beam import SearchSpace

DESCRIPTION = """Transcribe recordings with a fine-tuned recogniser: hyp.jsonl (what was said and
what was heard) and decode.json (how, and how fast). With --sweep, the weights of the beam search
are chosen on these cuts and written to best.json, for --tuned.

With a model that classifies utterances: predictions.jsonl, with probabilities, and with the
transcript and further fields if it has them; with one for speakers: embeddings.npy and
embeddings.jsonl; one that diarizes: segments.jsonl and hyp.rttm; one for slots or numbers:
slots.jsonl or values.jsonl; one that separates: estimates.jsonl and audio/. `speechssl score` reads
each of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    model: str
    """Folder of a fine-tuned model (model.json, model.safetensors)."""
    cuts: list[str] | str
    """Manifests to transcribe."""
    output: str
    """Folder for the results."""
    method: Literal["greedy", "beam"] = "greedy"
    """beam: search with language model and lexicon."""
    lm: str | None = None
    """ARPA or KenLM file: over words with a lexicon, else over tokens."""
    lexicon: str | None = None
    """Words that may be found, as `speechssl lm --lexicon` writes them."""
    lm_weight: float = 2.0
    """Weight of the language model's log10 probabilities."""
    word_score: float = 0.0
    """Added for each word."""
    beam: int = 100
    """Hypotheses kept per frame."""
    beam_tokens: int = 40
    """Most probable tokens tried per frame."""
    beam_threshold: float = 30.0
    """Hypotheses this far below the best are dropped."""
    tuned: str | None = None
    """best.json of a sweep: its weights replace lm_weight and word_score."""
    sweep: bool = False
    """Try all pairs of lm_weights and word_scores on these cuts, and keep the best."""
    lm_weights: list[float] = dataclasses.field(default_factory=lambda: [0.0, 1.0, 2.0, 3.0, 4.0])
    """Language model weights of a sweep."""
    word_scores: list[float] = dataclasses.field(default_factory=lambda: [-1.0, 0.0, 1.0, 2.0, 4.0])
    """Word scores of a sweep."""
    nbest: int = 1
    """Hypotheses per utterance in hyp.jsonl (beam only)."""
    threshold: float = 0.5
    """Diarization: a speaker whose probability is above it is active."""
    median: int = 1
    """Diarization: frames of the median filter; odd, 1 for none."""
    max_batch_seconds: float = 120.0
    """Audio per batch, padding included."""
    num_workers: int = 0
    """Processes that read audio."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model."""

    def __post_init__(self) -> None:
        beam_only = {
            "lm": self.lm is not None,
            "lexicon": self.lexicon is not None,
            "tuned": self.tuned is not None,
            "sweep": self.sweep,
            "nbest": self.nbest != 1,
        }
        wrong = [name for name, given in beam_only.items() if given]
        if self.method == "greedy" and wrong:
            raise ValueError(f"{', '.join(wrong)}: found with method greedy, want method beam")
        if self.sweep and self.tuned:
            raise ValueError("sweep, tuned: found both, want one of them")
        if self.nbest < 1:
            raise ValueError(f"nbest: found {self.nbest}, want at least 1")


@dataclasses.dataclass(frozen=True)
class Reference:
    text: str
    duration: float
    speaker: str | None
    language: str | None = None


def main(argv: list[str] | None = None) -> int:
    options = parse(DecodeOptions, argv, prog="speechssl decode", description=DESCRIPTION)
    from speechssl import dist

    try:
        return run(options)
    except ValueError as error:
        print(f"speechssl decode: error: {error}", file=sys.stderr)
        return 2
    finally:
        dist.shutdown()


def run(options: DecodeOptions) -> int:
    from speechssl import dist
    from speechssl.bin import decode_tasks, decode_utterances
    from speechssl.model_file import open_model

    if options.tuned is not None:
        options = dataclasses.replace(options, **_tuned(options.tuned))
    device = dist.init(options.device)
    opened = open_model(options.model)
    if decode_utterances.handles(opened.head):
        return decode_utterances.run(options, opened.head, device, opened.tokenizer)
    if decode_tasks.handles(opened.head):
        return decode_tasks.run(options, opened.head, device)
    head, tokenizer = _recogniser(opened, options.model)
    head.to(device)
    space, left_out = _space(options, tokenizer)
    references = read_references(options.cuts)
    clock = {"audio_s": 0.0, "forward_s": 0.0, "search_s": 0.0}
    skipped: list[str] = []
    found = answers(options, head.encoder, head.log_probs, device, clock, skipped)
    found = _with_progress(found, references, options)
    grid: list[dict[str, float]] = []
    if options.sweep and space is not None:
        kept = list(found)
        grid = sweep(kept, references, space, options, tokenizer)
        best = min(grid, key=lambda g: (g["wer"], g["lm_weight"], abs(g["word_score"])))
        options = dataclasses.replace(
            options, lm_weight=best["lm_weight"], word_score=best["word_score"]
        )
        found = iter(kept)
    transcribe = _transcriber(options, tokenizer, space)
    rows = {}
    for cut_id, log_probs in found:
        start = time.perf_counter()
        texts = transcribe(log_probs)
        clock["search_s"] += time.perf_counter() - start
        rows[cut_id] = texts
    parts = dist.gather_objects((rows, skipped, clock))
    if dist.is_main():
        _write(options, head, references, parts, grid, left_out)
    return 0


def _recogniser(model: Any, folder: str) -> tuple[Any, Tokenizer]:
    """The CTC head and the tokenizer of a `model_file.ModelFile`."""
    from speechssl.data.text import Tokenizer

    if model.head is None or not hasattr(model.head, "log_probs") or model.tokenizer is None:
        raise ValueError(
            f"model: found no recogniser in {folder}, want a model that `speechssl finetune` made "
            "with a head, such as class_path: speechssl.heads.asr_ctc.CtcConfig"
        )
    return model.head, Tokenizer.from_dict(model.tokenizer)


def read_references(cuts: list[str] | str) -> dict[str, Reference]:
    """Cut id -> what its manifest says of it, in manifest order; "" where it has no text."""
    from speechssl.data.index import manifest_files, read_manifest

    found: dict[str, Reference] = {}
    for path in [cuts] if isinstance(cuts, str) else cuts:
        if not Path(path).exists():
            raise ValueError(f"cuts: found no {path}, want a cuts_*.jsonl.gz")
        for file in manifest_files(Path(path)):
            for _, cut in read_manifest(file) if file.suffix != ".tar" else ():
                first = (cut.get("supervisions") or [{}])[0]
                found[cut["id"]] = Reference(
                    first.get("text") or "", cut.get("duration") or 0.0, first.get("speaker"),
                    first.get("language"),
                )  # fmt: skip
    return found


def sweep(
    emissions: list[tuple[str, np.ndarray]],
    references: dict[str, Reference],
    space: SearchSpace,
    options: DecodeOptions,
    tokenizer: Tokenizer,
) -> list[dict[str, float]]:
    """Word error rate of every pair of weights; log-probabilities are computed once."""
    from tqdm import tqdm

    from speechssl import dist
    from speechssl.score.wer import Edits, align, count_edits, normalise

    pairs = [(w, s) for w in options.lm_weights for s in options.word_scores]
    if space.trie is None:  # word scores act through a lexicon alone
        pairs = [(w, 0.0) for w in options.lm_weights]
    refs = {i: normalise(references[i].text).split() for i, _ in emissions}
    grid = []
    for lm_weight, word_score in tqdm(pairs, desc="sweep", unit="pair", disable=None):
        chosen = dataclasses.replace(options, lm_weight=lm_weight, word_score=word_score)
        transcribe = _transcriber(chosen, tokenizer, space)
        edits = Edits()
        for cut_id, log_probs in emissions:
            heard = normalise(transcribe(log_probs)[0]).split()
            edits = edits + count_edits(align(refs[cut_id], heard))
        edits = sum(dist.gather_objects(edits), Edits())
        if edits.length == 0:
            raise ValueError("sweep: found no word in the references, want transcribed cuts")
        grid.append({"lm_weight": lm_weight, "word_score": word_score, "wer": edits.rate})
        if not sys.stderr.isatty() and dist.is_main():
            print(f"lm_weight {lm_weight:g} word_score {word_score:g} WER {100 * edits.rate:.2f} %")
    return grid


def _tuned(path: str) -> dict[str, float]:
    if not Path(path).is_file():
        raise ValueError(f"tuned: found no file {path}, want the best.json of a --sweep")
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        return {k: float(values[k]) for k in ("lm_weight", "word_score")}
    except (KeyError, TypeError):
        raise ValueError(
            f"tuned: found {sorted(values)} in {path}, want lm_weight, word_score"
        ) from None


def _space(options: DecodeOptions, tokenizer: Tokenizer) -> tuple[SearchSpace | None, list[str]]:
    """What the beam searches over, and the lexicon's words that cannot be spelled."""
    if options.method == "greedy":
        return None, []
    from speechssl.decode.beam import lexicon_space, read_lexicon, token_space

    if options.lexicon is None:
        return token_space(tokenizer.symbols, lm=options.lm), []
    if tokenizer.kind != "letters":
        raise ValueError(
            f"lexicon: found with a tokenizer of kind {tokenizer.kind}, want letters; search "
            "without lexicon, with a model over tokens (`speechssl lm --unit token`)"
        )
    lexicon, left_out = read_lexicon(options.lexicon, tokenizer.symbols, tokenizer.encode)
    space = lexicon_space(
        lexicon, tokens=tokenizer.size, space=tokenizer.symbols.index(" "), lm=options.lm
    )
    return space, left_out


def _transcriber(
    options: DecodeOptions, tokenizer: Tokenizer, space: SearchSpace | None
) -> Callable[[np.ndarray], list[str]]:
    """Log-probabilities -> texts, best first."""
    if space is None:
        from speechssl.decode.greedy import greedy

        return lambda log_probs: [tokenizer.decode(greedy(log_probs)[0])]
    from speechssl.decode.beam import BeamOptions, BeamSearch

    search = BeamSearch(
        space,
        BeamOptions(
            beam=options.beam,
            beam_tokens=options.beam_tokens,
            beam_threshold=options.beam_threshold,
            lm_weight=options.lm_weight,
            word_score=options.word_score,
        ),
    )

    def transcribe(log_probs: np.ndarray) -> list[str]:
        texts = []
        # Several token paths may spell one text: some more are asked for, and equal ones merged.
        wanted = options.nbest if options.nbest == 1 else 4 * options.nbest
        for found in search(log_probs, wanted):
            words = space.words is not None
            texts.append(" ".join(found.words) if words else tokenizer.decode(found.tokens))
        return list(dict.fromkeys(texts))[: options.nbest] or [""]

    return transcribe


def answers(
    options: DecodeOptions,
    encoder: Any,
    ask: Callable[[Any, Any], tuple[Any, Any]],
    device: Any,
    clock: dict[str, float],
    skipped: list[str],
) -> Iterator[tuple[str, np.ndarray]]:
    """(cut id, float32 row) of this rank's share; fills in clock and skipped.

    ask: (wave, wave_lengths) -> rows (B, ...) and their lengths (B,), or None to keep rows whole.
    Raises `ValueError` for an answer that is no number: audio that holds such is skipped before.
    """
    import numpy as np
    import torch

    from speechssl.data.loader import read_all

    cuts = [options.cuts] if isinstance(options.cuts, str) else options.cuts
    batches = read_all(
        cuts, max_batch_seconds=options.max_batch_seconds, num_workers=options.num_workers
    )
    for batch in batches:
        batch = long_enough(batch, encoder, skipped)
        if not len(batch):
            continue
        start = time.perf_counter()
        moved = batch.to(device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"),
        ):
            found, lengths = ask(moved.wave, moved.wave_lengths)
        rows = found.float().cpu().numpy()
        clock["forward_s"] += time.perf_counter() - start
        clock["audio_s"] += float(batch.wave_lengths.sum()) / encoder.sample_rate_hz
        ends = [None] * len(rows) if lengths is None else lengths.tolist()
        for cut_id, row, end in zip(batch.ids, rows, ends, strict=True):
            answer = row[:end].copy()
            if np.isnan(answer).any():
                raise ValueError(
                    f"model: found NaN as its answer to {cut_id!r} in {options.dtype}, want "
                    f"numbers; did the training of {options.model} end well?"
                )
            yield cut_id, answer
    skipped.extend(batches.skipped)


def long_enough(batch: Any, encoder: Any, skipped: list[str]) -> Any:
    """The utterances of a contract.Batch that have a frame; the others are noted."""
    keep = [n > 0 for n in encoder.frame_lengths(batch.wave_lengths).tolist()]
    if all(keep):
        return batch
    skipped += [
        f"{cut_id}: shorter than one frame ({encoder.receptive_field_samples} samples)"
        for cut_id, kept in zip(batch.ids, keep, strict=True)
        if not kept
    ]
    return dataclasses.replace(
        batch,
        wave=batch.wave[keep],
        wave_lengths=batch.wave_lengths[keep],
        seeds=batch.seeds[keep],
        ids=tuple(cut_id for cut_id, kept in zip(batch.ids, keep, strict=True) if kept),
    )


def _with_progress(
    found: Iterable[tuple[str, Any]], references: dict[str, Reference], options: DecodeOptions
) -> Iterator[tuple[str, Any]]:
    from tqdm import tqdm

    from speechssl import dist

    total = -(-len(references) // dist.world_size())
    yield from tqdm(found, total=total, desc="decode", unit="utt", disable=None)


def _write(
    options: DecodeOptions,
    head: Any,
    references: dict[str, Reference],
    parts: list[tuple[dict[str, list[str]], list[str], dict[str, float]]],
    grid: list[dict[str, float]],
    left_out: list[str],
) -> None:
    from speechssl.bin.decode_tasks import STALE
    from speechssl.bin.decode_utterances import describe
    from speechssl.bin.score import write_text

    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {cut_id: t for rows, _, _ in parts for cut_id, t in rows.items()}
    skipped = sorted({entry for _, found, _ in parts for entry in found})
    clock = {name: sum(part[2][name] for part in parts) for name in parts[0][2]}
    lines = []
    for cut_id, reference in references.items():
        if cut_id not in texts:
            continue
        row = {"id": cut_id, "ref": reference.text, "hyp": texts[cut_id][0]}
        row |= {"duration": reference.duration, "speaker": reference.speaker}
        if reference.language is not None:
            row["language"] = reference.language
        if options.nbest > 1:
            row["nbest"] = texts[cut_id]
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    for stale in STALE:
        (folder / stale).unlink(missing_ok=True)
    write_text(folder / "hyp.jsonl", "".join(lines))
    spent = clock["forward_s"] + clock["search_s"]
    info = to_dict(options) | {
        "utterances": len(lines),
        "skipped": skipped,
        "words_left_out_of_lexicon": len(left_out),
        "timing": clock | {"rtf": spent / max(clock["audio_s"], 1e-9)},
        **describe(head),
    }
    if grid:
        best = {"lm_weight": options.lm_weight, "word_score": options.word_score}
        best_wer = min(point["wer"] for point in grid)
        text = json.dumps(best | {"wer": best_wer, "cuts": options.cuts, "grid": grid}, indent=2)
        write_text(folder / "best.json", text + "\n")
        print(
            f"best: lm_weight {best['lm_weight']:g}, word_score {best['word_score']:g}, "
            f"WER {100 * best_wer:.2f} %"
        )
        for name, value in best.items():
            tried = {point[name] for point in grid}
            if len(tried) > 2 and value == max(tried):
                print(f"the best {name} is the largest tried; larger ones may be better")
    write_text(folder / "decode.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    print(
        f"{folder}/hyp.jsonl: {len(lines)} utterances, {len(skipped)} skipped, "
        f"{clock['audio_s']:.0f} s of audio in {spent:.1f} s (RTF {info['timing']['rtf']:.3f})"
    )
    for entry in skipped[:10]:
        print(f"skipped {entry}")
    if left_out:
        print(f"lexicon: left out {len(left_out)} words, such as {left_out[:3]}")


if __name__ == "__main__":
    sys.exit(main())
