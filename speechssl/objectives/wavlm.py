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
    """Masked prediction and denoising."""

    def input_wave(self, batch: Batch) -> Tensor:
        if VIEW not in batch.views:
            raise ValueError(
                f"batch: found views {sorted(batch.views)}, want {VIEW!r}; set data.mixing (such "
                "as data.mixing.probability=0.2), or use HubertConfig for clean input"
            )
        return batch.views[VIEW]
