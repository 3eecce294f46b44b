"""Voice conversion's parts: times, neighbours, units, feedback; and that speakers are heeded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from voice_heads import ENCODER, KINDS, SPEAKERS, TO_ANY, batch, build, embedding_of

from speechssl.contract import Encoder, EncoderOutput
from speechssl.heads.pitch import Prosody, shift_pitch
from speechssl.heads.voice_align import align, knn_frames
from speechssl.heads.voice_convnext import VoiceConvNextConfig
from speechssl.heads.voice_mel import VoiceHead
from speechssl.heads.voice_taco2ar import VoiceTaco2ArConfig, VoiceTaco2ArHead
from speechssl.labels.codebook import Codebook, Normaliser


@pytest.mark.parametrize(("hop", "field"), [(320, 400), (160, 400), (640, 400), (320, 25)])
def test_frames_are_read_at_the_times_of_the_mel(hop: int, field: int) -> None:
    lengths = torch.tensor([20, 13])
    middles = (torch.arange(20) * hop + field / 2).double()
    x = middles[None, :, None].expand(2, -1, 3)
    frames = 20 * hop // 160
    found = align(x, lengths, frames, hop=hop, field=field, mel_hop=160)
    times = torch.arange(frames).double() * 160
    for i, n in enumerate(lengths.tolist()):
        expected = times.clamp(middles[0], middles[n - 1])
        assert torch.allclose(found[i], expected[:, None].expand(-1, 3), atol=1e-3)


def test_neighbours_are_those_of_brute_force_in_any_block(monkeypatch: Any) -> None:
    source, reference = torch.randn(50, 8), torch.randn(70, 8)
    cosines = torch.nn.functional.cosine_similarity(source[:, None], reference[None], dim=-1)
    nearest = cosines.topk(4, dim=-1).indices
    expected = torch.stack([reference[row].mean(0) for row in nearest])
    assert torch.allclose(knn_frames(source, reference), expected, atol=1e-6)
    monkeypatch.setattr("speechssl.heads.voice_align.SOURCE_CHUNK", 7)
    monkeypatch.setattr("speechssl.heads.voice_align.REFERENCE_CHUNK", 9)
    assert torch.allclose(knn_frames(source, reference), expected, atol=1e-6)


def test_one_neighbour_of_itself_is_itself_and_few_are_all() -> None:
    x = torch.randn(30, 5)
    assert torch.equal(knn_frames(x, x, 1), x)
    assert torch.allclose(knn_frames(x, x[:3], 4), x[:3].mean(0).expand(30, -1), atol=1e-6)
    assert torch.allclose(knn_frames(5 * x, x, 1), x)
    for wrong in (x[:0], torch.randn(3, 4)):
        with pytest.raises(ValueError, match="knn: found"):
            knn_frames(x, wrong)


@pytest.mark.parametrize("kind", ["none", "standardise", "whiten"])
def test_units_are_those_of_the_codebook(kind: str) -> None:
    x = 3 + 2 * torch.randn(40, 16)
    mean = None if kind == "none" else x.mean(0)
    scale = x.std(0) if kind == "standardise" else None
    mapping = torch.randn(16, 5) if kind == "whiten" else None
    width = 5 if kind == "whiten" else 16
    codebook = Codebook(torch.randn(9, width), Normaliser(kind, mean, scale, mapping), {})
    head: Any = build(KINDS[2], unit_dim=width)
    with pytest.raises(ValueError, match="clusters: found an array"):
        head.units.take(torch.zeros(9, 3), torch.zeros(16), torch.zeros(16, 3))
    if mapping is None:
        mapping = torch.diag(torch.ones(16) if scale is None else 1 / scale)
    offset = torch.zeros(16) if mean is None else mean
    head.units.take(codebook.centroids, offset, mapping)
    assert torch.equal(head.units.assign(x[None])[0], codebook.assigner()(x))
    head.units.projection.zero_()
    with pytest.raises(ValueError, match="clusters: found none"):
        head.units.assign(x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_feedback_of_the_same_frames_is_teacher_forcing(dropout: float) -> None:
    head = build(KINDS[3], prenet_dropout=dropout).eval()
    assert isinstance(head, VoiceTaco2ArHead)
    memory, seeds = torch.randn(2, 30, 24), torch.tensor([4, 5])
    own = head.decoder.generate(memory, seeds)
    assert own.shape == (2, 30, 80)
    assert (head.decoder(memory, own, seeds) - own).abs().max() < 1e-5
    other = head.decoder(memory, own, torch.tensor([4, 6]))
    assert torch.allclose(other[0], own[0], atol=1e-5)
    assert torch.allclose(other[1], own[1], atol=1e-5) == (dropout == 0)


def test_draws_of_dropout_follow_the_frame_number_and_repeat(monkeypatch: Any) -> None:
    monkeypatch.setattr("speechssl.heads.voice_taco2ar.PERIOD", 8)
    decoder: Any = build(KINDS[3], prenet_dropout=0.5).decoder
    seeds = torch.tensor([3, 4])
    whole = decoder._kept(seeds, 20, None)
    assert torch.equal(whole[:, :8], whole[:, 8:16]) and 0.2 < whole.float().mean() < 0.8
    pieces = decoder._kept(seeds, 5, torch.tensor([2, 11]))
    assert torch.equal(pieces[0], whole[0, 2:7]) and torch.equal(pieces[1], whole[1, 11:16])
    alike = decoder._kept(seeds[:1], 5, torch.tensor([2, 11]))
    assert torch.equal(alike[1], whole[0, 11:16])


def test_conversion_repeats_and_heeds_its_seed() -> None:
    head, data = build(KINDS[3], prenet_dropout=0.5).eval(), batch((0.3,))
    found = [head.convert(data.wave, data.wave_lengths, seed=s)[0] for s in (1, 1, 2)]
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], atol=1e-4)


class Deaf(Encoder):
    """Hears nothing, so that all that a head can know of a voice is its embedding."""

    config = ENCODER
    dim, num_layers, hop_samples = 4, 0, 320

    def forward(self, wave: Tensor, wave_lengths: Tensor, **options: Any) -> EncoderOutput:
        lengths = self.frame_lengths(wave_lengths)
        state = torch.ones(len(wave), int(lengths.max()), self.dim)
        return EncoderOutput((state,), (0,), lengths, self.frame_rate_hz)


@pytest.fixture(scope="module", params=[VoiceConvNextConfig, VoiceTaco2ArConfig])
def two_voices(request: Any) -> VoiceHead:
    """A head that has learnt the mean spectrum of each of two speakers."""
    silent = {"prenet_dropout": 0.0} if request.param is VoiceTaco2ArConfig else {}
    encoder = Deaf()
    head = build((request.param, TO_ANY | silent), encoder, normalise_layers=False)
    data = batch((0.3, 0.3, 0.3, 0.3))
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(40):
        loss = head(data)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    return head.eval()


def test_another_embedding_turns_the_voice_to_its_speaker(two_voices: VoiceHead) -> None:
    data = batch((0.3, 0.3))
    target, _ = two_voices.mel(data.wave, data.wave_lengths)
    for i in range(2):
        wave, lengths = data.wave[:1], data.wave_lengths[:1]
        found, _ = two_voices.convert(wave, lengths, embedding=two_voices.speakers[i])
        distances = [float((found[0] - t).abs().mean()) for t in target]
        assert distances[i] < 0.8 * distances[1 - i], (SPEAKERS[i], distances)


def test_a_network_that_does_not_heed_the_speaker_shows_in_validation(
    two_voices: VoiceHead,
) -> None:
    data = batch((0.3, 0.3))
    heard = two_voices(data).logs
    assert float(heard["l1_other_speaker"][0]) > 1.1 * float(heard["l1"][0])
    deaf: Any = build((type(two_voices.config), TO_ANY), Deaf(), normalise_layers=False).eval()
    for name, parameter in deaf.named_parameters():
        if "condition" in name or "reader.speakers" in name:
            parameter.data.zero_()
    unheard = deaf(data).logs
    assert float(unheard["l1_other_speaker"][0]) == float(unheard["l1"][0])


def test_an_embedding_without_a_speaker_is_refused() -> None:
    head, data = build(KINDS[1]).eval(), batch()
    for wrong in (torch.zeros(6), torch.full((6,), float("nan"))):
        with pytest.raises(ValueError, match="speaker: found embeddings of length"):
            head.convert(data.wave, data.wave_lengths, embedding=wrong)
    with pytest.raises(ValueError, match="of width 5, want 6"):
        head.convert(data.wave, data.wave_lengths, embedding=torch.ones(5))
    with pytest.raises(ValueError, match="want an embedding"):
        head.convert(data.wave, data.wave_lengths)
    with pytest.raises(ValueError, match="has one voice"):
        build(KINDS[0]).convert(data.wave, data.wave_lengths, embedding=torch.ones(6))
    head.speakers.zero_()
    with pytest.raises(ValueError, match=r"head\.embeddings"):
        head(data)


def test_the_encoder_hears_other_voices_and_the_head_restores_the_speakers_own() -> None:
    heard: list[Tensor] = []

    class Ear(Deaf):
        def forward(self, wave: Tensor, wave_lengths: Tensor, **options: Any) -> EncoderOutput:
            heard.append(wave)
            return super().forward(wave, wave_lengths, **options)

    data = batch((0.5, 0.3, 0.4, 0.6, 0.5, 0.4))
    options = {"normalise_layers": False, "changed_voices": 0.5}
    head = build(KINDS[0], Ear(), **options).train()
    loss = head(data)
    same = [torch.equal(a, b) for a, b in zip(heard[0], data.wave, strict=True)]
    assert 0 < sum(same) < len(same)
    # Deaf to what it hears, it has to restore the same as without: the log-mel is the speaker's.
    plain = build(KINDS[0], Deaf(), normalise_layers=False).train()(data)
    assert torch.equal(loss.total, plain.total)

    logs = head.eval()(data).logs
    assert torch.equal(heard[1], data.wave)
    assert all(not torch.equal(a, b) for a, b in zip(heard[2], data.wave, strict=True))
    assert set(logs) == {"l1", "l1_changed"}
    with pytest.raises(ValueError, match=r"changed_voices: found 1\.5"):
        build(KINDS[0], changed_voices=1.5)


def test_f0_given_is_f0_heeded() -> None:
    head, data = build(KINDS[1]).eval(), batch()
    own = embedding_of(head, data)
    said = head._prosody(data.wave, data.wave_lengths)
    assert said is not None
    plain, _ = head.convert(data.wave, data.wave_lengths, embedding=own)
    same, _ = head.convert(data.wave, data.wave_lengths, embedding=own, said=said)
    assert torch.equal(plain, same)
    moved = shift_pitch(said.log_f0, said.voiced, 5.6, 0.1)[0]
    other = dataclasses.replace(said, log_f0=moved)
    found, _ = head.convert(data.wave, data.wave_lengths, embedding=own, said=other)
    frames = (found - plain).abs().amax(-1)[0]
    assert frames.max() > 1e-3


def test_a_melody_counts_as_much_in_a_narrow_voice_among_far_apart_ones() -> None:
    head, data = build(KINDS[1]).eval(), batch()
    count = len(head.config.classes)
    narrow = torch.full((count,), 0.03)
    head.take_pitch_statistics(torch.linspace(4.6, 5.4, count), narrow, torch.tensor([5.0, 0.4]))
    own = torch.stack([head.pitch_mean, head.pitch_deviation], 1)[[0, 1, 0]]
    said = head._prosody(data.wave, data.wave_lengths)
    assert said is not None
    log_f0 = (own[:, :1] + 0.03).expand_as(said.log_f0)
    voiced = torch.ones_like(said.voiced)
    channels = head._channels(Prosody(log_f0, voiced, said.energy, range=own))
    assert torch.allclose(channels[..., 2], torch.ones_like(log_f0), atol=1e-3)
    assert head.input_dim == build(KINDS[1], pitch=False).input_dim + 3


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="embeddings: found exp/x with 0 classes"):
        build(KINDS[1], classes=[])
    with pytest.raises(ValueError, match="units: found an encoder that learns"):
        build(KINDS[2], freeze_encoder_steps=0)
    with pytest.raises(ValueError, match="normalise_layers, standardise: found True, False"):
        build(KINDS[2], normalise_layers=True)
    with pytest.raises(ValueError, match="lstm_projection: found 40"):
        build(KINDS[3], lstm_projection=40)
    with pytest.raises(ValueError, match="references: found 0"):
        build(KINDS[0], references=0)
