from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_corpus import Corpus, make_audio, make_cut, write_cuts

from speechssl.config import from_dict, to_dict
from speechssl.data import loader
from speechssl.data.config import DataConfig, MixingConfig, NoiseConfig
from speechssl.data.loader import open_source
from speechssl.data.mixing import Mixer, Mixture, mean_square, partner_of


def _signals(count: int = 6) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    sizes = draw.integers(4000, 30000, count)
    return [(0.2 * draw.standard_normal(n)).astype(np.float32) for n in sizes]


def _corrupt(mixer: Mixer, signals: list[np.ndarray], own: int, seed: int):
    asked = []

    def read_partner(place: int, share: float, longest: int) -> np.ndarray:
        wave = signals[place]
        size = min(longest, len(wave))
        start = int(share * (len(wave) - size + 1))
        asked.append((place, start, size))
        return wave[start : start + size]

    mixed = signals[own].copy()
    return mixed, mixer.corrupt(mixed, seed, own, len(signals), read_partner), asked


def test_the_measured_ratio_is_the_drawn_one_within_a_thousandth_db() -> None:
    signals, mixer = _signals(), Mixer(MixingConfig(probability=1.0))
    ratios = []
    for seed in range(300):
        own = seed % len(signals)
        clean = signals[own].astype(np.float64)
        mixed, mixture, asked = _corrupt(mixer, signals, own, seed)
        if mixture is None or mixture.length < 200:
            continue
        part = slice(mixture.begin, mixture.begin + mixture.length)
        place, start, size = asked[0]
        added = signals[place][start : start + size].astype(np.float64)
        scale = np.dot(mixed[part] - clean[part], added) / np.dot(added, added)
        measured = 10 * np.log10(mean_square(clean) / (scale**2 * mean_square(added)))
        assert abs(measured - mixture.ratio_db) < 1e-3
        assert np.array_equal(np.delete(mixed, np.r_[part]), np.delete(signals[own], np.r_[part]))
        assert mixture.length <= 0.5 * len(clean) + 1
        ratios.append(measured)
    assert len(ratios) > 250 and min(ratios) < -4.5 and max(ratios) > 4.5


def test_an_utterance_is_never_its_own_partner_and_any_other_can_be() -> None:
    for count in (2, 3, 9):
        for own in range(count):
            partners = {partner_of(seed, own, count) for seed in range(300)}
            assert partners == set(range(count)) - {own}
    assert partner_of(1, 0, 1) is None


def test_the_share_of_mixed_utterances_is_as_configured() -> None:
    signals, mixer = _signals(), Mixer(MixingConfig(probability=0.2))
    mixed = sum(_corrupt(mixer, signals, 0, seed)[1] is not None for seed in range(2000))
    assert 0.17 < mixed / 2000 < 0.23


def test_silence_is_left_alone() -> None:
    signals = [np.zeros(8000, np.float32), np.ones(8000, np.float32)]
    mixer = Mixer(MixingConfig(probability=1.0))
    for own in (0, 1):
        for seed in range(20):
            mixed, mixture, _ = _corrupt(mixer, signals, own, seed)
            assert mixture is None and np.array_equal(mixed, signals[own])


def test_noise_comes_from_its_own_recordings_at_its_own_ratio(tmp_path: Path) -> None:
    make_audio(tmp_path / "n.flac", 1.0, 3)
    cuts = write_cuts(tmp_path / "cuts_noise.jsonl.gz", [make_cut("n", tmp_path / "n.flac", 1.0)])
    config = MixingConfig(
        probability=1.0, noise_probability=1.0, noise_ratio_db=(19.0, 20.0), noise_cuts=cuts
    )
    signals, mixer = _signals(1), Mixer(config)
    done = 0
    for seed in range(50):
        mixed, mixture, asked = _corrupt(mixer, signals, 0, seed)
        assert not asked
        if mixture is not None:
            added = mixed.astype(np.float64) - signals[0]
            part = added[mixture.begin : mixture.begin + mixture.length]
            ratio = 10 * np.log10(mean_square(signals[0]) / max(mean_square(part), 1e-20))
            assert mixture.partner is None and 18.9 < ratio < 20.1
            done += 1
    assert done > 40


