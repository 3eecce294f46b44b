"""HiFi-GAN's generator: transposed convolutions from frames to samples, with residual blocks.

Source: Kong, Kim and Bae 2020, "HiFi-GAN: Generative Adversarial Networks for Efficient and High
Fidelity Speech Synthesis", section 2.2 and appendix A; the size V2 in `HifiganConfig`.
Differs: activations behind an utterance's end are zero before every convolution; sample t * hop is
the middle of what frame t makes, as our frames are centred, so that half a hop is cut off at each
end; the input is shifted so that silence is 0; weights begin as in torch, not N(0, 0.01).

Shape legend: B utterances, T frames, C channels, N positions of any rate.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from speechssl.contract import padding_mask
from speechssl.nn.speech_mel import SpeechMelConfig
from speechssl.vocoder.base import Vocoder
from speechssl.vocoder.config import HifiganConfig

SLOPE = 0.1


class ResidualBlock(nn.Module):
    """x (B, C, N): for each dilation, x + conv(lrelu(conv_dilated(lrelu(x))))."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, dilation=d, padding="same"))
            for d in dilations
        )
        self.plain = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, padding="same")) for _ in dilations
        )
        self.reach = (kernel // 2) * sum(d + 1 for d in dilations)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            y = dilated(F.leaky_relu(x, SLOPE)).masked_fill(padding, 0)
            x = (x + plain(F.leaky_relu(y, SLOPE))).masked_fill(padding, 0)
        return x


class Stage(nn.Module):
    """Upsampling by `rate`, then the mean of residual blocks: (B, C, N) -> (B, C / 2, N * rate)."""

    def __init__(self, c_in: int, rate: int, config: HifiganConfig) -> None:
        super().__init__()
        kernel = 2 * rate + rate % 2  # V2's 2 * rate, of the parity that keeps N * rate
        self.up = weight_norm(
            nn.ConvTranspose1d(c_in, c_in // 2, kernel, rate, padding=(kernel - rate) // 2)
        )
        self.blocks = nn.ModuleList(
            ResidualBlock(c_in // 2, k, config.dilations) for k in config.kernels
        )
        self.rate = rate
        self.reach = max(block.reach for block in self.blocks)  # pyright: ignore

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = self.up(F.leaky_relu(x, SLOPE)).masked_fill(padding, 0)
        return sum(block(x, padding) for block in self.blocks) / len(self.blocks)  # pyright: ignore


class HifiganVocoder(Vocoder):
    config: HifiganConfig

    def __init__(self, config: HifiganConfig, mel: SpeechMelConfig) -> None:
        super().__init__(config, mel)
        if math.prod(config.rates) != mel.hop or mel.hop % 2:
            raise ValueError(
                f"vocoder.rates: found {config.rates}, whose product is {math.prod(config.rates)}, "
                f"want {mel.hop}, the mel's hop, and that even"
            )
        if config.channels % 2 ** len(config.rates):
            raise ValueError(
                f"vocoder.channels: found {config.channels}, want a multiple of "
                f"{2 ** len(config.rates)}: each upsampling halves them"
            )
        if not config.kernels or any(k % 2 == 0 for k in config.kernels) or not config.dilations:
            raise ValueError(
                f"vocoder.kernels, dilations: found {config.kernels}, {config.dilations}, want odd "
                "kernels, and at least one of each"
            )
        self.input = weight_norm(nn.Conv1d(mel.bins, config.channels, 7, padding=3))
        self.stages = nn.ModuleList(
            Stage(config.channels >> i, rate, config) for i, rate in enumerate(config.rates)
        )
        self.output = weight_norm(nn.Conv1d(config.channels >> len(config.rates), 1, 7, padding=3))
        self.reach = self._reach()

    def _reach(self) -> int:
        frames, factor = 3.0, 1
        for stage in self.stages:
            frames += 1 / factor  # a transposed convolution reads its position and a neighbour
            factor *= stage.rate  # pyright: ignore
            frames += stage.reach / factor  # pyright: ignore
        return math.ceil(frames + 3 / factor + 0.5)

    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        size = log_mel.shape[1]
        padding = padding_mask(lengths, size)[..., None]
        x = self.input(self.normalised(log_mel, padding).transpose(1, 2))
        x = x.masked_fill(padding.transpose(1, 2), 0)
        factor = 1
        for stage in self.stages:
            factor = int(factor * stage.rate)  # pyright: ignore
            x = stage(x, padding_mask(lengths * factor, size * factor)[:, None])
        wave = self.output(F.leaky_relu(x))[:, 0].to(log_mel.dtype).tanh()
        hop = self.mel.config.hop
        wave = wave[:, hop // 2 : hop // 2 + (size - 1) * hop]
        return wave.masked_fill(padding_mask((lengths - 1) * hop, wave.shape[1]), 0)
