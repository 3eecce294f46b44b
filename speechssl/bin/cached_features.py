"""Features of a frozen encoder for `speechssl finetune --cache`: computed once, then read.

What a head reads of a frozen encoder does not change from update to update; so each utterance
passes the encoder once, whole, in float32, and every epoch, learning rate and seed reads what was
kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from typing import TYPE_CHECKING, Any

from speechssl.config import to_dict

if TYPE_CHECKING:
    from speechssl.data.config import DataConfig
    from speechssl.data.feature_cache import FeatureCache
    from speechssl.data.index import CutRecord


def check_head(head: Any) -> list[int]:
    """The encoder layers that a head reads; `ValueError` if what it reads could change."""
    config, name = head.config, type(head).__name__
    if not hasattr(head, "layers"):
        raise ValueError(
            f"cache: found a {name}, which does not say which layers it reads (`layers`), want "
            "another head, or no cache"
        )
    if getattr(head, "reads_waves", False):
        raise ValueError(f"cache: found a {name}, which reads waves beside features, want no cache")
    if hasattr(head, "adapters"):
        raise ValueError(
            f"cache: found adapters of kind {config.adapters.kind}, want none: they learn inside "
            "the encoder. Leave them out, or leave out cache"
        )
    learning = any(p.requires_grad for p in head.encoder.parameters())
    if learning or getattr(config, "freeze_encoder_steps", -1) != -1:
        raise ValueError(
            f"cache: found freeze_encoder_steps {getattr(config, 'freeze_encoder_steps', None)}, "
            "want -1: features of an encoder that learns change with every update. Freeze it, or "
            "leave out cache"
        )
    for field in ("mask_probability", "channel_mask_probability"):
        if getattr(config, field, 0) > 0:
            raise ValueError(
                f"cache: found head.{field} {getattr(config, field)}, want 0: masks act inside "
                "the encoder"
            )
    return list(head.layers)


def encoder_hash(encoder: Any) -> str:
    """Hash of an encoder's configuration and weights."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(to_dict(encoder.config), sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fill(
    root: str, dtype: str, encoder: Any, layers: list[int], data: DataConfig, device: Any
) -> FeatureCache:
    """The cache below `root` with the features of all cuts of `data`; computes what is missing.

    Says before it starts how much disk it takes. Killed, it goes on where it was.
    Raises `ValueError` with several ranks, for too little disk, and for stale features.
    """
    from speechssl import dist
    from speechssl.data.feature_cache import FeatureCache

    if dist.world_size() > 1:
        raise ValueError(
            f"cache: found {dist.world_size()} ranks, want one: a head alone needs no more"
        )
    meta = {
        "encoder": encoder_hash(encoder),
        "layers": layers,
        "dtype": dtype,
        "dim": encoder.dim,
        "hop_samples": encoder.hop_samples,
        "receptive_field_samples": encoder.receptive_field_samples,
        "frame_rate_hz": encoder.frame_rate_hz,
    }
    cache = FeatureCache(root, meta)
    missing = {split: _missing(cache, data, split) for split in ("train", "valid")}
    if any(missing.values()):
        encoder = encoder.to(device).eval()
        with cache.writing() as writer:
            missing = {split: _missing(cache, data, split) for split in missing}
            _announce(cache, encoder, [r for m in missing.values() for r in m.values()])
            for split, records in missing.items():
                if records:
                    _compute(cache, writer, encoder, data, split, records, device)
    return cache


def _missing(cache: FeatureCache, data: DataConfig, split: str) -> dict[str, CutRecord]:
    """Cuts of a split that training or validation reads and the cache lacks."""
    from speechssl.data.index import CutIndices

    paths = getattr(data, split)
    if not paths:
        return {}
    cuts, found = CutIndices(paths), {}
    drops = data.long == "drop" or data.tokenizer is not None
    for at in range(len(cuts)):
        record = cuts[at]
        unused = record.duration < data.min_seconds or (
            drops and record.duration > data.max_seconds
        )
        if cache.find(record) is None and not (split == "train" and unused):
            found[record.id] = record
    return found


def _announce(cache: FeatureCache, encoder: Any, records: list[CutRecord]) -> None:
    import torch

    from speechssl.train.log import say

    samples = torch.tensor([r.num_samples for r in records], dtype=torch.int64)
    need = int(encoder.frame_lengths(samples).sum()) * cache.frame_bytes
    free = shutil.disk_usage(cache.folder).free
    hours = float(samples.sum()) / 16000 / 3600
    say(
        f"features of {len(records)} utterances ({hours:.2f} h), {len(cache.layers)} layers in "
        f"{cache.meta['dtype']}: {need / 1e9:.3f} GB in {cache.folder}, {free / 1e9:.1f} GB free"
    )
    if need > 0.95 * free:
        raise ValueError(
            f"cache: found {free / 1e9:.2f} GB free in {cache.folder}, want {need / 1e9:.2f} GB "
            "and some room; give a folder on a larger disk, cache_dtype float16, or head.layer "
            "for a single layer"
        )


def _compute(
    cache: FeatureCache,
    writer: Any,
    encoder: Any,
    data: DataConfig,
    split: str,
    records: dict[str, CutRecord],
    device: Any,
) -> None:
    import torch
    from tqdm import tqdm

    from speechssl.bin.decode import long_enough
    from speechssl.data.loader import read_all
    from speechssl.train.log import say

    start = time.perf_counter()
    batches = read_all(
        getattr(data, split),
        max_batch_seconds=data.max_batch_seconds,
        num_workers=data.num_workers,
        wanted=lambda record: record.id in records,
    )
    short: list[str] = []
    with tqdm(total=len(records), desc=f"features {split}", unit="utt", disable=None) as bar:
        for batch in batches:
            batch = long_enough(batch, encoder, short)
            if not len(batch):
                continue
            moved = batch.to(device)
            with torch.inference_mode():
                out = encoder(moved.wave, moved.wave_lengths, layers=cache.layers)
                states = torch.cat([out.aligned(n) for n in out.layers], -1).float().cpu()
            rows = zip(batch.ids, batch.wave_lengths.tolist(), states, out.lengths.tolist())
            writer.add([(records[i], samples, x[:frames]) for i, samples, x, frames in rows])
            bar.update(len(batch))
    for line in [*short, *batches.skipped]:
        cut_id, _, why = line.partition(": ")
        writer.skip(records[cut_id], why)
    say(f"features of {split} computed in {time.perf_counter() - start:.1f} s")
