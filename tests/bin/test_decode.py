"""From cuts to hypotheses: a recogniser that knows some tone sentences by heart is decoded."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechssl.bin import decode, lm, score
from speechssl.contract import Batch
from speechssl.data.text import Tokenizer, tokenizer_from_texts
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.model_file import save_model

WORDS = ["AB", "BA", "CAB", "DAD"]
TONES_HZ = {" ": 0, "A": 300, "B": 700, "C": 1500, "D": 3000}
ENCODER = TransformerConfig(
    front_end="log_mel", front_norm="layer", front_dim=32, layers=1, dim=48, ffn_dim=96, heads=4,
    pos_conv_kernel=8, pos_conv_groups=4, dropout=0.0, attention_dropout=0.0, input_dropout=0.0,
    layerdrop=0.0, conv_gradient_scale=1.0,
)  # fmt: skip


def tones(text: str) -> np.ndarray:
    time_s = np.arange(1920) / 16000
    parts = []
    for char in text:
        parts.append(np.sin(2 * np.pi * TONES_HZ[char] * time_s) * (TONES_HZ[char] > 0))
        parts.append(np.zeros(640))
    wave = np.concatenate(parts) * 0.3
    return (wave + 1e-3 * np.random.default_rng(len(text)).standard_normal(len(wave))).astype("f4")


def write_cuts(folder: Path, name: str, texts: list[str]) -> Path:
    lines = []
    for i, text in enumerate(texts):
        key = f"{name}{i}"
        wave = tones(text)
        soundfile.write(folder / f"{key}.wav", wave, 16000)
        duration = len(wave) / 16000
        supervision = {
            "id": key, "recording_id": key, "start": 0.0, "duration": duration, "channel": 0,
            "text": text, "speaker": f"s{i % 2}", "language": "en" if i else None,
        }  # fmt: skip
        source = {"type": "file", "channels": [0], "source": str(folder / f"{key}.wav")}
        recording = {
            "id": key, "sources": [source], "sampling_rate": 16000, "num_samples": len(wave),
            "duration": duration, "channel_ids": [0],
        }  # fmt: skip
        cut = {
            "id": key, "start": 0.0, "duration": duration, "channel": 0, "type": "MonoCut",
            "supervisions": [supervision], "recording": recording,
        }  # fmt: skip
        lines.append(json.dumps(cut) + "\n")
    path = folder / f"cuts_{name}.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(lines)
    return path


def train(texts: list[str], tokenizer: Tokenizer, folder: Path) -> None:
    torch.manual_seed(0)
    config = CtcConfig(vocab_size=tokenizer.size, mask_probability=0.0, freeze_front_end=False)
    head = config.build(ENCODER.build())
    waves = [torch.from_numpy(tones(t)) for t in texts]
    ids = [torch.tensor(tokenizer.encode(t)) for t in texts]
    batch = Batch(
        wave=torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        wave_lengths=torch.tensor([len(w) for w in waves]),
        targets={"text": torch.cat(ids), "text_lengths": torch.tensor([len(i) for i in ids])},
        views={},
        seeds=torch.arange(len(waves)),
        ids=tuple(texts),
    )
    optimiser = torch.optim.Adam(head.parameters(), lr=4e-3)
    for _ in range(150):
        loss = head(batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        if float(loss.total.detach() / loss.count) < 0.02:
            break
    state = head.state_dict()
    save_model(
        folder,
        ENCODER,
        head.encoder.state_dict(),
        head_config=config,
        head_state={k: v for k, v in state.items() if not k.startswith("encoder.")},
        tokenizer=tokenizer.to_dict(),
    )


@dataclasses.dataclass(frozen=True)
class Trained:
    folder: Path
    cuts: Path
    texts: list[str]

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def run(self, output: Path, *more: str) -> list[dict]:
        argv = ["--model", self.model, "--cuts", str(self.cuts), "--output", str(output), *more]
        assert decode.main(argv) == 0
        return [json.loads(line) for line in (output / "hyp.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("decode")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(12)]
    train(texts, tokenizer_from_texts(texts), folder / "model")
    return Trained(folder, write_cuts(folder, "test", texts), texts)


def test_greedy_decoding_hears_what_was_learnt_in_manifest_order(
    trained: Trained, tmp_path: Path
) -> None:
    rows = trained.run(tmp_path)
    assert [r["ref"] for r in rows] == trained.texts
    assert [r["id"] for r in rows] == [f"test{i}" for i in range(12)]
    assert sum(r["hyp"] == r["ref"] for r in rows) >= 10
    assert {r["speaker"] for r in rows} == {"s0", "s1"}
    assert [r.get("language") for r in rows] == [None] + 11 * ["en"]
    assert "language" not in rows[0]
    info = json.loads((tmp_path / "decode.json").read_text())
    assert info["method"] == "greedy" and info["utterances"] == 12 and info["skipped"] == []
    assert info["timing"]["rtf"] > 0
    assert score.main(["--decode", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["wer"] < 0.1
    stale = ("segments.jsonl", "slots.jsonl", "values.jsonl", "estimates.jsonl", "hyp.rttm",
             "predictions.jsonl", "embeddings.npy", "embeddings.jsonl")  # fmt: skip
    for name in stale:  # what other models left there
        (tmp_path / name).write_text("{}\n")
    trained.run(tmp_path)  # a new decoding leaves no old scores beside it
    assert not any((tmp_path / name).exists() for name in (*stale, "results.json"))
    assert score.main(["--decode", str(tmp_path)]) == 0
    assert "wer" in json.loads((tmp_path / "results.json").read_text())


def test_batching_does_not_change_what_is_heard(trained: Trained, tmp_path: Path) -> None:
    many = trained.run(tmp_path / "many")
    assert trained.run(tmp_path / "one", "--max_batch_seconds", "0.1") == many


def make_lm(trained: Trained, folder: Path) -> list[str]:
    argv = ["--cuts", str(trained.cuts), "--order", "2", "--output", str(folder / "lm.arpa")]
    argv += ["--lexicon", str(folder / "lexicon.txt"), "--tokenizer", trained.model]
    assert lm.main(argv) == 0
    return ["--lm", str(folder / "lm.arpa"), "--lexicon", str(folder / "lexicon.txt")]


def test_beam_with_lexicon_and_language_model(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    resources = make_lm(trained, tmp_path)
    lexicon = (tmp_path / "lexicon.txt").read_text().splitlines()
    assert "CAB\tC A B" in lexicon and len(lexicon) == 4
    rows = trained.run(tmp_path / "out", "--method", "beam", "--nbest", "3", *resources)
    assert sum(r["hyp"] == r["ref"] for r in rows) >= 10
    assert all(set(r["hyp"].split()) <= set(WORDS) for r in rows)
    assert all(r["nbest"][0] == r["hyp"] and len(r["nbest"]) <= 3 for r in rows)
    assert max(len(r["nbest"]) for r in rows) > 1


def test_a_sweep_finds_the_best_weights_for_a_tuned_run(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    resources = make_lm(trained, tmp_path)
    beam = ["--method", "beam", *resources]
    grid = ["--lm_weights", "[1, 200]", "--word_scores", "[0, -300]"]
    trained.run(tmp_path / "sweep", *beam, "--sweep", "true", *grid)
    best = json.loads((tmp_path / "sweep" / "best.json").read_text())
    assert (best["lm_weight"], best["word_score"]) == (1.0, 0.0) and len(best["grid"]) == 4
    assert best["wer"] == min(g["wer"] for g in best["grid"]) < max(g["wer"] for g in best["grid"])
    tuned = ["--tuned", str(tmp_path / "sweep" / "best.json"), "--lm_weight", "200"]
    rows = trained.run(tmp_path / "tuned", *beam, *tuned)
    plain = trained.run(tmp_path / "plain", *beam, "--lm_weight", "1")
    assert rows == plain
    assert json.loads((tmp_path / "tuned" / "decode.json").read_text())["lm_weight"] == 1.0


def test_a_model_over_letters_serves_a_beam_without_lexicon(
    trained: Trained, tmp_path: Path
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    argv = ["--cuts", str(trained.cuts), "--output", str(tmp_path / "lm.arpa")]
    assert lm.main([*argv, "--unit", "token", "--tokenizer", trained.model]) == 0
    rows = trained.run(tmp_path / "out", "--method", "beam", "--lm", str(tmp_path / "lm.arpa"))
    assert sum(r["hyp"] == r["ref"] for r in rows) >= 10


def test_unreadable_and_too_short_audio_is_skipped_and_named(
    trained: Trained, tmp_path: Path
) -> None:
    cuts = write_cuts(tmp_path, "bad", ["AB", "CAB", "DAD", "BA"])
    (tmp_path / "bad1.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "bad2.wav", np.zeros(50, dtype="f4"), 16000)
    argv = ["--model", trained.model, "--cuts", str(cuts), "--output", str(tmp_path / "out")]
    assert decode.main(argv) == 0
    info = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert info["utterances"] == 2
    assert [entry.split(":")[0] for entry in info["skipped"]] == ["bad1", "bad2"]


def test_wrong_options_are_named(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", trained.model, "--output", str(tmp_path), "--cuts"]
    with pytest.raises(SystemExit):
        decode.main([*base, str(trained.cuts), "--lm", "x.arpa"])
    assert "method beam" in capsys.readouterr().err
    assert decode.main([*base, str(tmp_path / "none.jsonl.gz")]) == 2
    assert "none.jsonl.gz" in capsys.readouterr().err
    assert decode.main(["--model", str(tmp_path), *base[2:], str(trained.cuts)]) == 2
    assert "model.json" in capsys.readouterr().err
    save_model(tmp_path / "bare", ENCODER, ENCODER.build().state_dict())
    assert decode.main(["--model", str(tmp_path / "bare"), *base[2:], str(trained.cuts)]) == 2
    assert "recogniser" in capsys.readouterr().err
    assert lm.main(["--cuts", str(tmp_path / "none"), "--output", str(tmp_path / "lm")]) == 2
    assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        lm.main(["--output", str(tmp_path / "lm")])
