"""What `speechssl finetune` fills into a head of voice conversion: sizes before it is built, then
statistics of the training speech, speakers' embeddings, clusters."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from speechssl.config import HeadConfig
    from speechssl.data.config import DataConfig


def complete(head: Any, encoder: Any, data: DataConfig) -> HeadConfig:
    """The head's configuration with what embeddings, clusters and cuts say; others as they are."""
    from speechssl.heads.voice_mel import VoiceConfig

    if not isinstance(head, VoiceConfig):
        return head
    if head.embeddings:
        _, matrix = read_embeddings(head.embeddings)
        head = dataclasses.replace(head, embedding_dim=matrix.shape[1])
    else:
        head = dataclasses.replace(head, classes=one_speaker(data.train, head.field))
    if head.clusters:
        codebook = _codebook(head, encoder)
        head = dataclasses.replace(
            head,
            units=codebook.classes,
            unit_dim=codebook.centroids.shape[1],
            layer=int(codebook.info["features"]["layer"]),
            normalise_layers=False,
            standardise=False,
        )
    return head


def fill(head: Any, data: DataConfig) -> None:
    """Statistics, speakers and clusters of a head of voice conversion, into its buffers.

    Reads the training cuts once; every rank calls it and reads its share.
    Raises `ValueError` for speakers without an embedding.
    """
    from speechssl.heads.voice_mel import VoiceHead
    from speechssl.train.log import say

    if not isinstance(head, VoiceHead):
        return
    config = head.config
    if config.embeddings:
        table = speaker_table(config.embeddings, config.classes, config.field, config.references)
        head.take_speakers(table)
    if config.clusters:
        _take_clusters(head)
    say("statistics of the target's speech: reading the training cuts once")
    frames, voiced = _statistics(head, data)
    told = f", {voiced:.0f} of them voiced" if config.pitch else ""
    say(f"statistics of {frames:.0f} mel frames{told}")


def one_speaker(cuts: list[str], field: str) -> list[str]:
    """The value of `field` that all cuts have in common; empty where they differ or have none."""
    from speechssl.data.fields import cut_rows, field_of

    found: set[str | None] = set()
    for cut in cut_rows(cuts):
        found.add(field_of(cut, field))
        if len(found) > 1 or None in found:
            return []
    return [str(name) for name in found]


