"""eSpeak NG by ctypes: speech with the times of its words and phones.

The shared library and its data come from the package `espeakng_loader` (extra `synth`).

The library keeps state from one utterance to the next (flutter, noise and echo phases, a random
seed), in static variables that not even `espeak_Terminate` clears. Since an utterance has to be
the same whatever was spoken before it, the library is unloaded and loaded again before each one
(some 3 ms), and its two random generators are seeded.

It also holds one synthesis per process: use one process per worker, and never threads.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np

SAMPLING_RATE = 22050
PAUSE = "sil"
"""Symbol of a pause in phone alignments."""

# From espeak-ng's speak_lib.h: event types, parameters, options.
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_SYNCHRONOUS = 2
_INIT_PHONEME_EVENTS, _INIT_PHONEME_IPA, _INIT_DONT_EXIT = 0x1, 0x2, 0x8000
_CHARS_UTF8, _POSITION_CHARACTER = 1, 1

# Stress, tie and syllable marks: the phone set should hold sounds only.
_MARKS = str.maketrans("", "", "ˈˌ͡‿'-,% ")
# Share of the utterance's root mean square below which a stretch counts as a pause.
_QUIET = 0.25


class _EventId(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prosody:
    """eSpeak's voice parameters."""

    rate: int = 175
    """Words a minute, 80 to 450."""
    pitch: int = 50
    """0 to 99; 50 is the voice's own."""
    range: int = 50
    """Movement of the pitch, 0 (monotone) to 99."""
    volume: int = 100
    """0 to 200."""
    word_gap: int = 0
    """Pause between words, in units of 10 ms at the normal rate."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A word or phone: `start` and `end` in samples at 22 050 Hz."""

    symbol: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Speech:
    """An utterance: `wave` (L,) int16 at 22 050 Hz, with what is spoken when."""

    wave: np.ndarray
    words: list[Mark]
    phones: list[Mark]


@dataclasses.dataclass(frozen=True)
class _Heard:
    """An event as the callback got it."""

    type: int
    position: int
    sample: int
    symbol: str


# What is loaded belongs to the process: a second handle would keep the old state alive.
_LOADED: list[ctypes.CDLL] = []


def unload() -> None:
    """Unload the library, and with it all its state."""
    import _ctypes

    while _LOADED:
        library = _LOADED.pop()
        library.espeak_Terminate()
        path = library._name
        _ctypes.dlclose(library._handle)
        try:
            handle = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except OSError:
            continue
        _ctypes.dlclose(handle._handle)
        warnings.warn(
            f"{path} stays loaded, since something else in this process uses it: an utterance may "
            "depend on those before it, and the same seed give slightly other audio",
            stacklevel=3,
        )


