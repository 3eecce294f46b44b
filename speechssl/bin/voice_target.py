"""Whose voice `speechssl convert-voice` gives: a trained speaker, a recording's, or neighbours'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.bin.convert_voice import ConvertVoiceOptions
    from speechssl.bin.voice_converter import Target

EMBEDDED_SECONDS = 60.0
"""Of a recording of `target_audio`, its beginning."""


def open_voice(folder: str) -> Any:
    """The head of voice conversion of a model's folder; `ValueError` for any other model."""
    from speechssl.heads.voice_mel import VoiceHead
    from speechssl.model_file import open_model

    head = open_model(folder).head
    if not isinstance(head, VoiceHead):
        kind = "no head" if head is None else f"a {type(head).__name__}"
        raise ValueError(
            f"model: found {kind} in {folder}, want a head of voice conversion, such as `speechssl "
            "finetune` makes with speechssl.heads.voice_convnext.VoiceConvNextConfig"
        )
    return head


def find_target(options: ConvertVoiceOptions, head: Any, device: Any) -> Target:
    """What the options say of the target, as the head needs it.

    Raises `ValueError` for a speaker that the model does not know, none where one is needed, one
    where there is no choice, and recordings of the target that cannot be read.
    """
    from speechssl.bin.voice_converter import Target

    config, classes = head.config, head.config.classes
    named = options.target
    if named is not None and named not in classes and (head.speaker_dim or not options.knn):
        raise ValueError(
            f"target: found {named!r}, want one of the {len(classes)} speakers of the model: "
            f"{', '.join(classes[:20])}{', ...' * (len(classes) > 20)}; for any other, give "
            "--target_audio and --verifier to a model trained with embeddings"
            if classes
            else f"target: found {named!r}, want none: the model has one voice, without a name"
        )
    if options.target_audio and not head.speaker_dim:
        raise ValueError(
            f"target_audio: found {options.target_audio}, want none: the model in {options.model} "
            "was trained without embeddings, and has one voice"
        )
    if head.speaker_dim and named is None and not options.target_audio:
        raise ValueError(
            f"target: found none, want one of the {len(classes)} speakers of the model: "
            f"{', '.join(classes[:20])}{', ...' * (len(classes) > 20)}; or --target_audio with "
            "--verifier"
        )
    embedding = frames = None
    references = options.target_audio or options.knn
    if head.speaker_dim:
        embedding = (
            head.speakers[classes.index(str(named))]
            if named is not None
            else _embed(options.target_audio, str(options.verifier), head.speaker_dim, device)
        )
    if options.knn:
        frames = _frames(options.knn, head, device)
    tone = None
    if config.pitch:
        if named in classes:
            place = classes.index(str(named))
        else:
            place = None if references else 0
        tone = (
            _tone(references, head.config.mel.hop)
            if place is None
            else (float(head.pitch_mean[place]), float(head.pitch_deviation[place]))
        )
    if named is None:
        named = Path(references[0]).stem if references else (classes[0] if classes else None)
    return Target(named, embedding, tone, frames)


def _waves(patterns: Sequence[str], rate: int, what: str) -> Iterator[Any]:
    """(L,) waves of files, folders or globs."""
    from speechssl.hub.audio import find_audio, read_file, to_wave

    try:
        for path in find_audio(patterns):
            yield to_wave(*read_file(path), want_rate=rate, name=str(path))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _embed(patterns: Sequence[str], verifier: str, width: int, device: Any) -> Any:
    """(E,): the mean direction of the recordings' embeddings."""
    import torch

    from speechssl.bin.voice_setup import mean_direction
    from speechssl.model_file import open_model

    model: Any = open_model(verifier).head
    if not hasattr(model, "embed"):
        raise ValueError(
            f"verifier: found {'no head' if model is None else type(model).__name__} in "
            f"{verifier}, want a speaker model, such as `speechssl finetune` makes with "
            "speechssl.heads.speaker.SpeakerConfig"
        )
    model.to(device)
    encoder, found = model.encoder, []
    for wave in _waves(patterns, encoder.sample_rate_hz, "target_audio"):
        wave = wave[: round(EMBEDDED_SECONDS * encoder.sample_rate_hz)]
        if len(wave) < encoder.receptive_field_samples:
            raise ValueError(
                f"target_audio: found {len(wave)} samples, want at least "
                f"{encoder.receptive_field_samples}"
            )
        part = torch.from_numpy(wave)[None].to(device)
        with torch.inference_mode():
            found.append(model.embed(part, torch.tensor([len(wave)], device=device))[0].cpu())
    embedding = mean_direction(torch.stack(found))
    if len(embedding) != width:
        raise ValueError(
            f"verifier: found embeddings of width {len(embedding)} from {verifier}, want {width}: "
            "the speaker model whose embeddings the head was trained with"
        )
    return embedding


def _frames(patterns: Sequence[str], head: Any, device: Any) -> Any:
    """(N, D) encoder frames of the target's recordings, as the head reads them."""
    import numpy as np
    import torch

    from speechssl.hub.audio import AudioItem, find_audio, read_file
    from speechssl.hub.extract import Plan, run
    from speechssl.hub.model import Model

    def forward(wave: Any, lengths: Any) -> dict[int, Any]:
        return {0: head.frames(wave, lengths)[0]}

    try:
        items = [AudioItem(str(p), lambda p=p: read_file(p)) for p in find_audio(patterns)]
        found = [
            result.frames[0]
            for result in run(items, forward, Model(head.encoder).geometry, Plan(), device=device)
        ]
    except ValueError as error:
        raise ValueError(f"knn: {error}") from None
    return torch.from_numpy(np.concatenate(found))


def _tone(patterns: Sequence[str], hop: int) -> tuple[float, float]:
    """Mean and deviation of log F0 over the voiced frames of the target's recordings."""
    import torch

    from speechssl.bin.voice_converter import whole_prosody

    heard = []
    for wave in _waves(patterns, 16000, "target_audio, knn"):
        log_f0, voiced, _ = whole_prosody(wave, 16000, hop)
        heard.append(log_f0[voiced].double())
    values = torch.cat(heard)
    if len(values) < 2:
        raise ValueError(
            "target_audio, knn: found no voiced speech in the target's recordings, want some: the "
            "model is told F0"
        )
    return float(values.mean()), max(float(values.std(correction=0)), 1e-3)
