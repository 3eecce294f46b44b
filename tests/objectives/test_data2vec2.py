"""data2vec 2.0's visible-only student, its decoder, its teacher and the sum over masks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build
from torch import Tensor

from speechssl.contract import padding_mask
from speechssl.nn.masking import block_mask
from speechssl.objectives.data2vec2 import Data2vec2, Data2vec2Config

WITH_ALIBI = dataclasses.replace(ENCODER, alibi=True, pos_conv_depth=2, pos_conv_kernel=5)


def objective(**changes: Any) -> Data2vec2:
    built = build(Data2vec2Config, **({"encoder": WITH_ALIBI} | changes))
    assert isinstance(built, Data2vec2)
    return built


def parts(model: Data2vec2, seconds: tuple[float, ...] = (1.3, 0.8, 2.0)):
    """The batch, its front-end output, frames, masks and padding."""
    batch = batch_for(model, seconds)
    front = model.encoder(batch.wave, batch.wave_lengths, layers=[0]).front
    lengths = model.encoder.frame_lengths(batch.wave_lengths)
    c = model.config
    masks = block_mask(lengths, batch.seeds, masks=c.masks, probability=c.mask_probability,
                       block=c.mask_span, adjust=c.mask_adjust)  # fmt: skip
    return batch, front, lengths, masks, padding_mask(lengths, front.shape[1])


@pytest.mark.parametrize(
    "encoder", [ENCODER, WITH_ALIBI, dataclasses.replace(ENCODER, pre_norm=True)]
)
def test_visible_frames_alone_give_what_attention_to_them_alone_gives(encoder: Any) -> None:
    model = objective(encoder=encoder).eval()
    _, front, lengths, masks, padding = parts(model)
    with torch.no_grad():
        if encoder.alibi:
            model.encoder.alibi.scale.copy_(torch.tensor([3.0, 1.0, -0.5, 0.2]))
        found, visible = model.encoder.encode_visible(front, lengths, masks)
        many = masks.shape[1]
        x = model.encoder._input(
            front.repeat_interleave(many, 0), padding.repeat_interleave(many, 0),
            masks.flatten(0, 1), None,
        )  # fmt: skip
        (full,) = model.encoder._transform(x, visible, (model.encoder.num_layers,))
    assert torch.equal(visible, ~masks.flatten(0, 1) & ~padding.repeat_interleave(many, 0))
    for row, wanted, seen in zip(found, full, visible, strict=True):
        torch.testing.assert_close(row[: int(seen.sum())], wanted[seen], atol=1e-5, rtol=1e-5)


def test_masked_frames_are_zero_where_positions_are_computed_and_stay_so() -> None:
    model = objective()
    assert not model.encoder.mask_emb.any() and not model.encoder.mask_emb.requires_grad
    _, front, lengths, masks, _ = parts(model)
    seen = []
    model.encoder.pos_conv.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    model.encoder.encode_visible(front, lengths, masks)
    assert not seen[0][masks.flatten(0, 1)].any()


def test_visible_frames_return_to_their_places_among_noise() -> None:
    model = objective(mask_noise=0.01).eval()
    batch, front, lengths, masks, padding = parts(model, (6.0, 8.0))
    x, visible = model.encoder.encode_visible(front, lengths, masks)
    read: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _m, given: read.append(given[0]))
    model.decode(x, visible, padding, batch)
    rows = read[0].detach()
    for row, own, seen in zip(rows, x.detach(), visible, strict=True):
        assert torch.equal(row[seen], own[: int(seen.sum())])
    hidden = masks.flatten(0, 1)
    noise = rows[hidden]
    assert noise.mean().abs() < 1e-3 and noise.std().item() == pytest.approx(0.01, rel=0.05)
    assert not rows[padding.repeat_interleave(3, 0)].any()
    both = hidden[0] & hidden[1]
    assert both.any() and torch.equal(rows[0][both], rows[1][both])
    other = hidden[0, : int(lengths[0])] & hidden[3, : int(lengths[0])]
    assert not torch.equal(rows[0][: len(other)][other], rows[3][: len(other)][other])


def test_the_loss_is_the_squared_error_of_all_masks_against_one_teacher_pass() -> None:
    model = objective().eval()
    batch, front, lengths, masks, padding = parts(model)
    passes = []
    model.teacher.encoder.register_forward_hook(lambda *_: passes.append(1))
    loss = model(batch)
    assert len(passes) == 1
    with torch.no_grad():
        target = model.targets(batch, front, padding).double()
        x, visible = model.encoder.encode_visible(front, lengths, masks)
        decoded = model.decode(x, visible, padding, batch).view(3, 3, -1, 24).double()
        weight, bias = model.head.weight.double(), model.head.bias.double()
        expected = 0.0
        for b in range(3):
            for m in range(3):
                for t in masks[b, m].nonzero().flatten().tolist():
                    guess = weight @ decoded[b, m, t] + bias
                    expected += (guess - target[b, t]).square().sum().item() / 32**0.5
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == int(masks.sum())
    assert [int(n) for n in masks.sum(2).flatten()] == [int(t) // 2 for t in lengths for _ in "MMM"]


def test_the_decoder_adds_to_what_it_reads_where_the_widths_agree() -> None:
    model = objective(decoder_layers=2, decoder_kernel=3)
    x = torch.randn(2, 9, 32)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    found = model.decoder(x, padding)
    first, second = model.decoder.layers

    def block(conv: torch.nn.Module, x: Tensor) -> Tensor:
        y = conv(x.transpose(1, 2)).transpose(1, 2)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return torch.nn.functional.gelu(y)

    one = block(first, x)
    torch.testing.assert_close(found, one + block(second, one))
    wide = objective(decoder_layers=1, decoder_dim=32, decoder_groups=4)
    torch.testing.assert_close(wide.decoder(x, padding), x + block(wide.decoder.layers[0], x))


def test_the_teacher_averages_positions_and_copies_the_projection() -> None:
    model = objective(ema_start=0.5, ema_end=0.5)
    before = {k: v.clone() for k, v in model.teacher.encoder.state_dict().items()}
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    model.after_update(1)
    after = model.teacher.encoder.state_dict()
    for name in ("layers.0.fc1.bias", "pos_conv.layers.0.bias", "alibi.scale", "layer_norm.bias"):
        torch.testing.assert_close(after[name], before[name] + 0.5)
    for name in ("projection.weight", "front_norm.bias"):
        torch.testing.assert_close(after[name], before[name] + 1.0)


def test_an_encoder_that_cannot_leave_frames_out_is_refused() -> None:
    relative = objective(encoder=dataclasses.replace(ENCODER, relative_buckets=8))
    with pytest.raises(ValueError, match="relative_buckets: found 8, want 0"):
        relative(batch_for(relative))
    from speechssl.encoders.conformer import ConformerConfig

    other = ConformerConfig(front_dim=16, layers=2, dim=16, ffn_dim=16, heads=2, depthwise_kernel=3)
    with pytest.raises(ValueError, match="found ConformerEncoder, want one that encodes visible"):
        objective(encoder=other)


def test_decoders_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="found kernel 4"):
        objective(decoder_kernel=4)
