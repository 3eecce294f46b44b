"""Long recordings lie on disk, not in memory; several processes share one folder of features."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl import dist
from speechssl.data.index import CutRecord
from speechssl.data.reader import read_part
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub import audio, cuts, extract, store
from speechssl.hub.audio import AudioItem, read_file, to_wave
from speechssl.hub.model import Model
from speechssl.hub.store import FeatureWriter, merge_index, read_index

TINY = TransformerConfig(
    layers=1, dim=16, ffn_dim=32, heads=2, front_dim=8, pos_conv_kernel=8, pos_conv_groups=2
)


def _noise(samples: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(samples)
    return (rng.standard_normal((samples, channels)) * 0.1).astype(np.float32)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (16000, 2), (8000, 2), (44100, 1)])
def test_a_long_file_read_by_blocks_equals_the_whole(
    rate: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, _noise(3 * rate + 77, channels), rate, subtype="FLOAT")
    want = to_wave(*read_file(path), want_rate=16000)
    monkeypatch.setattr(audio, "LONG_SECONDS", 1)
    monkeypatch.setattr(audio, "BLOCK", 5000)
    samples, found_rate = read_file(path)
    assert isinstance(samples, np.memmap) and found_rate == rate
    on_disk = audio.on_disk
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(audio, "on_disk", lambda shape: made.append(shape) or on_disk(shape))
    found = to_wave(samples, rate, want_rate=16000)
    assert len(made) == (rate != 16000)
    assert found.shape == want.shape
    assert np.abs(found - want).max() < 1e-5


def test_files_are_those_of_numpy_and_long_arrays_go_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_FRAMES", 7)
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    for dtype in ("float32", "float16"):
        for array in (values, values[0], values[:, ::2]):
            want, found = io.BytesIO(), io.BytesIO()
            np.save(want, np.ascontiguousarray(array.astype(dtype)))
            store.write_npy(found, array, np.dtype(dtype))
            assert found.getvalue() == want.getvalue()


@pytest.mark.parametrize("frames", [1, 6, 7, 50])
def test_pooled_vectors_are_moments_of_the_frames(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_FRAMES", 7)
    # A large offset, at which float32 sums of squares would lose the deviation.
    values = (1e4 + np.random.default_rng(0).standard_normal((frames, 5))).astype(np.float32)
    wide = values.astype(np.float64)
    assert np.array_equal(store.pooled(values, "none"), values)
    assert np.allclose(store.pooled(values, "mean"), wide.mean(0), rtol=1e-7)
    both = store.pooled(values, "mean_std")
    assert both.shape == (10,) and both.dtype == np.float32
    assert np.allclose(both, np.concatenate([wide.mean(0), wide.std(0)]), rtol=1e-6)


def test_a_last_utterance_without_all_its_layers_is_cut_off(tmp_path: Path) -> None:
    meta = {"layers": [0, 1]}
    model = Model(TINY.build())
    for features in model.extract([(_noise(n)[:, 0], 16000) for n in (900, 2000, 1500)]):
        FeatureWriter(tmp_path, meta).add(features)
    index = tmp_path / "index.jsonl"
    whole = index.read_text().splitlines(keepends=True)
    for kept in (whole[:5], [*whole[:5], whole[5][:20]], whole[:4]):
        index.write_text("".join(kept))
        assert FeatureWriter(tmp_path, meta).done == {"0": 900, "1": 2000}
        assert index.read_text() == "".join(whole[:4])


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_long_cut_read_by_blocks_equals_the_whole(
    rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, _noise(4 * rate + 77), rate, subtype="FLOAT")
    record = CutRecord("c", "r", str(path), 0.25, 3.5, None, 4.0)
    want = read_part(record, 0, record.num_samples)
    monkeypatch.setattr(cuts, "LONG_SECONDS", 1)
    monkeypatch.setattr(cuts, "BLOCK", 5000)
    found, found_rate = cuts.item_of(record).read()
    assert found_rate == 16000 and np.array_equal(found, want)
    assert isinstance(found, np.memmap) == (rate == 16000)
    damaged = dataclasses.replace(record, duration=9.0)
    with pytest.raises(ValueError, match=r"found .* of audio"):
        cuts.item_of(damaged).read()


def test_long_features_on_disk_equal_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", _noise(16000 * 6), 16000)
    model = Model(TINY.build())
    plan = {"chunk_seconds": 1.0, "overlap_seconds": 0.2}
    want = model.extract(tmp_path / "a.wav", **plan)[0]
    monkeypatch.setattr(audio, "LONG_SECONDS", 1)
    monkeypatch.setattr(extract, "LARGE_BYTES", 1000)
    found = model.extract(tmp_path / "a.wav", **plan)[0]
    assert isinstance(found.hidden[1], np.memmap)
    assert all(np.array_equal(found.hidden[k], want.hidden[k]) for k in want.hidden)


def test_results_out_of_order_are_the_same_results() -> None:
    model = Model(TINY.build())
    waves = [(_noise(n)[:, 0], 16000) for n in (4000, 30000, 900, 16000)]
    ordered = model.extract(waves, batch_seconds=1.0)
    loose = model.extract(waves, batch_seconds=1.0, in_order=False)
    assert [f.id for f in loose] == ["1", "3", "0", "2"]
    by_id = {f.id: f for f in loose}
    for want in ordered:
        assert np.array_equal(by_id[want.id].hidden[1], want.hidden[1])


def test_what_is_done_keeps_its_place_in_the_batches_and_is_neither_read_nor_given() -> None:
    model = Model(TINY.build())
    lengths = [4000, 30000, 900, 16000, 4100, 52000, 7000, 7100, 2000]
    waves = {str(i): _noise(n)[:, 0] for i, n in enumerate(lengths)}
    plan = {"batch_seconds": 1.5, "chunk_seconds": 2.0, "overlap_seconds": 0.2,
            "window_seconds": 4.0}  # fmt: skip
    items = [AudioItem(name, lambda w=wave: (w, 16000)) for name, wave in waves.items()]
    want = {f.id: f.hidden for f in model.extract(items, **plan)}
    batches: list[int] = []
    model.encoder.register_forward_hook(lambda *found: batches.append(len(found[1][0])))

    def unread() -> tuple[np.ndarray, int]:
        raise AssertionError("a done item was read")

    for done in ({"0"}, {"1", "5"}, {"0", "1", "2", "3"}, set(waves) - {"4"}):
        rest = [AudioItem(i.id, unread, len(waves[i.id])) if i.id in done else i for i in items]
        for in_order in (True, False):
            found = {f.id: f.hidden for f in model.extract(rest, in_order=in_order, **plan)}
            assert found.keys() == waves.keys() - done
            for name, hidden in found.items():
                assert all(np.array_equal(hidden[k], want[name][k]) for k in hidden)
            if len(done) == len(waves) - 1:
                assert len(batches) == 1  # that of the one open item
            batches.clear()


def test_processes_share_the_items_and_one_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [AudioItem(str(n), lambda n=n: (_noise(2000 + n)[:, 0], 16000)) for n in range(7)]
    model = Model(TINY.build())
    meta = {"layers": [0, 1], "model": "x"}
    writers = [FeatureWriter(tmp_path, meta, part=rank) for rank in range(3)]
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    shares = []
    for rank, writer in enumerate(writers):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        (share,) = map(list, writer.shares(items))
        shares.append([item.id for item in share])
        if rank == 2:
            continue  # killed before it wrote anything
        for features in model.extract_iter(share):
            writer.add(features)
    assert sorted(name for share in shares for name in share) == [str(n) for n in range(7)]
    assert len({*shares[0], *shares[1], *shares[2]}) == 7
    # Another number of processes finds what is done, merged or not.
    done = {*shares[0], *shares[1]}
    assert FeatureWriter(tmp_path, meta, part=0).done.keys() == done
    merge_index(tmp_path)
    assert [p.name for p in tmp_path.glob("index*")] == ["index.jsonl"]
    assert FeatureWriter(tmp_path, meta).done.keys() == done
    assert len(list(read_index(tmp_path))) == 2 * len(done)


def test_a_cut_is_audio() -> None:
    class Cut:
        id = "cut-7"
        sampling_rate = 8000

        def load_audio(self) -> np.ndarray:
            return _noise(8000).T

    found = Model(TINY.build()).extract([Cut()])[0]
    assert found.id == "cut-7" and found.num_samples == 16000
    assert Model(TINY.build()).extract(Cut())[0].num_samples == 16000
