"""Who is active in each frame, from the times of a manifest's supervisions: labels of diarization.

They become a label store in the run's folder: bit s of a frame's label says that speaker s is
active, in the order in which a recording's speakers begin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from speechssl.data.config import DataConfig

FRAMES_PER_SECOND = 100

Turn = tuple[str, float, float]
"""Speaker, begin and end in seconds of the recording."""


def with_activity(output: str, data: DataConfig, head: Any) -> DataConfig:
    """Data with the target "activity" of a head for `head.speakers` filled in.

    Labels of that name in data.labels are taken as they are. Raises `ValueError` for a supervision
    without speaker, for more speakers in a recording than the head has, and for a run whose
    supervisions were others before.
    """
    if not hasattr(head, "speakers") or "activity" in data.labels:
        return data
    from speechssl import dist
    from speechssl.data.fields import cut_rows
    from speechssl.data.label_store import LabelWriter

    folder = Path(output) / "activity"
    found = recordings(cut_rows([*data.train, *data.valid]))
    text = json.dumps(sorted(found.items()))
    meta = {
        "name": "activity",
        "classes": 2**head.speakers,
        "frame_rate_hz": FRAMES_PER_SECOND,
        "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
    }
    writer = LabelWriter(folder, meta)
    if dist.is_main():
        for name, (seconds, turns) in found.items():
            if name not in writer:
                writer.add(name, activity(name, seconds, turns, head.speakers))
    writer.finish()
    return dataclasses.replace(data, labels=data.labels | {"activity": str(folder)})


def recordings(cuts: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, list[Turn]]]:
    """Recording id -> its seconds, and the turns of all its cuts."""
    found: dict[str, tuple[float, list[Turn]]] = {}
    for cut in cuts:
        recording = cut.get("recording") or {"id": cut["id"], "duration": cut["duration"]}
        _, turns = found.setdefault(recording["id"], (recording["duration"], []))
        for one in cut.get("supervisions") or []:
            if one.get("speaker") is None:
                raise ValueError(
                    f"speaker: found a supervision without one in the cut {cut['id']!r}, want "
                    "every turn's speaker; data.labels.activity may name a label store instead"
                )
            begin = cut["start"] + one["start"]
            turn = (str(one["speaker"]), begin, begin + one["duration"])
            if turn not in turns:
                turns.append(turn)
    return found


def activity(name: str, seconds: float, turns: Sequence[Turn], speakers: int) -> np.ndarray:
    """(T,) bits of the active speakers in each of the recording's frames."""
    import numpy as np

    ordered = sorted(turns, key=lambda turn: turn[1])
    names = list(dict.fromkeys(who for who, _, _ in ordered))
    if len(names) > speakers:
        raise ValueError(
            f"head.speakers: found {speakers}, want at least {len(names)}, the speakers of {name!r}"
        )
    active = np.zeros((speakers, round(seconds * FRAMES_PER_SECOND)), dtype=bool)
    for who, begin, end in ordered:
        first, last = (max(0, round(x * FRAMES_PER_SECOND)) for x in (begin, end))
        active[names.index(who), first:last] = True
    return (active * 2 ** np.arange(speakers)[:, None]).sum(0)
