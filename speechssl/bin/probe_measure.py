"""What `speechssl probe` measures of each layer, and on which parts of the cuts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speechssl.labels.probe_config import ProbeConfig

if TYPE_CHECKING:
    import torch

    from speechssl.bin.probe import Upstream
    from speechssl.bin.probe_abx import AbxTest
    from speechssl.labels.probe_sample import ProbeCut, ProbeSample
    from speechssl.labels.probe_segments import SegmentMeans
    from speechssl.score.probe import ProbeScore


def segment_means(
    config: ProbeConfig, cuts: list[ProbeCut], upstream: Upstream, notes: list[str]
) -> dict[str, SegmentMeans]:
    """Of phones and words, as far as cuts have alignments of them; empty until they are read."""
    from speechssl.labels.probe_segments import SegmentMeans, phone_segments, word_segments

    where = (upstream.frame_rate_hz, upstream.window_seconds)
    limit, seed = config.segments, config.seed
    found = {
        "phone": phone_segments(cuts, *where, limit=limit, seed=seed),
        "word": word_segments(
            cuts, config.word_alignment, *where, limit=limit, most=config.words, seed=seed
        ),
    }
    for name, alignment in (("phone", config.alignment), ("word", config.word_alignment)):
        if len({s.symbol for s in found[name]}) < 2:
            notes.append(
                f"CKA and CCA with {name}s: found {len(found.pop(name))} in {alignment!r} "
                f"alignments, want two different {name}s or more, each spoken twice"
            )
    return {name: SegmentMeans(own, len(upstream.numbers)) for name, own in found.items()}


def measure(
    config: ProbeConfig,
    upstream: Upstream,
    cuts: list[ProbeCut],
    sample: ProbeSample,
    phones: int,
    device: torch.device,
    abx: AbxTest | None,
    segments: Mapping[str, SegmentMeans],
    notes: list[str],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per layer, and what belongs to all layers. notes: gets what is left out or unsure."""
    import numpy as np
    import torch

    from speechssl.labels.measure import layer_quality
    from speechssl.labels.probe_segments import parts_of
    from speechssl.labels.stream import say
    from speechssl.score.cka import PARTS, cka_matrix, heldout_cca
    from speechssl.score.rank import effective_rank, rankme

    least = 10 * upstream.dim
    if len(sample.keys) < least:
        notes.append(
            f"ranks, CKA and CCA: found {len(sample.keys)} frames at width {upstream.dim}, want "
            f"{least} or more; give more speech, or a larger sample_frames"
        )
    phone_parts = parts_by_speaker(config, cuts, sample, notes)
    speaker_parts = parts_by_utterance(config, cuts, sample, notes)
    spoken = sample.phones >= 0
    clustered = int(spoken.sum()) >= config.classes
    if not clustered:
        notes.append(
            f"PNMI: found {int(spoken.sum())} frames with a phone, want {config.classes} or more, "
            "one for each cluster"
        )
    mel = sample.mel.to(device)
    ids = [cut.id for cut in cuts]
    part = parts_of(sample.cuts, ids, PARTS, config.seed)
    if part is None:
        count = len(np.unique(sample.cuts))
        notes.append(f"CCA: found {count} utterances, want {PARTS} or more, for its parts")
    classes = {
        name: (means.one_hot().to(device), parts_of(means.cuts(), ids, PARTS, config.seed))
        for name, means in segments.items()
        if means.info()["classes"] > 1
    }
    rows: list[dict[str, Any]] = []
    chance: dict[str, Any] = {}
    parts = zip(upstream.numbers, sample.frames, sample.means)
    for place, (number, frames, means) in enumerate(parts):
        points = frames.to(device)
        row: dict[str, Any] = {
            "layer": number,
            "rankme": rankme(points),
            "effective_rank": effective_rank(points),
        }
        if part is not None:
            here = part.to(device)
            row["cca_mel"] = heldout_cca(points, mel, here)
            if place:
                row["cca_first"] = heldout_cca(points, sample.frames[0].to(device), here)
        for name, (one_hot, groups) in classes.items():
            own = segments[name].layer(place).to(device)
            row[f"cka_{name}"] = float(cka_matrix([own, one_hot])[0, 1])
            if groups is not None:
                row[f"cca_{name}"] = heldout_cca(own, one_hot, groups.to(device))
        if clustered:
            column = torch.from_numpy(sample.phones[spoken].astype("float32"))[:, None]
            aligned = torch.cat([frames[torch.from_numpy(spoken)], column], 1)
            row |= layer_quality(
                aligned, sample.keys[spoken], phones, config.classes, config.seed, device
            )
        for name, values, parts in (
            ("phone", points, phone_parts), ("speaker", means.to(device), speaker_parts),
        ):  # fmt: skip
            if parts is not None:
                score = fit(config, values, *parts)
                row |= _named(name, score, ids)
                chance[name] = score.chance
        if abx is not None:
            row |= abx.scores(place, device)
        rows.append(row)
        shown = (f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, int | float))
        say(", ".join(shown))
    views = [mel, *(frames.to(device) for frames in sample.frames)]
    alike = cka_matrix(views).tolist()
    for row, likeness in zip(rows, alike[1:]):
        row["cka_mel"] = likeness[0]
    shared: dict[str, Any] = {"cka": [line[1:] for line in alike[1:]], "chance": chance}
    shared["segments"] = {name: means.info() for name, means in segments.items()}
    if abx is not None:
        shared["abx"] = abx.info()
        if config.abx_labels is not None:
            shared["abx"]["units"] = abx.units(device)
    return rows, shared


