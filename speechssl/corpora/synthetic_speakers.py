"""Speakers and moods of the synthetic corpus, and what room and microphone do to a voice."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence

import numpy as np

from speechssl.corpora.espeak import SAMPLING_RATE, Prosody

TARGET_RATE = 16000
# Variants that are effects rather than people, or whose name eSpeak cannot take.
_NOT_PEOPLE = ("robo", "Robo", "Robot", "whisper", "Demonic", "croak", "Tweaky", "fast", " ")
# Name endings and names by which variants without a gender line are known.
_FEMALE_NAMES = ("shelby",)


@dataclasses.dataclass(frozen=True)
class Mood:
    """How an emotion moves the prosody: factors for rate and volume, offsets for pitch, range."""

    rate: float = 1.0
    pitch: int = 0
    range: int = 0
    volume: float = 1.0


MOODS = {
    "neutral": Mood(),
    "happy": Mood(rate=1.10, pitch=14, range=30, volume=1.1),
    "sad": Mood(rate=0.80, pitch=-14, range=-30, volume=0.6),
    "angry": Mood(rate=1.18, pitch=5, range=20, volume=1.7),
    "fearful": Mood(rate=1.25, pitch=24, range=-10, volume=0.8),
    "calm": Mood(rate=0.88, pitch=-4, range=-15, volume=0.8),
}


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A person: eSpeak variant, prosody, vocal tract and the place where she or he records."""

    name: str
    split: str
    language: str
    variant: str
    gender: str
    prosody: Prosody
    tract: float
    """Factor on all resonances (and on pitch and rate, which the prosody makes up for)."""
    level_db: float
    tilt_db: tuple[float, ...]
    """Gains of the recording at equally spaced points from 0 to 8 kHz."""
    reverb_seconds: float
    reverb_db: float
    noise_slope: float

    def in_mood(self, mood: Mood) -> Prosody:
        base = self.prosody
        return Prosody(
            rate=round(min(max(base.rate * mood.rate, 80), 380)),
            pitch=min(max(base.pitch + mood.pitch, 0), 99),
            range=min(max(base.range + mood.range, 0), 99),
            volume=round(min(base.volume * mood.volume, 200)),
            word_gap=base.word_gap,
        )


def seeded(*parts: object) -> random.Random:
    """A generator that depends on these values alone, on every machine and in every process."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def human_variants(variants: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, gender) of the variants that sound like people; those without a gender are male."""
    people = []
    for name, gender in sorted(variants.items()):
        if any(part in name for part in _NOT_PEOPLE):
            continue
        if gender not in ("female", "male"):
            gender = "female" if name in _FEMALE_NAMES else "male"
        people.append((name, gender))
    return people


def make_speakers(
    counts: Mapping[str, int],
    languages: Mapping[str, Sequence[str]],
    variants: Mapping[str, str],
    *,
    seed: int,
    reverb: bool,
) -> list[Speaker]:
    """`counts[split]` speakers for every split, its `languages[split]` in turn.

    Splits share no speaker, and no voice variant either, so that a held-out speaker is a voice
    that was never heard. Women and men alternate while the variants last.
    """
    rng = seeded(seed, "variants")
    pools = {"female": [], "male": []}
    for name, gender in human_variants(variants):
        pools[gender].append(name)
    total = sum(counts.values())
    dealt: dict[str, list[tuple[str, str]]] = {split: [] for split in counts}
    for gender, names in pools.items():
        rng.shuffle(names)
        start = 0
        for index, (split, count) in enumerate(counts.items()):
            last = index == len(counts) - 1
            size = len(names) - start if last else max(1, round(len(names) * count / total))
            size = min(size, len(names) - start - (len(counts) - 1 - index))
            dealt[split] += [(name, gender) for name in names[start : start + size]]
            start += size
    speakers = []
    for split, count in counts.items():
        for index in range(count):
            speakers.append(_speaker(seed, split, index, languages[split], dealt[split], reverb))
    return speakers


