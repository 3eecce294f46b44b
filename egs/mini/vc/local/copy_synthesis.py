"""Recordings through log-mel and vocoder alone: what a conversion loses at least.

python local/copy_synthesis.py --cuts data/cuts_target_test.jsonl.gz --vocoder exp/vocoder \
    --output exp/copy_vocoder

Writes what `speechssl convert-voice` writes (audio, index.jsonl, cuts.jsonl.gz, convert.json with
the real-time factor), for `speechssl score-conversion --dtw false` to compare with the recordings.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import soundfile
import torch

from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.data.fields import cut_rows, field_of
from speechssl.data.index import record_from_cut
from speechssl.data.reader import read_part
from speechssl.vocoder.load import load_vocoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", required=True)
    parser.add_argument("--vocoder", required=True, help="folder, or griffin_lim")
    parser.add_argument("--refine", type=int, default=0, help="see `speechssl convert-voice`")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    vocoder = load_vocoder(options.vocoder, refine=options.refine)
    (options.output / "audio").mkdir(parents=True, exist_ok=True)
    index, cuts = [], JsonlWriter(options.output / "cuts.jsonl.gz")
    audio, seconds = 0.0, 0.0
    for row in cut_rows([options.cuts]):
        record = record_from_cut(row)
        wave = torch.from_numpy(read_part(record, 0, record.num_samples).copy())[None]
        mel, lengths = vocoder.mel(wave, torch.tensor([wave.shape[1]]))
        begin = time.perf_counter()
        made = vocoder.decode(mel, lengths)[0].numpy()
        seconds += time.perf_counter() - begin
        audio += wave.shape[1] / 16000
        name = f"audio/{row['id']}.wav"
        soundfile.write(options.output / name, made, vocoder.mel.config.sample_rate_hz, "PCM_16")
        speaker = field_of(row, "speaker")
        index.append({"id": row["id"], "source_id": row["id"], "target": speaker, "audio": name})
        path = (options.output / name).resolve()
        cuts.write(
            cut_row(
                id=row["id"],
                audio=path,
                header=read_header(path),
                text=field_of(row, "text"),
                speaker=speaker,
            )
        )
    cuts.close()
    text = "".join(json.dumps(line) + "\n" for line in index)
    (options.output / "index.jsonl").write_text(text)
    how = {"vocoder": options.vocoder, "timing": {"audio_s": audio, "rtf": seconds / audio}}
    (options.output / "convert.json").write_text(json.dumps(how, indent=2) + "\n")
    print(f"{len(index)} recordings, {audio:.1f} s of audio in {seconds:.2f} s")


if __name__ == "__main__":
    main()