def parts_by_speaker(
    config: ProbeConfig, cuts: list[ProbeCut], sample: ProbeSample, notes: list[str]
) -> tuple[Any, Any, Any, Any] | None:
    """Rows, phones, parts and utterances of the frames in a phone; no speaker is in two parts."""
    import numpy as np

    from speechssl.score.probe import assign_parts

    rows = np.flatnonzero(sample.phones >= 0)
    names = [cuts[i].group for i in sample.cuts[rows]]
    if len(set(names)) < 3:
        notes.append(
            f"phones: found {len(set(names))} speakers with a {config.alignment!r} alignment, want "
            "3 or more"
        )
        return None
    if any(cut.speaker is None for cut in cuts):
        notes.append("phones: some speakers are not known; their utterances count as speakers")
    part = assign_parts(names, seed=config.seed)
    parts = np.array([part[name] for name in names])
    return rows, sample.phones[rows], parts, sample.cuts[rows]


def parts_by_utterance(
    config: ProbeConfig, cuts: list[ProbeCut], sample: ProbeSample, notes: list[str]
) -> tuple[Any, Any, Any, Any] | None:
    """Rows, speakers, parts and numbers of the utterances of speakers that have three or more."""
    import numpy as np

    from speechssl.score.probe import assign_parts

    by_speaker: dict[str, list[str]] = {}
    for at in sample.utterances:
        cut = cuts[at]
        if cut.speaker is not None:
            by_speaker.setdefault(cut.speaker, []).append(cut.id)
    enough = sorted(name for name, ids in by_speaker.items() if len(ids) >= 3)
    if len(enough) < 2:
        notes.append(
            f"speakers: found {len(enough)} speakers with 3 utterances or more, want 2 or more"
        )
        return None
    number = {name: i for i, name in enumerate(enough)}
    part = {
        key: value
        for name in enough
        for key, value in assign_parts(by_speaker[name], seed=config.seed).items()
    }
    rows = [i for i, at in enumerate(sample.utterances) if cuts[at].id in part]
    chosen = [cuts[at] for at in sample.utterances[rows]]
    return (
        np.array(rows),
        np.array([number[str(cut.speaker)] for cut in chosen]),
        np.array([part[cut.id] for cut in chosen]),
        sample.utterances[rows],
    )


def fit(
    config: ProbeConfig, points: Any, rows: Any, labels: Any, parts: Any, groups: Any
) -> ProbeScore:
    import torch

    from speechssl.score.probe import linear_probe

    there = points.device
    return linear_probe(
        points[torch.from_numpy(rows).to(there)],
        torch.from_numpy(labels).to(there),
        torch.from_numpy(parts).to(there),
        groups=groups,
        l2=config.l2,
        max_iterations=config.iterations,
        seed=config.seed,
    )


def _named(name: str, score: ProbeScore, ids: list[str]) -> dict[str, Any]:
    """by_group becomes {cut: [points that were right, points]}."""
    found = dataclasses.asdict(score)
    found["by_cut"] = {ids[cut]: counts for cut, *counts in found.pop("by_group")}
    return {f"{name}_{key}": value for key, value in found.items()}
