"""Log-mel from frames without feedback: ConvNeXt blocks over time, fast on a CPU.

All frames at once, so training and conversion cost the same; an utterance of any length may be cut
into pieces that overlap by the network's reach and gives the same spectrogram.
Source: Siuzdak 2023 (Vocos) for the blocks; Huang et al. 2022 (S3PRL-VC) for the task.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from speechssl.contract import Encoder, padding_mask
from speechssl.heads.voice_mel import VoiceConfig, VoiceHead
from speechssl.nn.convnext import ConvNext
from speechssl.nn.linear import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoiceConvNextConfig(VoiceConfig):
    dim: int = 256
    """Width of the blocks (Vocos 512)."""
    hidden_dim: int = 768
    """Width within a block (Vocos 1536)."""
    blocks: int = 8
    """Number of blocks (Vocos 8)."""
    kernel: int = 7
    """Frames that a convolution sees."""

    def build(self, encoder: Encoder) -> VoiceConvNextHead:
        return VoiceConvNextHead(self, encoder)


class VoiceConvNextHead(VoiceHead):
    """The speaker's embedding is added within every block."""

    config: VoiceConvNextConfig

    def __init__(self, config: VoiceConvNextConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.network = ConvNext(
            self.input_dim,
            config.dim,
            config.hidden_dim,
            config.blocks,
            config.kernel,
            condition_dim=self.speaker_dim,
        )
        self.output = Linear(config.dim, config.mel.bins)

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
        """As `VoiceHead.predict`; nothing is fed back or random, so the last three are not read."""
        padding = padding_mask(lengths, x.shape[1])[..., None]
        return self.output(self.network(x, padding, speaker))
