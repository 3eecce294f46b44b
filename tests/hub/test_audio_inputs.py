"""Whatever a person calls audio: every form of one recording gives the same features, or an error.

The forms are those of `Model.extract`: paths, arrays with their rate, tensors, ragged lists, pairs,
cuts and CutSets of Lhotse's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording

from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.audio import to_wave
from speechssl.hub.model import Model

TINY = TransformerConfig(
    layers=2, dim=16, ffn_dim=32, heads=2, front_dim=8, pos_conv_kernel=8, pos_conv_groups=2
)


@pytest.fixture
def model() -> Model:
    return Model(TINY.build())


@pytest.fixture
def samples() -> np.ndarray:
    return np.random.default_rng(0).integers(-9000, 9000, 12345, dtype=np.int16)


@pytest.fixture
def path(samples: np.ndarray, tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    return tmp_path / "a.flac"


def _cut(path: Path) -> MonoCut:
    recording = Recording.from_file(path)
    return MonoCut("cut-7", 0.0, recording.duration, channel=0, recording=recording)


def test_every_form_of_a_recording_gives_the_same_features(
    model: Model, samples: np.ndarray, path: Path
) -> None:
    x = samples / np.float32(32768)
    cut = _cut(path)
    forms: dict[str, tuple[Any, int | None]] = {
        "path": (path, None),
        "name": (str(path), None),
        "names": ([str(path)], None),
        "paths from a generator": ((p for p in [path]), None),
        "float32 and rate": (x, 16000),
        "float64": (x.astype(np.float64), 16000),
        "int16": (samples, 16000),
        "rate of numpy": ((samples, np.int64(16000)), None),
        "whole rate in floating point": ((samples, 16000.0), None),
        "tensor": (torch.from_numpy(x), 16000),
        "tensor (1, L)": (torch.from_numpy(x)[None], 16000),
        "tensor with a gradient": (torch.from_numpy(x).requires_grad_(), 16000),
        "array (L, 1)": (x[:, None], 16000),
        "not contiguous": (np.repeat(x, 2)[::2], 16000),
        "stereo (2, L)": (np.stack([x, x]), 16000),
        "stereo (L, 2)": (np.stack([x, x], 1), 16000),
        "pair": ((x, 16000), None),
        "pairs": ([(torch.from_numpy(samples), 16000)], None),
        "list of one": ([x], 16000),
        "cut": (cut, None),
        "list of cuts": ([cut], None),
        "CutSet": (CutSet.from_cuts([cut]), None),
        "recording": (cut.recording, None),
    }
    want = model.extract((x, 16000))[0]
    for form, (audio, rate) in forms.items():
        (found,) = model.extract(audio, rate=rate)
        assert found.num_samples == 12345 and found.num_frames == 38, form
        assert list(found.hidden) == [0, 1, 2], form
        for layer, values in want.hidden.items():
            assert np.abs(found.hidden[layer] - values).max() < 1e-5, form


def test_a_ragged_list_of_mixed_forms_keeps_order_lengths_and_times(
    model: Model, samples: np.ndarray, path: Path
) -> None:
    x = samples / np.float32(32768)
    audio = [path, x[:5000], torch.from_numpy(samples)[:400], (x[:4000], 8000), _cut(path)]
    found = model.extract(audio, layers=[-1, 0], rate=16000)
    assert [f.id for f in found] == [str(path), "1", "2", "3", "cut-7"]
    assert [f.num_samples for f in found] == [12345, 5000, 400, 8000, 12345]
    for item, features in zip(audio, found, strict=True):
        assert list(features.hidden) == [2, 0]
        assert features.num_frames == (features.num_samples - 400) // 320 + 1
        np.testing.assert_allclose(features.starts, 0.02 * np.arange(features.num_frames))
        np.testing.assert_allclose(features.times, features.starts + 0.0125)
        alone = model.extract(item, rate=16000)[0]
        for layer in (0, 2):
            assert np.abs(features.hidden[layer] - alone.hidden[layer]).max() < 1e-5


def test_a_lazy_cutset_of_parts_at_8_khz_equals_its_arrays(model: Model, tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-9000, 9000, 24000, dtype=np.int16)
    soundfile.write(tmp_path / "b.wav", samples, 8000)
    recording = Recording.from_file(tmp_path / "b.wav")
    parts = {"first": (0.0, 1.0), "second": (0.5, 2.25)}
    cuts = [MonoCut(k, start, d, channel=0, recording=recording) for k, (start, d) in parts.items()]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    found = model.extract(CutSet.from_jsonl_lazy(tmp_path / "cuts.jsonl.gz"))
    assert [f.id for f in found] == list(parts)
    for features, (start, d) in zip(found, parts.values(), strict=True):
        part = samples[int(8000 * start) : int(8000 * (start + d))]
        want = model.extract((part, 8000))[0]
        assert features.num_samples == want.num_samples == int(16000 * d)
        assert np.abs(features.hidden[2] - want.hidden[2]).max() < 1e-5


def test_a_cut_whose_file_is_gone_is_left_out(model: Model, path: Path) -> None:
    cut = _cut(path)
    path.unlink()
    with pytest.raises(ValueError, match="cut-7: cannot be read"):
        model.extract(cut)
    faults: dict[str, ValueError] = {}
    assert model.extract([cut], on_error=faults.__setitem__) == []
    assert list(faults) == ["cut-7"]


def test_nothing_gives_nothing(model: Model) -> None:
    assert model.extract([]) == []


X = np.zeros(1000, np.float32)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros((8, 500), np.float32), 16000, r"shape \(8, 500\), want one recording of 1 or 2"),
        (torch.zeros(4, 500), 16000, "pass several utterances as a list"),
        (np.zeros((2, 2, 500), np.float32), 16000, "shape"),
        (np.zeros((), np.float32), 16000, "shape"),
        (np.zeros(1000, np.int64), 16000, r"type int64.*x\.astype\('int16'\)"),
        (np.zeros(1000, np.uint16), 16000, "type uint16"),
        (np.zeros(1000, np.complex64), 16000, "type complex64"),
        (np.array([X, X[:500]], dtype=object), 16000, "type object"),
        (X + 12000, 16000, "float samples up to 12000, want full scale 1; .* divided by 32768"),
        (np.where(np.arange(1000) == 7, np.inf, X), 16000, "NaN or infinite"),
        (np.where(np.arange(1000) == 7, np.nan, X), 16000, "NaN or infinite"),
        (X[:0], 16000, "found no samples"),
        (X, 16, r"found sample rate 16, want .*\(16000, not 16\)"),
        (X, -16000, "sample rate -16000"),
        (X, float("nan"), "sample rate nan"),
        (X, 22050.5, "sample rate 22050.5"),
        (X, True, "sample rate True"),
        (X, "16000", "sample rate '16000'"),
        (X, None, "without its sample rate; pass rate="),
        ({"a": X}, 16000, "found dict, want a path"),
        (b"RIFF", 16000, "found bytes, want a path"),
        (7, None, "found int, want a path"),
        (None, None, "found NoneType, want a path"),
        ((16000, X), None, "item 0: found int"),
        ([(16000, X)], None, "item 0: found tuple"),
        ([[0.0, 0.1]], 16000, "item 0: found list"),
    ],
)
def test_what_is_no_audio_is_named(model: Model, audio: Any, rate: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.extract(audio, rate=rate)


def test_layers_that_are_no_numbers_are_named(model: Model) -> None:
    assert model.resolve_layers(np.arange(3)) == (0, 1, 2)  # pyright: ignore
    assert model.resolve_layers(np.int64(-1)) == (2,)  # pyright: ignore
    for layers in ("last", [1.5], [None]):
        with pytest.raises(ValueError, match="layers: found"):
            model.resolve_layers(layers)  # pyright: ignore


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_integers_are_scaled_by_their_type_alone(kind: type[np.signedinteger]) -> None:
    info = np.iinfo(kind)
    x = np.array([info.min, info.min // 2, 0, 1, info.max], kind)
    want = (x.astype(np.float64) / -float(info.min)).astype(np.float32)
    np.testing.assert_array_equal(to_wave(x, 16000, want_rate=16000), want)
