"""Phones between two others: which count, and the frames that are kept of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.data.label_store import LabelStore, LabelWriter
from speechssl.labels.probe_phones import PhoneFrames, phones_in_context, unit_frames
from speechssl.labels.probe_sample import ProbeCut
from speechssl.labels.quality import phone_frames

ITEMS = (
    (0.0, 0.1, "sil"), (0.1, 0.2, "P"), (0.2, 0.3, "AH0"), (0.3, 0.42, "T"), (0.42, 0.5, "IY1"),
    (0.5, 0.505, "D"), (0.505, 0.6, "AA"), (0.61, 0.7, "P"), (0.7, 0.8, "AH1"), (0.8, 0.9, "SP"),
)  # fmt: skip


def test_pauses_gaps_and_phones_without_a_frame_are_left_out() -> None:
    cut = ProbeCut("u", "s", ITEMS[::-1], {})
    found = phones_in_context([ProbeCut("v", None, (), {}), cut], 50.0, 0.025)
    # D has no frame's centre; AA is followed by a gap, the second P preceded by it.
    assert [(t.context, t.phone) for t in found] == [
        (("P", "T"), "AH"), (("AH", "IY"), "T"), (("T", "D"), "IY"),
    ]  # fmt: skip
    assert all(t.cut == 1 and t.speaker == "s" for t in found)
    assert len({t.name for t in found}) == 3
    nobody = phones_in_context([ProbeCut("w", None, ITEMS, {})], 50.0, 0.025)
    assert {t.speaker for t in nobody} == {"w"}


@pytest.mark.parametrize(("rate", "window"), [(100.0, 0.025), (50.0, 0.025), (25.0, 0.065)])
def test_a_phone_has_the_frames_whose_centres_it_holds(rate: float, window: float) -> None:
    cut = ProbeCut("u", "s", ITEMS, {})
    intervals = [(start, end, n) for n, (start, end, _) in enumerate(ITEMS)]
    count = int((0.9 - window) * rate) + 1
    expected = phone_frames(intervals, count, rate, window)
    found = phones_in_context([cut], rate, window)
    assert len(found) >= 3
    for token in found:
        number = next(n for n, (start, *_) in enumerate(ITEMS) if start == token.start)
        assert (
            list(range(*token.frames(rate, window))) == np.flatnonzero(expected == number).tolist()
        )


def test_frames_of_every_layer_are_kept_of_the_wanted_phones_only() -> None:
    cuts = [ProbeCut(name, "s", ITEMS, {}) for name in "uvw"]
    tokens = phones_in_context(cuts, 50.0, 0.025)
    assert len(tokens) == 9
    kept = PhoneFrames(tokens, [0, 4, 5, 7], 2, 50.0, 0.025)
    first, end = tokens[4].frames(50.0, 0.025)
    for cut, total in ((1, end - 1), (0, 44)):  # v ends a frame early, w is never read
        layer = torch.stack([torch.full((total,), float(cut)), torch.arange(total).float()], 1)
        kept.add(cut, [layer, -layer])
    assert kept.lengths.tolist() == [5, 0, 0, 0, end - 1 - first, 0, 0, 0, 0]
    frames = kept.frames(0)
    assert torch.equal(frames, -kept.frames(1)) and len(frames) == kept.lengths.sum()
    at = int(kept.starts[4])
    assert frames[at].tolist() == [1.0, float(first)]
    at = int(kept.starts[0])
    span = frames[at : at + 5]
    assert span[:, 1].tolist() == list(range(*tokens[0].frames(50.0, 0.025)))


def test_units_are_taken_at_their_own_rate(tmp_path) -> None:
    from lhotse import MonoCut, Recording
    from lhotse.audio import AudioSource

    cuts = []
    for name in ("u", "v"):
        source = AudioSource("file", [0], f"{name}.wav")
        recording = Recording(f"{name}-all", [source], 16000, 32000, 2.0)
        row = MonoCut(name, 1.0, 1.0, 0, [], recording=recording).to_dict()
        cuts.append(ProbeCut(name, "s", ITEMS, row))
    writer = LabelWriter(tmp_path / "labels", {"classes": 300, "frame_rate_hz": 100})
    writer.add("u-all", np.arange(198))  # of the recording; the cut is its second second
    writer.finish()
    tokens = phones_in_context(cuts, 50.0, 0.025)
    found = unit_frames(LabelStore.open(tmp_path / "labels"), cuts, tokens, range(len(tokens)))
    assert found.lengths[: len(tokens) // 2].tolist() == [10, 12, 8]
    assert found.lengths[len(tokens) // 2 :].tolist() == [0, 0, 0]
    first = tokens[0].frames(100.0, 0.025)[0]
    assert found.frames(0)[:3].tolist() == [100 + first, 101 + first, 102 + first]
    LabelWriter(tmp_path / "whole", {"classes": 3, "frame_rate_hz": 0}).finish()
    with pytest.raises(ValueError, match="found utterance labels"):
        unit_frames(LabelStore.open(tmp_path / "whole"), cuts, tokens, [0])
