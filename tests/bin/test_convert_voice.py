"""Voice conversion by the programs: train, convert, go on; bad input; pieces and batches."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from speechssl.bin import convert_voice, decode, finetune
from speechssl.bin.voice_converter import Converter, Plan, Target
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.heads.speaker import SpeakerConfig
from speechssl.heads.voice_convnext import VoiceConvNextConfig
from speechssl.heads.voice_taco2ar import VoiceTaco2ArConfig
from speechssl.hub import audio
from speechssl.labels.codebook import Codebook, Normaliser, save_codebook
from speechssl.labels.features import weights_hash
from speechssl.model_file import open_model, save_model
from speechssl.nn.mel_inverse import GriffinLim

MEL = LogMelConfig(mel_bins=20, deltas=0)
ENCODER = {"class_path": "speechssl.encoders.log_mel.LogMelConfig",
           "init_args": {"mel_bins": 20, "deltas": 0}}  # fmt: skip
SIZES = {"dim": 16, "hidden_dim": 32, "blocks": 2}
PITCHES = {"ann": 220.0, "bob": 110.0}


def spoken(hz: float, seconds: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(round(16000 * seconds)) / 16000
    f0 = hz * (1 + 0.05 * np.sin(2 * np.pi * (3 * time + random.random())))
    phase = 2 * np.pi * np.cumsum(f0) / 16000
    wave = sum(np.sin(k * phase) / k for k in range(1, 9))
    strength = 0.6 + 0.4 * np.sin(2 * np.pi * (4 * time + random.random()))
    return (0.1 * strength * wave + 0.002 * random.standard_normal(len(time))).astype(np.float32)


def write_cuts(folder: Path, split: str, speakers: list[str], count: int) -> str:
    lines = []
    for i in range(count):
        who = speakers[i % len(speakers)]
        name = f"{split}{i}"
        wave = spoken(PITCHES[who], 0.5 + 0.05 * (i % 3), i)
        soundfile.write(folder / f"{name}.wav", wave, 16000)
        duration = len(wave) / 16000
        span = {"start": 0.0, "duration": duration, "channel": 0}
        source = {"type": "file", "channels": [0], "source": str(folder / f"{name}.wav")}
        lines.append({
            "id": name, **span, "type": "MonoCut",
            "supervisions": [{"id": name, "recording_id": name, **span, "speaker": who,
                              "text": f"TEXT {i}", "language": "en"}],
            "recording": {"id": name, "sources": [source], "sampling_rate": 16000,
                          "num_samples": len(wave), "duration": duration, "channel_ids": [0]},
        })  # fmt: skip
    path = folder / f"cuts_{split}.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpus")
    given = {"train": (["ann", "bob"], 8), "one": (["bob"], 6), "test": (["ann", "bob"], 3)}
    return {split: write_cuts(folder, split, *what) for split, what in given.items()}


def train(folder: Path, cuts: str, head: dict[str, Any], *more: str, steps: int = 6) -> Path:
    data = {"train": [cuts], "valid": [cuts], "batch_seconds": 4, "max_batch_seconds": 2,
            "max_seconds": 1, "min_seconds": 0.1, "num_workers": 0}  # fmt: skip
    options = {"steps": steps, "learning_rate": 3e-3, "device": "cpu", "tensorboard": False,
               "valid_every": steps, "save_every": steps, "log_every": steps}  # fmt: skip
    kind = {"class_path": "speechssl.heads.voice_convnext.VoiceConvNextConfig"}
    values = {"data": data, "train": options, "head": kind | {"init_args": SIZES | head}}
    values |= {} if "--init" in more else {"encoder": ENCODER}
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    words = ["--config", str(folder / "config.yaml"), "--output", str(folder / "run"), *more]
    assert finetune.main(words) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    encoder = MEL.build()
    config = SpeakerConfig(network="pooled", embedding_dim=8, attention_dim=8, classes=["x", "y"])
    head = config.build(encoder)
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    folder = tmp_path_factory.mktemp("verifier")
    save_model(folder, MEL, encoder.state_dict(), head_config=config, head_state=own)
    return folder


@pytest.fixture(scope="module")
def any_to_any(
    corpus: dict[str, str], verifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("any")
    words = ["--model", str(verifier), "--cuts", corpus["train"], "--output", str(folder / "e")]
    assert decode.main(words) == 0
    head = {"embeddings": str(folder / "e"), "references": 2, "pitch": True, "energy": True}
    return train(folder, corpus["train"], head)


@pytest.fixture(scope="module")
def any_to_one(corpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("one"), corpus["one"], {"pitch": True})


def convert(model: Path, source: str, output: Path, *more: str) -> list[dict[str, Any]]:
    words = ["--model", str(model), "--input", source, "--output", str(output), *more]
    assert convert_voice.main(words) == 0
    return rows(output)


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "index.jsonl").read_text().splitlines()]


def test_fine_tuning_fills_in_statistics_and_speakers(
    corpus: dict[str, str], any_to_any: Path, any_to_one: Path
) -> None:
    head: Any = open_model(any_to_any).head
    assert head.config.classes == ["ann", "bob"] and head.config.embedding_dim == 8
    assert torch.allclose(head.speakers.norm(dim=-1), torch.ones(2))
    folder = any_to_any.parent / "e"
    matrix = np.load(folder / "embeddings.npy")
    who = [json.loads(x)["speaker"] for x in (folder / "embeddings.jsonl").read_text().splitlines()]
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    bob = unit[[i for i, name in enumerate(who) if name == "bob"][:2]].mean(0)
    assert np.abs(head.speakers[1].numpy() - bob / np.linalg.norm(bob)).max() < 1e-6
    for place, hz in enumerate(PITCHES.values()):
        assert float(head.pitch_mean[place].exp()) == pytest.approx(hz, rel=0.02)
        assert float(head.pitch_deviation[place]) == pytest.approx(0.05 / 2**0.5, rel=0.15)
    one: Any = open_model(any_to_one).head
    assert one.config.classes == ["bob"] and one.speaker_dim == 0
    assert float(one.pitch_mean[0].exp()) == pytest.approx(110.0, rel=0.02)
    found = []
    for path in sorted(Path(corpus["one"]).parent.glob("one*.wav")):
        wave = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        found.append(one.mel(wave[None], torch.tensor([len(wave)]))[0][0])
    frames = torch.cat(found)
    assert torch.allclose(one.mel_mean, frames.mean(0), atol=1e-4)
    assert torch.allclose(one.mel_deviation, frames.std(0, correction=0), rtol=1e-3)
    lines = (any_to_any / "metrics.jsonl").read_text().splitlines()
    last = [x for x in map(json.loads, lines) if x["split"] == "valid"][-1]
    assert last["l1"] > 0 and last["l1_other_speaker"] > 0


def test_a_finished_run_starts_again_with_what_it_was_filled_with(
    any_to_any: Path, capsys: Any
) -> None:
    before: Any = open_model(any_to_any).head.state_dict()
    words = ["--config", str(any_to_any.parent / "config.yaml"), "--output", str(any_to_any)]
    assert finetune.main(words) == 0
    assert "reading the training cuts" not in capsys.readouterr().err
    after: Any = open_model(any_to_any).head.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []


def test_cuts_become_files_of_the_same_length_with_a_manifest(
    corpus: dict[str, str], any_to_any: Path, tmp_path: Path, capsys: Any
) -> None:
    found = convert(any_to_any, corpus["test"], tmp_path, "--target", "bob")
    assert [r["id"] for r in found] == ["test0", "test1", "test2"]
    assert {r["target"] for r in found} == {"bob"}
    for r in found:
        wave, rate = soundfile.read(tmp_path / r["audio"])
        source, _ = soundfile.read(Path(corpus["test"]).parent / f"{r['source_id']}.wav")
        assert rate == 16000 and len(wave) == len(source) == round(16000 * r["seconds"])
        assert np.isfinite(wave).all() and np.abs(wave).max() > 1e-3
    with gzip.open(tmp_path / "cuts.jsonl.gz", "rt") as lines:
        cuts = [json.loads(line) for line in lines]
    # As those of the input: labels of the outputs are found for it.
    assert [c["id"] for c in cuts] == [r["source_id"] for r in found]
    first = cuts[0]["supervisions"][0]
    assert (first["text"], first["speaker"]) == ("TEXT 0", "bob")
    assert first["custom"] == {"source_id": "test0", "source_speaker": "ann"}
    told = json.loads((tmp_path / "convert.json").read_text())
    assert told["timing"]["audio_s"] > 1.5 and told["timing"]["rtf"] > 0
    assert "RTF" in capsys.readouterr().out


def test_a_second_run_makes_only_what_is_missing(
    corpus: dict[str, str], any_to_any: Path, tmp_path: Path, capsys: Any
) -> None:
    first = convert(any_to_any, corpus["test"], tmp_path, "--target", "ann")
    timing = json.loads((tmp_path / "convert.json").read_text())["timing"]
    before = [(tmp_path / r["audio"]).read_bytes() for r in first]
    kept = (tmp_path / first[0]["audio"]).stat().st_mtime_ns
    (tmp_path / first[1]["audio"]).unlink()
    with (tmp_path / "index.jsonl").open("a") as file:
        file.write('{"id": "half a li')
    assert convert(any_to_any, corpus["test"], tmp_path, "--target", "ann") == first
    after = [(tmp_path / r["audio"]).read_bytes() for r in first]
    assert [a == b for a, b in zip(before, after)][::2] == [True, True]
    # Alone in its batch, it is the same up to rounding, which Griffin-Lim's phases enlarge.
    waves = [np.frombuffer(x[44:], "<i2").astype(float) for x in (before[1], after[1])]
    assert np.corrcoef(waves)[0, 1] > 0.99
    assert (tmp_path / first[0]["audio"]).stat().st_mtime_ns == kept
    assert "2 of 3 are there already" in capsys.readouterr().out
    convert(any_to_any, corpus["test"], tmp_path, "--target", "ann")
    assert (
        json.loads((tmp_path / "convert.json").read_text())["timing"]["audio_s"]
        < (timing["audio_s"])
    )
    words = ["--model", str(any_to_any), "--input", corpus["test"], "--output", str(tmp_path)]
    assert convert_voice.main([*words, "--target", "bob"]) == 2
    assert "target: found 'bob', before 'ann'" in capsys.readouterr().err


def test_bad_recordings_do_not_end_the_run_and_odd_ones_are_converted(
    any_to_one: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    wave = spoken(220.0, 0.6, 1)
    soundfile.write(folder / "plain.wav", wave, 16000)
    soundfile.write(folder / "deep" / "plain.flac", wave, 16000)
    soundfile.write(folder / "silence.wav", np.zeros(8000), 16000)
    soundfile.write(folder / "short.wav", wave[:1600], 16000)
    soundfile.write(folder / "clipped.wav", np.clip(50 * wave, -1, 1), 16000)
    time = np.arange(26460) / 44100
    tone = 0.2 * np.sin(2 * np.pi * 200 * time)
    soundfile.write(folder / "stereo.wav", np.stack([tone, 0.5 * tone], -1), 44100)
    soundfile.write(folder / "tiny.wav", wave[:100], 16000)
    soundfile.write(folder / "empty.wav", wave[:0], 16000)
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), 16000, "FLOAT")
    (folder / "torn.flac").write_bytes((folder / "deep" / "plain.flac").read_bytes()[:60])
    found = {
        r["id"]: r for r in convert(any_to_one, str(folder), folder / "out", "--format", "flac")
    }
    assert sorted(found) == ["clipped", "deep/plain", "plain", "short", "silence", "stereo"]
    assert {r["target"] for r in found.values()} == {"bob"}
    for name, r in found.items():
        made, rate = soundfile.read(folder / "out" / r["audio"])
        assert rate == 16000 and np.isfinite(made).all()
        assert len(made) == {"silence": 8000, "short": 1600}.get(name, 9600)
        assert (np.abs(made).max() > 1e-3) == (name != "silence")
    assert found["silence"]["silent"] is True and "silent" not in found["plain"]
    skipped = (folder / "out" / "skipped.txt").read_text()
    for name in ("tiny.wav", "empty.wav", "nan.wav", "torn.flac"):
        assert name in skipped
    shown = capsys.readouterr().err
    for name in ("tiny.wav: found 100 samples", "empty.wav: found no", "nan.wav: found NaN"):
        assert name in shown
    # Files that an earlier run wrote below the input are no input.
    assert len(convert(any_to_one, str(folder), folder / "out", "--format", "flac")) == 6
    nothing = ["--model", str(any_to_one), "--input", str(folder / "tiny.wav"),
               "--output", str(tmp_path / "x")]  # fmt: skip
    assert convert_voice.main(nothing) == 1
    capsys.readouterr()


def test_a_stranger_is_a_target_by_his_recording(
    corpus: dict[str, str], any_to_any: Path, verifier: Path, tmp_path: Path
) -> None:
    folder = Path(corpus["train"]).parent
    given = ["--verifier", str(verifier), "--target_audio", f"[{folder}/train0.wav]"]
    found = convert(any_to_any, corpus["test"], tmp_path / "a", *given)
    assert {r["target"] for r in found} == {"train0"}
    other = convert(any_to_any, corpus["test"], tmp_path / "b", "--target", "bob")
    waves = [soundfile.read(tmp_path / n / r[0]["audio"])[0]
             for n, r in (("a", found), ("b", other))]  # fmt: skip
    assert np.abs(waves[0] - waves[1]).max() > 1e-3


def test_neighbours_of_the_targets_recordings_replace_the_sources_frames(
    corpus: dict[str, str], any_to_one: Path, tmp_path: Path
) -> None:
    folder = Path(corpus["test"]).parent
    own = f"[{folder}/test0.wav]"
    plain = convert(any_to_one, f"{folder}/test0.wav", tmp_path / "plain")
    # The only nearest frame of a frame among its own recording's is itself.
    same = convert(any_to_one, f"{folder}/test0.wav", tmp_path / "same", "--knn", own,
                   "--knn_k", "1", "--target", "bob")  # fmt: skip
    other = convert(any_to_one, f"{folder}/test0.wav", tmp_path / "other",
                    "--knn", f"[{folder}/test1.wav]", "--target", "bob")  # fmt: skip
    waves = [soundfile.read(tmp_path / n / r[0]["audio"])[0]
             for n, r in (("plain", plain), ("same", same), ("other", other))]  # fmt: skip
    assert np.abs(waves[0] - waves[1]).max() < 1e-3
    assert np.abs(waves[0] - waves[2]).max() > 1e-3


def test_units_of_a_cluster_folder_are_converted(
    corpus: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    encoder = MEL.build()
    features = {"kind": "encoder", "layer": 0, "model_hash": weights_hash(encoder)}
    centroids = torch.randn(12, 20, generator=torch.Generator().manual_seed(0)) - 5
    book = Codebook(centroids, Normaliser(), {"features": features, "frame_rate_hz": 100})
    save_codebook(tmp_path / "clusters", book)
    head = {"clusters": str(tmp_path / "clusters"), "unit_embedding_dim": 8}
    model = train(tmp_path / "units", corpus["one"], head)
    config: Any = open_model(model).head.config
    assert (config.units, config.unit_dim, config.layer) == (12, 20, 0)
    found = convert(model, corpus["test"], tmp_path / "out")
    assert len(found) == 3
    other = features | {"model_hash": "x"}
    book = Codebook(centroids, Normaliser(), {"features": other, "frame_rate_hz": 100})
    save_codebook(tmp_path / "other", book)
    words = ["--config", str(tmp_path / "units" / "config.yaml"), "--output", str(tmp_path / "y"),
             "--head.clusters", str(tmp_path / "other")]  # fmt: skip
    assert finetune.main(words) == 2
    assert "clusters: found those of a model of hash x" in capsys.readouterr().err


def converter(kind: type, seconds: float, overlap: float, **changes: Any) -> Converter:
    torch.manual_seed(2)
    small = (
        SIZES
        if kind is VoiceConvNextConfig
        else {"conv_dim": 16, "blstm_dim": 8, "prenet_dim": 8, "lstm_dim": 16, "lstm_projection": 8}
    )
    head = kind(**(small | changes)).build(LogMelConfig(mel_bins=20).build())
    head.take_mel_statistics(torch.full((80,), -6.0), torch.full((80,), 2.0))
    plan = Plan(batch_seconds=1.0, chunk_seconds=seconds, overlap_seconds=overlap)
    pitch = (5.0, 0.2) if head.config.pitch else None
    return Converter(head, GriffinLim(), Target(pitch=pitch), plan, torch.device("cpu"))


@pytest.mark.parametrize("kind", [VoiceConvNextConfig, VoiceTaco2ArConfig])
def test_pieces_are_those_of_the_whole(kind: type) -> None:
    wave = spoken(150.0, 3.33, 4)
    changes = {"pitch": True, "energy": True}
    whole = converter(kind, 10.0, 0.5, **changes).log_mels([wave])[0]
    pieces = converter(kind, 1.4, 0.5, **changes).log_mels([wave])[0]
    assert whole.shape == pieces.shape == (334, 80)
    # Convolutions reach less far than the overlap; feedback forgets, but not wholly.
    close = 1e-4 if kind is VoiceConvNextConfig else 0.02
    assert float((whole - pieces).abs().max()) < close
    assert float((whole - pieces.roll(1, 0)).abs().max()) > 0.05


def test_a_wave_is_converted_alike_alone_and_among_others() -> None:
    waves = [spoken(150.0, s, 4) for s in (0.4, 0.9, 0.55, 2.0)]
    convert_them = converter(VoiceTaco2ArConfig, 1.4, 0.5, pitch=True)
    together = convert_them.log_mels(waves)
    for i, wave in enumerate(waves):
        assert torch.allclose(together[i], convert_them.log_mels([wave])[0], atol=1e-4)


def test_a_long_recording_on_disk_is_converted_as_one_in_memory(
    tmp_path: Path, monkeypatch: Any
) -> None:
    soundfile.write(tmp_path / "x.wav", spoken(150.0, 2.5, 3), 16000)
    convert_them = converter(VoiceConvNextConfig, 1.4, 0.5, pitch=True, energy=True)
    found = []
    for seconds in (300, 1):
        monkeypatch.setattr(audio, "LONG_SECONDS", seconds)
        wave = audio.to_wave(*audio.read_file(tmp_path / "x.wav"), want_rate=16000)
        found.append(convert_them.log_mels([wave])[0])
    assert torch.equal(found[0], found[1])


def test_another_input_adds_to_what_is_there(
    corpus: dict[str, str], any_to_one: Path, tmp_path: Path
) -> None:
    first = convert(any_to_one, corpus["test"], tmp_path / "out")
    sound = (tmp_path / "out" / first[0]["audio"]).read_bytes()
    soundfile.write(tmp_path / "test0.wav", spoken(150.0, 0.4, 9), 16000)  # the name of a cut
    second = convert(any_to_one, str(tmp_path / "test0.wav"), tmp_path / "out")
    assert second[1:] == first and second[0]["id"].startswith("test0-")
    assert (tmp_path / "out" / first[0]["audio"]).read_bytes() == sound
    with gzip.open(tmp_path / "out" / "cuts.jsonl.gz", "rt") as lines:
        cuts = [json.loads(line) for line in lines]
    assert [c["id"] for c in cuts] == [r["id"] for r in second]
    assert cuts[1]["supervisions"][0]["text"] == "TEXT 0"


def test_silence_alone_is_silence() -> None:
    found = converter(VoiceConvNextConfig, 10.0, 1.0)([np.zeros(8000, np.float32)])
    assert len(found[0]) == 8000 and not found[0].any()


def test_a_model_that_gives_nan_is_an_error_not_audio() -> None:
    broken = converter(VoiceConvNextConfig, 10.0, 1.0)
    broken.head.output.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        broken([spoken(150.0, 0.3, 1)])


@pytest.mark.parametrize(
    ("which", "words", "message"),
    [
        ("any", [], "target: found none, want one of the 2 speakers of the model: ann, bob"),
        ("any", ["--target", "carl"], "target: found 'carl', want one of the 2 speakers"),
        ("one", ["--target", "ann"], "want one of the 1 speakers of the model: bob"),
        ("one", ["--target_audio", "[x.wav]", "--verifier", "VERIFIER"], "has one voice"),
        ("any", ["--target_audio", "[x.wav]", "--verifier", "VERIFIER"], "target_audio: audio"),
        ("any", ["--target", "ann", "--vocoder", "nowhere"], "vocoder: found no model.json"),
        ("any", ["--target", "ann", "--knn", "[nowhere]"], "knn: audio: 'nowhere' matches no"),
        ("verifier", [], "model: found a SpeakerHead"),
    ],
)
def test_mistakes_are_named(
    any_to_any: Path, any_to_one: Path, verifier: Path, corpus: dict[str, str], tmp_path: Path,
    capsys: Any, which: str, words: list[str], message: str,
) -> None:  # fmt: skip
    model = {"any": any_to_any, "one": any_to_one, "verifier": verifier}[which]
    words = [str(verifier) if w == "VERIFIER" else w for w in words]
    given = ["--model", str(model), "--input", corpus["test"], "--output", str(tmp_path / "o")]
    assert convert_voice.main([*given, *words]) == 2
    assert message in capsys.readouterr().err


def test_mistakes_in_training_are_named(
    corpus: dict[str, str], any_to_any: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["--config", str(any_to_any.parent / "config.yaml"), "--output", str(tmp_path / "x")]
    assert finetune.main([*words, "--head.embeddings", str(tmp_path)]) == 2
    assert "embeddings: found no embeddings.npy" in capsys.readouterr().err
    folder = tmp_path / "e"
    folder.mkdir()
    np.save(folder / "embeddings.npy", np.ones((1, 8), np.float32))
    (folder / "embeddings.jsonl").write_text('{"id": "a", "speaker": "ann"}\n')
    assert finetune.main([*words, "--head.embeddings", str(folder)]) == 2
    assert "of bob (1 of 2 training speakers)" in capsys.readouterr().err
    assert finetune.main([*words, "--cache", str(tmp_path / "c")]) == 2
    assert "reads waves beside features" in capsys.readouterr().err
