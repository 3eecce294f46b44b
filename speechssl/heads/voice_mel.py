"""Voice conversion by recognition and synthesis: what heads from frames to log-mel share.

Features of any encoder, of which much of the speaker is gone, become the log-mel spectrogram of
one target speaker (any-to-one), or of the one whose embedding is given (any-to-any). Trained to
restore the speaker's own speech; another's features then give what he says in the learnt voice.

Source: Huang et al. 2022 (S3PRL-VC), sections 3 and 4; for `changed_voices`, Choi et al. 2021
(NANSY), section 3.1.
Differs: features are aligned to the mel by time, not stretched; 16 kHz; the mean over valid
frames, so that no loss depends on batches.

Shape legend: B utterances, L samples, T mel frames, D width of the encoder, F mel bins, S
speakers, E width of their embeddings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss, padding_mask
from speechssl.heads.frames import FramesConfig, FramesHead
from speechssl.heads.pitch import Prosody, prosody
from speechssl.heads.utterance import batch_classes
from speechssl.heads.voice_align import align
from speechssl.heads.voice_units import Units
from speechssl.nn.draws import random_uniform
from speechssl.nn.log_mel import normalise_frames
from speechssl.nn.speech_mel import SpeechMel, SpeechMelConfig
from speechssl.nn.voice_change import VoiceConfig as VoiceChange
from speechssl.nn.voice_change import change_voices

CHANGED_STREAM = 91
"""Of the utterances' seeds: in which voice the encoder hears them, and whether in another."""

Replace = Callable[[Tensor, Tensor], Tensor]
"""(frames (B, T', D), lengths (B,)) -> other frames of the same shape."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoiceConfig(FramesConfig):
    embeddings: str = ""
    """Any-to-any: folder of `speechssl decode` of a speaker model over the training speakers
    (embeddings.npy, embeddings.jsonl). Empty: any-to-one, trained on one speaker's cuts; or, for
    `convert-voice --knn`, on many speakers' without telling them apart."""
    references: int = 10
    """Recordings of a speaker whose embeddings are averaged, at most."""
    field: str = "speaker"
    """Field of the manifest that names the speaker, with `embeddings`."""
    classes: list[str] = dataclasses.field(default_factory=list)
    """Names of the speakers, or of the one of any-to-one; fine-tuning fills them in."""
    embedding_dim: int = 0
    """Width of the embeddings; fine-tuning fills it in."""
    clusters: str = ""
    """Folder of `speechssl cluster fit` on this encoder: its units replace the features, which are
    then taken as they were clustered (normalise_layers, standardise: false). Empty: the features
    themselves."""
    units: int = 0
    """Number of the units; fine-tuning fills it in, as it does unit_dim and layer."""
    unit_dim: int = 0
    """Width of the centroids."""
    unit_embedding_dim: int = 256
    """Width of what stands for a unit."""
    standardise: bool = False
    """Bring each channel of the features to mean 0 and variance 1 over the utterance, which takes
    out much of the voice; of a long recording, over each piece that is converted at once."""
    changed_voices: float = 0.0
    """Probability that the encoder hears a training utterance in another voice, as `voice` draws
    it, while the log-mel to be restored, F0 and energy stay the speaker's own. A head that hears
    only its target's voice passes on what other voices have; this one learns to overhear it.
    Above 0, validation has `l1_changed` beside `l1`: every utterance in another voice."""
    voice: VoiceChange = dataclasses.field(default_factory=VoiceChange)
    """How far the voices of `changed_voices` are changed."""
    pitch: bool = False
    """Tell the network each frame's F0, and whether it is voiced; conversion moves the source's to
    the target's mean and deviation. Any-to-any: also F0 within the speaker's own range, since
    within that of all speakers a melody is small beside what tells them apart."""
    energy: bool = False
    """Tell the network each frame's energy relative to the utterance's."""
    mel: SpeechMelConfig = dataclasses.field(default_factory=SpeechMelConfig)
    """What is synthesised; a vocoder for it must be of the same definition."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.changed_voices <= 1:
            raise ValueError(f"changed_voices: found {self.changed_voices}, want 0 to 1")
        if self.references < 1:
            raise ValueError(f"references: found {self.references}, want 1 or more")
        if self.units and (self.freeze_encoder_steps >= 0 or self.adapters.kind != "none"):
            raise ValueError(
                "units: found an encoder that learns, want freeze_encoder_steps -1 and no "
                "adapters: no gradient passes a unit"
            )
        if self.units and (self.normalise_layers or self.standardise):
            raise ValueError(
                f"normalise_layers, standardise: found {self.normalise_layers}, "
                f"{self.standardise} with units, want false: centroids are of the layer as it is; "
                "`speechssl finetune` sets both"
            )

    @property
    def needs_classes(self) -> bool:
        """Whether fine-tuning has to give each utterance its speaker's number."""
        return bool(self.embeddings)


