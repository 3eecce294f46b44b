"""`speechssl shard`: write cuts as Lhotse Shar, for sequential reading at scale."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from speechssl.config import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Options of `speechssl shard`."""

    cuts: str
    """The cuts_*.jsonl.gz to pack."""
    output: str
    """Folder for the shards; it can then be given wherever cuts are."""
    shard_size: int = 1000
    """Cuts per shard."""
    format: Literal["flac", "wav"] = "flac"
    """Audio inside the shards; wav reads about twice as fast and takes 1.5 to 2 times the space."""
    shuffle_seed: int | None = None
    """Shuffle the cuts with this seed before packing; holds all of them in memory."""
    max_unreadable: float = 0.05
    """Stop when more than this share of the cuts cannot be read."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size: found {self.shard_size}, want 1 or more")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable: found {self.max_unreadable}, want 0 to 1")


def write_shards(config: ShardConfig) -> tuple[int, list[str]]:
    """Write the shards; return how many cuts they hold and "id: reason" of those left out.

    The folder appears under its name only when it is complete; a rerun then does nothing.
    """
    from lhotse.shar import SharWriter

    output = Path(config.output)
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    skipped: list[str] = []
    written = 0
    with SharWriter(
        str(temporary), fields={"recording": config.format}, shard_size=config.shard_size
    ) as writer:
        for cut in _readable_cuts(config, skipped):
            writer.write(cut)
            written += 1
    if not written or len(skipped) > config.max_unreadable * (written + len(skipped)):
        shutil.rmtree(temporary)
        raise ValueError(
            f"cuts: found {len(skipped)} of {written + len(skipped)} cuts of {config.cuts} "
            f"unreadable, want at most {config.max_unreadable:.1%}; `speechssl check` lists them. "
            "The last ones: " + "; ".join(skipped[-3:])
        )
    os.replace(temporary, output)
    return written, skipped


def _readable_cuts(config: ShardConfig, skipped: list[str]) -> Iterator[Any]:
    """Each cut with its audio in memory at 16 kHz, so that one bad file cannot tear a shard."""
    from lhotse import CutSet
    from tqdm import tqdm

    from speechssl.data.index import SAMPLE_RATE, record_from_cut
    from speechssl.data.reader import AudioError, read_part
    from speechssl.data.shar import ORIGIN

    cuts: Any = CutSet.from_file(config.cuts)
    if config.shuffle_seed is not None:
        import random

        cuts = cuts.to_eager().shuffle(rng=random.Random(config.shuffle_seed))
    for cut in tqdm(cuts, desc="shard", unit="cut", disable=None):
        try:
            record = record_from_cut(cut.to_dict())
            wave = read_part(record, 0, record.num_samples)
        except AudioError as error:
            skipped.append(f"{cut.id}: {error}")
            continue
        plain = _in_memory(cut, record.recording_id, wave, SAMPLE_RATE)
        # Labels of the whole recording are looked up at the place that the cut had in it.
        plain.custom = {
            **(plain.custom or {}),
            ORIGIN: [record.start, record.recording_duration],
        }
        yield plain


def _in_memory(cut: Any, recording_id: str, wave: Any, rate: int) -> Any:
    import io

    import numpy as np
    import soundfile
    from lhotse import MonoCut, Recording
    from lhotse.utils import fastcopy

    data = io.BytesIO()
    # Integers, because writing floats scales by 32767 where reading divides by 32768.
    samples = np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(data, samples, rate, format="WAV", subtype="PCM_16")
    recording = Recording.from_bytes(data.getvalue(), recording_id=recording_id)
    supervisions = [fastcopy(s, channel=0) for s in cut.supervisions]
    return MonoCut(
        id=cut.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        supervisions=supervisions,
        recording=recording,
        custom=dict(getattr(cut, "custom", None) or {}),
    )


def main(argv: list[str] | None = None) -> int:
    config = parse(ShardConfig, argv, prog="speechssl shard", description=__doc__)
    output = Path(config.output)
    if output.is_dir():
        print(f"{output} is complete already; remove it to make it again")
        return 0
    try:
        written, skipped = write_shards(config)
    except (ValueError, FileNotFoundError) as error:
        print(f"speechssl shard: error: {error}", file=sys.stderr)
        return 1
    for line in skipped:
        print(f"left out {line}")
    print(f"{output}: {written} cuts, {len(skipped)} unreadable ones left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