def read_embeddings(folder: str | Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows of embeddings.jsonl, each with `speaker`, and (N, E) embeddings of finite numbers."""
    import numpy as np

    folder = Path(folder)
    for name in ("embeddings.npy", "embeddings.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(
                f"embeddings: found no {name} in {folder}, want the output of `speechssl decode` "
                "with a speaker model"
            )
    matrix = np.load(folder / "embeddings.npy", allow_pickle=False)
    text = (folder / "embeddings.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    if matrix.ndim != 2 or len(matrix) != len(rows) or not len(rows):
        raise ValueError(
            f"embeddings: found {matrix.shape} and {len(rows)} lines in {folder}, want (N, E) and "
            "N lines, at least one; decode again"
        )
    if not np.isfinite(matrix).all():
        raise ValueError(f"embeddings: found NaN or infinite ones in {folder}, want finite ones")
    return rows, matrix


def speaker_table(folder: str | Path, speakers: list[str], field: str, references: int) -> Any:
    """(S, E) float32 tensor: of each speaker the mean direction of up to `references` recordings,
    the first ones of the folder, at length 1. field: of the manifest, that names the speakers."""
    import torch

    rows, matrix = read_embeddings(folder)
    place = "speaker" if field == "speaker" else "ref"  # what the speaker model was to tell
    places: dict[str, list[int]] = {name: [] for name in speakers}
    for at, row in enumerate(rows):
        found = places.get(str(row.get(place)))
        if found is not None and len(found) < references:
            found.append(at)
    missing = [name for name, found in places.items() if not found]
    if missing:
        raise ValueError(
            f"embeddings: found none in {folder} of {', '.join(missing[:8])} ({len(missing)} of "
            f"{len(speakers)} training speakers), want recordings of each; decode these cuts too"
        )
    table = [mean_direction(torch.from_numpy(matrix[found])) for found in places.values()]
    return torch.stack(table)


def mean_direction(embeddings: Any) -> Any:
    """(N, E) -> (E,) of length 1: the mean of the embeddings, each brought to length 1 first."""
    from torch.nn.functional import normalize

    return normalize(normalize(embeddings.double(), dim=-1).mean(0), dim=0).float()


def _codebook(head: Any, encoder: Any) -> Any:
    from speechssl.labels.codebook import load_codebook
    from speechssl.labels.features import weights_hash

    codebook = load_codebook(head.clusters)
    features = codebook.info["features"]
    if features["kind"] != "encoder":
        raise ValueError(
            f"clusters: found clusters of {features['kind']} in {head.clusters}, want those of a "
            "layer of the encoder that is converted from"
        )
    own = weights_hash(encoder)
    if features.get("model_hash") not in (None, own):
        raise ValueError(
            f"clusters: found those of a model of hash {features['model_hash']} in "
            f"{head.clusters}, want the encoder's, {own}; give the model that was clustered as init"
        )
    if head.layer is not None and head.layer % (encoder.num_layers + 1) != int(features["layer"]):
        raise ValueError(
            f"layer: found {head.layer}, want none, or {features['layer']}, the layer that was "
            f"clustered in {head.clusters}"
        )
    return codebook


def _take_clusters(head: Any) -> None:
    import torch

    from speechssl.labels.codebook import load_codebook

    codebook = load_codebook(head.config.clusters)
    normaliser, dim = codebook.normaliser, head.encoder.dim
    projection = normaliser.projection
    if projection is None:
        scale = torch.ones(dim) if normaliser.scale is None else normaliser.scale
        projection = torch.diag(1 / scale)
    offset = torch.zeros(dim) if normaliser.mean is None else normaliser.mean
    head.units.take(codebook.centroids, offset, projection)


def _statistics(head: Any, data: DataConfig) -> tuple[float, float]:
    """Fill in mean and deviation of the mel, and of log F0 if asked for; frames, voiced ones."""
    import torch

    from speechssl import dist
    from speechssl.contract import padding_mask
    from speechssl.data.fields import field_values
    from speechssl.data.loader import read_all
    from speechssl.heads.pitch import pitch

    config = head.config
    place = {name: i for i, name in enumerate(config.classes)}
    speakers = field_values(data.train, config.field) if place and config.pitch else {}
    # Count, sum and sum of squares of each bin, relative to a value amid them.
    mel = torch.zeros(3, config.mel.bins, dtype=torch.float64)
    tone = torch.zeros(3, max(1, len(place)), dtype=torch.float64)
    middle = (-5.0, 5.0)
    batches = read_all(
        data.train, max_batch_seconds=data.max_batch_seconds, num_workers=data.num_workers
    )
    for batch in batches:
        found, lengths = head.mel(batch.wave, batch.wave_lengths)
        x = found[~padding_mask(lengths, found.shape[1])].double() - middle[0]
        mel += torch.stack([torch.full_like(mel[0], len(x)), x.sum(0), x.square().sum(0)])
        if config.pitch:
            log_f0, voiced = pitch(batch.wave, batch.wave_lengths, config.mel.hop)
            for row, heard, name in zip(log_f0.double(), voiced, batch.ids, strict=True):
                y = row[heard] - middle[1]
                who = place[speakers[name]] if place else 0
                tone[:, who] += torch.stack([y.new_tensor(len(y)), y.sum(), y.square().sum()])
    mel, tone = dist.all_reduce_sum(mel), dist.all_reduce_sum(tone)
    if not mel[0, 0]:
        raise ValueError("data.train: found no cut that can be read, want the target's speech")
    head.take_mel_statistics(*_moments(mel, middle[0]))
    if config.pitch:
        total = tone.sum(1, keepdim=True)
        if total[0] < 2:
            raise ValueError(
                "pitch: found no voiced frame in the training cuts, want speech, or pitch false"
            )
        mean, deviation = _moments(total, middle[1])
        own_mean, own_deviation = _moments(tone, middle[1])
        heard = tone[0] > 1
        head.take_pitch_statistics(
            torch.where(heard, own_mean, mean),
            torch.where(heard, own_deviation, deviation).clamp(min=1e-3),
            torch.cat([mean, deviation.clamp(min=1e-3)]),
        )
    return float(mel[0, 0]), float(tone[0].sum())


def _moments(sums: Any, middle: float) -> tuple[Any, Any]:
    """Count, sum and squares (3, N) -> mean and deviation (N,) float32."""
    count = sums[0].clamp(min=1)
    mean = sums[1] / count
    variance = (sums[2] / count - mean.square()).clamp(min=0)
    return (mean + middle).float(), variance.sqrt().float()
