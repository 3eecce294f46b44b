"""Time of a training step of each objective, over that of HuBERT with an encoder of equal size.

A step is what the trainer does with a batch in memory: forward, backward, scaling and clipping,
optimiser, and what the objective does behind an update (teacher, codebooks). All take their steps
by turns, one each per round; a ratio is the median over rounds of the two times of that round, so
that what else the machine does weighs on both. On a CPU the clock is that of the process, which
does not run while other programs do. Reading and mixing of speech is left out.

    OMP_NUM_THREADS=1 python tools/bench/objectives.py --rounds 9
    python tools/bench/objectives.py --folder egs/librispeech/ssl/conf --seconds 4 --utterances 2 \\
        --reference hubert_base_it1 --objectives data2vec_base,dinosr_base --layers 4
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.bin.pretrain import PretrainConfig
from speechssl.config import parse
from speechssl.contract import IGNORE, Batch, Objective
from speechssl.train.config import TrainConfig
from speechssl.train.optim import build_optimizer
from speechssl.train.parallel import scale_and_clip
from speechssl.train.precision import autocast

CONF = Path(__file__).parents[2] / "egs/mini/objectives/conf"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=CONF, help="of NAME.yaml")
    parser.add_argument("--reference", default="hubert", help="what the others are compared with")
    parser.add_argument("--objectives", default="", help="names with commas; empty: all")
    parser.add_argument("--seconds", type=float, default=4.0, help="mean length of an utterance")
    parser.add_argument("--utterances", type=int, default=6, help="in an update")
    parser.add_argument("--layers", type=int, help="depth of encoders, in place of the YAML's")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [n for n in options.objectives.split(",") if n and n != options.reference]
    names = names or [
        p.stem
        for p in sorted(options.folder.glob("*.yaml"))
        if "\nobjective:" in p.read_text() and p.stem != options.reference
    ]
    names.insert(0, options.reference)
    steps = {name: step_of(options, name) for name in names}
    load = os.getloadavg()[0]
    for step, _ in steps.values():
        step()  # memory is taken, kernels are chosen
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        # Backwards every other time: no one always comes behind the same one.
        for name in names[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(timed(steps[name][0], options.device))
    rows = [row(name, seconds[name], seconds[names[0]], steps[name][1]) for name in names]
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {options.rounds} rounds")
    print("| objective | parameters that learn | s per step | fastest | times the reference |")
    print("|---|---|---|---|---|")
    for found in sorted(rows, key=lambda r: r["ratio"]):
        print(
            f"| {found['objective']} | {found['parameters'] / 1e6:.2f} M | {found['seconds']:.3f} "
            f"| {found['fastest']:.3f} | {found['ratio']:.2f} |"
        )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1))


def row(name: str, seconds: list[float], reference: list[float], parameters: int) -> dict[str, Any]:
    return {
        "objective": name,
        "parameters": parameters,
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "ratio": statistics.median(a / b for a, b in zip(seconds, reference, strict=True)),
    }


def timed(step: Callable[[], None], device: str) -> float:
    """Seconds of the process, all threads together, on a CPU; else seconds on the wall."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    step()
    if device != "cpu":
        torch.accelerator.synchronize()
    return clock() - start


def step_of(options: argparse.Namespace, name: str) -> tuple[Callable[[], None], int]:
    """A function that does one update of the objective of FOLDER/NAME.yaml; what it trains."""
    config = configured(options.folder / f"{name}.yaml")
    wanted: Any = config.objective
    if options.layers:
        if "layers" not in {f.name for f in dataclasses.fields(wanted.encoder)}:
            raise SystemExit(
                f"--layers: found {name}, whose {type(wanted.encoder).__name__} has no option "
                "`layers`; want --objectives without it"
            )
        encoder = dataclasses.replace(wanted.encoder, layers=options.layers)
        fewer = {"target_layers": min(options.layers, getattr(wanted, "target_layers", 0))}
        wanted = dataclasses.replace(
            wanted, encoder=encoder, **(fewer if hasattr(wanted, "target_layers") else {})
        )
    torch.manual_seed(0)
    objective = wanted.build().to(options.device)
    batch = make_batch(objective, wanted, options.utterances, options.seconds)
    batch = batch.to(options.device)
    update = updater(config.train, objective, options.device)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    return lambda: update([batch]), trained


def configured(path: Path) -> PretrainConfig:
    return parse(PretrainConfig, ["--config", str(path), "--output", "unused"])


def updater(
    train: TrainConfig, objective: Objective, device: str
) -> Callable[[Sequence[Batch]], None]:
    """A function that does what the trainer does with the micro-batches of an update."""
    optimizer = build_optimizer(train, objective)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    done = 0

    def update(batches: Sequence[Batch]) -> None:
        nonlocal done
        objective.train()
        optimizer.zero_grad(set_to_none=True)
        count = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            with autocast(train.precision, torch.device(device).type):
                loss = objective(batch)
            loss.total.backward()
            count = count + torch.as_tensor(loss.count, dtype=torch.float64)
        norm = scale_and_clip(parameters, 1 / count.clamp(min=1), train.clip_norm, False)
        optimizer.step()
        done += 1
        objective.after_update(done)
        if not float(norm) < float("inf"):  # as the trainer, which reads it of each update
            raise SystemExit(
                f"{type(objective).__name__}: found a gradient of norm {float(norm)} in step {done}"
            )

    return update


def make_batch(objective: Objective, config: Any, utterances: int, seconds: float) -> Batch:
    """Noise, 10 % shorter or longer than `seconds`, with random labels of all kinds."""
    random = torch.Generator().manual_seed(0)
    lengths = (torch.linspace(0.9, 1.1, utterances) * seconds * 16000).long()
    return noise(objective, config, lengths, int(lengths.max()), random)


def noise(
    objective: Objective, config: Any, lengths: Tensor, samples: int, random: torch.Generator
) -> Batch:
    """Noise with random labels of all kinds. lengths: (B,) samples of each utterance; samples: what
    they are padded to."""
    wave = torch.randn(len(lengths), samples, generator=random) * 0.1
    wave *= torch.arange(samples) < lengths[:, None]
    frames = objective.encoder.frame_lengths(lengths)
    padded = int(objective.encoder.frame_lengths(torch.tensor([samples])))
    valid = torch.arange(padded) < frames[:, None]
    targets: dict[str, Tensor] = {
        name: torch.randint(classes, valid.shape, generator=random).where(valid, IGNORE)
        for name, classes in (getattr(config, "classes", None) or {}).items()
    }
    tokens = (lengths / 16000 * 10).long()  # letters come at about 10 per second
    vocabulary = getattr(config, "vocab_size", 2)
    targets["text"] = torch.randint(1, vocabulary, (int(tokens.sum()),), generator=random)
    targets["text_lengths"] = tokens
    mixed = wave + 0.05 * torch.randn(wave.shape, generator=random)
    ids = tuple(f"noise-{i}" for i in range(len(lengths)))
    return Batch(wave, lengths, targets, {"mixed": mixed}, torch.arange(len(lengths)), ids)


if __name__ == "__main__":
    main()
