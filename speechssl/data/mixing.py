"""Utterance and noise mixing: a corrupted view whose targets stay those of the clean utterance.

Source: WavLM (Chen et al., 2022), section III-B and algorithm 1; Snyder et al. 2018 ("X-vectors"),
section 3.3, for kinds of noise with their own ratios and for babble, which is a sum of speakers.
Differs: the partner is drawn from the clean utterances of the whole update and is never the
utterance itself (the official code can draw it, or a row mixed before), so the result depends on
neither micro-batches nor ranks; the power of the added signal is that of the part added, so that
the energy ratio is exact; a short partner is added at its length instead of being repeated.
Recordings added together are brought to one power, and their sum to the ratio; Kaldi's recipe
brings each to a ratio of its own, so that seven speakers are louder than three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from speechssl.data.config import MixingConfig, NoiseConfig
from speechssl.data.draws import Permutation, mix, uniform
from speechssl.data.index import SAMPLE_RATE, CutIndices, CutRecord
from speechssl.data.reader import AudioError, read_part

# Streams of an utterance's seed; `sampler.crop_start` uses 1.
_MIXED, _IS_NOISE, _PARTNER, _RATIO, _OVERLAP, _PLACE, _FROM, _RIR, _WHICH_RIR = range(10, 19)
_KIND, _COUNT, _OTHERS = range(19, 22)

ReadPartner = Callable[[int, float, int], np.ndarray]
"""(position in the update, start as a share in [0, 1), most samples) -> clean samples."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What was added to an utterance; for logs and tests.

    partner: position of the utterance that was added, None for noise. kind: place of the noise in
        `Mixer.kinds`, None for speech.
    """

    partner: int | None
    begin: int
    length: int
    ratio_db: float
    kind: int | None = None


def partner_of(seed: int, own: int, count: int) -> int | None:
    """Position of the utterance to add, among `count`, never `own`; None if there is no other."""
    if count < 2:
        return None
    drawn = int(uniform(seed, _PARTNER) * (count - 1))
    return drawn + (drawn >= own)


def mean_square(wave: np.ndarray) -> float:
    """Power of (L,); 0 for an empty one."""
    # Not np.dot: its result follows the number of threads, so workers would differ in a bit.
    # Blocks short enough for float32 sums, which take no memory for the squares.
    whole = len(wave) // 256 * 256
    blocks = wave[:whole].reshape(-1, 256)
    total = np.einsum("ij,ij->i", blocks, blocks).sum(dtype=np.float64)
    total += np.square(wave[whole:]).sum(dtype=np.float64)
    return float(total) / max(len(wave), 1)


def add_scaled(wave: np.ndarray, added: np.ndarray, begin: int, ratio_db: float) -> bool:
    """Add a signal in place so that power(wave) / power(added part) is `ratio_db`.

    Returns False, and adds nothing, if one of the two is silent.
    """
    power, added_power = mean_square(wave), mean_square(added)
    if power <= 0 or added_power <= 0:
        return False
    scale = np.sqrt(power / (added_power * 10 ** (ratio_db / 10)))
    wave[begin : begin + len(added)] += np.float32(scale) * added
    return True


class Mixer:
    """Corrupts utterances; every draw follows from the utterance's own seed."""

    def __init__(self, config: MixingConfig) -> None:
        self.config = config
        self.kinds = tuple(config.noises)
        if config.noise_cuts:
            self.kinds = (NoiseConfig(cuts=config.noise_cuts, ratio_db=config.noise_ratio_db),)
        self.noises = [CutIndices([kind.cuts]) for kind in self.kinds]
        for kind, cuts in zip(self.kinds, self.noises, strict=True):
            if len(cuts) < kind.count[1]:
                raise ValueError(
                    f"mixing.noises: found {len(cuts)} recordings in {kind.cuts}, want at least "
                    f"{kind.count[1]}, the most of count {kind.count}; lower it, or add recordings"
                )
        self.rirs = CutIndices([config.rir_cuts]) if config.rir_cuts else None

    def touches(self, seed: int) -> bool:
        """False if `corrupt` leaves the utterance of this seed as it is."""
        reverberates = uniform(seed, _RIR) < self.config.rir_probability
        return reverberates or uniform(seed, _MIXED) < self.config.probability

    def corrupt(
        self, wave: np.ndarray, seed: int, own: int, count: int, read_partner: ReadPartner
    ) -> Mixture | None:
        """Corrupt (L,) float32 in place; return what was added, None for nothing.

        own, count: position of the utterance in its update, and the update's size.
        """
        config = self.config
        if uniform(seed, _RIR) < config.rir_probability:
            self._reverberate(wave, seed)
        if uniform(seed, _MIXED) >= config.probability or not len(wave):
            return None
        is_noise = uniform(seed, _IS_NOISE) < config.noise_probability
        kind = self._kind(seed) if is_noise else None
        low, high = config.speech_ratio_db if kind is None else self.kinds[kind].ratio_db
        ratio_db = low + (high - low) * uniform(seed, _RATIO)
        shortest = config.min_overlap * len(wave)
        most = config.max_overlap * len(wave)
        longest = int(shortest + uniform(seed, _OVERLAP) * (most - shortest + 1))
        longest = min(longest, len(wave))
        partner = None if is_noise else partner_of(seed, own, count)
        if not longest or (not is_noise and partner is None):
            return None
        try:
            if kind is not None:
                added = self._noise(seed, kind, longest)
            else:
                assert partner is not None
                added = read_partner(partner, uniform(seed, _FROM), longest)
        except AudioError:
            # Named where the utterance or noise itself is read; here it just adds nothing.
            return None
        begin = int(uniform(seed, _PLACE) * (len(wave) - len(added) + 1))
        if not len(added) or not add_scaled(wave, added, begin, ratio_db):
            return None
        return Mixture(partner, begin, len(added), ratio_db, kind)

    def _kind(self, seed: int) -> int:
        """Place of a kind of noise, drawn by the shares."""
        shares = np.cumsum([kind.share for kind in self.kinds])
        drawn = uniform(seed, _KIND) * shares[-1]
        return min(int(np.searchsorted(shares, drawn, side="right")), len(shares) - 1)

    def _noise(self, seed: int, kind: int, longest: int) -> np.ndarray:
        """At most `longest` samples of one recording, or of the sum of several different ones."""
        cuts, (fewest, most) = self.noises[kind], self.kinds[kind].count
        count = fewest + int(uniform(seed, _COUNT) * (most - fewest + 1))
        first = mix(seed, _PARTNER) % len(cuts)
        if count == 1:
            return _read_noise(cuts[first], seed, longest)
        others = Permutation(len(cuts) - 1, mix(seed, _OTHERS))(np.arange(count - 1))
        places = [first, *((first + 1 + others) % len(cuts)).tolist()]
        seeds = [mix(seed, _OTHERS, i) for i in range(count)]
        parts = [_read_noise(cuts[p], s, longest) for p, s in zip(places, seeds, strict=True)]
        added = np.zeros(max(map(len, parts)), np.float32)
        for part, own in zip(parts, seeds, strict=True):
            power = mean_square(part)
            if power > 0:
                begin = int(uniform(own, _PLACE) * (len(added) - len(part) + 1))
                added[begin : begin + len(part)] += part / np.float32(np.sqrt(power))
        return added

    def _reverberate(self, wave: np.ndarray, seed: int) -> None:
        """Convolve in place with a room impulse response, keeping onset and power.

        The response's direct path is moved to time 0, so that frame labels stay true.
        """
        assert self.rirs is not None
        record = self.rirs[mix(seed, _WHICH_RIR) % len(self.rirs)]
        try:
            rir = read_part(record, 0, record.num_samples)
        except AudioError:
            return
        rir = rir[int(np.abs(rir).argmax()) :][:SAMPLE_RATE]
        size = 1 << (len(wave) + len(rir) - 2).bit_length()
        wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(rir, size), size)[: len(wave)]
        power, wet_power = mean_square(wave), mean_square(wet)
        if wet_power > 0:
            wave[:] = wet * np.sqrt(power / wet_power)


def _read_noise(record: CutRecord, seed: int, longest: int) -> np.ndarray:
    """A part from anywhere in a recording; all of one that is not longer than `longest`."""
    length = min(longest, record.num_samples)
    start = int(uniform(seed, _FROM) * (record.num_samples - length + 1))
    return read_part(record, start, length)