def _speaker(
    seed: int,
    split: str,
    index: int,
    languages: Sequence[str],
    variants: Sequence[tuple[str, str]],
    reverb: bool,
) -> Speaker:
    name = f"s{seed}-{split}-{index:04d}"
    rng = seeded(seed, "speaker", name)
    # In turn within each language, and the first speakers of the languages in turn.
    turn = index // len(languages) + index % len(languages)
    wanted = "male" if turn % 2 else "female"
    fitting = [v for v in variants if v[1] == wanted] or list(variants)
    variant, gender = fitting[(index // 2) % len(fitting)]
    tract = rng.choice((0.92, 0.95, 0.98, 1.0, 1.02, 1.05, 1.08))
    prosody = Prosody(
        rate=round(rng.uniform(135, 195) / tract),
        pitch=rng.randint(32, 66),
        range=rng.randint(35, 70),
        volume=100,
        word_gap=rng.choice((0, 0, 0, 1, 2)),
    )
    return Speaker(
        name=name,
        split=split,
        language=languages[index % len(languages)],
        variant=variant,
        gender=gender,
        prosody=prosody,
        tract=tract,
        level_db=rng.uniform(-31, -20),
        tilt_db=tuple(round(rng.uniform(-4, 4), 3) for _ in range(9)),
        reverb_seconds=rng.uniform(0.1, 0.4) if reverb else 0.0,
        reverb_db=rng.uniform(-26, -12),
        noise_slope=rng.uniform(0.0, 1.6),
    )


def record(
    wave: np.ndarray,
    speaker: Speaker,
    *,
    seed: int,
    snr_db: tuple[float, float] | None,
    level_db: float,
) -> tuple[np.ndarray, float, float | None]:
    """Turn eSpeak's `wave` (L,) int16 into what the speaker's microphone takes at 16 kHz.

    Returns the recording (N,) float32 within [-1, 1], the seconds of background before the speech,
    and the ratio of speech to noise in dB (None without noise). Time in the speech runs by
    1 / `speaker.tract`. `level_db` is the root mean square of the speech against full scale.
    """
    import soxr

    rng = np.random.Generator(np.random.PCG64(seed))
    speech = wave.astype(np.float64) / 32768
    speech = soxr.resample(speech, round(SAMPLING_RATE * speaker.tract), TARGET_RATE, quality="HQ")
    lead, tail = (int(n) for n in rng.integers(800, 4000, size=2))
    length = lead + len(speech) + tail
    clean = np.zeros(length)
    clean[lead : lead + len(speech)] = speech
    room = 2 ** int(np.ceil(np.log2(length + TARGET_RATE // 2)))
    clean = np.fft.irfft(np.fft.rfft(clean, room) * _room(speaker, rng, room), room)[:length]
    active = clean[lead : lead + len(speech)]
    power = float(np.mean(np.square(active))) + 1e-12
    ratio = None
    if snr_db is not None:
        ratio = float(rng.uniform(*snr_db))
        noise = _coloured_noise(rng, room, speaker.noise_slope)[:length]
        scale = np.sqrt(power / 10 ** (ratio / 10) / np.mean(np.square(noise)))
        clean = clean + noise * scale
    clean *= 10 ** (level_db / 20) / np.sqrt(power)
    peak = float(np.max(np.abs(clean)))
    if peak > 0.98:  # rather a little quieter than clipped
        clean *= 0.98 / peak
    return clean.astype(np.float32), lead / TARGET_RATE, ratio


def _room(speaker: Speaker, rng: np.random.Generator, size: int) -> np.ndarray:
    """Transfer function of microphone (a smooth gain curve) and room (decaying noise)."""
    points = np.linspace(0, size // 2, len(speaker.tilt_db))
    gain_db = np.interp(np.arange(size // 2 + 1), points, speaker.tilt_db)
    colour = 10 ** (gain_db / 20)
    if speaker.reverb_seconds <= 0:
        return colour
    length = int(speaker.reverb_seconds * TARGET_RATE)
    # 60 dB of decay over the reverberation time: exp(-6.9) = 1e-3.
    decay = np.exp(-6.9 * np.arange(length) / length)
    response = rng.standard_normal(length) * decay
    response *= 10 ** (speaker.reverb_db / 20) / np.sqrt(np.sum(np.square(response)))
    response[0] = 1.0
    return colour * np.fft.rfft(response, size)


def _coloured_noise(rng: np.random.Generator, size: int, slope: float) -> np.ndarray:
    """Noise whose power falls with frequency by f ** -slope (0 white, 1 pink)."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    frequency[0] = 1.0
    # Below 40 Hz flat, since a microphone hears no deeper.
    frequency = np.maximum(frequency, 40 * size / TARGET_RATE)
    return np.fft.irfft(spectrum * frequency ** (-slope / 2), size)
