"""Views that agree without labels: the loss, the head on fused encoders, a probe of few labels."""

from __future__ import annotations

import itertools
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from speechssl.config import HeadConfig, from_class_path, to_dict
from speechssl.contract import Batch
from speechssl.encoders.fusion import FusionConfig
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.multiview import MultiviewConfig, MultiviewHead
from speechssl.nn.contrastive import nt_xent

ROOT = Path(__file__).parents[2]
MEL = LogMelConfig(mel_bins=10, deltas=1)
MODEL = TransformerConfig(
    front_end="log_mel", front_norm="layer", front_dim=16, layers=2, dim=16, ffn_dim=24, heads=2,
    pos_conv_kernel=8, pos_conv_groups=2,
)  # fmt: skip
SMALL = {"hidden_dim": 16, "view_dim": 12, "projection_dim": 8, "dropout": 0.0}
LENGTHS = torch.tensor([9000, 16000, 5000])


def vectors(count: int, size: int = 4, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 6, generator=random) for _ in range(count)]


def test_the_loss_is_that_of_its_definition() -> None:
    views = vectors(3)
    total, hits = nt_xent(views, 0.2)
    expected, found = 0.0, 0.0
    for one, other in itertools.combinations(views, 2):
        rays = [x / np.linalg.norm(x) for x in torch.cat([one, other]).double().numpy()]
        for i in range(8):
            near = {j: math.exp(rays[i] @ rays[j] / 0.2) for j in range(8) if j != i}
            own = (i + 4) % 8
            expected -= math.log(near[own] / sum(near.values())) / 2
            found += (max(near, key=lambda j: near[j]) == own) / 2
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(hits) == found


def test_it_knows_no_order_of_views_or_utterances_and_no_size() -> None:
    views = vectors(3)
    total, _ = nt_xent(views, 0.5)
    for order in itertools.permutations(range(3)):
        assert torch.allclose(nt_xent([views[i] for i in order], 0.5)[0], total, rtol=1e-5)
    turned = [view[[2, 0, 3, 1]] * 7 for view in views]
    assert torch.allclose(nt_xent(turned, 0.5)[0], total, rtol=1e-5)


def test_its_limits_are_closed_forms() -> None:
    same = torch.ones(5, 3)
    total, _ = nt_xent([same, same], 0.1)
    assert float(total) == pytest.approx(5 * math.log(9), rel=1e-6)
    apart = torch.eye(5)
    total, hits = nt_xent([apart, apart], 0.1)
    assert float(total) == pytest.approx(5 * math.log1p(8 * math.exp(-10)), rel=1e-3)
    assert float(hits) == 5
    total, hits = nt_xent(vectors(2, size=1), 0.1)
    assert float(total) == pytest.approx(0, abs=1e-6)


def build(**changes: object) -> MultiviewHead:
    torch.manual_seed(0)
    encoder = FusionConfig(parts=[MODEL, MEL]).build()
    return MultiviewConfig(**(SMALL | changes)).build(encoder)  # pyright: ignore


def batch(padding: float = 0.0) -> Batch:
    random = torch.Generator().manual_seed(1)
    wave = 0.1 * torch.randn(3, 16000, generator=random)
    wave = wave.masked_fill(torch.arange(16000)[None] >= LENGTHS[:, None], padding)
    return Batch(wave, LENGTHS, {}, {}, torch.arange(3), ("a", "b", "c"))


@pytest.mark.parametrize("padding", [0.0, 7.0, float("nan")])
@torch.no_grad()
def test_padding_changes_no_vector(padding: float) -> None:
    head, data = build().eval(), batch(padding)
    found = head.embed(data.wave, data.wave_lengths)
    assert found.shape == (3, 24) and found.dtype == torch.float32
    for row, length in enumerate(LENGTHS.tolist()):
        alone = head.embed(data.wave[row : row + 1, :length], LENGTHS[row : row + 1])
        assert (found[row] - alone[0]).abs().max() < 3e-5
    # Each view has its own half, of its own part.
    for view, part in zip(head.vectors(data.wave, LENGTHS), (found[:, :12], found[:, 12:])):
        assert torch.equal(view, part)


