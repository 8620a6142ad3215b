"""Replicates beside the same runs one by one: examples a second of both, in turn."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from statistics import median

import jax

from research.adapt import HeadOnly, Strategy
from research.config import Config, load_config
from research.replicate import replicate
from research.strategies import Full, LoRA
from research.study.table import Table
from research.train import Result, run

KINDS = ("seeds", "learning rates")
STRATEGIES: dict[str, Strategy] = {"head only": HeadOnly(), "LoRA": LoRA(), "full": Full()}


def main(arguments: list[str]) -> None:
    """`bench replicates [FILE] --steps 3 [OVERRIDES]`: seeds, and learning rates of one seed."""
    parser = argparse.ArgumentParser(prog="launch.py bench replicates", allow_abbrev=False)
    parser.add_argument("--replicates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=sorted(STRATEGIES), action="append")
    parser.add_argument("--kind", choices=KINDS, action="append")
    named = arguments[:1] if arguments and not arguments[0].startswith("-") else []
    options, overrides = parser.parse_known_args(arguments[len(named) :])
    file = named[0] if named else "configs/smoke.py"
    config = load_config(file, overrides, "launch.py bench replicates")
    config = dataclasses.replace(config, evals=(), track=None, save_every=10**9)
    rows = []
    for name in options.only or STRATEGIES:
        adapted = dataclasses.replace(config, adapt=STRATEGIES[name])
        for kind in options.kind or KINDS:
            found = [measure(adapted, kind, options.replicates) for _ in range(options.rounds)]
            rows.append((name, kind, *columns(found)))
            print(*rows[-1], sep=", ", file=sys.stderr, flush=True)
    title = f"{options.replicates} replicates, examples/s over all: median (range) of rounds"
    heads = ("", "differ in", "as one program", "one by one", "ratio")
    print(f"{jax.devices()[0].device_kind}, {config.batch_size} examples a step")
    print(Table(title=title, columns=heads, rows=tuple(rows)).to_text())


def measure(config: Config, kind: str, count: int) -> tuple[float, float]:
    """Examples a second as one program and one by one, compiling left out."""
    members = []
    for i in range(count):
        optim = dataclasses.replace(
            config.optim, learning_rate=config.optim.learning_rate * (1 + i / 8)
        )
        changes = {"seed": i} if kind == "seeds" else {"optim": optim}
        members.append(dataclasses.replace(config, name=f"member{i}", **changes))
    with tempfile.TemporaryDirectory() as folder:
        together = speed(replicate(members, Path(folder) / "together"))
        alone = speed([run(member, Path(folder) / "alone") for member in members])
    return together, alone


def speed(results: list[Result]) -> float:
    """Examples a second of training, waiting for batches included."""
    seconds = [one.summary["seconds"] for one in results]
    total = sum(one["train"] + one.get("wait", 0.0) for one in seconds)
    return sum(one.summary["examples"] for one in results) / total


def columns(found: list[tuple[float, float]]) -> tuple[str, str, str]:
    """Medians and ranges of both sides and of their ratio."""
    sides = [*zip(*found), tuple(a / b for a, b in found)]
    texts = [f"{median(side):.3g} ({min(side):.3g} to {max(side):.3g})" for side in sides]
    return texts[0], texts[1], texts[2]
