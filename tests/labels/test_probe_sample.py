"""What probes look at: the choice of cuts, frames of all layers in step, means over hops."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.contract import Batch
from speechssl.labels.probe_sample import ProbeCut, average_frames, choose_cuts, read_sample
from speechssl.labels.quality import PhoneTable


def manifest(path: Path, names: list[tuple[str, str | None]]) -> str:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource
    from lhotse.supervision import AlignmentItem

    cuts = []
    for name, speaker in names:
        source = AudioSource("file", [0], f"{name}.wav")
        recording = Recording(name, [source], 16000, 16000, 1.0)
        items = {"phone": [AlignmentItem("a", 0.0, 0.5), AlignmentItem("b", 0.5, 0.5)]}
        one = SupervisionSegment(name, name, 0.0, 1.0, speaker=speaker, alignment=items)
        cuts.append(MonoCut(name, 0.0, 1.0, 0, [one], recording=recording))
    CutSet.from_cuts(cuts).to_file(path)
    return str(path)


def test_the_choice_is_bounded_and_the_same_however_cuts_are_spread(tmp_path: Path) -> None:
    names = [(f"{s}-{i}", s) for s in "abcdefgh" for i in range(6)]
    whole = manifest(tmp_path / "all.jsonl.gz", names)
    mixed = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    parts = [
        manifest(tmp_path / f"{k}.jsonl.gz", list(itertools.islice(mixed, k, None, 3)))
        for k in range(3)
    ]
    found = choose_cuts([whole], "phone", speakers=3, utterances=4, seed=0)
    other = choose_cuts(parts, "phone", speakers=3, utterances=4, seed=0)
    assert [c.id for c in found] == [c.id for c in other] == sorted(c.id for c in found)
    speakers = [c.speaker for c in found]
    assert len(set(speakers)) == 3 and all(speakers.count(s) == 4 for s in speakers)
    assert found[0].items == ((0.0, 0.5, "a"), (0.5, 1.0, "b"))
    again = choose_cuts([whole], "phone", speakers=3, utterances=4, seed=1)
    assert [c.id for c in again] != [c.id for c in found]
    everything = choose_cuts([whole], "phone", speakers=99, utterances=99, seed=0)
    assert [c.id for c in everything] == sorted(name for name, _ in names)


def test_an_utterance_without_a_speaker_stands_for_one(tmp_path: Path) -> None:
    names = [(f"u{i}", None) for i in range(5)]
    cuts = manifest(tmp_path / "c.jsonl.gz", names)
    found = choose_cuts([cuts], "phone", speakers=3, utterances=1, seed=0)
    assert len(found) == 3 and all(c.speaker is None and c.group == c.id for c in found)


def test_an_id_twice_or_a_folder_is_refused(tmp_path: Path) -> None:
    cuts = manifest(tmp_path / "c.jsonl.gz", [("u", "s")])
    with pytest.raises(ValueError, match="the id u twice"):
        choose_cuts([cuts, cuts], "phone", speakers=3, utterances=5, seed=0)
    with pytest.raises(ValueError, match="found no file"):
        choose_cuts([str(tmp_path)], "phone", speakers=3, utterances=5, seed=0)


def counted(batch: Batch) -> list[list[torch.Tensor]]:
    """Two layers of 50 frames per second that say who they are: (utterance, frame, layer)."""
    numbers = [float(name[1:]) for name in batch.ids]
    counts = ((batch.wave_lengths - 400) // 320 + 1).tolist()
    return [
        [
            torch.stack([torch.full((n,), u), torch.arange(n).float(), torch.full((n,), layer)], 1)
            for u, n in zip(numbers, counts)
        ]
        for layer in (0.0, 1.0)
    ]


def batches(sizes: list[int], lengths: list[int]) -> list[Batch]:
    found, at = [], 0
    for size in sizes:
        chosen = lengths[at : at + size]
        wave = torch.zeros(size, max(chosen))
        for row, length in zip(wave, chosen):
            row[:length] = 0.1 * torch.sin(torch.arange(length) * 0.3)
        ids = tuple(f"u{i}" for i in range(at, at + size))
        seeds = torch.zeros(size, dtype=torch.int64)
        found.append(Batch(wave, torch.tensor(chosen), {}, {}, seeds, ids))
        at += size
    return found


def sample_of(sizes: list[int], keep: int):
    lengths = [16000, 8000, 24000, 12000]
    items = ((0.0, 0.25, "a"), (0.25, 0.4, "b"))
    cuts = [ProbeCut(f"u{i}", "s", items, {}) for i in range(4)]
    table = PhoneTable()
    sample = read_sample(
        batches(sizes, lengths), counted, cuts, table, dim=3, count=2, frame_rate_hz=50.0,
        window_seconds=0.025, sample_frames=keep, seed=0, progress=lambda *_: None,
    )  # fmt: skip
    return sample, table


def test_all_layers_keep_the_same_frames_with_their_own_phones() -> None:
    sample, table = sample_of([4], keep=60)
    assert [len(f) for f in sample.frames] == [60, 60] and sample.seen == 49 + 24 + 74 + 37
    first, second = sample.frames
    assert torch.equal(first[:, :2], second[:, :2])
    assert bool((first[:, 2] == 0).all()) and bool((second[:, 2] == 1).all())
    assert np.array_equal(sample.cuts, first[:, 0].numpy())
    centres = first[:, 1].numpy() / 50 + 0.0125
    want = np.where(centres < 0.25, table("a"), np.where(centres < 0.4, table("b"), -1))
    assert np.array_equal(sample.phones, want) and len(np.unique(want)) == 3
    assert sample.mel.shape == (60, 80) and bool(sample.mel.isfinite().all())
    assert bool(np.all(np.diff(sample.keys.astype(object)) > 0))
    # The means are over all frames, not over those that were kept.
    assert sample.utterances.tolist() == [0, 1, 2, 3]
    assert sample.means[1][:, 1].tolist() == [24.0, 11.5, 36.5, 18.0]


def test_batches_do_not_matter() -> None:
    one, _ = sample_of([4], keep=60)
    other, _ = sample_of([1, 2, 1], keep=60)
    assert torch.equal(one.frames[0], other.frames[0])
    assert np.array_equal(one.phones, other.phones)
    assert torch.allclose(one.mel, other.mel, atol=1e-4)


@pytest.mark.parametrize(("rate", "window"), [(100.0, 0.025), (50.0, 0.025), (25.0, 0.065)])
def test_averages_are_over_the_hop_around_each_centre(rate: float, window: float) -> None:
    features = torch.randn(97, 3)
    count = int((0.985 - window) * rate) + 1
    found = average_frames(features, count, rate, window)
    middles = np.round(np.arange(97) / 100 + 0.0125, 6)
    for t in (0, 1, count // 2, count - 1):
        centre = t / rate + window / 2
        low, high = round(centre - 0.5 / rate, 6), round(centre + 0.5 / rate, 6)
        inside = (middles >= low) & (middles < high)
        assert inside.any()
        want = features[torch.from_numpy(inside)].mean(0)
        assert torch.allclose(found[t], want, atol=1e-5)
    if rate == 100:
        assert torch.allclose(found, features[:count], atol=1e-6)


def test_without_any_frame_it_says_so() -> None:
    with pytest.raises(ValueError, match="found no frame"):
        read_sample(
            [], counted, [], PhoneTable(), dim=3, count=2, frame_rate_hz=50.0,
            window_seconds=0.025, sample_frames=5, seed=0, progress=lambda *_: None,
        )  # fmt: skip
