"""50 real utterances in batches of any composition equal themselves alone, on every architecture.

`tools/bench/invariance.py` measures the same at published widths, and transformers beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechssl.encoders.conformer import ConformerConfig
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.audio import find_audio
from speechssl.hub.model import Model

CORPORA = ("an4", "fsdd", "librispeech_sample", "speechocean762", "vctk_sample")
TOLERANCE = 1e-5
SMALL: dict[str, Any] = {"layers": 2, "dim": 64, "ffn_dim": 128, "heads": 4, "front_dim": 32}
LARGE = {"front_norm": "layer", "pre_norm": True, "normalize_wave": True}
CONFORMER = {"layers": 2, "dim": 64, "ffn_dim": 128, "heads": 4, "front_dim": 32}
KINDS = {
    "hubert base: group norm, post-norm": TransformerConfig(**SMALL),
    "wav2vec2 large: group norm, post-norm, normalised": TransformerConfig(
        **SMALL, normalize_wave=True
    ),
    "hubert large: layer norm, pre-norm": TransformerConfig(**SMALL, **LARGE),
    "xls-r: layer norm with bias, pre-norm": TransformerConfig(**SMALL, **LARGE, conv_bias=True),
    "wavlm base: relative bias": TransformerConfig(**SMALL, relative_buckets=320),
    "wavlm large: relative bias, pre-norm": TransformerConfig(
        **SMALL, **LARGE, relative_buckets=320
    ),
    "data2vec: convolution stack": TransformerConfig.data2vec_base(**SMALL),
    "log-mel": TransformerConfig(**SMALL, front_end="log_mel"),
    "conformer, relative positions": ConformerConfig.wav2vec2_large(**CONFORMER),
    "conformer, rotary positions": ConformerConfig(
        **CONFORMER, front_end="wave", positions="rotary_input", conv_norm="batch"
    ),
    "mr-hubert base": MultiresConfig(
        stacks=(1, 1, 1), dim=64, ffn_dim=128, heads=4, front_dim=32
    ),
}  # fmt: skip

Layers = list[np.ndarray]


@functools.cache
def _utterances(root: Path) -> list[np.ndarray]:
    """50 of several corpora, cut to 0.1 to 2 s from anywhere."""
    rng = np.random.default_rng(0)
    files = [f for c in CORPORA if (root / c).is_dir() for f in find_audio([str(root / c)])[::7]]
    if len(files) < 50:
        pytest.skip(f"{root} holds {len(files)} files of {', '.join(CORPORA)}")
    waves = []
    for number in rng.permutation(len(files)):
        wave, rate = soundfile.read(files[number], dtype="float32")
        size = int(rng.uniform(0.1, 2.0) * rate)
        if rate == 16000 and len(wave) >= 1600:
            start = rng.integers(0, max(1, len(wave) - size))
            waves.append(wave[start : start + size])
        if len(waves) == 50:
            break
    return waves


def _layers(model: Model, group: list[np.ndarray]) -> list[Layers]:
    """Every layer of each utterance, in one batch whose padding is anything but silence."""
    lengths = torch.tensor([len(w) for w in group])
    wave = torch.full((len(group), int(lengths.max())), float("nan"))
    for row, samples in enumerate(group):
        wave[row, : len(samples)] = torch.from_numpy(samples)
    with torch.inference_mode():
        output = model.encoder(wave, lengths)
    return [
        [output.aligned(n)[row, :frames].numpy() for n in output.layers]
        for row, frames in enumerate(output.lengths.tolist())
    ]


def _compositions(count: int, seed: int) -> Iterator[list[int]]:
    """A random order of all, cut into batches of 1 to 16."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count).tolist()
    while order:
        size = int(rng.integers(1, 17))
        yield order[:size]
        order = order[size:]


@pytest.mark.corpora
@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_equals_single_utterances(kind: str, corpora_dir: Path) -> None:
    model = Model(KINDS[kind].build())
    waves = _utterances(corpora_dir)
    alone = [_layers(model, [wave])[0] for wave in waves]
    worst, seen = 0.0, []
    for seed in range(2):
        for batch in _compositions(len(waves), seed):
            for number, found in zip(batch, _layers(model, [waves[i] for i in batch]), strict=True):
                assert [x.shape for x in found] == [x.shape for x in alone[number]]
                pairs = zip(found, alone[number], strict=True)
                worst = max(worst, *(float(np.abs(a - b).max()) for a, b in pairs))
                seen.append(number)
    assert sorted(seen) == sorted([*range(50)] * 2)
    for number, features in enumerate(model.extract(waves, rate=16000)):
        pairs = zip(features.hidden.values(), alone[number], strict=True)
        worst = max(worst, *(float(np.abs(a - b).max()) for a, b in pairs))
    print(f"{kind}: at most {worst:.1e}")
    assert worst < TOLERANCE
