"""What heads of one class per utterance share: the classes, and the batch's.

Shape legend: B utterances.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from speechssl.contract import Batch, Encoder
from speechssl.heads.frames import FramesConfig, FramesHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtteranceConfig(FramesConfig):
    field: str = ""
    """Field of the manifest that holds the class: emotion, speaker, label, intent, language, ..."""
    classes: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes in the order of the outputs; empty: fine-tuning takes all values that
    the training cuts have, sorted."""
    class_counts: list[int] = dataclasses.field(default_factory=list)
    """Training utterances of each class; fine-tuning fills them in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: found a name twice in {self.classes}, want each once")
        if self.class_counts and len(self.class_counts) != len(self.classes):
            raise ValueError(
                f"class_counts: found {len(self.class_counts)} for {len(self.classes)} classes, "
                "want one of each class, or none: fine-tuning fills them in"
            )


class UtteranceHead(FramesHead):
    """An encoder, the layers that are read of it, and targets "classes" (B,) of the batch."""

    config: UtteranceConfig

    def __init__(self, config: UtteranceConfig, encoder: Encoder) -> None:
        if len(config.classes) < 2:
            raise ValueError(
                f"classes: found {config.classes}, want two or more; `speechssl finetune` takes "
                "them from head.field of the training cuts"
            )
        super().__init__(config, encoder)

    def targets(self, batch: Batch) -> Tensor:
        """(B,) int64 classes of a batch; raises `ValueError` if there are none, or others."""
        return batch_classes(batch, len(self.config.classes))


def batch_classes(batch: Batch, count: int) -> Tensor:
    """(B,) int64 classes of a batch; raises `ValueError` if there are none, or not 0 to count."""
    if "classes" not in batch.targets:
        raise ValueError(
            f"classes: found targets {sorted(batch.targets)}, want 'classes'; `speechssl "
            "finetune` makes them of head.field; data.classes names their label store"
        )
    classes = batch.targets["classes"]
    if not classes.is_cuda and len(classes):
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"classes: found {low} to {high}, want 0 to {count - 1}; are these the labels "
                "that the head was made with?"
            )
    return classes
