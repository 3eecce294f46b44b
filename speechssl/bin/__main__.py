"""`speechssl <verb> ...`: find the verb's program and run it; imports nothing else."""

from __future__ import annotations

import importlib
import sys

VERBS = {
    "prepare": "make Lhotse manifests from a corpus",
    "synth": "generate the synthetic multilingual corpus",
    "check": "decode and validate every cut; list the bad, write a clean manifest",
    "shard": "write cuts as Lhotse Shar, for sequential reading at scale",
    "cluster": "k-means pseudo-labels: fit, apply, quality",
    "topics": "topics of utterances from their pseudo-labels: fit, apply, show",
    "pretrain": "train an encoder with a self-supervised objective",
    "finetune": "train a downstream head, with or without its encoder",
    "vocoder": "train what makes a wave of a log-mel spectrogram",
    "export": "turn a checkpoint into the model.safetensors that load() opens",
    "decode": "transcribe, classify or embed with a fine-tuned model",
    "convert-voice": "recordings said anew in another voice",
    "score": "error rates of a decoding, a classification or speaker verification",
    "score-conversion": "converted voices against the target's: MCD, F0, speaker, WER",
    "lm": "estimate an n-gram language model for decoding",
    "extract": "frame features of any layer, for any audio",
    "align": "when each phone and word of a transcript is said",
    "segment": "syllable-like segments of speech, and scores of their boundaries",
    "report": "one HTML page about an experiment",
    "probe": "what each layer holds: ranks, CKA, PNMI, phones and speakers",
    "suite": "upstreams on tasks: one table, suite.json and a page",
    "bench": "benchmarks against other libraries, in one run",
}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return (
        "usage: speechssl <verb> [options]\n\n"
        "Self-supervised learning of speech and audio, from raw recordings to a scored model.\n\n"
        + "\n".join(lines)
        + "\n\n`speechssl <verb> --help` explains a verb; `speechssl --version` prints the version."
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from speechssl import __version__

        print(__version__)
        return 0
    if argv[0] not in VERBS:
        import difflib

        close = difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(
            f"speechssl: found verb {argv[0]!r}, want one of: {', '.join(VERBS)}.{hint}",
            file=sys.stderr,
        )
        return 2
    program = importlib.import_module(f"speechssl.bin.{argv[0].replace('-', '_')}")
    return program.main(argv[1:]) or 0


if __name__ == "__main__":
    sys.exit(main())
