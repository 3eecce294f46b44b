"""`speechssl.load`: own folders, transformers folders, the local cache; all else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import speechssl
from speechssl.data.text import tokenizer_from_texts
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.model_file import save_model

SMALL = TransformerConfig(
    layers=2, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4
)
THEIRS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


def _wave(samples: int = 8000) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(samples) * 0.1).astype(np.float32)


def _save_own(folder: Path, **more: object) -> None:
    save_model(folder, SMALL, SMALL.build().state_dict(), **more)  # pyright: ignore


def test_an_own_folder_opens_and_extracts(tmp_path: Path) -> None:
    _save_own(tmp_path / "exp", provenance={"steps": 7})
    for name in ("exp", "exp/model.json", "exp/model.safetensors"):
        model = speechssl.load(tmp_path / name)
        assert model.num_layers == 2 and model.provenance == {"steps": 7}
    features = model.extract((_wave(), 16000), layers=[1])[0]
    assert features.hidden[1].shape == (24, 32)
    assert "layers 0 to 2 of width 32" in repr(model) and "recogniser: none" in repr(model)
    with pytest.raises(ValueError, match="no CTC head"):
        model.transcribe((_wave(), 16000))


def test_log_mel_frames_are_a_model_too(tmp_path: Path) -> None:
    """The baseline of probes and tasks: no parameter, no layer beside its input."""
    config = LogMelConfig(mel_bins=23, deltas=0)
    encoder = config.build()
    save_model(tmp_path, config, encoder.state_dict())
    wave = _wave()
    hidden = speechssl.load(tmp_path).extract((wave, 16000))[0].hidden
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(wave)[None], torch.tensor([len(wave)])).last[0]
    assert list(hidden) == [0]
    np.testing.assert_allclose(hidden[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("upsample", [1, 2])
def test_a_recogniser_transcribes(tmp_path: Path, upsample: int) -> None:
    tokenizer = tokenizer_from_texts(["AB BA"], kind="letters")
    config = CtcConfig(vocab_size=tokenizer.size, upsample=upsample)
    head = config.build(SMALL.build())
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(
        tmp_path, SMALL, head.encoder.state_dict(),
        head_config=config, head_state=own, tokenizer=tokenizer.to_dict(),
    )  # fmt: skip
    model = speechssl.load(tmp_path)
    waves = [(_wave(n), 16000) for n in (16000, 4000)]
    found = model.transcribe(waves)
    for (wave, _), text in zip(waves, found, strict=True):
        scores, lengths = head.eval().log_probs(torch.tensor(wave)[None], torch.tensor([len(wave)]))  # pyright: ignore
        best = scores[0, : lengths[0]].argmax(-1).tolist()
        joined = [b for a, b in zip([0, *best], best) if b != a and b != 0]
        assert text == tokenizer.decode(joined)
    assert any(found)


@pytest.mark.parametrize("kind", ["Hubert", "WavLM"])
def test_a_transformers_folder_gives_the_same_hidden_states(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**THEIRS))
    theirs.eval().save_pretrained(tmp_path)
    model = speechssl.load(tmp_path, settings={"do_normalize": False})
    wave = _wave(12345)
    found = model.extract((wave, 16000))[0]
    with torch.no_grad():
        want = theirs(torch.tensor(wave)[None], output_hidden_states=True).hidden_states
    assert len(want) == 3
    for layer, hidden in enumerate(want):
        np.testing.assert_allclose(found.hidden[layer], hidden[0].numpy(), atol=1e-4)


def test_a_transformers_recogniser_transcribes_with_its_vocabulary(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFG"]
    config = transformers.HubertConfig(**THEIRS, vocab_size=len(symbols), pad_token_id=0)
    theirs = transformers.HubertForCTC(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    wave = _wave(32000)
    with torch.no_grad():
        best = theirs(torch.tensor(wave)[None]).logits[0].argmax(-1).tolist()
    joined = [b for a, b in zip([0, *best], best) if b != a and b != 0]
    text = "".join(" " if symbols[i] == "|" else symbols[i] for i in joined if i == 4 or i > 4)
    model = speechssl.load(tmp_path, settings={"do_normalize": False})
    assert model.transcribe((wave, 16000)) == [" ".join(text.split())]


def test_a_public_name_is_looked_up_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hf download someone/hubert-tiny"):
        speechssl.load("someone/hubert-tiny")
    folder = tmp_path / "models--someone--hubert-tiny"
    _save_own(folder / "snapshots" / "abc")
    _save_own(folder / "snapshots" / "other")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert speechssl.load("someone/hubert-tiny").name.endswith("abc")


def test_other_folders_are_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds nothing; want an experiment folder"):
        speechssl.load(tmp_path)
    (tmp_path / "weights.ckpt").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"holds checkpoints, weights.ckpt; .*speechssl export"):
        speechssl.load(tmp_path)
    with pytest.raises(ValueError, match=r"weights\.ckpt: found no torch file"):
        speechssl.load(tmp_path / "weights.ckpt")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="found the file"):
        speechssl.load(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="neither a folder nor a file"):
        speechssl.load(tmp_path / "a" / "b" / "c")


def test_a_folder_of_another_model_names_the_tensors(tmp_path: Path) -> None:
    _save_own(tmp_path)
    info = json.loads((tmp_path / "model.json").read_text())
    info["encoder"]["init_args"]["layers"] = 1
    (tmp_path / "model.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"unexpected layers\.1"):
        speechssl.load(tmp_path)


def test_importing_speechssl_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import speechssl, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
