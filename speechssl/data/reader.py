"""Read the audio of a cut as 16 kHz mono float32, or say why it cannot be used."""

from __future__ import annotations

import copy
import dataclasses
import io
import os
from collections import Counter
from typing import Any

import numpy as np
import soundfile

from speechssl.data.index import SAMPLE_RATE, CutRecord
from speechssl.data.label_store import LabelStore, MissingLabelError, label_frames

LABEL_TOLERANCE_SECONDS = 0.1
_SHORT_SECONDS = 0.1  # how much less audio than the manifest says is still accepted
_MARGIN = 512  # samples beside a resampled part, for the filter to settle


class UnusableError(ValueError):
    """An utterance cannot be used; the message is the reason. It is skipped and counted."""


class AudioError(UnusableError):
    """Its audio is absent, damaged, empty or shorter than the manifest says."""


@dataclasses.dataclass
class Conversions:
    """How many reads needed what; a source reports each kind once."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    def note(self, what: str) -> None:
        self.counts[what] += 1


def read_part(
    record: CutRecord,
    start: int,
    num_samples: int,
    *,
    out: np.ndarray | None = None,
    conversions: Conversions | None = None,
) -> np.ndarray:
    """Read `num_samples` at 16 kHz from sample `start` of a cut: (L,) float32, L <= num_samples.

    out: (num_samples,) float32 to read into; the result is then a part of it.

    Raises `AudioError` with the reason.
    """
    if record.full is not None:
        wave = _read_by_lhotse(record)[start : start + num_samples]
    else:
        try:
            with _open(record) as file:
                wave = _read_open(file, record, start, num_samples, out, conversions)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            missing = not os.path.exists(record.path)
            reason = "no such file" if missing else f"cannot be decoded ({error})"
            raise AudioError(f"{record.path}: {reason}") from None
    if len(wave) < num_samples - _SHORT_SECONDS * SAMPLE_RATE:
        raise AudioError(
            f"{record.path}: found {len(wave) / SAMPLE_RATE:.2f} s of audio from "
            f"{record.start + start / SAMPLE_RATE:.2f} s on, the manifest says "
            f"{num_samples / SAMPLE_RATE:.2f} s"
        )
    if out is not None and wave.base is not out and wave is not out:
        out[: len(wave)] = wave
        wave = out[: len(wave)]
    return wave


class _OnceFile(soundfile.SoundFile):
    """A file of which one stretch is read.

    soundfile asks for the position before each read, and seeks behind what was read after it,
    if the file says that it can seek. Here nothing needs the position.
    """

    def seekable(self) -> bool:
        return False


def _open(record: CutRecord) -> soundfile.SoundFile:
    if not record.size:
        # By descriptor: soundfile would ask the system about a path before opening it.
        try:
            return _OnceFile(os.open(record.path, os.O_RDONLY), closefd=True)
        except soundfile.LibsndfileError:
            # A few formats are known by their file's name alone.
            return _OnceFile(record.path)
    with open(record.path, "rb", buffering=0) as file:
        return _OnceFile(io.BytesIO(os.pread(file.fileno(), record.size, record.offset)))


def _read_open(
    file: soundfile.SoundFile,
    record: CutRecord,
    start: int,
    num_samples: int,
    out: np.ndarray | None,
    conversions: Conversions | None,
) -> np.ndarray:
    if file.frames <= 0:
        raise AudioError(f"{record.path}: holds no samples")
    # Audio inside Shar was cut out already: its file begins where the cut does.
    begin_seconds = 0.0 if record.size else record.start
    if file.samplerate == SAMPLE_RATE and file.channels == 1:
        begin = round(begin_seconds * SAMPLE_RATE) + start
        _seek(file, begin, record)
        if out is None:
            out = np.empty(num_samples, dtype=np.float32)
        wave = out[: file.buffer_read_into(out[:num_samples], dtype="float32")]
    else:
        wave = _convert(file, record, begin_seconds, start, num_samples, conversions)
    if file.subtype in ("FLOAT", "DOUBLE") and not np.isfinite(wave).all():
        raise AudioError(f"{record.path}: holds values that are not finite")
    return wave


def _seek(file: soundfile.SoundFile, begin: int, record: CutRecord) -> None:
    if begin >= file.frames:
        raise AudioError(
            f"{record.path}: found {file.frames / file.samplerate:.2f} s of audio, the part asked "
            f"for begins at {begin / file.samplerate:.2f} s"
        )
    if begin:
        file.seek(begin)


def _convert(
    file: soundfile.SoundFile,
    record: CutRecord,
    begin_seconds: float,
    start: int,
    num_samples: int,
    conversions: Conversions | None,
) -> np.ndarray:
    """Take one channel or the mean of all, and resample to 16 kHz."""
    rate = file.samplerate
    begin = begin_seconds + start / SAMPLE_RATE
    margin = min(_MARGIN / rate, begin)
    first = round((begin - margin) * rate)
    _seek(file, first, record)
    count = round((begin + num_samples / SAMPLE_RATE) * rate) - first + _MARGIN
    wave = file.read(count, dtype="float32", always_2d=True)
    if record.channel is not None and record.channel < wave.shape[1]:
        wave = wave[:, record.channel]
    else:
        if wave.shape[1] > 1 and conversions is not None:
            conversions.note(f"the mean of {wave.shape[1]} channels")
        wave = wave.mean(axis=1)
    if rate == SAMPLE_RATE:
        lead = round(begin * SAMPLE_RATE) - first
        return np.ascontiguousarray(wave[lead : lead + num_samples])
    if conversions is not None:
        conversions.note(f"resampling from {rate} Hz")
    import soxr

    resampled = soxr.resample(wave, rate, SAMPLE_RATE)
    lead = round((begin - first / rate) * SAMPLE_RATE)
    return np.ascontiguousarray(resampled[lead : lead + num_samples])


def _read_by_lhotse(record: CutRecord) -> np.ndarray:
    """Whole audio of a cut that is more than a part of one file (mixed, padded, many files)."""
    from lhotse.serialization import deserialize_item

    try:
        cut: Any = deserialize_item(copy.deepcopy(record.full))
        audio = np.asarray(cut.load_audio(), dtype=np.float32)
    except Exception as error:  # lhotse's back ends raise whatever their libraries raise
        raise AudioError(f"cut {record.id}: lhotse cannot read it ({error})") from None
    wave = audio if audio.ndim == 1 else audio.mean(axis=0)
    if cut.sampling_rate != SAMPLE_RATE:
        import soxr

        wave = soxr.resample(wave, cut.sampling_rate, SAMPLE_RATE)
    return np.ascontiguousarray(wave)


def reads_exactly(record: CutRecord) -> bool:
    """True if a part read alone equals that part of a longer read, bit for bit."""
    if record.full is not None:
        return True
    try:
        with _open(record) as file:
            return file.samplerate == SAMPLE_RATE
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return True


def label_window(
    store: LabelStore, record: CutRecord, start: int, num_samples: int, hop_samples: int
) -> np.ndarray | int:
    """Labels of `num_samples` from sample `start` of a cut: one per frame, or the utterance's.

    An id in the store may be the cut's (its labels then begin with the cut) or the recording's
    (they begin with the recording); the cut's is looked up first. Frame t begins at sample
    t * hop_samples; there are ceil(num_samples / hop_samples) frames.

    Raises `UnusableError` if there are no labels, or they are longer or shorter than the audio
    by more than 0.1 s.
    """
    labels = store.get(record.id)
    by_cut = labels is not None
    if labels is None:
        try:
            labels = store.frames(record.recording_id)
        except MissingLabelError as error:
            raise UnusableError(str(error)) from None
    rate = store.frame_rate_hz
    if not rate:
        return int(labels[0]) if store.values == 1 else labels
    audio_seconds = record.duration if by_cut else record.recording_duration
    if abs(len(labels) / rate - audio_seconds) > LABEL_TOLERANCE_SECONDS:
        raise UnusableError(
            f"labels {store.name!r}: found {len(labels) / rate:.2f} s of labels at {rate:g} Hz for "
            f"{audio_seconds:.2f} s of audio, want a difference of at most "
            f"{LABEL_TOLERANCE_SECONDS} s; were they made from this audio, at this rate?"
        )
    begin = start if by_cut else record.start_sample + start
    frames = -(-num_samples // hop_samples)
    return label_frames(labels, rate, begin, frames, hop_samples)
