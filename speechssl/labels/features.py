"""Frame features to cluster: MFCC with deltas, log-mel, or a layer of any encoder.

An extractor has `frame_rate_hz`, `dim`, `window_seconds` and `info` (what identifies it), and
maps a Batch to one (T_i, D) float32 tensor per utterance, valid frames only. Frame t covers
`window_seconds` from t / frame_rate_hz on, so its centre is half a window later.

Shape legend: B utterances, L samples, T frames, D features.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, Encoder

SAMPLE_RATE = 16000
_WINDOW, _SHIFT = 400, 160
MAX_CHUNK_SECONDS = 100.0
"""Longest audio that goes through an encoder at once, as in the reference extraction."""


class Extractor(Protocol):
    """What clustering needs of features."""

    frame_rate_hz: float
    dim: int
    window_seconds: float
    info: Mapping[str, Any]

    def __call__(self, batch: Batch) -> list[Tensor]: ...


class _KaldiFeatures:
    """Kaldi's framing without edge padding: frame t is samples [160 t, 160 t + 400)."""

    frame_rate_hz = SAMPLE_RATE / _SHIFT
    window_seconds = _WINDOW / SAMPLE_RATE
    layer: nn.Module
    cmvn: bool

    def _frames(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Padded features (B, T, D) and valid frames (B,)."""
        lengths = ((batch.wave_lengths - _WINDOW) // _SHIFT + 1).clamp(min=0).to(device)
        if int(lengths.max()) == 0:
            width = int(self.layer(torch.zeros(1, _WINDOW, device=device)).shape[-1])
            return torch.zeros(len(batch), 0, width, device=device), lengths
        with torch.inference_mode():
            frames = self.layer(batch.wave.to(device, torch.float32))
            return (normalise_utterances(frames, lengths) if self.cmvn else frames), lengths


class MfccFeatures(_KaldiFeatures):
    """13 MFCC, their deltas and double deltas: 39 dimensions at 100 Hz.

    cmvn: bring each coefficient to mean 0 and variance 1 over the utterance, before the deltas, so
    that clusters follow sounds rather than loudness and channel; published HuBERT does not.

    Kaldi's defaults: 25 ms Povey windows, 23 mel bands from 20 Hz to the Nyquist frequency,
    liftering 22, C0 rather than the energy; no dither, so that labels are reproducible. Deltas
    are regressions over 2 frames to each side, edges repeated.
    Source: Hsu et al., 2021, HuBERT, section IV-B; fairseq simple_kmeans.
    """

    dim = 39

    def __init__(self, device: torch.device | str = "cpu", *, cmvn: bool = False) -> None:
        from lhotse.features.kaldi.layers import Wav2MFCC

        self.device, self.cmvn = torch.device(device), cmvn
        self.info: dict[str, Any] = {"kind": "mfcc"} | ({"cmvn": True} if cmvn else {})
        with warnings.catch_warnings():
            # lhotse warns of snip_edges, since frames then differ from duration x rate; encoder
            # frames are counted in just this way.
            warnings.filterwarnings("ignore", message="Setting snip_edges=True")
            self.layer = Wav2MFCC(
                SAMPLE_RATE, low_freq=20.0, high_freq=0.0, snip_edges=True, num_filters=23
            ).to(self.device)

    def __call__(self, batch: Batch) -> list[Tensor]:
        base, lengths = self._frames(batch, self.device)
        first = deltas(base, lengths)
        full = torch.cat([base, first, deltas(first, lengths)], dim=-1)
        return [row[:n] for row, n in zip(full, lengths.tolist())]


class LogMelFeatures(_KaldiFeatures):
    """Log-mel energies at 100 Hz, Kaldi's framing. cmvn: as for MFCC."""

    def __init__(
        self, device: torch.device | str = "cpu", bands: int = 80, *, cmvn: bool = False
    ) -> None:
        from lhotse.features.kaldi.layers import Wav2LogFilterBank

        self.device, self.cmvn = torch.device(device), cmvn
        self.dim = bands
        self.info: dict[str, Any] = {"kind": "logmel", "bands": bands}
        self.info |= {"cmvn": True} if cmvn else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting snip_edges=True")
            self.layer = Wav2LogFilterBank(
                SAMPLE_RATE, low_freq=20.0, high_freq=0.0, snip_edges=True, num_filters=bands
            ).to(self.device)

    def __call__(self, batch: Batch) -> list[Tensor]:
        base, lengths = self._frames(batch, self.device)
        return [row[:n] for row, n in zip(base, lengths.tolist())]


def normalise_utterances(features: Tensor, lengths: Tensor) -> Tensor:
    """Each dimension to mean 0 and variance 1 over the utterance's frames: (B, T, D) -> same.

    Frames beyond an utterance's length, (B,), count for nothing; they become 0.
    """
    valid = (torch.arange(features.shape[1], device=features.device) < lengths[:, None])[..., None]
    count = lengths.clamp(min=1)[:, None, None]
    # In float64 the sums do not depend on the padding behind them.
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    mean = (features * valid).sum(1, keepdim=True, dtype=wide) / count
    centred = (features - mean.to(features.dtype)) * valid
    variance = centred.square().sum(1, keepdim=True, dtype=wide) / count
    return centred * (variance + 1e-6).rsqrt().to(features.dtype)


def deltas(features: Tensor, lengths: Tensor, reach: int = 2) -> Tensor:
    """Regression slope over +-reach frames, edges of each utterance repeated: (B, T, D)."""
    frames = torch.arange(features.shape[1], device=features.device)
    last = (lengths - 1).clamp(min=0)[:, None]
    out = torch.zeros_like(features)
    for step in range(1, reach + 1):
        ahead = torch.minimum(frames[None] + step, last)
        behind = torch.minimum((frames - step).clamp(min=0)[None], last)
        out += step * (_take(features, ahead) - _take(features, behind))
    return out / (2 * sum(step * step for step in range(1, reach + 1)))


def _take(features: Tensor, index: Tensor) -> Tensor:
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))


