"""How far a batch moves the features of its utterances: ours, and transformers' with equal weights.

Real utterances are computed alone, then in random batches of random composition, padded with zeros.
Reported per architecture: the largest difference of any layer, ours and transformers' (with the
attention mask where its documentation asks for one), and how large the features are. Weights are
random, at published widths; --layers cuts the depth.

    python tools/bench/invariance.py --audio '/corpora/an4' '/corpora/librispeech_sample'
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import speechssl
from speechssl.encoders.frame_encoder import normalise_wave
from speechssl.hub.audio import find_audio, read_file, to_wave

LAYERED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
LARGE = LAYERED | {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "HuBERT Base": ("Hubert", {}),
    "HuBERT Large": ("Hubert", LARGE),
    "wav2vec 2.0 XLS-R 300M": ("Wav2Vec2", LARGE | {"conv_bias": True}),
    "WavLM Base+": ("WavLM", {}),
    "WavLM Large": ("WavLM", LARGE),
    "data2vec Base": ("Data2VecAudio", {}),
}
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "conv_dim": (32,) * 7,
}  # fmt: skip
Batch = tuple[Tensor, Tensor]
Forward = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def utterances(patterns: list[str], count: int, seconds: float, seed: int) -> list[np.ndarray]:
    """Of random files, 0.1 s to `seconds` from anywhere, at 16 kHz."""
    rng = np.random.default_rng(seed)
    files = find_audio(patterns)
    found = []
    for number in rng.permutation(len(files)):
        wave = to_wave(*read_file(files[number]), want_rate=16000, name=str(files[number]))
        size = int(16000 * rng.uniform(0.1, seconds))
        if len(wave) >= 1600:
            start = int(rng.integers(0, max(1, len(wave) - size)))
            found.append(wave[start : start + size])
        if len(found) == count:
            return found
    raise SystemExit(f"audio: found {len(found)} files of 0.1 s or more, want {count}")


def compositions(count: int, largest: int, seed: int) -> Iterator[list[int]]:
    """A random order of all, cut into batches of 1 to `largest`."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count).tolist()
    while order:
        size = int(rng.integers(1, largest + 1))
        yield order[:size]
        order = order[size:]


def layers(forward: Forward, waves: list[np.ndarray]) -> list[list[np.ndarray]]:
    lengths = torch.tensor([len(w) for w in waves])
    padded = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in enumerate(waves):
        padded[row, : len(wave)] = torch.from_numpy(wave)
    with torch.inference_mode():
        hidden = forward(padded, lengths)
    frames = [(len(w) - 400) // 320 + 1 for w in waves]
    return [[h[row, :n].cpu().numpy() for h in hidden] for row, n in enumerate(frames)]


def moved(
    forward: Forward, waves: list[np.ndarray], largest: int, seed: int
) -> tuple[float, float]:
    """The largest difference between a batch and single utterances, and the largest value."""
    alone = [layers(forward, [w])[0] for w in waves]
    worst = 0.0
    for batch in compositions(len(waves), largest, seed):
        for number, found in zip(batch, layers(forward, [waves[i] for i in batch]), strict=True):
            pairs = zip(found, alone[number], strict=True)
            worst = max(worst, *(float(np.abs(a - b).max()) for a, b in pairs))
    return worst, max(float(np.abs(x).max()) for one in alone for x in one)


def forwards(family: str, values: dict[str, Any], device: str) -> tuple[Forward, Forward]:
    """Ours and theirs, of the same random weights."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**values)
    theirs = getattr(transformers, f"{family}Model")(config).eval()
    layered = family == "Data2VecAudio" or values.get("feat_extract_norm") == "layer"
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = speechssl.load(folder, device, settings={"do_normalize": layered})
    theirs = theirs.to(device)

    def own(wave: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return ours.encoder(wave.to(device), lengths.to(device)).hidden

    def other(wave: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        keep = torch.arange(wave.shape[1]) < lengths[:, None]
        if layered:
            wave = normalise_wave(wave, lengths)  # as their feature extractor does
        mask = keep.long().to(device) if layered else None
        output = theirs(wave.to(device), attention_mask=mask, output_hidden_states=True)
        return output.hidden_states

    return own, other


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audio", nargs="+", required=True, help="files, folders or globs")
    parser.add_argument("--utterances", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=4.0, help="longest")
    parser.add_argument("--largest-batch", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="narrow models, to try the script")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    waves = utterances(options.audio, options.utterances, options.seconds, options.seed)
    total = sum(map(len, waves)) / 16000
    print(f"{len(waves)} utterances, {total:.0f} s, batches of 1 to {options.largest_batch}, "
          f"{options.layers} layers, {options.device}\n")  # fmt: skip
    print("| architecture | speechssl | transformers | largest value |\n|---|---|---|---|")
    rows = {}
    for kind in options.kinds:
        family, values = KINDS[kind]
        values = values | {"num_hidden_layers": options.layers} | (SMALL if options.small else {})
        torch.manual_seed(options.seed)
        own, other = forwards(family, values, options.device)
        ours, largest = moved(own, waves, options.largest_batch, options.seed)
        theirs, _ = moved(other, waves, options.largest_batch, options.seed)
        rows[kind] = {"speechssl": ours, "transformers": theirs, "largest": largest}
        print(f"| {kind} | {ours:.1e} | {theirs:.1e} | {largest:.3g} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"seconds": total, "kinds": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
