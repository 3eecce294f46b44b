from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from speechssl.data import label_store
from speechssl.data.label_store import LabelStore, LabelWriter

META = {"classes": 500, "frame_rate_hz": 50, "layer": 6}


def _write(folder: Path, labels: dict[str, np.ndarray], meta: dict = META) -> LabelStore:
    writer = LabelWriter(folder, meta)
    for name, array in labels.items():
        writer.add(name, array)
    writer.finish()
    return LabelStore.open(folder)


@pytest.mark.parametrize("classes", [2, 256, 257, 65536, 65537])
def test_what_is_written_is_read_back_for_every_width(tmp_path: Path, classes: int) -> None:
    draw = np.random.default_rng(0)
    labels = {f"r{i}": draw.integers(0, classes, i) for i in range(40)}
    labels["top"] = np.array([0, classes - 1])
    store = _write(tmp_path / "s", labels, {**META, "classes": classes})
    assert len(store) == 41 and list(store.ids()) == list(labels)
    for name, array in labels.items():
        assert np.array_equal(store.frames(name), array)
    assert store.meta["layer"] == 6


def test_a_missing_recording_is_named_with_the_store(tmp_path: Path) -> None:
    store = _write(tmp_path / "s", {"a": np.arange(3)})
    with pytest.raises(ValueError, match=r"'nobody' in .*s"):
        store.frames("nobody")


def test_a_window_follows_the_time_and_ignores_what_lies_outside(tmp_path: Path) -> None:
    store = _write(tmp_path / "s", {"a": np.arange(100)})
    assert store.window("a", 320 * 7, 5, 320).tolist() == [7, 8, 9, 10, 11]
    assert store.window("a", 320 * 98, 4, 320).tolist() == [98, 99, -100, -100]
    assert store.window("a", -640, 4, 320).tolist() == [-100, -100, 0, 1]
    assert store.window("a", 0, 4, 160).tolist() == [0, 0, 1, 1]
    assert store.window("a", 0, 4, 640).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("rate", [25, 50, 75, 100, 49.5])
@pytest.mark.parametrize("hop", [160, 320, 640])
def test_every_rate_obeys_the_floor_rule(rate: float, hop: int) -> None:
    labels = np.arange(300)
    for start in (0, 320, 333, 16000, -320):
        found = label_store.label_frames(labels, rate, start, 400, hop)
        for t in range(400):
            index = int(np.floor((start + t * hop) * rate / 16000))
            assert found[t] == (index if 0 <= index < 300 else -100)


def test_utterance_labels_are_single_integers(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "s", {"classes": 8, "frame_rate_hz": 0})
    writer.add("a", 7)
    with pytest.raises(ValueError, match="found 2, want 1"):
        writer.add("b", [1, 2])
    writer.finish()
    assert LabelStore.open(tmp_path / "s").value("a") == 7


def test_labels_outside_the_classes_and_ids_written_twice_are_refused(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "s", META)
    writer.add("a", [1])
    with pytest.raises(ValueError, match="'a' twice"):
        writer.add("a", [1])
    with pytest.raises(ValueError, match="want 0 to 499"):
        writer.add("b", [500])
    with pytest.raises(ValueError, match="integers"):
        writer.add("b", [0.5])


def test_a_killed_writer_continues_without_loss_or_repetition(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    program = textwrap.dedent(
        f"""
        import os, signal
        from speechssl.data.label_store import LabelWriter
        writer = LabelWriter({str(folder)!r}, {META!r}, flush_every=10)
        for i in range(57):
            writer.add(f"r{{i}}", [i] * (i + 1))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="unfinished"):
        LabelStore.open(folder)
    # A torn last line and labels without a line, as a kill inside a write leaves them.
    part = folder / "parts-0" / "00000"
    with open(part.with_suffix(".jsonl"), "ab") as file:
        file.write(b'["r5')
    with open(part.with_suffix(".bin"), "ab") as file:
        file.write(b"\1\2\3")
    writer = LabelWriter(folder, META)
    assert writer.done_ids() == {f"r{i}" for i in range(50)}
    for i in range(60):
        if f"r{i}" not in writer:
            writer.add(f"r{i}", [i] * (i + 1))
    writer.finish()
    store = LabelStore.open(folder)
    assert len(store) == 60
    assert all(store.frames(f"r{i}").tolist() == [i] * (i + 1) for i in range(60))


def test_a_finished_store_can_be_extended_and_a_kill_in_merging_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    _write(folder, {"a": np.arange(5)})
    writer = LabelWriter(folder, META)
    assert writer.done_ids() == {"a"}
    writer.add("b", [3, 2])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(label_store, "_refuse_collisions", die)
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    assert list(LabelStore.open(folder).ids()) == ["a"]
    monkeypatch.undo()
    monkeypatch.setattr(label_store, "_clean", die)
    with pytest.raises(KeyboardInterrupt):
        LabelWriter(folder, META).finish()
    monkeypatch.undo()
    # Merged, but the parts are still there: they must not be merged a second time.
    writer = LabelWriter(folder, META)
    writer.finish()
    store = LabelStore.open(folder)
    assert list(store.ids()) == ["a", "b"] and store.frames("b").tolist() == [3, 2]
    kinds = {p.name.split("-")[0] for p in folder.iterdir()}
    assert kinds == {"labels", "ids", "keys", "spans", "meta.json"}
    assert len(list(folder.iterdir())) == 5


def test_continuing_with_other_meta_or_beside_another_writer_is_refused(tmp_path: Path) -> None:
    first = LabelWriter(tmp_path / "s", META)
    with pytest.raises(ValueError, match="another writer"):
        LabelWriter(tmp_path / "s", META)
    first.close()
    with pytest.raises(ValueError, match="layer"):
        LabelWriter(tmp_path / "s", {**META, "layer": 9})


def test_parts_of_several_ranks_become_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (2, 1, 0):
        monkeypatch.setattr(label_store.dist, "rank", lambda rank=rank: rank)
        writer = LabelWriter(tmp_path / "s", META)
        writer.add(f"from{rank}", [rank] * 3)
        writer.close()
    assert not (tmp_path / "s" / "meta.json").exists()
    LabelWriter(tmp_path / "s", META).finish()
    store = LabelStore.open(tmp_path / "s")
    assert [store.frames(f"from{r}").tolist() for r in range(3)] == [[0] * 3, [1] * 3, [2] * 3]


def test_colliding_hashes_are_found_when_finishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_store, "hash_id", lambda text: len(text))
    writer = LabelWriter(tmp_path / "s", META)
    writer.add("aa", [1])
    writer.add("bb", [2])
    with pytest.raises(ValueError, match=r"\['aa', 'bb'\]"):
        writer.finish()


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "s", {"a": np.arange(50)})
    os.truncate(tmp_path / "s" / "labels-1.bin", 10)
    with pytest.raises(ValueError, match="found 10 bytes"):
        LabelStore.open(tmp_path / "s")


def test_a_store_sent_to_another_process_carries_no_data(tmp_path: Path) -> None:
    store = _write(tmp_path / "s", {"a": np.arange(500).repeat(1000)})
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).frames("a"), store.frames("a"))


def test_meta_holds_what_the_reader_needs(tmp_path: Path) -> None:
    _write(tmp_path / "s", {"a": np.arange(5)})
    meta = json.loads((tmp_path / "s" / "meta.json").read_text())
    assert meta["classes"] == 500 and meta["num_ids"] == 1 and meta["num_labels"] == 5