class EncoderFeatures:
    """Hidden states of one layer, or of several, of an encoder in eval mode without masks.

    layer: the layer whose states are returned by a call. Only the layers asked for are computed
    as far as the encoder can stop early. Audio above 100 s goes through in pieces whose frames
    join exactly. Layers of a lower rate have their frames repeated, so that all lie on one time
    axis. bf16: autocast, for speed; the states are returned as float32.
    """

    def __init__(
        self,
        encoder: Encoder,
        layer: int,
        *,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        info: Mapping[str, Any] | None = None,
        max_chunk_seconds: float = MAX_CHUNK_SECONDS,
    ) -> None:
        if not -encoder.num_layers - 1 <= layer <= encoder.num_layers:
            raise ValueError(
                f"layer: found {layer}, want 0 (the transformer's input) to {encoder.num_layers}"
            )
        self.layer = layer % (encoder.num_layers + 1)
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device).eval()
        self.bf16 = bf16
        self.dim = encoder.dim
        self.frame_rate_hz = encoder.frame_rate_hz
        self.window_seconds = encoder.receptive_field_samples / encoder.sample_rate_hz
        self.info: dict[str, Any] = {"kind": "encoder", "layer": self.layer, **(info or {})}
        chunk = int(max_chunk_seconds * encoder.sample_rate_hz) // encoder.hop_samples
        # A piece begins where a frame of every layer does.
        step = math.lcm(*encoder.layer_strides)
        self._chunk_frames = max(chunk // step, 1) * step

    def __call__(self, batch: Batch) -> list[Tensor]:
        return self.layers(batch, (self.layer,))[0]

    def layers(self, batch: Batch, numbers: Sequence[int]) -> list[list[Tensor]]:
        """States of several layers: per layer, one (T_i, D) float32 tensor per utterance."""
        wave, lengths = batch.wave.to(self.device), batch.wave_lengths.to(self.device)
        frames = self.encoder.frame_lengths(lengths)
        if int(frames.max()) <= self._chunk_frames:
            return self._run(wave, lengths, frames, numbers)
        found: list[list[Tensor]] = [[] for _ in numbers]
        for row, length, count in zip(wave, lengths.tolist(), frames.tolist()):
            pieces = [
                self._piece(row[:length], start, count, numbers)
                for start in range(0, max(count, 1), self._chunk_frames)
            ]
            for into, parts in zip(found, zip(*pieces)):
                into.append(torch.cat(parts))
        return found

    def _piece(self, wave: Tensor, start: int, total: int, numbers: Sequence[int]) -> list[Tensor]:
        """Frames [start, start + chunk) of one utterance."""
        hop, reach = self.encoder.hop_samples, self.encoder.receptive_field_samples
        end = min(start + self._chunk_frames, total)
        part = wave[start * hop : (end - 1) * hop + reach][None]
        lengths = torch.tensor([part.shape[1]], device=self.device)
        frames = torch.tensor([end - start], device=self.device)
        return [layer[0] for layer in self._run(part, lengths, frames, numbers)]

    def _run(
        self, wave: Tensor, lengths: Tensor, frames: Tensor, numbers: Sequence[int]
    ) -> list[list[Tensor]]:
        counts = frames.tolist()
        empty = torch.zeros(0, self.dim, device=self.device)
        keep = [i for i, count in enumerate(counts) if count > 0]
        states: list[list[Tensor]] = [[empty] * len(counts) for _ in numbers]
        if not keep:
            return states
        rows = torch.tensor(keep, device=self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            out = self.encoder(wave[rows], lengths[rows], layers=tuple(numbers))
        for into, number in zip(states, numbers):
            hidden = out.aligned(number).float()
            for place, row in zip(keep, hidden):
                into[place] = row[: counts[place]]
        return states


def weights_hash(encoder: Encoder) -> str:
    """Hash of the encoder's tensors alone: the same model exported again keeps its labels."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