class VoiceHead(FramesHead):
    """Log-mel spectrograms from an encoder's frames; subclasses have the network, `predict`."""

    config: VoiceConfig
    reads_waves = True
    mel_mean: Tensor
    mel_deviation: Tensor
    speakers: Tensor
    pitch_mean: Tensor
    pitch_deviation: Tensor
    pitch_of_all: Tensor

    def __init__(self, config: VoiceConfig, encoder: Encoder) -> None:
        if config.embeddings and not (config.classes and config.embedding_dim):
            raise ValueError(
                f"embeddings: found {config.embeddings} with {len(config.classes)} classes and "
                f"embedding_dim {config.embedding_dim}, want both; `speechssl finetune` fills "
                "them in"
            )
        super().__init__(config, encoder)
        if encoder.sample_rate_hz != config.mel.sample_rate_hz:
            raise ValueError(
                f"mel.sample_rate_hz: found {config.mel.sample_rate_hz}, want the encoder's "
                f"{encoder.sample_rate_hz}"
            )
        self.mel = SpeechMel(config.mel)
        count = max(1, len(config.classes))
        self.register_buffer("mel_mean", torch.zeros(config.mel.bins))
        self.register_buffer("mel_deviation", torch.ones(config.mel.bins))
        self.register_buffer("speakers", torch.zeros(len(config.classes), config.embedding_dim))
        # Of log F0: of each speaker, and of all voiced frames together.
        self.register_buffer("pitch_mean", torch.full((count,), math.log(150.0)))
        self.register_buffer("pitch_deviation", torch.full((count,), 0.25))
        self.register_buffer("pitch_of_all", torch.tensor([math.log(150.0), 0.25]))
        if config.units:
            dim = config.unit_embedding_dim
            self.units = Units(config.units, self.dim, config.unit_dim, dim)

    @property
    def input_dim(self) -> int:
        """Width of what the network reads: features or units, F0 and voicing, energy."""
        config = self.config
        dim = config.unit_embedding_dim if config.units else self.dim
        return dim + (2 + bool(config.embeddings)) * config.pitch + config.energy

    @property
    def speaker_dim(self) -> int:
        """Width of the embedding that the network is given; 0 for any-to-one."""
        return self.config.embedding_dim if self.config.embeddings else 0

    # --- what subclasses have ---------------------------------------------------------------

    def predict(
        self,
        x: Tensor,
        lengths: Tensor,
        speaker: Tensor | None,
        *,
        teacher: Tensor | None,
        seeds: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        """(B, T, input_dim), zero on padding, (B,) -> normalised log-mel (B, T, F).

        speaker: (B, E) of deviation 1, None for any-to-one. teacher: the true frames, for those
        that feed theirs back; None to feed their own. seeds: (B,), or (1,) for all alike.
        start: (B,) the first frame's number in its recording; None: 0.
        """
        raise NotImplementedError

    def frames(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L), (B,) samples -> what is read of the encoder, (B, T', D), and (B,) valid ones."""
        x, lengths = super().frames(wave, wave_lengths)
        if self.config.standardise:
            x = normalise_frames(x, padding_mask(lengths, x.shape[1]))
        return x, lengths

    # --- training ---------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Loss:
        wave, wave_lengths = batch.wave, batch.wave_lengths
        speaker = None
        if self.speaker_dim:
            classes = batch_classes(batch, len(self.config.classes))
            speaker = self.speaker_input(self.speakers[classes])
        with torch.no_grad():
            target, lengths = self.mel(wave, wave_lengths)
            # A batch may be padded beyond its longest utterance.
            target = target[:, : int(lengths.max())]
            target = (target - self.mel_mean) / self.mel_deviation
            said = self._prosody(wave, wave_lengths)
            if said is not None and self.speaker_dim:
                own = torch.stack([self.pitch_mean[classes], self.pitch_deviation[classes]], 1)
                said = dataclasses.replace(said, range=own)
        seeds = batch.seeds.to(wave.device)

        def restored(heard: Tensor, voice: Tensor | None) -> Tensor:
            x = self.inputs(*self.frames(heard, wave_lengths), lengths, said)
            found = self.predict(x, lengths, voice, teacher=target, seeds=seeds)
            return _distance(found, target, lengths)

        chosen = torch.zeros_like(seeds, dtype=torch.bool)
        if self.training and self.config.changed_voices > 0:
            chosen = random_uniform(seeds, CHANGED_STREAM) < self.config.changed_voices
        total = restored(self._changed(wave, wave_lengths, seeds, chosen), speaker)
        count = lengths.sum()
        logs = {"l1": (total.detach(), count)}
        if self.config.changed_voices > 0 and not self.training:
            other = restored(self._changed(wave, wave_lengths, seeds, ~chosen), speaker)
            logs["l1_changed"] = (other.detach(), count)
        if speaker is not None and not self.training and len(self.speakers) > 1:
            # As near as `l1`: the network does not heed the speaker.
            other = self.speaker_input(self.speakers[(classes + 1) % len(self.speakers)])
            logs["l1_other_speaker"] = (restored(wave, other).detach(), count)
        return Loss(total, count, logs)

    def _changed(self, wave: Tensor, lengths: Tensor, seeds: Tensor, chosen: Tensor) -> Tensor:
        """(B, L) waves, those that are `chosen` (B,) in other voices."""
        if not bool(chosen.any()):
            return wave
        wave = wave.clone()
        wave[chosen] = change_voices(
            wave[chosen], lengths[chosen], seeds[chosen], self.config.voice, CHANGED_STREAM + 1
        ).to(wave.dtype)
        return wave

    def inputs(
        self, frames: Tensor, frame_lengths: Tensor, lengths: Tensor, said: Prosody | None
    ) -> Tensor:
        """Encoder frames (B, T', D) with (B,) valid, (B,) mel frames -> (B, T, input_dim)."""
        if self.config.units:
            frames = self.units(frames)
        x = align(
            frames,
            frame_lengths,
            int(lengths.max()),
            hop=self.encoder.hop_samples,
            field=self.encoder.receptive_field_samples,
            mel_hop=self.config.mel.hop,
        )
        if said is not None:
            x = torch.cat([x, self._channels(said).to(x.dtype)], -1)
        return x.masked_fill(padding_mask(lengths, x.shape[1])[..., None], 0)

    def _prosody(self, wave: Tensor, wave_lengths: Tensor) -> Prosody | None:
        if not (self.config.pitch or self.config.energy):
            return None
        return prosody(wave, wave_lengths, self.config.mel.hop)

    def _channels(self, said: Prosody) -> Tensor:
        """(B, T, 1 to 4), each of about deviation 1."""
        channels = []
        if self.config.pitch:
            centre, spread = self.pitch_of_all
            normal = ((said.log_f0 - centre) / spread).masked_fill(~said.voiced, 0)
            channels += [normal, said.voiced.to(normal.dtype)]
            if self.speaker_dim:
                channels.append(said.contour())
        if self.config.energy:
            channels.append(said.energy.clamp(min=-6.0))
        return torch.stack(channels, -1)

    # --- speakers ---------------------------------------------------------------------------

    def speaker_input(self, embeddings: Tensor) -> Tensor:
        """(B, E) of any length but 0 -> (B, E) of length sqrt(E).

        Raises `ValueError` for embeddings of another width, zero or not finite: the network would
        hear no speaker, and nobody would be told.
        """
        if embeddings.shape[-1] != self.speaker_dim:
            raise ValueError(
                f"speaker: found an embedding of width {embeddings.shape[-1]}, want "
                f"{self.speaker_dim}; embed with the model that made head.embeddings"
            )
        if not embeddings.is_cuda:
            length = embeddings.norm(dim=-1)
            if not bool((torch.isfinite(length) & (length > 1e-6)).all()):
                raise ValueError(
                    f"speaker: found embeddings of length {length.reshape(-1).tolist()[:4]}, want "
                    "finite ones above 0; `speechssl finetune` takes those of head.embeddings"
                )
        return F.normalize(embeddings.float(), dim=-1) * math.sqrt(self.speaker_dim)

    # --- conversion -------------------------------------------------------------------------

    @torch.no_grad()
    def convert(
        self,
        wave: Tensor,
        wave_lengths: Tensor,
        *,
        embedding: Tensor | None = None,
        said: Prosody | None = None,
        replace: Replace | None = None,
        seed: int = 0,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, L), (B,) -> log-mel (B, T, F) in the target's voice, and (B,) valid frames.

        embedding: (E,) or (B, E) of the target; wanted by any-to-any, refused by any-to-one.
        said: F0 and energy to be spoken with, already of the target's range, which it should know;
            None: the wave's own.
        replace: what exchanges the encoder's frames, such as kNN-VC's matching.
        seed: of the prenet's dropout, in networks that keep it on.
        start: (B,) numbers of the first mel frames in their recordings, of which these are pieces.
        """
        if (embedding is not None) != bool(self.speaker_dim):
            raise ValueError(
                "speaker: found none, want an embedding: this model was trained with speakers"
                if self.speaker_dim
                else "speaker: found an embedding, want none: this model has one voice"
            )
        speaker = None
        if embedding is not None:
            speaker = self.speaker_input(embedding.to(wave.device)).expand(len(wave), -1)
        frames, frame_lengths = self.frames(wave, wave_lengths)
        if replace is not None:
            frames = replace(frames, frame_lengths)
        lengths = self.mel.frame_lengths(wave_lengths)
        if said is None:
            said = self._prosody(wave, wave_lengths)
        x = self.inputs(frames, frame_lengths, lengths, said)
        seeds = torch.full((1,), seed, device=wave.device)
        found = self.predict(x, lengths, speaker, teacher=None, seeds=seeds, start=start).float()
        found = found * self.mel_deviation + self.mel_mean
        past = padding_mask(lengths, found.shape[1])[..., None]
        return found.clamp(min=self.config.mel.silence).masked_fill(
            past, self.config.mel.silence
        ), lengths

    # --- what fine-tuning fills in ----------------------------------------------------------

    @torch.no_grad()
    def take_mel_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """(F,) each, of the training frames."""
        self.mel_mean.copy_(mean)
        self.mel_deviation.copy_(deviation.clamp(min=1e-2))

    @torch.no_grad()
    def take_pitch_statistics(self, mean: Tensor, deviation: Tensor, of_all: Tensor) -> None:
        """(S,) each of log F0 per speaker, one of all together if any-to-one; (2,) of all."""
        self.pitch_mean.copy_(mean)
        self.pitch_deviation.copy_(deviation)
        self.pitch_of_all.copy_(of_all)

    @torch.no_grad()
    def take_speakers(self, table: Tensor) -> None:
        """(S, E) embeddings in the order of `config.classes`."""
        if table.shape != self.speakers.shape:
            raise ValueError(
                f"embeddings: found {tuple(table.shape)}, want {tuple(self.speakers.shape)}"
            )
        self.speaker_input(table)
        self.speakers.copy_(table)


def _distance(found: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Sum over valid frames of the mean absolute difference over bins."""
    past = padding_mask(lengths, target.shape[1])
    return (found.float() - target).abs().mean(-1).masked_fill(past, 0).sum()
