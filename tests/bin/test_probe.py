"""`speechssl probe` on generated tones: phones are tones, speakers hum in the background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from speechssl.bin import probe, probe_measure
from speechssl.encoders.transformer import TransformerConfig
from speechssl.model_file import save_model

TONES = {"a": 400.0, "b": 900.0, "c": 2000.0, "d": 4500.0}
HUMS = (150.0, 250.0, 600.0, 1300.0, 3000.0, 6000.0)
SMALL = ("--sample_frames", 1500, "--classes", 12, "--l2", "[0.01]", "--iterations", 12)


def make_corpus(
    folder: Path, *, speakers: bool = True, phones: bool = True, utterances: int = 6
) -> Path:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.supervision import AlignmentItem

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cuts = []
    for number in range(len(HUMS) * utterances):
        hum, waves, items, words = HUMS[number % len(HUMS)], [], [], []
        for at in range(6):
            phone = str(rng.choice(list(TONES)))
            time = np.arange(3200) / 16000
            waves.append(0.3 * np.sin(2 * np.pi * TONES[phone] * time + rng.uniform(0, 6)))
            items.append(AlignmentItem(phone, 0.2 * at, 0.2))
            if at % 2:  # a word is two tones
                name = items[-2].symbol + phone
                words.append(AlignmentItem(name, 0.2 * (at - 1), 0.4))
        wave = np.concatenate(waves) + 0.003 * rng.standard_normal(6 * 3200)
        wave += 0.05 * np.sin(2 * np.pi * hum * np.arange(len(wave)) / 16000)
        name = f"u{number}"
        soundfile.write(folder / f"{name}.wav", wave, 16000)
        recording = Recording.from_file(folder / f"{name}.wav", recording_id=name)
        supervision = SupervisionSegment(
            name, name, 0.0, recording.duration,
            speaker=f"s{hum:g}" if speakers else None,
            alignment={"phone": items, "word": words} if phones else None,
        )  # fmt: skip
        cuts.append(MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording))
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


ENCODER = TransformerConfig(
    front_end="log_mel", front_dim=16, layers=2, dim=32, ffn_dim=48, heads=4
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, ENCODER, ENCODER.build().state_dict(), provenance={"step": 7, "config": {}})
    return folder


def run(output: Path, *words: object) -> dict[str, Any]:
    assert probe.main([str(w) for w in (*words, "--output", output)]) == 0
    return json.loads((output / "probe.json").read_text())


def test_log_mel_knows_tones_and_hums(corpus: Path, tmp_path: Path, capsys) -> None:
    found = run(tmp_path, "--cuts", f"[{corpus}]", "--features", "logmel", *SMALL)
    (row,) = found["layers"]
    assert row["layer"] == 0 and row["cka_mel"] == pytest.approx(1, abs=1e-6)
    assert row["cca_mel"] == pytest.approx(1, abs=1e-3) and "cca_first" not in row
    # The mean of a tone tells which it is; that of two tells which two, not in which order.
    assert row["cca_phone"] > 0.8 > row["cca_word"] > 0.3
    assert 0 < row["cka_word"] < row["cka_phone"] < 1
    assert found["segments"]["phone"] == {"segments": 216, "classes": 4}
    assert found["segments"]["word"]["segments"] <= 108
    assert 1 < row["rankme"] < 80 and 1 < row["effective_rank"] < 80
    assert row["phone_accuracy"] > 0.9 and row["speaker_accuracy"] > 0.9 and row["pnmi"] > 0.8
    # 4 tones and 6 hums in equal shares; shuffled labels teach nothing.
    assert 0.1 < row["phone_chance"] < 0.5 and abs(row["phone_control"] - 0.25) < 0.2
    assert found["chance"]["speaker"] == pytest.approx(1 / 6)
    # Of 6 speakers one each to choose and to test; of 6 utterances of each likewise.
    assert row["speaker_points"] == [24, 6, 6] and row["phone_classes"] == 4
    assert found["data"]["utterances"] == 36 and found["data"]["frames"] == 1500
    shown = capsys.readouterr().out
    assert "logmel: 100 frames per second" in shown and "RankMe" in shown
    assert found["notes"] == []
    assert found["options"]["features"] == "logmel" and found["made_by"]["speechssl"]


def test_every_layer_of_a_model_is_probed(corpus: Path, model: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "--cuts", f"[{corpus}]", "--model", model, *SMALL)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    cka = np.array(found["cka"])
    assert cka.shape == (3, 3) and np.allclose(cka, cka.T) and np.allclose(cka.diagonal(), 1)
    assert ((cka > 0) & (cka <= 1 + 1e-9)).all() and cka[0, 1] < 1
    for row in found["layers"]:
        assert 0 < row["cka_mel"] < 1 and 0 < row["pnmi"] <= 1
        assert 0 < row["cca_mel"] < 1 and ("cca_first" in row) == (row["layer"] > 0)
        assert row["phone_accuracy"] > 2 * row["phone_chance"] - 0.1
    assert set(found["best"]) == {"pnmi", "phone_dev_accuracy", "speaker_dev_accuracy"}
    upstream = found["upstream"]
    assert upstream["kind"] == "model" and upstream["provenance"] == {"step": 7}
    assert len(upstream["weights_hash"]) == 32 and found["frame_rate_hz"] == 50
    chosen = run(tmp_path / "b", "--cuts", f"[{corpus}]", "--model", model, "--layers", "2", *SMALL)
    (row,) = chosen["layers"]
    assert row["rankme"] == pytest.approx(found["layers"][2]["rankme"], rel=1e-6)


def test_batches_and_workers_do_not_matter(corpus: Path, model: Path, tmp_path: Path) -> None:
    words = ("--cuts", f"[{corpus}]", "--model", model, "--layers", "1", *SMALL)
    one = run(tmp_path / "a", *words)["layers"][0]
    two = run(tmp_path / "b", *words, "--max_batch_seconds", 3)["layers"][0]
    for name in ("rankme", "cka_mel", "phone_accuracy", "speaker_accuracy"):
        assert one[name] == pytest.approx(two[name], rel=1e-3), name


def test_a_transformers_folder_is_an_upstream(corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.HubertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.HubertModel(config).save_pretrained(tmp_path / "public")
    settings = {"do_normalize": False, "sampling_rate": 16000}
    (tmp_path / "public/preprocessor_config.json").write_text(json.dumps(settings))
    found = run(tmp_path, "--cuts", f"[{corpus}]", "--model", tmp_path / "public", *SMALL)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2] and found["dim"] == 24
    assert found["upstream"]["provenance"]["format"] == "transformers"


def test_random_weights_follow_from_their_seed(corpus: Path, tmp_path: Path) -> None:
    from speechssl.config import to_dict
    from speechssl.labels.features import weights_hash

    plain = {"encoder": to_dict(ENCODER)}
    path = "speechssl.objectives.hubert.HubertConfig"
    whole = {"objective": {"class_path": path, "init_args": plain}, "train": {"steps": 3}}
    for name, values in (("tuning", plain), ("tiny", whole)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    hashes = [
        weights_hash(probe.random_encoder(str(tmp_path / f"{name}.yaml"), seed))
        for name, seed in (("tuning", 1), ("tiny", 1), ("tiny", 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    words = ("--cuts", f"[{corpus}]", "--random", tmp_path / "tiny.yaml", "--layers", "1")
    found = run(tmp_path / "o", *words, *SMALL, "--random_seed", 2)
    assert found["upstream"]["weights_hash"] == hashes[2]
    assert found["upstream"]["kind"] == "random" and found["upstream"]["seed"] == 2


def test_what_has_no_labels_is_left_out_and_named(tmp_path: Path, capsys) -> None:
    bare = make_corpus(tmp_path / "bare", speakers=False, phones=False, utterances=1)
    found = run(tmp_path / "o", "--cuts", f"[{bare}]", "--features", "mfcc", *SMALL)
    (row,) = found["layers"]
    assert row["rankme"] > 1 and 0 < row["cka_mel"] < 1
    assert not {
        "pnmi",
        "phone_accuracy",
        "speaker_accuracy",
        "cca_mel",
        "cca_phone",
        "cka_word",
    } & (row.keys())
    assert found["best"] == {} and found["segments"] == {}
    notes, shown = " ".join(found["notes"]), capsys.readouterr().out
    for part in ("PNMI: found 0 frames", "phones: found 0 speakers", "speakers: found 0 speakers",
                 "CKA and CCA with words: found 0", "CCA: found 6 utterances"):  # fmt: skip
        assert part in notes and f"note: {part}" in shown
    spoken = make_corpus(tmp_path / "spoken", speakers=False, utterances=1)
    found = run(tmp_path / "p", "--cuts", f"[{spoken}]", "--features", "mfcc", *SMALL)
    assert "some speakers are not known" in " ".join(found["notes"])
    assert found["layers"][0]["phone_accuracy"] > 0.5


def test_few_frames_are_told(corpus: Path, tmp_path: Path) -> None:
    words = ("--cuts", f"[{corpus}]", "--features", "mfcc", *SMALL, "--sample_frames", 300)
    assert "found 300 frames at width 39, want 390" in run(tmp_path, *words)["notes"][0]


def test_no_speaker_and_no_utterance_is_in_two_parts(corpus: Path, tmp_path: Path) -> None:
    from speechssl.labels.probe_sample import ProbeCut, ProbeSample

    cuts = [ProbeCut(f"u{i}", f"s{i % 5}", (), {}) for i in range(20)]
    cuts += [ProbeCut("lonely", "s9", (), {})]
    number = np.arange(21).repeat(4)
    sample = ProbeSample(
        [], torch.zeros(84, 80), np.arange(84), np.tile([0, 1, -1, 2], 21), number, [],
        np.arange(21), 84,
    )  # fmt: skip
    config = probe.ProbeConfig(cuts=["x"], output="o", features="mfcc")
    notes: list[str] = []
    rows, phones, parts, _ = probe_measure.parts_by_speaker(config, cuts, sample, notes)
    assert len(rows) == 63 and set(phones) == {0, 1, 2}
    where = [{cuts[number[r]].speaker for r in rows[parts == p]} for p in range(3)]
    assert all(where) and not (where[0] & where[1] or where[0] & where[2] or where[1] & where[2])
    rows, speakers, parts, _ = probe_measure.parts_by_utterance(config, cuts, sample, notes)
    assert sorted(rows) == list(range(20)) and len(set(rows)) == 20
    for speaker in range(5):
        assert sorted(parts[speakers == speaker]) == [0, 0, 1, 2]
    assert notes == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found none, want one upstream"),
        (["--model", "m", "--features", "mfcc"], "found model and features, want one upstream"),
        (["--model", "m", "--cmvn", "true"], "cmvn"),
        (["--features", "mfcc", "--layers", "1"], "layers: found some with features"),
        (["--features", "mel"], "features"),
        (["--features", "mfcc", "--classes", "0"], "classes: found 0"),
        (["--features", "mfcc", "--l2", "[]"], "l2: found"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        probe.main(["--cuts", "[x]", "--output", "o", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_wrong_files_are_named(corpus: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.yaml").write_text("data: {}\ntrain: {}\n")
    for words, message in (
        (("--cuts", "[absent.jsonl.gz]", "--features", "mfcc"), "found no file absent.jsonl.gz"),
        (("--cuts", f"[{corpus}]", "--random", tmp_path / "x.yaml"), "has data, train, want an"),
        (("--cuts", f"[{corpus}]", "--random", tmp_path / "y.yaml"), "random: found no"),
        (("--cuts", f"[{corpus}]", "--model", tmp_path / "nothing"), "neither a folder nor a file"),
    ):
        assert probe.main([str(w) for w in (*words, "--output", tmp_path / "o")]) == 1
        assert message in capsys.readouterr().err


CONF = Path(__file__).parents[2] / "egs/mini/objectives/conf"


@pytest.mark.parametrize(
    "name", ["data2vec2", "mr_hubert", "vq_wav2vec", "discrete_bert", "bestrq_conformer"]
)
def test_every_kind_of_encoder_has_layers_in_step(name: str) -> None:
    """Also one of several rates, and one without a Transformer."""
    from speechssl.contract import Batch

    config = probe.ProbeConfig(cuts=["x"], output="o", random=str(CONF / f"{name}.yaml"))
    upstream = probe.open_upstream(config, torch.device("cpu"))
    wave = 0.1 * torch.randn(2, 16000)
    wave[1, 9000:] = 0
    batch = Batch(wave, torch.tensor([16000, 9000]), {}, {}, torch.zeros(2), ("a", "b"))
    found = upstream.layers(batch)
    assert len(found) == len(upstream.numbers) == upstream.numbers[-1] + 1 > 3
    for row, samples in enumerate((16000, 9000)):
        shapes = {layer[row].shape for layer in found}
        ((frames, width),) = shapes
        expected = (samples / 16000 - upstream.window_seconds) * upstream.frame_rate_hz + 1
        assert width == upstream.dim and abs(frames - expected) < 1
