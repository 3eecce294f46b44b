"""`Featurizer`: a pretrained encoder as one layer of anyone's torch model.

Shape legend: B utterances, L samples, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Encoder, padding_mask
from speechssl.hub.load import load
from speechssl.hub.model import Model


class Featurizer(nn.Module):
    """(wave (B, L), lengths (B,)) -> (features (B, T, D), frames (B,)): a learnt sum of layers.

    The sum is over softmax(w)_l N(h_l). w starts at 0, all layers alike; `weights` reads it.
    Features are 0 behind each utterance's frames, and nothing depends on what the padding holds.
    Layers of a lower frame rate have their frames repeated.

    source: what `speechssl.load` opens; or a `Model` or an encoder, which is shared, not copied.
    layers: as in `Model.extract`; None for all.
    normalise: N brings each frame of each layer to mean 0 and variance 1 over D (of several models
        side by side, over the channels of each). Without it (as in
        SUPERB) N is the identity: layers of large values, as in pre-norm models, outweigh the
        others, and the weights do not tell how much a layer matters.
    trainable: the encoder learns too, with its own dropout and layerdrop in training mode. Else
        its parameters want no gradient and it stays in eval mode, whatever the model around it
        does; gradients still reach a wave that wants them, scaled by the encoder's
        conv_gradient_scale. May be set later.
    Raises ValueError as `load` and `Model.resolve_layers` do.

    Source: Yang et al., 2021 (SUPERB); Peters et al., 2018 (ELMo), section 3.2.
    """

    def __init__(
        self,
        source: str | Path | Model | Encoder,
        layers: Sequence[int] | int | None = None,
        normalise: bool = True,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(source, Encoder):
            source = Model(source)
        model = source if isinstance(source, Model) else load(source)
        self.encoder = model.encoder
        self.layers = model.resolve_layers(layers)
        self.normalise = normalise
        self.layer_weights = nn.Parameter(torch.zeros(len(self.layers), device=model.device))
        self.trainable = trainable

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        self._trainable = trainable
        self.encoder.requires_grad_(trainable)
        self.train(self.training)

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.encoder.dim

    @property
    def sample_rate_hz(self) -> int:
        """What the wave must have."""
        return self.encoder.sample_rate_hz

    @property
    def frame_rate_hz(self) -> float:
        return self.encoder.frame_rate_hz

    @property
    def weights(self) -> dict[int, float]:
        """Layer -> its weight in the sum; they add up to 1."""
        shares = self.layer_weights.detach().softmax(0).tolist()
        return dict(zip(self.layers, shares, strict=True))

    def train(self, mode: bool = True) -> Featurizer:
        super().train(mode)
        if not self.trainable:
            self.encoder.eval()
        return self

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """wave: (B, L) float32 at `sample_rate_hz`, as read; lengths: (B,) int64 samples.

        Raises ValueError for an utterance shorter than one frame.
        """
        output = self.encoder(wave, lengths, layers=self.layers)
        shares = self.layer_weights.softmax(0)
        parts = []
        for layer, share in zip(self.layers, shares, strict=True):
            state = output.aligned(layer)
            parts.append(share * (self._normalised(state) if self.normalise else state))
        features = torch.stack(parts).sum(0)
        padding = padding_mask(output.lengths, features.shape[1])
        return features.masked_fill(padding[..., None], 0), output.lengths

    def _normalised(self, state: Tensor) -> Tensor:
        blocks = state.split(self.encoder.part_dims, -1)
        normed = [F.layer_norm(block, block.shape[-1:]) for block in blocks]
        return normed[0] if len(normed) == 1 else torch.cat(normed, -1)

    def extra_repr(self) -> str:
        return f"layers={self.layers}, normalise={self.normalise}, trainable={self.trainable}"
