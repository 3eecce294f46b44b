"""Mixtures that a corpus brings along: the view "mixed" read from files in place of being made.

Benchmarks of separation and enhancement train on fixed pairs of mixture and source (Libri2Mix,
VoiceBank-DEMAND); `data.mixing` makes new ones instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechssl.data.fields import cut_rows, field_of
from speechssl.data.index import CutIndices, CutRecord
from speechssl.data.label_store import hash_id
from speechssl.data.reader import LABEL_TOLERANCE_SECONDS, UnusableError, read_part

FIELD = "mixture_of"


class Mixtures:
    """The mixture of each cut; sample 0 of both is the same time.

    A mixture's field `mixture_of` names the cut that is in it; without one, it has the cut's id.

    Raises `ValueError` for a manifest of `wanted` of which no cut has one.
    """

    def __init__(self, paths: Sequence[str], wanted: CutIndices) -> None:
        self.cuts = CutIndices(paths)
        of = {row["id"]: field_of(row, FIELD) or row["id"] for row in cut_rows(paths)}
        names = (of[self.cuts[i].id] for i in range(len(self.cuts)))
        keys = np.array([hash_id(name) for name in names], np.uint64)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        for part in wanted.parts:
            if len(part) and not np.isin(part.keys, self._keys).any():
                raise ValueError(
                    f"mixtures: found none of a cut of {part.path}, want the mixture of each cut "
                    f"to train and to validate on, with its id, such as {part[0].id!r}, or with "
                    f"that in its field {FIELD}, in {', '.join(map(str, paths))}"
                )

    def read(self, record: CutRecord, start: int, num_samples: int) -> np.ndarray:
        """The part of a cut's mixture, (L,) float32 at 16 kHz with L <= num_samples.

        Raises `UnusableError` if there is none, or one of another length, or none can be read.
        """
        key = np.uint64(hash_id(record.id))
        at = int(self._keys.searchsorted(key))
        if at == len(self._keys) or self._keys[at] != key:
            raise UnusableError("has no mixture in data.mixtures")
        mixture = self.cuts[int(self._order[at])]
        if abs(mixture.duration - record.duration) > LABEL_TOLERANCE_SECONDS:
            raise UnusableError(
                f"mixture: found {mixture.duration:.2f} s in {mixture.path} for a cut of "
                f"{record.duration:.2f} s, want as many"
            )
        return read_part(mixture, start, num_samples)
