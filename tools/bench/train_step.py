"""Time and peak memory of a training step against transformers' HubertModel.

Both get the same weights, batch, mask and loss (HuBERT's masked cross entropy over K classes), no
dropout and no layerdrop; each runs in processes of its own, by turns. The losses and gradient
norms are printed, and must agree, so that speed is compared at equal numerics.

    python tools/bench/train_step.py --layers 12 --seconds 10 --batch 4
    python tools/bench/train_step.py --device cuda --bf16 true --batch 16
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechssl.config import parse

if TYPE_CHECKING:
    from torch import Tensor, nn

PEERS = ("transformers", "speechssl")
CLASSES = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    family: Literal["hubert", "wavlm"] = "hubert"
    size: Literal["base", "large"] = "base"
    layers: int = 12
    """Depth; fewer than the published one only to save time."""
    seconds: float = 10.0
    batch: int = 4
    padding: float = 0.0
    """Largest share of padding: utterances are between 1 - padding and 1 times `seconds`."""
    device: str = "cpu"
    bf16: bool = False
    threads: int = 0
    """CPU threads, 0 for torch's choice."""
    compile: bool = False
    """Compile each Transformer layer, of both."""
    steps: int = 3
    """Timed steps in each process, after one untimed."""
    rounds: int = 2
    """Processes of each peer, by turns."""
    output: str | None = None
    """JSON file to write."""
    peer: str | None = None
    """(used by the program itself) run this peer on the weights in `weights`."""
    weights: str | None = None


def main(argv: list[str] | None = None) -> int:
    options = parse(Options, argv, prog="train_step", description=__doc__)
    if options.peer is not None:
        print(json.dumps(run_peer(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        save_weights(options, folder)
        runs = {peer: [] for peer in PEERS}
        for _ in range(options.rounds):
            for peer in PEERS:
                runs[peer].append(run_process(options, peer, folder))
    rows = [summary(peer, runs[peer]) for peer in PEERS]
    report(options, rows)
    return 0


def save_weights(options: Options, folder: str) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_hidden_layers": options.layers}
    if options.size == "large":
        shape |= {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        }
    for part in ("hidden", "activation", "attention", "feat_proj"):
        name = f"{part}_dropout"
        shape[name] = 0.0
    name = "WavLM" if options.family == "wavlm" else "Hubert"
    config = getattr(transformers, f"{name}Config")(layerdrop=0.0, **shape)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)


def run_process(options: Options, peer: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--peer", peer, "--weights", folder]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in ("peer", "weights", "output"):
            command += [f"--{field.name}", str(value).lower()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_peer(options: Options) -> dict[str, Any]:
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    model, hidden = (build_ours if options.peer == "speechssl" else build_theirs)(options)
    device = torch.device(options.device)
    step = make_step(options, hidden, device)
    before = rss_bytes()
    losses = [step()]
    times = []
    for _ in range(options.steps):
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    if device.type == "cuda":
        peak, grown = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        grown = peak - before
    return {
        "seconds": times,
        "peak_bytes": peak,
        "step_bytes": grown,
        "loss": losses[0],
        "gradient_norm": float(norm),
    }


def rss_bytes() -> int:
    """What the process holds now (Linux); elsewhere its peak so far."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


Hidden = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


def build_ours(options: Options) -> tuple[nn.Module, Hidden]:
    import torch

    from speechssl.hub.transformers_format import read_transformers

    config, state, *_ = read_transformers(options.weights or "")
    config = dataclasses.replace(config, conv_gradient_scale=1.0, normalize_wave=False)
    model = config.build()
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True).train().to(options.device)
    if options.compile:
        for layer in model.layers:
            layer.compile()

    def hidden(wave: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model(wave, lengths, mask=mask, layers=[-1]).last

    return model, hidden


def build_theirs(options: Options) -> tuple[nn.Module, Hidden]:
    import torch
    import transformers

    name = "WavLMModel" if options.family == "wavlm" else "HubertModel"
    model = getattr(transformers, name).from_pretrained(options.weights)
    model = model.train().to(options.device)
    if options.compile:
        for layer in model.encoder.layers:
            layer.compile()

    def hidden(wave: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keep = None
        if options.padding:
            keep = (torch.arange(wave.shape[1], device=wave.device) < lengths[:, None]).long()
        return model(wave, attention_mask=keep, mask_time_indices=mask).last_hidden_state

    return model, hidden


def make_step(options: Options, hidden: Hidden, device: Any) -> Callable[[], float]:
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(1)
    samples = int(options.seconds * 16000)
    share = torch.linspace(1.0, 1.0 - options.padding, options.batch)
    lengths = (samples * share).long()
    frames = (samples - 400) // 320 + 1
    wave = torch.randn(options.batch, samples, generator=generator)
    wave *= torch.arange(samples) < lengths[:, None]
    valid = torch.arange(frames) < ((lengths - 400) // 320 + 1)[:, None]
    starts = torch.rand(options.batch, frames, generator=generator) < 0.08
    mask = F.pad(starts, (9, 0)).unfold(1, 10, 1).any(-1) & valid
    targets = torch.randint(CLASSES, (options.batch, frames), generator=generator)
    dim = 1024 if options.size == "large" else 768
    codebook = F.normalize(torch.randn(CLASSES, dim, generator=generator), dim=-1).to(device)
    wave, lengths, mask, targets = (x.to(device) for x in (wave, lengths, mask, targets))

    def step() -> float:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.bf16):
            top = hidden(wave, lengths, mask)
        logits = F.normalize(top[mask].float(), dim=-1) @ codebook.t() / 0.1
        loss = F.cross_entropy(logits, targets[mask])
        loss.backward()
        return loss.item()

    return step


def summary(peer: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "peer": peer,
        "seconds": statistics.median(t for run in runs for t in run["seconds"]),
        "fastest_seconds": min(t for run in runs for t in run["seconds"]),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "step_bytes": max(run["step_bytes"] for run in runs),
        "loss": runs[0]["loss"],
        "gradient_norm": runs[0]["gradient_norm"],
    }


def report(options: Options, rows: list[dict[str, Any]]) -> None:
    theirs, ours = rows
    print(f"{'peer':14}{'s/step':>9}{'fastest':>9}{'peak GB':>9}{'step GB':>9}  loss, |gradient|")
    for row in rows:
        print(
            f"{row['peer']:14}{row['seconds']:9.3f}{row['fastest_seconds']:9.3f}"
            f"{row['peak_bytes'] / 1e9:9.2f}{row['step_bytes'] / 1e9:9.2f}"
            f"  {row['loss']:.6f}, {row['gradient_norm']:.6f}"
        )
    speed = theirs["seconds"] / ours["seconds"]
    memory = ours["peak_bytes"] / theirs["peak_bytes"]
    print(f"speechssl is {speed:.2f} times as fast, with {memory:.2f} of the peak memory")
    result = {"options": dataclasses.asdict(options), "rows": rows}
    result |= {"speed_ratio": speed, "memory_ratio": memory}
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n")
    else:
        print(json.dumps(result))
    tolerance = 0.02 if options.bf16 else 1e-4
    if not options.padding and abs(theirs["loss"] / ours["loss"] - 1) > tolerance:
        raise SystemExit("the losses differ: the comparison is void")


if __name__ == "__main__":
    raise SystemExit(main())
