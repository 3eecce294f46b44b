"""Models out: other libraries and runtimes compute what we compute; parity is reported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import speechssl
from speechssl.bin.export import main
from speechssl.data.text import tokenizer_from_texts
from speechssl.encoders.graph import EncoderGraph
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.heads.classify import ClassifyConfig
from speechssl.hub.export import write
from speechssl.hub.graph import exported_program
from speechssl.hub.model import Model
from speechssl.hub.parity import parity_report
from speechssl.model_file import save_model

SMALL = TransformerConfig(
    layers=2, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4
)
LAYERED = {"front_norm": "layer", "pre_norm": True, "normalize_wave": True}
KINDS = {
    "base": SMALL,
    "large": dataclasses.replace(SMALL, **LAYERED),
    "wavlm": dataclasses.replace(SMALL, relative_buckets=320),
    "data2vec": dataclasses.replace(
        SMALL, front_norm="layer", pos_conv_depth=3, pos_conv_kernel=7, normalize_wave=True
    ),
}


def _recogniser(folder: Path, **more: object) -> Model:
    torch.manual_seed(0)
    tokenizer = tokenizer_from_texts(["AB BA"], kind="letters")
    config = CtcConfig(vocab_size=tokenizer.size, **more)  # pyright: ignore
    head = config.build(SMALL.build())
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    save_model(
        folder, SMALL, head.encoder.state_dict(),
        head_config=config, head_state=own, tokenizer=tokenizer.to_dict(),
    )  # fmt: skip
    return speechssl.load(folder)


def _batch(sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor(sizes)
    wave = torch.randn(len(sizes), max(sizes), generator=torch.Generator().manual_seed(1))
    return wave, lengths


def _words(texts: list[str]) -> list[str]:
    return texts[0].split()


BATCHES = [(720,), (5003,), (16000, 9000), (720, 33333, 401)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_computes_what_the_encoder_computes(kind: str) -> None:
    encoder = KINDS[kind].build().eval()
    graph = EncoderGraph(encoder, [0, 1, 2])
    for sizes in BATCHES:
        wave, lengths = _batch(sizes)
        with torch.no_grad():
            _same(encoder(wave, lengths), graph(wave, lengths))


def test_an_encoder_with_alibi_has_a_graph_but_no_counterpart(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, alibi=True)
    encoder = config.build().eval()
    wave, lengths = _batch(BATCHES[2])
    with torch.no_grad():
        _same(encoder(wave, lengths), EncoderGraph(encoder, [0, 1, 2])(wave, lengths))
    model = Model(encoder, name="alibi")
    for form in ("transformers", "torchaudio"):
        with pytest.raises(ValueError, match="alibi: found true"):
            write(model, tmp_path / form, form)


def _same(want, found) -> None:  # type: ignore[no-untyped-def]
    assert found[-1].tolist() == want.lengths.tolist()
    for a, b in zip(want.hidden, found, strict=False):
        for row, frames in enumerate(want.lengths.tolist()):
            assert (a[row, :frames] - b[row, :frames]).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_torch_export_and_onnx_agree_at_any_length(kind: str, tmp_path: Path) -> None:
    encoder = KINDS[kind].build().eval()
    program = exported_program(EncoderGraph(encoder, [0, 1, 2])).module()
    for sizes in BATCHES:
        wave, lengths = _batch(sizes)
        with torch.no_grad():
            _same(encoder(wave, lengths), program(wave, lengths))
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = write(Model(encoder), tmp_path, "onnx", layers=[0, 1, 2])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    assert names == ["layer_0", "layer_1", "layer_2", "frame_lengths"]
    for sizes in BATCHES:
        wave, lengths = _batch(sizes)
        found = session.run(None, {"wave": wave.numpy(), "lengths": lengths.numpy()})
        with torch.no_grad():
            _same(encoder(wave, lengths), [torch.from_numpy(x) for x in found])


@pytest.mark.slow
def test_a_recognisers_program_gives_log_probabilities(tmp_path: Path) -> None:
    model = _recogniser(tmp_path / "exp")
    path = write(model, tmp_path / "out", "torch")
    program = torch.export.load(path).module()
    wave, lengths = _batch((16000, 9000))
    with torch.no_grad():
        want, frames = model.head.log_probs(wave, lengths)  # type: ignore[union-attr]
        _, found, _ = program(wave, lengths)
    for row, count in enumerate(frames.tolist()):
        assert (want[row, :count] - found[row, :count]).abs().max() < 1e-4


def test_a_recogniser_goes_to_transformers_and_back_bitwise(tmp_path: Path) -> None:
    model = _recogniser(tmp_path / "exp")
    assert main(["--model", str(tmp_path / "exp"), "--form", "transformers",
                 "--output", str(tmp_path / "theirs")]) == 0  # fmt: skip
    assert main(["--model", str(tmp_path / "theirs"), "--output", str(tmp_path / "again")]) == 0
    again = speechssl.load(tmp_path / "again")
    want = model.head.state_dict()  # type: ignore[union-attr]
    found = again.head.state_dict()  # type: ignore[union-attr]
    assert want.keys() == found.keys()
    assert all(torch.equal(want[k], found[k]) for k in want)
    wave = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    text = model.transcribe((wave, 16000))
    assert text == again.transcribe((wave, 16000)) and text[0]
    assert _words(text) == _words(speechssl.load(tmp_path / "theirs").transcribe((wave, 16000)))


def test_a_blank_elsewhere_becomes_id_0(tmp_path: Path) -> None:
    from speechssl.hub.tensor_names import CtcTensors
    from speechssl.hub.transformers_format import write_transformers

    encoder = SMALL.build()
    head = CtcTensors(torch.randn(4, 32), torch.randn(4), 2, {"A": 0, "|": 1, "<pad>": 2, "B": 3})
    write_transformers(tmp_path / "theirs", SMALL, encoder.state_dict(), head)
    assert main(["--model", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]) == 0
    wave = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    texts = [speechssl.load(tmp_path / x).transcribe((wave, 16000)) for x in ("theirs", "ours")]
    assert _words(texts[0]) == _words(texts[1]) != []


@pytest.mark.parametrize(
    "more",
    [{"upsample": 2}, {"normalise_layers": True}, {"standardise": True}, {"projection_dim": 8}],
    ids=str,
)
def test_a_head_that_others_do_not_have_is_refused(more: dict, tmp_path: Path) -> None:
    model = _recogniser(tmp_path, **more)
    with pytest.raises(ValueError, match=f"other settings of {next(iter(more))} than"):
        write(model, tmp_path / "out", "transformers")


def test_one_of_our_own_keeps_its_head_and_other_forms_say_that_they_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ClassifyConfig(classes=["down", "up"]).build(SMALL.build())
    own = {k: v for k, v in head.state_dict().items() if not k.startswith("encoder.")}
    exp, out = tmp_path / "exp", tmp_path / "out"
    save_model(exp, SMALL, head.encoder.state_dict(), head_config=head.config, head_state=own)
    for _ in range(2):  # onto itself, too
        assert main(["--model", str(exp), "--output", str(out)]) == 0
        exp = out
    found = speechssl.load(out).head
    assert type(found) is type(head)
    assert all(torch.equal(found.state_dict()[k], v) for k, v in head.state_dict().items())
    assert "left out" not in capsys.readouterr().err
    path = tmp_path / "x.pth"
    assert main(["--model", str(exp), "--form", "torchaudio", "--output", str(path)]) == 0
    assert f"a {type(head).__name__}, is left out" in capsys.readouterr().err
    _recogniser(tmp_path / "wide", hidden="blstm", hidden_dim=8)
    assert main(["--model", str(tmp_path / "wide"), "--output", str(tmp_path / "same")]) == 0
    assert speechssl.load(tmp_path / "same").head is not None


def test_torchaudio_form_opens_again(tmp_path: Path) -> None:
    model = _recogniser(tmp_path / "exp")
    path = write(model, tmp_path / "x.pth", "torchaudio")
    wave = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    found = speechssl.load(path).transcribe((wave, 16000))
    assert _words(found) == _words(model.transcribe((wave, 16000))) != []


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_transformers_is_reported(kind: str) -> None:
    pytest.importorskip("transformers")
    report = parity_report(Model(KINDS[kind].build()))
    assert report.passed and len(report.differences) == 3
    assert "layer  2: difference" in str(report) and "equal: worst" in str(report)


def test_parity_tells_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    write(Model(SMALL.build()), tmp_path / "other", "transformers")
    report = parity_report(Model(SMALL.build()), tmp_path / "other")
    assert not report.passed and "DIFFERENT" in str(report)
    assert main(["--model", str(tmp_path / "other"), "--form", "torchaudio", "--parity=true",
                 "--output", str(tmp_path / "x.pth")]) == 0  # fmt: skip
    assert "equal: worst" in capsys.readouterr().out
    assert main(["--model", str(tmp_path / "other")]) == 2
    assert "want a place of its own" in capsys.readouterr().err
