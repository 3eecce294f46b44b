"""Whatever a person calls audio -> one mono float32 wave at the encoder's rate.

Accepted items: a path; an array or tensor with its sample rate; a pair (array, rate); a Lhotse cut
or recording; an `AudioItem`, which reads itself when its turn comes. Integer samples are scaled to
[-1, 1), channels are averaged, other rates are resampled (soxr, high quality).
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

Wave: TypeAlias = np.ndarray
"""(L,) float32, mono, at the encoder's sample rate."""

MAX_CHANNELS = 32
LOWEST_RATE_HZ = 1000
"""Below it, a rate was more likely given in kHz."""
LOUDEST = 100.0
"""Float samples have full scale 1; beyond this peak they were more likely integers once."""
LONG_SECONDS = 300
"""Longer audio is never held in memory: it is read and resampled by blocks, onto disk."""
BLOCK = 2**20
AUDIO_ENDINGS = frozenset(
    {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf"}
)


@dataclasses.dataclass(frozen=True)
class AudioItem:
    """Audio that is read late.

    read: () -> (samples in any accepted form, sample rate in Hz).
    done_samples: its length at the encoder's rate if its features are there already: it then keeps
        its place in the batches, so that the others get the same features, bit for bit, but is
        neither read nor given out.
    """

    id: str
    read: Callable[[], tuple[Any, int]]
    done_samples: int | None = None


def to_wave(samples: Any, rate: int | float, *, want_rate: int, name: str = "audio") -> Wave:
    """Convert samples to a (L,) float32 mono wave at `want_rate`.

    samples: (L,), (channels, L) or (L, channels), float of full scale 1, or integer of at most 32
        bits, whose type gives the scale; the shorter axis of two is taken for the channels.
    rate: samples per second.
    Raises ValueError for an empty, non-finite or more than two-dimensional array, for float
        samples of another scale, and for a rate that is none.
    """
    x = samples.detach().cpu() if isinstance(samples, torch.Tensor) else samples
    if isinstance(x, torch.Tensor):
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    x = _mono(_as_float(np.asarray(x), name), name)
    _check_rate(rate, name)
    _check_values(x, name)
    if rate != want_rate:
        import soxr

        if len(x) > LONG_SECONDS * rate:
            x = _resample_long(x, int(rate), want_rate)
        else:
            x = soxr.resample(x, rate, want_rate, quality="HQ")
    return np.ascontiguousarray(x, dtype=np.float32)


def _check_rate(rate: Any, name: str) -> None:
    known = isinstance(rate, int | float | np.integer) and not isinstance(rate, bool)
    if not known or not rate >= LOWEST_RATE_HZ or rate % 1 != 0:
        raise ValueError(
            f"{name}: found sample rate {rate!r}, want a whole number of Hz, {LOWEST_RATE_HZ} or "
            "more (16000, not 16)"
        )


def _check_values(x: Wave, name: str) -> None:
    if x.size == 0:
        raise ValueError(f"{name}: found no samples, want at least one")
    peak = 0.0
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        found = max(float(block.max()), -float(block.min()))  # NaN if any sample is
        if not math.isfinite(found):
            raise ValueError(f"{name}: found NaN or infinite samples, want finite ones")
        peak = max(peak, found)
        forget(x)
    if peak > LOUDEST:
        raise ValueError(
            f"{name}: found float samples up to {peak:g}, want full scale 1; samples that were 16 "
            "bit integers once are divided by 32768"
        )


def _as_float(x: np.ndarray, name: str) -> np.ndarray:
    if x.dtype.kind == "f":
        return x.astype(np.float32, copy=False)
    if x.dtype.kind == "i" and x.dtype.itemsize <= 4:
        return x.astype(np.float32) * np.float32(2.0 ** (1 - 8 * x.dtype.itemsize))
    if x.dtype == np.uint8:
        return (x.astype(np.float32) - 128.0) / 128.0
    raise ValueError(
        f"{name}: found samples of type {x.dtype}, want float of full scale 1, or int16, int32, "
        "int8 or uint8, whose type gives the scale; 16 bit samples in a wider type: "
        "x.astype('int16')"
    )


def _mono(x: np.ndarray, name: str) -> np.ndarray:
    if x.ndim == 1:
        return x
    if x.ndim == 2 and x.shape[1] == 1:
        return x[:, 0]
    if x.ndim != 2:
        raise ValueError(
            f"{name}: found an array of shape {x.shape}, want (samples,), (channels, samples) or "
            "(samples, channels); pass several utterances as a list"
        )
    axis = int(np.argmin(x.shape))
    if x.shape[axis] > MAX_CHANNELS:
        raise ValueError(
            f"{name}: found an array of shape {x.shape}, want at most {MAX_CHANNELS} channels; "
            "pass several utterances as a list"
        )
    return x.mean(axis=axis, dtype=np.float32)


def read_file(path: str | Path) -> tuple[np.ndarray, int]:
    """Samples (L, channels) float32 and the sample rate of a file that libsndfile reads.

    Raises ValueError, naming the file, if it is absent or cannot be decoded.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            if file.frames > LONG_SECONDS * rate:
                samples = _read_long(file)[:, None]
            else:
                samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: cannot be decoded ({size} bytes): {str(error).strip()}"
        ) from None
    return samples, rate


def _read_long(file: Any) -> np.ndarray:
    """(L,) channel mean of an opened file, on disk."""
    found = on_disk((file.frames,))
    start = 0
    for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
        found[start : start + len(block)] = block.mean(axis=1)
        start += len(block)
        forget(found)
    return found[:start]


def _resample_long(x: np.ndarray, rate: int, want_rate: int) -> np.ndarray:
    """As `soxr.resample`, block by block onto disk."""
    import soxr

    found = on_disk((len(x) * want_rate // rate + 1024,))
    stream = soxr.ResampleStream(rate, want_rate, 1, dtype="float32", quality="HQ")
    count = 0
    for start in range(0, len(x), BLOCK):
        part = stream.resample_chunk(x[start : start + BLOCK], last=start + BLOCK >= len(x))
        found[count : count + len(part)] = part
        count += len(part)
        forget(x)
        forget(found)
    return found[:count]


def on_disk(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array in a temporary file without a name, which goes when the array goes."""
    with tempfile.TemporaryFile() as file:
        found = np.memmap(file, np.float32, "w+", shape=shape)
    _ON_DISK.add(found.base)
    return found


_ON_DISK: weakref.WeakSet[Any] = weakref.WeakSet()


def forget(x: np.ndarray) -> None:
    """Let go of the memory that an array of `on_disk`, or a part of it, has come to take.

    What was written stays in its file. Other arrays are left alone: a private map would be lost.
    """
    base: Any = x
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and base in _ON_DISK and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def as_item(item: Any, number: int, rate: int | None) -> AudioItem:
    """Any accepted item as an `AudioItem`; `number` names those that have no name."""
    if isinstance(item, AudioItem):
        return item
    if isinstance(item, str | os.PathLike):
        path = Path(item)
        return AudioItem(str(path), lambda: read_file(path))
    if _is_cut(item):
        return AudioItem(str(item.id), lambda: _read_cut(item))
    if _is_pair(item):
        array, rate = item
    elif isinstance(item, np.ndarray | torch.Tensor):
        array = item
    else:
        raise ValueError(
            f"item {number}: found {type(item).__name__}, want a path, an array or tensor, a "
            "pair (array, sample rate), or a cut"
        )
    if rate is None:
        raise ValueError(
            f"item {number}: found an array without its sample rate; pass rate=..., or pairs "
            "(array, rate)"
        )
    return AudioItem(str(number), lambda: (_one_recording(array, number), rate))


def _is_cut(item: Any) -> bool:
    """Whether this is a cut or recording of Lhotse's; its CutSet has no sampling rate."""
    return hasattr(item, "load_audio") and hasattr(item, "sampling_rate")


def _read_cut(cut: Any) -> tuple[Any, int]:
    try:
        return cut.load_audio(), cut.sampling_rate
    except Exception as error:  # Lhotse hands on what any of its backends raises
        raise ValueError(f"{cut.id}: cannot be read: {str(error).strip()}") from error


def _one_recording(array: Any, number: int) -> Any:
    """The array, unless it looks like a batch: its rows would be averaged as channels."""
    if array.ndim == 2 and min(array.shape) > 2:
        raise ValueError(
            f"item {number}: found an array of shape {tuple(array.shape)}, want one recording of "
            "1 or 2 channels; pass several utterances as a list, [*array], and more channels as "
            "their mean"
        )
    return array


def _is_pair(item: Any) -> bool:
    """Whether this is (array, sample rate)."""
    if not isinstance(item, tuple) or len(item) != 2:
        return False
    return isinstance(item[0], np.ndarray | torch.Tensor) and isinstance(
        item[1], int | float | np.integer
    )


def as_items(audio: Any, rate: int | None) -> Iterator[AudioItem]:
    """`as_item` over one item or an iterable of them.

    A single array of two dimensions is one recording with channels, not a batch.
    """
    one = isinstance(audio, str | os.PathLike | np.ndarray | torch.Tensor | AudioItem)
    if one or _is_cut(audio) or _is_pair(audio):
        audio = [audio]
    elif not isinstance(audio, Iterable) or isinstance(audio, Mapping | bytes):
        raise ValueError(
            f"audio: found {type(audio).__name__}, want a path, an array with its rate, a cut, or "
            "a list of them"
        )
    for number, item in enumerate(audio):
        yield as_item(item, number, rate)


def find_audio(patterns: Iterable[str]) -> list[Path]:
    """Files that the patterns name (a file, a folder searched below, a glob), sorted, once each.

    Raises ValueError for a pattern that matches nothing.
    """
    import glob

    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_ENDINGS)
        else:
            matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True))
            matches = [p for p in matches if p.is_file()]
        if not matches:
            raise ValueError(
                f"audio: {pattern!r} matches no audio file; want a file, a folder with "
                f"{', '.join(sorted(AUDIO_ENDINGS)[:5])}, ... below it, or a glob"
            )
        found.update(dict.fromkeys(matches))
    return list(found)
