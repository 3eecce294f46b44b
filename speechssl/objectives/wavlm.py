"""WavLM: HuBERT's masked prediction from a corrupted signal, with the labels of the clean one.

Source: Chen et al. 2022, "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech
Processing", sections III-B and III-C. The mixing of utterances and noise is the data's
(`data.mixing`), the gated relative position bias the encoder's.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from speechssl.contract import Batch
from speechssl.objectives.hubert import Hubert, HubertConfig

VIEW = "mixed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WavLMConfig(HubertConfig):
    """As HuBERT; the encoder reads each batch's mixed view."""

    def build(self) -> WavLM:
        return WavLM(self)


class WavLM(Hubert):
    """Masked prediction and denoising.

    Validation batches carry no mixed view, since mixing is random and a validation pass is not:
    in eval mode the clean signal is then read. In training its absence is an error.
    """

    def input_wave(self, batch: Batch) -> Tensor:
        if VIEW in batch.views:
            return batch.views[VIEW]
        if self.training:
            raise ValueError(
                f"batch: found views {sorted(batch.views)}, want {VIEW!r}; set data.mixing (such "
                "as data.mixing.probability=0.2), or use HubertConfig for clean input"
            )
        return batch.wave
