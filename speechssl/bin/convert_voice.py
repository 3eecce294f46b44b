"""`speechssl convert-voice`: recordings in, the same said in another voice out."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from speechssl.config import parse

DESCRIPTION = """Say recordings anew in another voice: a head of voice conversion (`speechssl
finetune`) makes log-mel spectrograms of an encoder's features, a vocoder (`speechssl vocoder`, or
Griffin-Lim) waves of these.

The output has a 16 kHz file per recording, index.jsonl (what was made of what), cuts.jsonl.gz (the
outputs as a manifest, with the texts of the sources' and the target as speaker), convert.json and,
if something could not be converted, skipped.txt. Run again with the same output, it continues.
Recordings of any length, rate and number of channels; hours of one are cut into pieces."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertVoiceOptions:
    model: str
    """Folder of a fine-tuned head of voice conversion."""
    input: list[str] | str
    """Audio files, folders or globs; or manifests of cuts."""
    output: str
    """Folder for the results."""
    vocoder: str = "griffin_lim"
    """Folder of a trained vocoder, or griffin_lim."""
    refine: int = 0
    """Iterations of Griffin-Lim that start from a trained vocoder's phases; 16 help one of short
    training."""
    target: str | None = None
    """Speaker of the training data whose voice is wanted, of an any-to-any model. With `knn`, the
    name that the records get."""
    target_audio: list[str] = dataclasses.field(default_factory=list)
    """Recordings of any speaker whose voice is wanted instead; needs `verifier`."""
    verifier: str | None = None
    """Speaker model that made the embeddings that the head was trained with."""
    knn: list[str] = dataclasses.field(default_factory=list)
    """kNN-VC: recordings of the target, files or folders, minutes of them; each frame of the source
    gives way to the mean of the nearest ones there. For a head trained on many speakers."""
    knn_k: int = 4
    """How many nearest frames."""
    format: Literal["wav", "flac"] = "wav"
    """Of the files, in 16 bits."""
    batch_seconds: float = 60.0
    """Audio that is converted at once, padding included."""
    chunk_seconds: float = 20.0
    """Longer recordings are cut into pieces of this length."""
    overlap_seconds: float = 2.0
    """Context dropped at each inner border of a piece."""
    seed: int = 0
    """Of networks that are random in use (Taco2-AR's prenet)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        if bool(self.target_audio) != (self.verifier is not None):
            raise ValueError(
                "target_audio, verifier: found one of them, want both: the verifier embeds the "
                "recordings"
            )
        if self.target is not None and self.target_audio:
            raise ValueError("target, target_audio: found both, want one of them")
        if self.knn_k < 1:
            raise ValueError(f"knn_k: found {self.knn_k}, want 1 or more")
        if not self.batch_seconds > 0 or not 0 <= 2 * self.overlap_seconds < self.chunk_seconds:
            raise ValueError(
                f"batch_seconds, chunk_seconds, overlap_seconds: found {self.batch_seconds}, "
                f"{self.chunk_seconds}, {self.overlap_seconds}; want the first above 0, and a "
                "chunk longer than two overlaps"
            )


def main(argv: list[str] | None = None) -> int:
    options = parse(
        ConvertVoiceOptions, argv, prog="speechssl convert-voice", description=DESCRIPTION
    )
    try:
        return run(options)
    except ValueError as error:
        print(f"speechssl convert-voice: error: {error}", file=sys.stderr)
        return 2


def run(options: ConvertVoiceOptions) -> int:
    """Convert all that is not there yet; 1 if nothing at all could be converted."""
    from speechssl import dist
    from speechssl.bin.extract import Progress, list_skipped
    from speechssl.bin.voice_converter import Converter, Plan
    from speechssl.bin.voice_target import find_target, open_voice
    from speechssl.vocoder.load import load_vocoder

    device = dist.init(options.device)
    head = open_voice(options.model)
    vocoder = load_vocoder(options.vocoder, head.config.mel, refine=options.refine)
    items, described = sources(options)
    names = output_names(options, [item.id for item in items])
    records = Records(options, names)
    target = find_target(options, head.to(device), device)
    plan = Plan(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Plan)})
    converter = Converter(head, vocoder, target, plan, device)
    todo = [item for item in items if item.id not in records.done]
    if len(todo) < len(items):
        print(f"{len(items) - len(todo)} of {len(items)} are there already", flush=True)
    faults: dict[str, str] = {}
    start, audio = time.perf_counter(), 0.0
    with Progress(len(items), len(items) - len(todo)) as progress:
        for group in groups(todo, converter, faults):
            for item_id, wave, made in convert_group(group, converter, faults):
                records.add(item_id, wave, made, converter.rate, target.name)
                audio += len(wave) / converter.rate
                progress(len(wave) / converter.rate, len(wave) // converter.hop)
    wall = time.perf_counter() - start
    clock = converter.clock | {"audio_s": audio, "wall_s": wall}
    records.finish(described, faults, clock, target.name)
    list_skipped(Path(options.output), faults)
    told = f" as {target.name}" if target.name else ""
    print(f"{len(records.done)} of {len(items)} recordings{told} -> {options.output}")
    if audio:
        print(
            f"{audio:.1f} s of audio in {wall:.1f} s: RTF {wall / audio:.3f} (model "
            f"{clock['model_s'] / audio:.3f}, vocoder {clock['vocoder_s'] / audio:.3f})"
        )
    return 0 if records.done else 1


def sources(options: ConvertVoiceOptions) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """What to convert, and of cuts what their manifests say of each.

    Files below the output folder, of an earlier run, are left out.
    """
    from speechssl.data.fields import cut_rows
    from speechssl.hub.cuts import CutItems, FileItems

    given = [options.input] if isinstance(options.input, str) else list(options.input)
    cuts = [path for path in given if _is_manifest(Path(path))]
    if cuts and len(cuts) < len(given):
        raise ValueError(f"input: found manifests {cuts} beside audio, want one kind")
    if not given:
        raise ValueError("input: found nothing, want files, folders or manifests")
    if cuts:
        return list(CutItems(cuts)), {cut["id"]: cut for cut in cut_rows(cuts)}
    own = Path(options.output).resolve()
    items = [i for i in FileItems(given) if own not in Path(i.id).resolve().parents]
    if not items:
        raise ValueError(f"input: found no audio in {given} outside the output folder")
    return items, {}


def _is_manifest(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz")) or any(path.glob("cuts.*.jsonl*"))


def output_names(options: ConvertVoiceOptions, ids: list[str]) -> dict[str, str]:
    """Input id -> id of the output, which is its file's name below audio/ without the ending.

    That of a cut, or a file's path below the folder that was given; a hash parts equal ones.
    """
    from collections import Counter

    from speechssl.hub.store import file_name

    given = [options.input] if isinstance(options.input, str) else options.input
    folders = [Path(path) for path in given if Path(path).is_dir()]
    found = {}
    for item_id in ids:
        path = Path(item_id)
        if not path.is_file():
            found[item_id] = file_name(item_id)
            continue
        above = next((f for f in folders if f in path.parents), path.parent)
        parts = path.relative_to(above).with_suffix("").parts
        found[item_id] = "/".join(file_name(part) for part in parts)
    counts = Counter(found.values())
    twice = {k for k, name in found.items() if counts[name] > 1}
    return {k: f"{name}-{_hash(k)}" if k in twice else name for k, name in found.items()}


def _hash(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def groups(
    items: Iterable[Any], converter: Any, faults: dict[str, str]
) -> Iterator[list[tuple[str, Any]]]:
    """(id, wave) of some minutes of audio together.

    What cannot be read or is too short goes into `faults`, so that it spoils no group.
    """
    from speechssl.hub.audio import to_wave

    held: list[tuple[str, Any]] = []
    most = 4 * converter.plan.batch_seconds * converter.rate
    for item in items:
        try:
            samples, rate = item.read()
            wave = to_wave(samples, rate, want_rate=converter.rate, name=item.id)
            converter.require_length(wave)
        except (ValueError, OSError) as error:
            faults[item.id] = _named(item.id, error)
            continue
        held.append((item.id, wave))
        if sum(len(wave) for _, wave in held) >= most:
            yield held
            held = []
    if held:
        yield held


def _named(item_id: str, error: Exception) -> str:
    """What is told of a recording, which names it."""
    text = str(error)
    return text if item_id in text else f"{item_id}: {text}"


def convert_group(
    group: list[tuple[str, Any]], converter: Any, faults: dict[str, str]
) -> Iterator[tuple[str, Any, Any]]:
    """(id, wave, converted wave); one by one where the whole group cannot be converted."""
    try:
        made = converter([wave for _, wave in group])
    except ValueError as error:
        if len(group) > 1:
            for one in group:
                yield from convert_group([one], converter, faults)
        else:
            faults[group[0][0]] = _named(group[0][0], error)
        return
    for (item_id, wave), found in zip(group, made, strict=True):
        yield item_id, wave, found


class Records:
    """The output folder: files, index.jsonl, convert.json.

    Raises `ValueError` if it holds conversions of other options, or of another model.
    """

    free = ("input", "output", "batch_seconds", "device")

    def __init__(self, options: ConvertVoiceOptions, names: dict[str, str]) -> None:
        from speechssl.config import to_dict
        from speechssl.hub.store import make_folder, whole_lines

        self.folder = make_folder(options.output)
        self.options, self.names = options, dict(names)
        self.meta = {k: v for k, v in to_dict(options).items() if k not in self.free}
        self.meta["model_hash"] = _file_hash(options.model)
        self.meta["vocoder_hash"] = _file_hash(options.vocoder)
        self._agree()
        self.index = self.folder / "index.jsonl"
        self.done: dict[str, dict[str, Any]] = {}
        if self.index.is_file():
            for row, _ in whole_lines(self.index):
                if (self.folder / row["audio"]).is_file():
                    self.done[row["source_id"]] = row
            self._write_index()
        # Another input's recording of the same name, in an earlier run, keeps its file.
        taken = {row["id"]: source_id for source_id, row in self.done.items()}
        for source_id, name in self.names.items():
            if taken.get(name, source_id) != source_id:
                self.names[source_id] = f"{name}-{_hash(source_id)}"

    def _agree(self) -> None:
        path = self.folder / "convert.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = [
                f"{k}: found {v!r}, before {before.get(k)!r}"
                for k, v in self.meta.items()
                if before.get(k) != v
            ]
            if differing:
                raise ValueError(
                    f"output: {self.folder} holds conversions of another run "
                    f"({'; '.join(differing)}); choose another folder, or delete this one"
                )
            return
        self._write_json(self.meta)

    def add(self, item_id: str, wave: Any, made: Any, rate: int, target: str | None) -> None:
        """Write a converted wave, then its line: a line's file is always whole."""
        import numpy as np
        import soundfile

        from speechssl.bin.voice_converter import is_silent
        from speechssl.hub.store import append_lines

        name = f"audio/{self.names[item_id]}.{self.options.format}"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        soundfile.write(
            temporary, np.clip(made, -1, 1), rate, "PCM_16", format=self.options.format.upper()
        )
        os.replace(temporary, path)
        row = {
            "id": self.names[item_id],
            "source_id": item_id,
            "target": target,
            "seconds": round(len(wave) / rate, 6),
            "audio": name,
        }
        if is_silent(wave):
            row["silent"] = True
        append_lines(self.index, [row])
        self.done[item_id] = row

    def finish(
        self,
        described: dict[str, dict[str, Any]],
        faults: dict[str, str],
        clock: dict[str, float],
        target: str | None,
    ) -> None:
        """Lines in the order of the input, the manifest of the outputs, and how it went."""
        self._write_index()
        self._write_cuts(described)
        timing = {k: round(v, 3) for k, v in clock.items()}
        timing["rtf"] = round(clock["wall_s"] / max(clock["audio_s"], 1e-9), 4)
        told = {"target_name": target, "recordings": len(self.done), "skipped": len(faults)}
        # A run that found everything there keeps the timing of the one that made it.
        before = json.loads((self.folder / "convert.json").read_text(encoding="utf-8"))
        if not clock["audio_s"] and "timing" in before:
            timing = before["timing"]
        self._write_json(self.meta | told | {"timing": timing})

    def _rows(self) -> list[dict[str, Any]]:
        """Lines of index.jsonl: in the order of the input, earlier inputs' behind them."""
        order = {item_id: number for number, item_id in enumerate(self.names)}
        return sorted(self.done.values(), key=lambda r: order.get(r["source_id"], len(order)))

    def _write_index(self) -> None:
        from speechssl.bin.score import write_text

        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows())
        write_text(self.index, lines)

    def _write_cuts(self, described: dict[str, dict[str, Any]]) -> None:
        from speechssl.corpora.manifest import cut_row, open_gzip_text, read_header, read_rows
        from speechssl.data.fields import field_of

        path = self.folder / "cuts.jsonl.gz"
        temporary = path.with_name(path.name + ".tmp")
        before = {cut["id"]: cut for cut in read_rows(path)} if path.is_file() else {}
        with open_gzip_text(temporary) as out:
            for row in self._rows():
                item_id = row["source_id"]
                if item_id not in self.names and row["id"] in before:
                    out.write(json.dumps(before[row["id"]], ensure_ascii=False) + "\n")
                    continue
                cut = described.get(item_id, {})
                audio = self.folder / row["audio"]
                first = (cut.get("supervisions") or [{}])[0]
                custom = {**(first.get("custom") or {}), "source_id": item_id}
                speaker = field_of(cut, "speaker") if cut else None
                if speaker is not None:
                    custom["source_speaker"] = speaker
                line = cut_row(
                    id=row["id"], audio=audio.resolve(), header=read_header(audio),
                    text=first.get("text"), language=first.get("language"),
                    speaker=row["target"], custom=custom,
                )  # fmt: skip
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
        os.replace(temporary, path)

    def _write_json(self, values: dict[str, Any]) -> None:
        from speechssl.bin.score import write_text

        text = json.dumps(values, indent=2, ensure_ascii=False)
        write_text(self.folder / "convert.json", text + "\n")


def _file_hash(folder: str) -> str | None:
    """Hash of a model's weights, so that another model of the same name is noticed."""
    import hashlib

    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
