"""Unlimited synthetic speech by eSpeak NG: many speakers, languages, themes, moods, alignments.

Everything is a function of the options and the seed: utterance `i` of a split is the same in
every run, under any number of processes, and in a longer corpus of the same seed. Speakers (and
their voice variants) are disjoint between splits, sentences are too (by a hash of their text),
and `heldout_languages` occur only in the split `test_languages`.

Work goes in blocks of 32 utterances. A block's rows are written once its audio is complete, so
that a run that was ended is continued by running it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speechssl.corpora.manifest import AudioHeader, CutsWriter, Row, cut_row, read_rows

BLOCK = 32
_VERSION = 1  # of what a seed means: raise it when the same options give other audio
_EXPECTED_SECONDS = 4.0
_STATE: dict[str, Any] = {}  # the worker's own synthesiser: eSpeak allows one per process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How much of what is spoken by whom."""

    output: str
    """Folder for cuts_<split>.jsonl.gz, audio/ and parts/ (rows of finished blocks)."""
    hours: float = 1.0
    """Audio of all splits together; met to the length of an utterance a split."""
    utterances: int | None = None
    """Number of utterances of all splits together, instead of `hours`."""
    speakers: int = 60
    """Number of speakers of all splits together, without those of held-out languages."""
    languages: list[str] = dataclasses.field(
        default_factory=lambda: ["en-us", "de", "es", "fr", "it"]
    )
    """eSpeak languages with a grammar (en, de, es, fr, it with regions, such as en-gb)."""
    heldout_languages: list[str] = dataclasses.field(default_factory=list)
    """Languages for an additional split, test_languages, as large as the test split."""
    themes: list[str] = dataclasses.field(default_factory=list)
    """Themes of the sentences, such as '[travel,weather]'; empty takes all."""
    emotions: list[str] = dataclasses.field(
        default_factory=lambda: ["neutral", "happy", "sad", "angry", "fearful", "calm"]
    )
    """Prosodic moods; neutral is taken for all utterances outside `emotion_share`."""
    emotion_share: float = 0.4
    """Share of the utterances with a mood drawn from `emotions`."""
    snr_db: list[float] = dataclasses.field(default_factory=lambda: [15.0, 35.0])
    """Range of the ratio of speech to background noise, '[low,high]'; '[]' adds no noise."""
    reverb: bool = True
    """Give every speaker a small room."""
    parallel: bool = False
    """All speakers of a split and language say the same sentences, in the same moods; `sentence`
    numbers them."""
    valid_share: float = 0.1
    """Share of the audio for the split valid."""
    test_share: float = 0.1
    """Share of the audio for the split test."""
    seed: int = 0
    """Another seed gives other speakers and sentences; the split of a sentence stays."""
    jobs: int = 0
    """Worker processes; 0 takes one per processor core."""

    def __post_init__(self) -> None:
        from speechssl.corpora.synthetic_speakers import MOODS
        from speechssl.corpora.synthetic_text import grammar

        for language in [*self.languages, *self.heldout_languages]:
            grammar(language)
        known = set(grammar(self.languages[0]).TEMPLATES) if self.languages else set()
        for name, found, want in (
            ("themes", self.themes, known),
            ("emotions", self.emotions, set(MOODS)),
        ):
            if set(found) - want:
                raise ValueError(
                    f"{name}: found {', '.join(sorted(set(found) - want))}, want some of: "
                    f"{', '.join(sorted(want))}"
                )
        if not self.languages:
            raise ValueError("languages: found none, want one or more, such as '[en-us]'")
        both = {x.split("-")[0] for x in self.languages} & {
            x.split("-")[0] for x in self.heldout_languages
        }
        if both:
            raise ValueError(
                f"heldout_languages: found {', '.join(sorted(both))} in `languages` too, "
                "want languages that training never hears"
            )
        if self.snr_db and (len(self.snr_db) != 2 or self.snr_db[0] > self.snr_db[1]):
            raise ValueError(f"snr_db: found {self.snr_db}, want '[low,high]' or '[]'")
        if self.speakers < 3:
            raise ValueError(f"speakers: found {self.speakers}, want 3 or more, one for each split")
        if not (self.valid_share > 0 and self.test_share > 0):
            raise ValueError("valid_share, test_share: want both above 0")
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share + test_share: found 1 or more, want less than 1")


def split_shares(config: Config) -> dict[str, float]:
    """Split -> its share of the audio; the held-out languages come on top."""
    shares = {
        "train": 1 - config.valid_share - config.test_share,
        "valid": config.valid_share,
        "test": config.test_share,
    }
    if config.heldout_languages:
        shares["test_languages"] = config.test_share
    return shares