class Synthesiser:
    """One eSpeak NG library in this process; the same call always gives the same samples."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise ValueError(
                "espeakng_loader: found no such package, want it for synthetic speech; "
                "pip install 'speechssl[synth]'"
            ) from None
        self._path = str(espeakng_loader.get_library_path())
        self._data = str(espeakng_loader.get_data_path())
        self._chunks: list[np.ndarray] = []
        self._heard: list[_Heard] = []
        self._callback = _Callback(self._receive)  # kept: C holds no reference to it

    def variants(self) -> dict[str, str]:
        """Voice variants of the data folder: name -> 'female', 'male' or 'unknown'."""
        found = {}
        for path in sorted((Path(self._data) / "voices" / "!v").iterdir()):
            text = path.read_text(encoding="utf-8", errors="replace").lower()
            genders = [line.split()[1] for line in text.splitlines() if line.startswith("gender ")]
            found[path.name] = genders[0] if genders else "unknown"
        return found

    def languages(self) -> dict[str, str]:
        """Language tags of the data folder, in lower case -> the voice that speaks them best."""
        best: dict[str, tuple[int, str]] = {}
        for path in sorted((Path(self._data) / "lang").rglob("*")):
            if not path.is_file():
                continue
            # eSpeak finds a voice by its file's name; tags such as en-gb are written inside.
            tags = {path.name.lower(): -1}
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                fields = line.split()
                if len(fields) > 1 and fields[0] == "language":
                    priority = int(fields[2]) if fields[2:] and fields[2].isdigit() else 5
                    tags.setdefault(fields[1].lower(), priority)
            for tag, priority in tags.items():
                best[tag] = min(best.get(tag, (99, "")), (priority, path.name))
        return {tag: name for tag, (_, name) in best.items()}

    def voice(self, language: str, variant: str | None = None) -> str:
        """Name of a voice for `speak`; `ValueError` naming the near languages if there is none."""
        known = self.languages()
        name = known.get(language.lower())
        if name is None:
            primary = language.split("-")[0].lower()
            near = sorted(tag for tag in known if tag.split("-")[0] == primary) or sorted(known)
            raise ValueError(
                f"languages: found {language!r}, which eSpeak NG does not speak; want one of: "
                f"{', '.join(near)}"
            )
        return f"{name}+{variant}" if variant else name

    def speak(self, text: str, *, voice: str, prosody: Prosody, seed: int) -> Speech:
        """Speak `text` with a voice such as 'en-us+f2'; raise `ValueError` if eSpeak refuses it.

        Word marks have the token of `text` (split at spaces) as symbol; where eSpeak speaks two
        tokens as one unit, they form one mark, joined by a space.
        """
        library = self._fresh_library()
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(
                f"voice: found {voice!r}, which eSpeak NG does not know; want a language such as "
                "'en-us', 'de' or 'fr', with '+' and a variant such as 'm3'"
            )
        for parameter, value in (
            (_RATE, prosody.rate),
            (_PITCH, prosody.pitch),
            (_RANGE, prosody.range),
            (_VOLUME, prosody.volume),
            (_WORD_GAP, prosody.word_gap),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed % 2**31))
        ctypes.CDLL(None).srand(ctypes.c_uint(seed % 2**31))
        self._chunks.clear()
        self._heard.clear()
        data = text.encode()
        status = library.espeak_Synth(
            data, len(data) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != 0 or not self._chunks:
            raise ValueError(f"text: eSpeak NG gave no speech for {text!r} (status {status})")
        wave = np.concatenate(self._chunks)
        phones = _phones(self._heard, wave)
        return Speech(wave, _words(self._heard, text, phones, len(wave)), phones)

    def _fresh_library(self) -> ctypes.CDLL:
        unload()
        library = ctypes.CDLL(self._path)
        options = _INIT_PHONEME_EVENTS | _INIT_PHONEME_IPA | _INIT_DONT_EXIT
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, self._data.encode(), options)
        if rate != SAMPLING_RATE:
            raise ValueError(
                f"{self._path}: espeak_Initialize gave {rate}, want the rate {SAMPLING_RATE}; "
                f"is the data folder {self._data} complete?"
            )
        library.espeak_SetSynthCallback(self._callback)
        _LOADED.append(library)
        return library

    def _receive(self, wave, count: int, events) -> int:
        if wave and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            symbol = ""
            if event.type == _EVENT_PHONEME:  # 8 bytes: a long name may be cut inside a letter
                symbol = event.id.string.decode("utf-8", errors="ignore")
            self._heard.append(_Heard(event.type, event.text_position, event.sample, symbol))
            index += 1
        return 0


def _phones(heard: list[_Heard], wave: np.ndarray) -> list[Mark]:
    """Phones without gaps over the whole `wave`; neighbouring pauses are one.

    A phoneme without IPA name is a pause where it is quiet, else a tail of the phone before it.
    """
    total = len(wave)
    starts: list[tuple[int, str]] = []
    word_start = None
    for event in heard:
        if event.type == _EVENT_WORD:
            word_start = event.sample
        elif event.type == _EVENT_PHONEME and not event.symbol.startswith("("):
            symbol = event.symbol.translate(_MARKS)
            pause = symbol.startswith("_") or not symbol
            # The closure of a stop that begins a word lies before eSpeak's phoneme event.
            start = event.sample if word_start is None or pause else word_start
            if not pause:
                word_start = None
            starts.append((min(start, total), PAUSE if pause else symbol))
    if starts and starts[0][0] > 0:
        starts.insert(0, (0, PAUSE))
    ends = [start for start, _ in starts[1:]] + [total]
    loud = _QUIET * _level(wave)
    marks: list[Mark] = []
    for (start, symbol), end in zip(starts, ends):
        if end <= start:
            continue
        is_tail = symbol == PAUSE and end < total and _level(wave[start:end]) > loud
        if marks and symbol == PAUSE and (is_tail or marks[-1].symbol == PAUSE):
            marks[-1] = Mark(marks[-1].symbol, marks[-1].start, end)
        else:
            marks.append(Mark(symbol, start, end))
    return marks


def _level(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def _words(heard: list[_Heard], text: str, phones: list[Mark], total: int) -> list[Mark]:
    """Tokens of `text` with their times; a word ends where the next one or a pause begins."""
    tokens, position = [], 0
    for token in text.split():
        position = text.index(token, position)
        tokens.append((position, token))
        position += len(token)
    starts = [(e.sample, e.position - 1) for e in heard if e.type == _EVENT_WORD and e.position > 0]
    pauses = [mark.start for mark in phones if mark.symbol == PAUSE]
    begun: list[list] = []  # per token: [start sample or None, token]
    for index, (position, token) in enumerate(tokens):
        after = tokens[index + 1][0] if index + 1 < len(tokens) else len(text) + 1
        own = [sample for sample, place in starts if position <= place < after]
        if own or not begun:
            begun.append([min(own, default=0), token])
        else:
            begun[-1][1] += f" {token}"
    marks = []
    for index, (start, token) in enumerate(begun):
        end = begun[index + 1][0] if index + 1 < len(begun) else total
        end = min([pause for pause in pauses if start < pause < end], default=end)
        marks.append(Mark(token, min(start, total), min(end, total)))
    return [mark for mark in marks if mark.end > mark.start]
