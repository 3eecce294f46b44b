"""Copy synthesis: waves made of their own log-mels, by vocoders and Griffin-Lim, in one run.

    python tools/bench/vocoder.py --cuts cuts_test.jsonl.gz --vocoders griffin_lim exp/vocoder

Mel: mean absolute difference between the log-mels of the copy and of the original. Spectra: the
training's distance of short-time spectra. MCD and F0: as `speechssl score-conversion`, frame by
frame without time warping. Speed: audio seconds over CPU seconds of decoding whole files, the
median of `--rounds`; ratios are to the first vocoder. Each way sees the same files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from speechssl.data.loader import read_all
from speechssl.nn.speech_mel import SpeechMel, SpeechMelConfig
from speechssl.score.conversion import Settings, analyse, averages, compare
from speechssl.vocoder.config import ReconstructionConfig
from speechssl.vocoder.load import GRIFFIN_LIM, load_vocoder
from speechssl.vocoder.losses import SpectraDistance, mel_distance

SCORES = ("mel", "spectra", "mcd", "f0_rmse_hz", "voicing_error")
SETTINGS = Settings(dtw=False)


def waves_of(cuts: list[str], corpora: list[str]) -> dict[str, Tensor]:
    """Name -> (L,) samples of the recordings whose names begin with one of `corpora` (or all)."""
    found = {}
    for batch in read_all(cuts, max_batch_seconds=60.0):
        for wave, length, name in zip(batch.wave, batch.wave_lengths.tolist(), batch.ids):
            if not corpora or name.startswith(tuple(corpora)):
                found[name] = wave[: length // 160 * 160].clone()
    if not found:
        raise SystemExit(f"--only: found no cut that begins with one of {corpora}")
    return dict(sorted(found.items()))


def judged(copy: Tensor, wave: Tensor, mel: SpeechMel, spectra: SpectraDistance) -> dict:
    """All scores of one copy (L,) of one wave (L,)."""
    length = torch.tensor([len(wave)])
    made, frames = mel(copy[None], length)
    true, _ = mel(wave[None], length)
    row = compare(analyse(copy.numpy(), SETTINGS), analyse(wave.numpy(), SETTINGS), dtw=False)
    return {
        "mel": mel_distance(made, true, frames).item(),
        "spectra": spectra(copy[None], wave[None], length).item(),
        **{k: row[k] for k in SCORES[2:]},
    }


def run(options: argparse.Namespace) -> list[dict]:
    waves = waves_of(options.cuts, options.only)
    seconds = sum(map(len, waves.values())) / 16000
    mel = SpeechMel(SpeechMelConfig())
    spectra = SpectraDistance(ReconstructionConfig().windows)
    print(f"{len(waves)} files, {seconds:.1f} s, {options.threads} thread(s)")
    rows = []
    ways = [(source, 0) for source in options.vocoders]
    ways += [(s, n) for s in options.vocoders if s != GRIFFIN_LIM for n in options.refine]
    for source, refine in ways:
        vocoder = load_vocoder(source, mel.config, refine=refine)
        label = Path(source).name + (f"+{refine}" if refine else "")
        mels = {k: mel(x[None], torch.tensor([len(x)]))[0] for k, x in waves.items()}
        vocoder.decode(next(iter(mels.values()))[:, :20])  # what is made at the first call
        clocks, copies = [], {}
        for _ in range(options.rounds):
            start = time.process_time()
            copies = {name: vocoder.decode(x)[0] for name, x in mels.items()}
            clocks.append(time.process_time() - start)
        scores = [judged(copy, waves[name], mel, spectra) for name, copy in copies.items()]
        row = {"vocoder": label} | averages(scores, SCORES)
        row["loudest"] = max(float(x.abs().max()) for x in copies.values())
        row["audio_s_per_cpu_s"] = seconds / statistics.median(clocks)
        row["parameters"] = sum(p.numel() for p in vocoder.parameters())
        rows.append(row)
        if options.output:
            folder = Path(options.output) / label
            folder.mkdir(parents=True, exist_ok=True)
            for name, copy in copies.items():
                soundfile.write(folder / f"{name.replace('/', '_')}.wav", copy.numpy(), 16000)
    return rows


def show(rows: list[dict]) -> None:
    print("| vocoder | mel | spectra | MCD dB | F0 RMSE Hz | voicing error | audio s / CPU s | "
          "ratio | parameters |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = row["audio_s_per_cpu_s"] / rows[0]["audio_s_per_cpu_s"]
        scores = " | ".join(f"{row[name]:.3f}" if row[name] is not None else "-" for name in SCORES)
        print(f"| {row['vocoder']} | {scores} | {row['audio_s_per_cpu_s']:.1f} | {ratio:.2f} | "
              f"{row['parameters']:,} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", nargs="+", required=True, help="held-out recordings")
    parser.add_argument("--only", nargs="*", default=[], help="how names of cuts are to begin")
    parser.add_argument("--vocoders", nargs="+", default=["griffin_lim"], help="folders, or that")
    parser.add_argument(
        "--refine", type=int, nargs="*", default=[],
        help="iterations of Griffin-Lim behind each trained vocoder, as rows of their own",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="folder for the copies, one below it for each vocoder")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    rows = run(options)
    show(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
