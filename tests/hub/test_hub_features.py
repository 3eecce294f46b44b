"""Features of any audio: independent of batching, exact in frames and times, clear about faults."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub import extract
from speechssl.hub.audio import AudioItem, find_audio, to_wave
from speechssl.hub.chunks import Geometry, Piece, batches, cut
from speechssl.hub.extract import Plan
from speechssl.hub.model import Model, collapse

GEOMETRY = Geometry(16000, 320, 400)
SMALL = TransformerConfig(
    layers=2, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4
)
LAYER_NORM = dataclasses.replace(SMALL, front_norm="layer", pre_norm=True, normalize_wave=True)


def _model(config: TransformerConfig = SMALL) -> Model:
    torch.manual_seed(0)
    return Model(config.build())


def _noise(samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("config", [SMALL, LAYER_NORM], ids=["group", "layer"])
def test_features_alone_equal_features_in_a_batch(config: TransformerConfig) -> None:
    model = _model(config)
    waves = [_noise(n, n) for n in (4000, 16000, 400, 9999, 24000, 719, 720)]
    together = model.extract(waves, rate=16000)
    for wave, features in zip(waves, together, strict=True):
        alone = model.extract(wave, rate=16000)[0]
        assert list(features.hidden) == [0, 1, 2]
        for layer in features.hidden:
            assert _difference(features.hidden[layer], alone.hidden[layer]) < 1e-5


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 721, 16000, 16079, 16080, 31999])
def test_frame_counts_follow_the_formula(samples: int) -> None:
    features = _model().extract((_noise(samples), 16000), layers=[-1])[0]
    assert features.num_frames == (samples - 400) // 320 + 1
    assert len(features.times) == len(features.starts) == features.num_frames
    assert features.starts[-1] * 16000 + 400 <= samples
    assert features.times[0] == pytest.approx(0.0125)


@pytest.mark.parametrize("window", [20, 33, 100])
@pytest.mark.parametrize("overlap", [0, 3, 9])
def test_pieces_tile_every_length_exactly(window: int, overlap: int) -> None:
    for samples in [400, 6480, 6800, 20 * 320 + 399, 10000, 37777, 50001, 99999]:
        pieces = cut(7, samples, GEOMETRY, window, overlap)
        total = GEOMETRY.frames(samples)
        frames = [f for p in pieces for f in range(p.first, p.first + p.count)]
        assert frames == list(range(total))
        for p in pieces:
            inside = GEOMETRY.frames(p.size)
            assert p.start % 320 == 0 and p.stop <= samples
            assert p.keep >= 0 and p.keep + p.count <= inside
            # The kept frames have the times that they have in the whole.
            assert p.start // 320 + p.keep == p.first
            if len(pieces) > 1:
                assert inside == window
                assert p.first == 0 or p.keep >= overlap
                assert p.first + p.count == total or inside - p.keep - p.count >= overlap


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_windows_start_where_a_frame_of_the_lowest_rate_does(stride: int) -> None:
    geometry = Geometry(16000, 320, 400, stride)
    for window, overlap in ((20, 0), (33, 9), (33, 13), (101, 7)):
        for samples in [400, 6480, 10000, 37777, 50001, 99999]:
            total = geometry.frames(samples)
            pieces = cut(7, samples, geometry, window, overlap)
            frames = [f for p in pieces for f in range(p.first, p.first + p.count)]
            assert frames == list(range(total))
            for p in pieces:
                inside = geometry.frames(p.size)
                assert (p.start // 320) % stride == 0 and p.start // 320 + p.keep == p.first
                assert p.first == 0 or p.keep >= overlap
                assert p.first + p.count == total or inside - p.keep - p.count >= overlap
                assert len(pieces) == 1 or window <= inside < window + stride


def test_a_multi_resolution_encoder_gives_all_layers_at_one_rate() -> None:
    config = MultiresConfig(
        stacks=(1, 1, 1), dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16,
        pos_conv_groups=4, front_norm="layer",
    )  # fmt: skip
    model = Model(config.build())
    waves = [_noise(n, n) for n in (16000 * 5 + 77, 4000, 400, 720)]
    found = model.extract(waves, rate=16000)
    for wave, features in zip(waves, found, strict=True):
        with torch.inference_mode():
            output = model.encoder(torch.tensor(wave)[None], torch.tensor([len(wave)]))
        low = output.layer(2)[0].numpy()
        assert features.num_frames == (len(wave) - 400) // 320 + 1
        assert _difference(features.hidden[2], low.repeat(2, 0)[: features.num_frames]) < 1e-5
    parts = model.extract(waves[0], rate=16000, chunk_seconds=2.0, overlap_seconds=0.4)[0]
    assert parts.num_frames == found[0].num_frames
    # Both frames of a pair are of one window: repeated ones are alike in every window.
    pairs = parts.hidden[2][: parts.num_frames // 2 * 2].reshape(-1, 2, 32)
    assert (pairs[:, 0] == pairs[:, 1]).mean() > 0.95
    assert _difference(parts.hidden[0], found[0].hidden[0]) < 1e-5
    assert "how often: 2: 2" in model.describe()


def test_batches_hold_every_piece_once_within_the_budget() -> None:
    pieces = [
        p for i, n in enumerate((5000, 90000, 700, 64000)) for p in cut(i, n, GEOMETRY, 40, 4)
    ]
    groups = batches(pieces, 40000, 16000)
    assert sorted((p.item, p.start) for g in groups for p in g) == sorted(
        (p.item, p.start) for p in pieces
    )
    for group in groups:
        assert len(group) == 1 or max(p.size for p in group) * len(group) <= 40000


def _cost(groups: list[list[Piece]], batch_cost: int) -> int:
    return sum(batch_cost + len(g) * max(p.size for p in g) for g in groups)


@pytest.mark.parametrize("batch_cost", [0, 500, 5000, 10**9])
def test_batches_cost_least_of_all_ways_to_cut_the_sorted_pieces(batch_cost: int) -> None:
    rng = np.random.default_rng(batch_cost)
    for trial in range(20):
        sizes = rng.integers(400, 6000, 9)
        pieces = [Piece(i, 0, int(n), 0, 0, 1) for i, n in enumerate(sizes)]
        order = sorted(pieces, key=lambda p: -p.size)
        ways = []
        for bits in itertools.product([False, True], repeat=8):
            ends = [i + 1 for i, bit in enumerate(bits) if bit]
            groups = [order[a:b] for a, b in itertools.pairwise([0, *ends, 9])]
            if all(len(g) == 1 or len(g) * g[0].size <= 12000 for g in groups):
                ways.append(_cost(groups, batch_cost))
        found = batches(pieces, 12000, batch_cost)
        assert _cost(found, batch_cost) == min(ways), trial
        assert [p for g in found for p in g] == order
        assert all(len(g) == 1 or len(g) * g[0].size <= 12000 for g in found)
    assert batches([], 12000, batch_cost) == []


def test_batches_of_a_cheap_call_have_no_padding_and_of_a_dear_one_are_full() -> None:
    pieces = [Piece(i, 0, 1000 + 10 * (i // 4), 0, 0, 1) for i in range(40)]
    assert [len(g) for g in batches(pieces, 10**6, 1)] == [4] * 10
    assert [len(g) for g in batches(pieces, 10**6, 10**7)] == [40]


def test_chunks_equal_the_whole_away_from_attention() -> None:
    """Layer 0 of a layer-norm front end sees some frames only: chunked equals whole in all of it.

    Behind attention a window sees less than the whole, which no overlap undoes; frames and times
    still agree, and the values correlate.
    """
    model = _model(dataclasses.replace(LAYER_NORM, normalize_wave=False))
    wave = _noise(16000 * 9 + 123)
    whole = model.extract((wave, 16000), chunk_seconds=60.0)[0]
    parts = model.extract((wave, 16000), chunk_seconds=2.0, overlap_seconds=0.4)[0]
    assert whole.num_frames == parts.num_frames == (len(wave) - 400) // 320 + 1
    assert _difference(whole.hidden[0], parts.hidden[0]) < 1e-5
    top_whole, top_parts = whole.hidden[2], parts.hidden[2]
    cosine = (top_whole * top_parts).sum(1) / (
        np.linalg.norm(top_whole, axis=1) * np.linalg.norm(top_parts, axis=1)
    )
    assert cosine.min() > 0.9


def test_a_stereo_8_khz_integer_wave_equals_its_resampled_mono_float() -> None:
    rng = np.random.default_rng(1)
    stereo = rng.integers(-9000, 9000, (12000, 2), dtype=np.int16)
    mono = (stereo / 32768.0).mean(1).astype(np.float32)
    want = soxr.resample(mono, 8000, 16000, quality="HQ")
    model = _model()
    found = model.extract([(stereo, 8000), (stereo.T, 8000), (torch.tensor(stereo), 8000)])
    reference = model.extract((want, 16000))[0]
    for features in found:
        assert features.num_samples == 24000
        assert _difference(features.hidden[2], reference.hidden[2]) < 1e-4


def test_a_file_equals_its_array(tmp_path: Path) -> None:
    samples = np.random.default_rng(2).integers(-9000, 9000, (8000, 2), dtype=np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 8000)
    model = _model()
    by_file, by_array = model.extract([tmp_path / "a.flac", (samples, 8000)])
    assert by_file.id == str(tmp_path / "a.flac")
    assert _difference(by_file.hidden[1], by_array.hidden[1]) < 1e-5


def test_integer_and_float_samples_have_the_same_scale() -> None:
    x = np.array([0, 16384, -32768], dtype=np.int16)
    want = np.array([0.0, 0.5, -1.0], dtype=np.float32)
    for samples in (x, x.astype(np.int32) << 16, x / 32768.0, torch.tensor(want).bfloat16()):
        np.testing.assert_allclose(to_wave(samples, 16000, want_rate=16000), want)
    unsigned = np.array([128, 192, 0], dtype=np.uint8)
    np.testing.assert_allclose(to_wave(unsigned, 16000, want_rate=16000), want)


def test_order_is_kept_over_several_windows() -> None:
    lengths = [400 + 320 * n for n in (30, 3, 17, 90, 0, 55, 2, 41, 8, 77)]
    found = _model().extract(
        [(_noise(n), 16000) for n in lengths], layers=[0], window_seconds=2.0, batch_seconds=1.0
    )
    assert [f.num_samples for f in found] == lengths
    assert [f.id for f in found] == [str(i) for i in range(10)]


def _noted(count: int, read: list[int]) -> Iterator[AudioItem]:
    """Half seconds that enter their number into `read` when they are read."""
    for n in range(count):
        yield AudioItem(str(n), lambda n=n: (read.append(n), (_noise(8000), 16000))[1])


def test_extract_iter_holds_only_a_window_of_items() -> None:
    read: list[int] = []
    stream = _model().extract_iter(_noted(200, read), layers=[0], window_seconds=5.0)
    assert next(stream).id == "0"
    assert len(read) < 30
    stream.close()


def test_more_layers_are_held_for_fewer_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "HELD_BYTES", 10 * 50 * 32 * 4)  # 10 s of one layer
    for layers, least, most in (([2], 20, 26), ([0, 1, 2], 7, 13)):
        read: list[int] = []
        stream = _model().extract_iter(_noted(100, read), layers)
        next(stream)
        stream.close()
        assert least <= len(read) <= most


def test_layers_count_from_both_ends() -> None:
    model = _model()
    assert model.resolve_layers(None) == (0, 1, 2)
    assert model.resolve_layers([-1, 0]) == (2, 0)
    assert model.resolve_layers(-3) == (0,)
    with pytest.raises(ValueError, match=r"layers: found \[3\], want numbers from 0"):
        model.resolve_layers([1, 3])
    with pytest.raises(ValueError, match="layers: found none"):
        model.resolve_layers([])


def test_a_weighted_sum_of_layers_scales_its_weights() -> None:
    features = _model().extract((_noise(4000), 16000))[0]
    want = 0.25 * features.hidden[0] + 0.75 * features.hidden[2]
    assert _difference(features.weighted({0: 1.0, 2: 3.0}), want.astype(np.float32)) < 1e-5
    with pytest.raises(ValueError, match=r"those extracted: \[0, 1, 2\]"):
        features.weighted({5: 1.0})


def test_bfloat16_stays_close_and_returns_float32() -> None:
    model, wave = _model(), _noise(16000)
    full = model.extract((wave, 16000))[0].hidden[2]
    half = model.to(dtype=torch.bfloat16).extract((wave, 16000))[0].hidden[2]
    assert half.dtype == np.float32
    assert 0 < _difference(full, half) < 0.2
    assert (
        _difference(model.to(dtype=torch.float32).extract((wave, 16000))[0].hidden[2], full) < 1e-6
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((np.zeros(399, np.float32), 16000), "found 399 samples at 16000 Hz, want at least 400"),
        ((np.zeros(0, np.float32), 16000), "found no samples"),
        ((np.full(1000, np.nan, np.float32), 16000), "NaN or infinite"),
        ((np.zeros((2, 2, 500), np.float32), 16000), "shape"),
        ((np.zeros((64, 500), np.float32), 16000), "several utterances as a list"),
        ((np.zeros(1000, np.float32), 0), "sample rate"),
        ((np.zeros(1000, bool), 16000), "samples of type bool"),
        (np.zeros(1000, np.float32), "without its sample rate"),
        ("absent.wav", "absent.wav: found no such file"),
        ({"array": 1}, "found dict, want a path"),
    ],
)
def test_bad_items_are_named(item: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _model().extract([item])


def test_bad_files_can_be_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "broken.flac").write_bytes(b"fLaC not really" * 20)
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    soundfile.write(tmp_path / "good.wav", _noise(4000), 16000)
    faults: dict[str, str] = {}
    found = _model().extract(
        find_audio([str(tmp_path)]), on_error=lambda name, e: faults.update({name: str(e)})
    )
    assert [Path(f.id).name for f in found] == ["good.wav"]
    assert sorted(Path(n).name for n in faults) == ["broken.flac", "empty.wav", "short.wav"]
    assert all(name in text for name, text in faults.items())


def test_wrong_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="less than half of chunk_seconds"):
        Plan(chunk_seconds=4, overlap_seconds=2)
    with pytest.raises(ValueError, match="want all positive"):
        Plan(batch_seconds=0)


def test_find_audio_takes_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.wav", "sub/a.flac", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_audio([str(tmp_path / "*.wav"), str(tmp_path)])
    assert [p.name for p in found] == ["b.wav", "a.flac"]
    with pytest.raises(ValueError, match="matches no audio file"):
        find_audio([str(tmp_path / "*.mp3")])


def test_collapse_joins_repeats_then_drops_blanks() -> None:
    assert collapse([0, 1, 1, 0, 1, 2, 2, 0, 0, 3], 0) == [1, 1, 2, 3]
    assert collapse([], 0) == []