def test_every_network_learns_and_the_encoder_stays() -> None:
    head = build().train()
    loss = head(batch())
    assert float(loss.count) == 3 and float(loss.logs["negatives"][0]) == 6
    assert torch.allclose(loss.total.detach(), loss.logs["nats"][0])
    loss.total.backward()
    still = [n for n, p in head.named_parameters() if p.requires_grad and not p.grad.any()]
    assert still == [] and all(p.grad is None for p in head.encoder.parameters())
    data = batch()
    alone = Batch(data.wave[:1], LENGTHS[:1], {}, {}, data.seeds[:1], ("a",))
    assert float(head(alone).total.detach()) == pytest.approx(0, abs=1e-6)
    three = FusionConfig(parts=[MODEL, MEL, MEL]).build()
    assert float(MultiviewConfig(**SMALL).build(three)(batch()).count) == 9  # pyright: ignore


def test_views_come_to_agree() -> None:
    head = build().train()
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=3e-3)
    time = torch.arange(4000) / 16000
    wave = torch.stack([0.2 * torch.sin(2 * math.pi * f * time) for f in range(300, 3500, 400)])
    data = Batch(wave, torch.full((8,), 4000), {}, {}, torch.arange(8), tuple("abcdefgh"))
    losses = []
    with torch.no_grad():
        read = head.frames(data.wave, data.wave_lengths)
    head.frames = lambda *_: read  # pyright: ignore
    for _ in range(20):
        loss = head(data)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        losses.append(float(loss.total.detach() / loss.count))
    assert losses[-1] < 0.3 * math.log(15) < losses[0]
    assert float(loss.logs["accuracy"][0] / loss.logs["accuracy"][1]) == 1


def test_its_configuration_survives_and_mistakes_are_named() -> None:
    config = MultiviewConfig(temperature=0.2)
    assert from_class_path(HeadConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match="found a LogMelEncoder, want one of two parts or more"):
        config.build(MEL.build())
    with pytest.raises(ValueError, match="interface: found concat, want sum"):
        MultiviewConfig(interface="concat")
    with pytest.raises(ValueError, match="kernel: found 4"):
        MultiviewConfig(kernel=4)
    with pytest.raises(ValueError, match="temperature: found 0"):
        MultiviewConfig(temperature=0)


def test_from_cuts_to_few_labels_by_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    sys.path.insert(0, str(ROOT / "tests/bin"))
    from test_utterance_tasks import config, write_cuts

    from speechssl.bin import decode, finetune

    corpus = {split: write_cuts(tmp_path, split, [0, 3, 6], count)
              for split, count in (("train", 36), ("valid", 9), ("test", 12))}  # fmt: skip
    head = {"class_path": "speechssl.heads.multiview.MultiviewConfig",
            "init_args": SMALL | {"field": "pitch"}}  # fmt: skip
    other = {"class_path": "speechssl.encoders.log_mel.LogMelConfig", "init_args": {"deltas": 2}}
    (tmp_path / "mel.yaml").write_text(yaml.safe_dump({"encoder": other}))
    words = config(corpus, tmp_path, head, steps=20, valid_every=10, save_every=10,
                   best_metric="loss", best_is="lowest")  # fmt: skip
    more = ["--fuse", f"[{tmp_path / 'mel.yaml'}]", "--cache", str(tmp_path / "cache")]
    assert finetune.main([*words, *more, "--data.speeds", "[]"]) == 0
    for split in ("train", "test"):
        assert decode.main(["--model", str(tmp_path / "run"), "--cuts", corpus[split],
                            "--output", str(tmp_path / split)]) == 0  # fmt: skip
    assert np.load(tmp_path / "test/embeddings.npy").shape == (12, 24)
    capsys.readouterr()
    script = ROOT / "egs/realmini/emotion/local/few_labels.py"
    words = ["--train", tmp_path / "train", "--test", tmp_path / "test", "--views", 2,
             "--counts", 2, 10, 99, "--draws", 3]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 utterances, 3 classes; chance 0.333"
    assert lines[1].split()[-2:] == ["2", "10"]  # 99 are not there
    assert [line.split("0")[0].split("1.")[0].strip() for line in lines[2:]] == [
        "view 1", "view 2", "all",
    ]  # fmt: skip
    assert float(lines[-1].split()[-3]) > 0.8
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words[:4]), "--views", "5"])
    with pytest.raises(SystemExit, match="5 equal parts"):
        runpy.run_path(str(script), run_name="__main__")
