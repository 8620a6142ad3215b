"""Ours and a rival in turn, each in a process of its own: medians, ranges and ratios."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from research import initialize, runs
from research.bench.pretraining import PRETRAINING, Pretraining
from research.bench.workloads import WORKLOADS, Workload
from research.config import Config, load_config
from research.errors import ConfigError
from research.study.table import Table

ROOT = Path(__file__).parents[2]
RIVALS = Path(__file__).parent / "rivals"
EVERY: dict[str, Workload | Pretraining] = {**WORKLOADS, **PRETRAINING}
UNITS = {
    "examples_per_second": "examples/s",
    "tokens_per_second": "real tokens/s",
    "first_step_seconds": "first step, s",
    "total_seconds": "everything, s",
    "peak_memory_mb": "peak MB",
    "score": "",
}
# The config of a workload, scored once, after the last step, and without thresholds tuned on dev;
# the means of training are those of all steps.
CONFIG = """
import dataclasses
from research.config import load
from research.evaluate import HeldOut

def config():
    evals = (HeldOut(split="dev"),) if {scored} else ()
    never = {{"eval_every": 10**9, "save_every": 10**9, "log_every": 10**9}}
    return dataclasses.replace(load({file!r})(), evals=evals, track=None, **never)
"""


@dataclass(frozen=True)
class Bench:
    """One workload with its settings, in a folder of its own."""

    workload: Workload | Pretraining
    config: Config
    overrides: tuple[str, ...]
    rival_python: str
    folder: Path

    def ours(self, seed: int) -> dict[str, float]:
        """`launch.py train` in a process with empty caches."""
        environment = {"GRAFT_CACHE": str(self.folder / f"cache{seed}")}
        command = [sys.executable, str(ROOT / "launch.py"), "train", str(self.folder / "config.py")]
        command += [*self.overrides, "--workdir", str(self.folder), "--name", f"ours{seed}"]
        _, total = call([*command, "--seed", str(seed)], environment)
        result = runs.read_result(self.folder / f"ours{seed}") or {}
        seconds = result["seconds"]["train"] + result["seconds"]["wait"]
        return {
            "examples_per_second": result["examples"] / seconds,
            "tokens_per_second": result["tokens"] / seconds,
            "first_step_seconds": result["first_step_seconds"],
            "total_seconds": total,
            "peak_memory_mb": result["peak_memory_mb"],
            "score": result["metrics"][self.workload.metric],
        }

    def theirs(self, seed: int, *more: str) -> dict[str, float]:
        """The rival on the same rows, with its default settings."""
        command = [self.rival_python, str(RIVALS / self.workload.rival)]
        command += self.workload.arguments(self.config, self.folder, seed)
        output, total = call([*command, *more], {"HF_HUB_OFFLINE": "1"})
        found = json.loads(output.splitlines()[-1])
        score = self.workload.grade(found.pop("outputs"), self.folder)
        return found | {"score": score, "total_seconds": total}

    def steelman(self, seed: int) -> dict[str, float]:
        """The rival with the best settings found for a CPU."""
        return self.theirs(seed, "--steelman")


def main(arguments: list[str]) -> None:
    """`bench WORKLOAD [OVERRIDES]`: a table. Fine-tuning needs --init-from DIR, --data.train and
    --data.dev."""
    parser = argparse.ArgumentParser(prog="launch.py bench", allow_abbrev=False)
    parser.add_argument("workload", choices=sorted(EVERY))
    parser.add_argument("--rounds", type=int, default=3, help="seeds, one a round")
    parser.add_argument("--steelman", action="store_true", help="also the rival's best settings")
    parser.add_argument("--rival-python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--to", help="where to keep all numbers as JSON")
    options, given = parser.parse_known_args(arguments)
    workload = EVERY[options.workload]
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = ROOT / "configs" / f"{workload.config}.py"
        (folder / "config.py").write_text(
            CONFIG.format(file=str(file), scored=workload.metric.startswith("dev/")),
            encoding="utf-8",
        )
        overrides = (*workload.same, *given)
        config = load_config(
            folder / "config.py", list(overrides), f"launch.py bench {options.workload}"
        )
        bench = Bench(workload, initialize.resolve(config), overrides, options.rival_python, folder)
        sides = {"Graft": bench.ours, f"{workload.against}, default": bench.theirs}
        if options.steelman:
            sides[f"{workload.against}, steelman"] = bench.steelman
        for seed in range(options.rounds):
            workload.write(bench.config, folder, seed)
            for side, measure in sides.items():
                found.setdefault(side, []).append(measure(seed))
                print(f"round {seed + 1}, {side}: {found[side][-1]}", file=sys.stderr, flush=True)
    print(table(found, workload.metric).to_text())
    if options.to:
        kept = {"command": arguments, "runs": found, **runs.environment()}
        Path(options.to).write_text(json.dumps(kept, indent=1) + "\n")


def table(found: dict[str, list[dict[str, float]]], metric: str) -> Table:
    """Medians and ranges a side, and the ratio of ours to each rival's, round by round."""
    rows = []
    for name, unit in UNITS.items():
        row = [metric if name == "score" else unit]
        mine = [one[name] for one in found["Graft"]]
        for side, results in found.items():
            values = [one[name] for one in results]
            row.append(f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})")
            if side != "Graft":
                ratios = [a / b if b else float("nan") for a, b in zip(mine, values)]
                row.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(tuple(row))
    columns = [""]
    for side in found:
        columns += [side] if side == "Graft" else [side, "Graft / it"]
    title = "Median (range) over rounds; Graft and its rivals in turn on one machine"
    return Table(title=title, columns=tuple(columns), rows=tuple(rows))


def call(command: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """Standard output of a command and its seconds, start to end.

    Raises ConfigError with the end of what it complained of.
    """
    started = time.monotonic()
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        complaint = " ".join(done.stderr.strip().splitlines()[-3:])
        raise ConfigError(f"bench: {' '.join(command[:3])} failed: {complaint}")
    return done.stdout, time.monotonic() - started
