"""The ABX test of `speechssl probe`: which phones, on what features or units."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from speechssl.labels.probe_config import ProbeConfig

if TYPE_CHECKING:
    import torch

    from speechssl.labels.probe_phones import PhoneFrames, PhoneToken
    from speechssl.labels.probe_sample import ProbeCut
    from speechssl.score.abx import Costs
    from speechssl.score.abx_cells import Cell

MEASURES = ("abx_within", "abx_across")


@dataclasses.dataclass(frozen=True)
class AbxTest:
    """cells: of each of `MEASURES`. frames: of the upstream's layers, filled while they are read;
    the row of a layer is `scores` of its place."""

    config: ProbeConfig
    cuts: list[ProbeCut]
    tokens: list[PhoneToken]
    cells: dict[str, list[Cell]]
    frames: PhoneFrames

    def scores(self, place: int, device: torch.device) -> dict[str, float]:
        from speechssl.score.abx import frame_costs

        assert self.config.abx is not None
        frames = self.frames.frames(place).to(device)
        costs = frame_costs(frames, self.config.abx)
        return self._errors(self.frames, costs, frames.shape[1], device)

    def units(self, device: torch.device) -> dict[str, Any]:
        """The same tokens as units of the label store that the options name."""
        from speechssl.data.label_store import LabelStore
        from speechssl.labels.codebook import load_codebook
        from speechssl.labels.probe_phones import unit_frames
        from speechssl.score.abx import unit_costs

        config = self.config
        assert config.abx is not None and config.abx_labels is not None
        store = LabelStore.open(config.abx_labels)
        codewords, distance = None, "one-hot"
        if config.abx_clusters is not None:
            codebook = load_codebook(config.abx_clusters)
            if store.meta.get("codebook_hash") != codebook.hash:
                raise ValueError(
                    f"abx_clusters: found a codebook of hash {codebook.hash}, want that of "
                    f"{store.folder}, {store.meta.get('codebook_hash')}"
                )
            codewords, distance = codebook.centroids.to(device), config.abx
        found = unit_frames(store, self.cuts, self.tokens, self.wanted())
        costs = unit_costs(found.frames(0).to(device), codewords, config.abx)
        errors = self._errors(found, costs, 1, device)
        if not errors:
            raise ValueError(
                f"abx_labels: found no labels of the chosen cuts in {store.folder}, want them"
            )
        info = {"labels": config.abx_labels, "classes": store.classes, "distance": distance}
        return info | errors

    def wanted(self) -> list[int]:
        """Numbers of the tokens that a cell compares."""
        return _used(self.cells)

    def _errors(
        self, frames: PhoneFrames, costs: Costs, width: int, device: torch.device
    ) -> dict[str, float]:
        from speechssl.score.abx import abx_error, all_pairs, token_distances
        from speechssl.score.abx_cells import present

        there = (frames.lengths > 0).tolist()
        errors = {}
        for name, cells in self.cells.items():
            cells = present(cells, there)
            if cells:
                pairs = all_pairs(cells)
                distances = token_distances(
                    costs, frames.starts, frames.lengths, pairs, device, width
                )
                errors[name] = abx_error(cells, pairs, distances)
        return errors

    def info(self) -> dict[str, Any]:
        """What goes into probe.json beside the errors."""
        cells = [cell for found in self.cells.values() for cell in found]
        return {
            "distance": self.config.abx,
            "cells": {name: len(found) for name, found in self.cells.items()},
            "tokens": len(self.wanted()),
            "phones": len({phone for cell in cells for phone in cell.phones}),
            "contexts": len({cell.context for cell in cells}),
        }


def choose_test(
    config: ProbeConfig, cuts: list[ProbeCut], rate: float, window: float, layers: int,
    notes: list[str],
) -> AbxTest:  # fmt: skip
    """Phones and cells by the options, and room for the frames of `layers` layers.

    notes: gets a line for what cannot be measured.
    Raises ValueError if no phones can be compared at all.
    """
    from speechssl.labels.probe_phones import PhoneFrames, phones_in_context
    from speechssl.labels.stream import say
    from speechssl.score.abx_cells import cells_across, cells_within, group_tokens

    started = time.monotonic()
    aligned = sum(bool(cut.items) for cut in cuts)
    if not aligned:
        raise ValueError(
            f"abx: found no {config.alignment!r} alignment in {len(cuts)} cuts, want supervisions "
            "with one (--alignment names another); the synthetic corpus has them"
        )
    tokens = phones_in_context(cuts, rate, window)
    groups = group_tokens(tokens, config.abx_tokens, config.seed)
    found = {
        "abx_within": cells_within(groups, limit=config.abx_cells, seed=config.seed),
        "abx_across": cells_across(
            groups, limit=config.abx_cells, others=config.abx_speakers, seed=config.seed
        ),
    }
    if not any(found.values()):
        raise ValueError(
            f"abx: found {len(tokens)} phones between two others, in {aligned} cuts, but no two "
            "different ones in the same context with another of their kind to compare; give more "
            "cuts, or raise --utterances or --speakers"
        )
    for name, one in (("abx_within", "within a speaker"), ("abx_across", "across speakers")):
        if not found[name]:
            notes.append(f"ABX {one}: found no phones to compare, want more utterances")
    if any(cut.speaker is None for cut in cuts):
        notes.append("ABX: some speakers are not known; their utterances count as speakers")
    wanted = _used(found)
    test = AbxTest(config, cuts, tokens, found, PhoneFrames(tokens, wanted, layers, rate, window))
    shown = ", ".join(f"{len(cells)} cells {name[4:]}" for name, cells in found.items())
    say(f"ABX: {shown} speakers, {len(wanted)} phones ({time.monotonic() - started:.1f} s)")
    return test


def _used(cells: dict[str, list[Cell]]) -> list[int]:
    every = (cell for found in cells.values() for cell in found)
    return sorted({number for cell in every for number in (*cell.x, *cell.a, *cell.b)})
