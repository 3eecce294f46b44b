"""Options of `speechssl align`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignOptions:
    cuts: list[str]
    """Cuts with transcripts: cuts_*.jsonl.gz files, as '[a,b]'."""
    output: str
    """Folder for the cuts with alignments, the model and the report."""
    lexicon: str | None = None
    """A file of words and their phones, or cmudict: the Carnegie Mellon dictionary of English."""
    unknown: str | None = None
    """A phone, such as spn, that stands for each word the lexicon lacks; none: cuts with such words
    are left out."""
    phones_field: str = "phones"
    """Field of a supervision with phones of each word, which goes before the lexicon."""
    model: str | None = None
    """Folder of an earlier run, whose phone models to align with; none: train them."""
    iterations: int = 30
    """Iterations of training."""
    gaussians: int = 1000
    """Gaussians of all phones together, about."""
    train_hours: float = 10.0
    """Train on so much of the cuts at most, spread over them evenly; all are aligned."""
    seed: int = 0
    """Seed of how Gaussians are parted."""

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ValueError("cuts: found none, want at least one cuts_*.jsonl.gz")
        if self.unknown is not None and (self.lexicon is None or not self.unknown.strip()):
            raise ValueError(
                f"unknown: found {self.unknown!r} with lexicon {self.lexicon}, want a phone, and a "
                "lexicon"
            )
        if min(self.iterations, self.gaussians) < 1 or self.train_hours <= 0:
            raise ValueError(
                f"found iterations {self.iterations}, gaussians {self.gaussians} and train_hours "
                f"{self.train_hours}, want 1 or more, and more than 0"
            )