TONES = [200.0 * (1 + i) for i in range(9)]
"""Frequencies of noises, so that a sum tells what is in it."""


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine recordings of 0.7 s to 1.5 s, each a tone, up to nine times as loud as another."""
    folder = tmp_path_factory.mktemp("tones")
    cuts = []
    for i, pitch in enumerate(TONES):
        seconds = 0.7 + 0.1 * i
        wave = 0.1 * (1 + i) * np.sin(2 * np.pi * pitch * np.arange(round(16000 * seconds)) / 16000)
        soundfile.write(folder / f"{i}.wav", wave, 16000, subtype="FLOAT")
        cuts.append(make_cut(f"tone{i}", folder / f"{i}.wav", seconds))
    return write_cuts(folder / "cuts_tones.jsonl.gz", cuts)


def _babble(tones: str, **changes: object) -> MixingConfig:
    kind = {"cuts": tones, "ratio_db": (13.0, 20.0), "count": (3, 7)} | changes
    return MixingConfig(
        probability=1.0, noise_probability=1.0, min_overlap=1.0, max_overlap=1.0,
        noises=[NoiseConfig(**kind)],  # pyright: ignore
    )  # fmt: skip


def test_several_noises_at_once_are_as_loud_as_each_other_and_their_sum_has_the_ratio(
    tones: str,
) -> None:
    """By closed form: over whole cycles tones are orthogonal, so their powers add up."""
    mixer = Mixer(_babble(tones))
    draw = np.random.default_rng(2)
    wave = (0.2 * draw.standard_normal(8000)).astype(np.float32)  # shorter than any of the noises
    time = np.arange(8000) / 16000
    basis = np.stack([f(2 * np.pi * p * time) for p in TONES for f in (np.cos, np.sin)])
    numbers, ratios, heard = [], [], np.zeros(9, int)
    for seed in range(400):
        mixed, mixture, asked = _corrupt(mixer, [wave], 0, seed)
        assert not asked and mixture is not None and mixture.partner is None
        assert (mixture.begin, mixture.length, mixture.kind) == (0, 8000, 0)
        added = mixed.astype(np.float64) - wave
        ratio = 10 * np.log10(np.square(wave, dtype=np.float64).mean() / np.square(added).mean())
        assert abs(ratio - mixture.ratio_db) < 1e-3
        powers = np.square(2 * (basis @ added) / 8000).reshape(9, 2).sum(1) / 2
        there = powers > 1e-3 * powers.max()
        # Each recording once, whatever its own loudness, and nothing else.
        assert powers[there] == pytest.approx(np.square(added).mean() / there.sum(), rel=1e-3)
        numbers.append(int(there.sum()))
        ratios.append(ratio)
        heard += there
    counts = np.bincount(numbers, minlength=8)
    assert not counts[:3].any() and counts[3:].min() > 50  # 80 of each of five numbers
    assert min(ratios) < 13.2 and max(ratios) > 19.8 and heard.min() > 150


def test_noises_shorter_than_the_utterance_are_added_at_their_length(tones: str) -> None:
    mixer = Mixer(_babble(tones, count=(2, 2), ratio_db=(0.0, 0.0)))
    wave = np.full(40000, 0.1, np.float32)
    lengths = set()
    for seed in range(40):
        mixed, mixture, _ = _corrupt(mixer, [wave], 0, seed)
        assert mixture is not None and mixture.length in {round(16000 * (0.7 + 0.1 * i))
                                                          for i in range(9)}  # fmt: skip
        added = mixed.astype(np.float64) - wave
        inside = added[mixture.begin : mixture.begin + mixture.length]
        assert mean_square(inside) == pytest.approx(0.01, rel=1e-3)
        assert not np.delete(added, np.r_[mixture.begin : mixture.begin + mixture.length]).any()
        lengths.add(mixture.length)
    assert len(lengths) > 3


def test_kinds_of_noise_come_by_their_shares_each_with_its_own_ratio(tones: str) -> None:
    kinds = [
        NoiseConfig(cuts=tones, share=3.0, ratio_db=(0.0, 15.0)),
        NoiseConfig(cuts=tones, share=1.0, ratio_db=(16.0, 17.0)),
        NoiseConfig(cuts=tones, share=1.0, ratio_db=(18.0, 20.0), count=(9, 9)),
    ]
    mixer = Mixer(MixingConfig(probability=1.0, noise_probability=0.5, noises=kinds))
    signals = _signals()
    found: dict[int | None, list[Mixture]] = {}
    for seed in range(1500):
        mixture = _corrupt(mixer, [s[:2000] for s in signals], 0, seed)[1]
        if mixture is not None:
            found.setdefault(mixture.kind, []).append(mixture)
    share = {k: len(v) / sum(map(len, found.values())) for k, v in found.items()}
    assert share == pytest.approx({None: 0.5, 0: 0.3, 1: 0.1, 2: 0.1}, abs=0.04)
    for kind, (low, high) in {0: (0, 15), 1: (16, 17), 2: (18, 20), None: (-5, 5)}.items():
        ratios = [m.ratio_db for m in found[kind]]
        span = high - low
        assert low <= min(ratios) < low + 0.1 * span and high - 0.1 * span < max(ratios) <= high
        assert all((m.partner is None) == (kind is not None) for m in found[kind])


def test_one_kind_of_single_recordings_is_the_noise_of_noise_cuts(tones: str) -> None:
    plain = MixingConfig(probability=1.0, noise_probability=0.7, noise_cuts=tones)
    kind = NoiseConfig(cuts=tones, ratio_db=plain.noise_ratio_db)
    listed = MixingConfig(probability=1.0, noise_probability=0.7, noises=[kind])
    signals = _signals()
    for seed in range(100):
        one, two = (_corrupt(Mixer(c), signals, 1, seed) for c in (plain, listed))
        assert np.array_equal(one[0], two[0]) and one[1:] == two[1:]


def test_noises_depend_on_neither_batches_ranks_nor_workers(
    corpus: Corpus, tones: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(num_workers: int, max_batch_seconds: float) -> dict[tuple[str, int], np.ndarray]:
        config = DataConfig(
            train=[corpus.path], batch_seconds=12, max_batch_seconds=max_batch_seconds,
            max_seconds=1.5, num_workers=num_workers, mixing=_babble(tones),
        )  # fmt: skip
        updates = open_source(config, hop_samples=320, split="train").updates()
        return {
            (name, int(seed)): view[:length].numpy()
            for update in itertools.islice(updates, 3)
            for b in update.batches
            for name, seed, view, length in zip(b.ids, b.seeds, b.views["mixed"], b.wave_lengths)
        }

    alone = rows(0, 2.0)
    both = {}
    for rank, num_workers in ((0, 1), (1, 2)):
        monkeypatch.setattr(loader.dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loader.dist, "world_size", lambda: 2)
        both |= rows(num_workers, 6.0)
    assert alone.keys() == both.keys() and len(alone) > 20
    assert all(np.array_equal(view, both[key]) for key, view in alone.items())


def test_noises_are_read_from_a_file_and_written_to_one(tones: str) -> None:
    config = DataConfig(mixing=_babble(tones))
    assert from_dict(DataConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ({"share": 0.0}, {}, "noises.share: found 0.0"),
        ({"ratio_db": (3.0, 1.0)}, {}, "noises.ratio_db: found (3.0, 1.0)"),
        ({"count": (0, 2)}, {}, "noises.count: found (0, 2)"),
        ({"count": (3, 2)}, {}, "noises.count: found (3, 2)"),
        ({"count": (3, 10)}, {}, "found 9 recordings"),
        ({}, {"noise_cuts": "x"}, "mixing.noises: found 1 with noise_cuts 'x'"),
        ({}, {"noise_probability": 0.0}, "a probability above 0"),
        ({}, {"min_overlap": 0.6}, "mixing.min_overlap: found 0.6"),
    ],
)
def test_wrong_noises_are_named(tones: str, kind: dict, more: dict, told: str) -> None:
    with pytest.raises(ValueError) as error:
        Mixer(
            MixingConfig(
                **{"noise_probability": 0.5, **more}, noises=[NoiseConfig(cuts=tones, **kind)]
            )
        )
    assert told in str(error.value)


@pytest.fixture(scope="module")
def ready(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """Mixtures of the corpus's recordings in another order, half of them with ids of their own:
    manifest, id of the recording -> wave."""
    folder = tmp_path_factory.mktemp("ready")
    cuts, waves = [], {}
    for i, cut in enumerate(reversed(corpus.cuts)):
        name, path = cut["id"], folder / f"{i}.flac"
        noise = np.random.default_rng(i).standard_normal(len(corpus.waves[name]))
        soundfile.write(path, corpus.waves[name] + 0.1 * noise, 16000)
        waves[name] = soundfile.read(path, dtype="float32")[0]
        cuts.append(make_cut(name if i % 2 else f"mixture{i}", path, cut["duration"]))
        if not i % 2:
            cuts[-1]["supervisions"][0]["custom"] = {"mixture_of": name}
    return write_cuts(folder / "cuts_mixtures.jsonl.gz", cuts), waves


def _from_ready(corpus: Corpus, mixtures: str, **changes: object) -> DataConfig:
    values = {"train": [corpus.path], "valid": [corpus.path], "batch_seconds": 12,
              "max_batch_seconds": 6, "max_seconds": 1.5, "num_workers": 0}  # fmt: skip
    return DataConfig(**{**values, "mixtures": [mixtures], **changes})  # pyright: ignore


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ready_mixtures_are_read_where_their_cuts_are(
    corpus: Corpus, ready: tuple[str, dict], num_workers: int
) -> None:
    config = _from_ready(corpus, ready[0], num_workers=num_workers)
    for split in ("train", "valid"):
        source = open_source(config, hop_samples=320, split=split)
        batches = source.one_pass() if split == "valid" else itertools.chain.from_iterable(
            update.batches for update in itertools.islice(source.updates(), 5)
        )  # fmt: skip
        starts, seen = set(), 0
        for batch in batches:
            for i, name in enumerate(batch.ids):
                length = int(batch.wave_lengths[i])
                clean, wave = corpus.waves[name], batch.wave[i, :length].numpy()
                grid = range(0, len(clean) - length + 1, 320)
                start = next(s for s in grid if np.array_equal(clean[s : s + length], wave))
                mixed = batch.views["mixed"][i].numpy()
                assert np.array_equal(mixed[:length], ready[1][name][start : start + length])
                assert not mixed[length:].any() and length == min(24000, len(clean))
                starts.add(start)
                seen += 1
        assert len(starts) > 5 and (seen == 60 or split == "train")


def test_a_cut_without_a_mixture_like_it_is_skipped_and_named(
    corpus: Corpus, ready: tuple[str, dict], tmp_path: Path
) -> None:
    cuts = [make_cut(c["id"], c["recording"]["sources"][0]["source"], c["duration"])
            for c in corpus.cuts[2:]]  # fmt: skip
    cuts.append(make_cut(corpus.cuts[1]["id"], tmp_path / "x.flac", 9.0))
    cuts[0]["recording"]["sources"][0]["source"] = str(tmp_path / "gone.flac")
    some = write_cuts(tmp_path / "cuts_some.jsonl.gz", cuts)
    source = open_source(_from_ready(corpus, some), hop_samples=320, split="valid")
    seen = [name for batch in source.one_pass() if not batch.filler for name in batch.ids]
    names = [c["id"] for c in corpus.cuts]
    assert sorted(seen) == names[3:]
    told = {s.split(": ", 1)[0]: s.split(": ", 1)[1] for s in source.counter.skipped}
    assert told[names[0]] == "has no mixture in data.mixtures"
    assert "found 9.00 s" in told[names[1]] and "no such file" in told[names[2]]
    other = write_cuts(tmp_path / "cuts_other.jsonl.gz", [make_cut("y", tmp_path / "y", 1.0)])
    with pytest.raises(ValueError, match=f"such as '{names[0]}'"):
        open_source(_from_ready(corpus, other), hop_samples=320, split="train")
    for more in ({"mixing": MixingConfig()}, {"speeds": [0.9]}):
        with pytest.raises(ValueError, match="mixtures: found"):
            _from_ready(corpus, ready[0], **more)


def test_reverberation_keeps_time_and_power(tmp_path: Path) -> None:
    rir = np.zeros(4000, np.float32)
    rir[300], rir[900] = 0.9, 0.2
    soundfile.write(tmp_path / "r.wav", rir, 16000, subtype="FLOAT")
    cuts = write_cuts(tmp_path / "cuts_rir.jsonl.gz", [make_cut("r", tmp_path / "r.wav", 0.25)])
    mixer = Mixer(MixingConfig(probability=0.0, rir_probability=1.0, rir_cuts=cuts))
    signals = _signals(1)
    wet, mixture, _ = _corrupt(mixer, signals, 0, 5)
    assert mixture is None
    assert mean_square(wet) == pytest.approx(mean_square(signals[0]), rel=1e-5)
    lags = [np.dot(wet[lag:], signals[0][: len(wet) - lag]) for lag in range(700)]
    assert int(np.argmax(lags)) == 0 and int(np.argsort(lags)[-2]) == 600