def split_speakers(config: Config) -> dict[str, int]:
    """Split -> number of speakers; valid and test have enough for every language if possible."""
    few = max(1, round(config.speakers * 0.15))
    few = max(few, min(len(config.languages), config.speakers // 4))
    counts = {"train": config.speakers - 2 * few, "valid": few, "test": few}
    if config.heldout_languages:
        counts["test_languages"] = max(few, len(config.heldout_languages))
    return counts


def _speakers(config: Config) -> list[Any]:
    from speechssl.corpora.espeak import Synthesiser
    from speechssl.corpora.synthetic_speakers import make_speakers

    counts = split_speakers(config)
    languages = dict.fromkeys(counts, config.languages)
    if config.heldout_languages:
        languages["test_languages"] = config.heldout_languages
    variants = Synthesiser().variants()
    return make_speakers(counts, languages, variants, seed=config.seed, reverb=config.reverb)


def _utterance(config: Config, speaker: Any, index: int, turn: int) -> Row:
    """Speak, record and store utterance `index` of the speaker's split; return its cut.

    turn: how many each speaker of the split has spoken before.
    """
    import soundfile

    from speechssl.corpora.synthetic_speakers import MOODS, TARGET_RATE, record, seeded
    from speechssl.corpora.synthetic_text import sentence

    rng = seeded(config.seed, "utterance", speaker.split, index)
    # What is said and how; of parallel sentences it is the same for all who take part in the turn.
    said = rng
    if config.parallel:
        said = seeded(config.seed, "sentence", speaker.split, speaker.language, turn)
    text_split = "test" if speaker.split == "test_languages" else speaker.split
    spoken = sentence(said, speaker.language, text_split, config.themes)
    moody = said.random() < config.emotion_share and config.emotions
    emotion = said.choice(config.emotions) if moody else "neutral"
    mood = MOODS[emotion]
    speech = _STATE["synthesiser"].speak(
        spoken.written,
        voice=f"{_STATE['voices'][speaker.language]}+{speaker.variant}",
        prosody=speaker.in_mood(mood),
        seed=rng.getrandbits(31),
    )
    wave, lead, ratio = record(
        speech.wave,
        speaker,
        seed=rng.getrandbits(63),
        snr_db=(config.snr_db[0], config.snr_db[1]) if config.snr_db else None,
        level_db=speaker.level_db + 10 * math.log10(mood.volume) + rng.uniform(-2, 2),
    )
    id = f"{speaker.name}-{index:06d}"
    path = Path(config.output).resolve() / "audio" / speaker.split / speaker.name / f"{id}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()  # libsndfile would wait for the disk after every file
    soundfile.write(encoded, wave, TARGET_RATE, format="FLAC", subtype="PCM_16")
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(encoded.getbuffer())
    os.replace(temporary, path)
    custom = {
        **{"corpus": "synthetic", "theme": spoken.theme, "intent": spoken.intent},
        **{"slots": spoken.slots, "emotion": emotion, "variant": speaker.variant},
    }
    if config.parallel:
        custom["sentence"] = turn
    if ratio is not None:
        custom["snr_db"] = round(ratio, 2)
    return cut_row(
        id=id,
        audio=path,
        header=AudioHeader(len(wave), TARGET_RATE, 1),
        text=spoken.text,
        language=speaker.language,
        speaker=speaker.name,
        gender=speaker.gender,
        custom=custom,
        alignment=_alignment(speech, speaker.tract, lead, len(wave) / TARGET_RATE),
    )


def _alignment(speech: Any, tract: float, lead: float, duration: float) -> dict[str, list]:
    """eSpeak's marks in seconds of the recording; the padding is a pause."""
    from speechssl.corpora.espeak import PAUSE, SAMPLING_RATE
    from speechssl.corpora.synthetic_text import plain

    # The resampler is told a rounded rate, and time runs by that.
    rate = round(SAMPLING_RATE * tract)
    words = [(plain(m.symbol), lead + m.start / rate, lead + m.end / rate) for m in speech.words]
    phones = [(m.symbol, lead + m.start / rate, lead + m.end / rate) for m in speech.phones]
    phones = [(PAUSE, 0.0, lead), *phones]
    end = phones[-1][2]
    if phones[-1][0] == PAUSE:
        phones[-1] = (PAUSE, phones[-1][1], duration)
    elif duration > end:
        phones.append((PAUSE, end, duration))
    if len(phones) > 1 and phones[1][0] == PAUSE:
        phones[:2] = [(PAUSE, 0.0, phones[1][2])]
    return {"word": words, "phone": phones}


def _start_worker(config: Config) -> None:
    from speechssl.corpora.espeak import Synthesiser

    _STATE["config"] = config
    synthesiser = _STATE["synthesiser"] = Synthesiser()
    spoken = [*config.languages, *config.heldout_languages]
    _STATE["voices"] = {language: synthesiser.voice(language) for language in spoken}
    by_split: dict[str, list[Any]] = {}
    for speaker in _speakers(config):
        by_split.setdefault(speaker.split, []).append(speaker)
    _STATE["speakers"] = by_split


def _part(output: str, split: str, start: int) -> Path:
    return Path(output) / "parts" / f"{split}-{start:07d}.jsonl"


def _run_block(task: tuple[str, int, int]) -> float:
    """Make utterances start..stop of a split and write their rows; return their seconds."""
    split, start, stop = task
    config, speakers = _STATE["config"], _STATE["speakers"][split]
    count = len(speakers)
    rows = [_utterance(config, speakers[i % count], i, i // count) for i in range(start, stop)]
    part = _part(config.output, split, start)
    temporary = part.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    os.replace(temporary, part)
    return sum(row["duration"] for row in rows)


def _finished(config: Config, split: str, start: int, stop: int) -> bool:
    """Whether a former run left these utterances complete."""
    part = _part(config.output, split, start)
    if not part.is_file():
        return False
    rows = list(read_rows(part))
    audio = [Path(row["recording"]["sources"][0]["source"]) for row in rows]
    return len(rows) >= stop - start and all(path.is_file() for path in audio)


def _rows(config: Config, split: str, count: int) -> Iterator[Row]:
    for start in range(0, count, BLOCK):
        for index, row in enumerate(read_rows(_part(config.output, split, start))):
            if start + index < count:
                yield row


def _workers(config: Config, tasks: list[tuple[str, int, int]]) -> Iterable[float]:
    """Run blocks in worker processes (or here, for one job), in whatever order they end."""
    jobs = min(config.jobs or os.cpu_count() or 1, len(tasks))
    if jobs <= 1:
        from speechssl.corpora.espeak import unload

        _start_worker(config)
        yield from map(_run_block, tasks)
        unload()
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # Not a multiprocessing.Pool, which waits for ever for a worker that was killed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (config,)) as pool:
        futures = [pool.submit(_run_block, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make(config: Config, counts: dict[str, int]) -> None:
    """Bring every split to its count of utterances; what is there already stays."""
    from tqdm import tqdm

    tasks = []
    for split, count in counts.items():
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            if not _finished(config, split, start, stop):
                tasks.append((split, start, stop))
    if not tasks:
        return
    total = sum(stop - start for _, start, stop in tasks)
    with tqdm(total=total, desc="synthetic", unit="utt", disable=None) as bar:
        seconds = 0.0
        for done in _workers(config, tasks):
            seconds += done
            bar.set_postfix_str(f"{seconds / 3600:.2f} h of audio")
            bar.update(min(BLOCK, total - bar.n))


def _counts(config: Config) -> dict[str, int]:
    """Utterances of each split, made on the way where `hours` decides.

    The first round makes fewer than needed, the second (rarely a third) the rest by the mean
    duration so far: the result depends on the options alone.
    """
    shares = split_shares(config)
    if config.utterances is not None:
        counts = {s: max(1, round(config.utterances * share)) for s, share in shares.items()}
        _make(config, counts)
        return counts
    wanted = {split: config.hours * 3600 * share for split, share in shares.items()}
    counts = {s: max(1, int(seconds / _EXPECTED_SECONDS)) for s, seconds in wanted.items()}
    while True:
        _make(config, counts)
        made = {
            split: sum(row["duration"] for row in _rows(config, split, count))
            for split, count in counts.items()
        }
        if all(made[split] >= wanted[split] for split in counts):
            return counts
        for split in counts:
            missing = wanted[split] - made[split]
            if missing > 0:
                counts[split] += math.ceil(missing / (made[split] / counts[split]))


def _claim_output(config: Config) -> None:
    """Refuse a folder that holds utterances of other options; the amount may differ."""
    values = dataclasses.asdict(config)
    for name in ("output", "hours", "utterances", "jobs"):
        values.pop(name)
    if not config.parallel:  # corpora that were made before there was this option stay valid
        values.pop("parallel")
    mark = json.dumps({"version": _VERSION, **values}, sort_keys=True)
    file = Path(config.output) / "synthetic.json"
    (Path(config.output) / "parts").mkdir(parents=True, exist_ok=True)
    if file.is_file() and file.read_text() != mark:
        raise ValueError(
            f"output: found a synthetic corpus of other options in {config.output} (see {file}), "
            "want an empty folder or the same options; choose another --output or remove it"
        )
    file.write_text(mark)
    for stray in Path(config.output).rglob("*.tmp"):  # of a run that was killed
        stray.unlink()


def fingerprint(rows: Iterable[Row]) -> str:
    """Hash of rows without their paths, to compare corpora in different folders."""
    digest = hashlib.sha256()
    for row in rows:
        slim = {**row, "recording": {**row["recording"], "sources": []}}
        digest.update(json.dumps(slim, sort_keys=True).encode())
    return digest.hexdigest()


def prepare(config: Config) -> dict[str, Path]:
    """Generate the corpus (or the rest of it) and write its cuts; return split -> file."""
    from speechssl.corpora.espeak import Synthesiser

    for language in [*config.languages, *config.heldout_languages]:
        Synthesiser().voice(language)  # an error here, not from within every worker
    _claim_output(config)
    counts = _counts(config)
    with CutsWriter(config.output) as writer:
        for split, count in counts.items():
            for row in _rows(config, split, count):
                writer.add(split, row)
    print(writer.table())
    return writer.paths
