"""Our side of a bench: one process of launch.py, and what its run directory says of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from research import runs
from research.audit import flops_per_token
from research.errors import ConfigError

ROOT = Path(__file__).parents[2]
Figures = dict[str, Any]


def train(bench: Any, seed: int, start: str) -> Figures:
    """`launch.py train`, whose caches a `start` called cold fills and a later one finds filled."""
    name = f"ours{seed}{start}"
    command = [sys.executable, str(ROOT / "launch.py"), "train", str(bench.folder / "config.py")]
    command += [*bench.overrides, "--workdir", str(bench.folder), "--name", name]
    lines = bench.folder / name / "metrics.jsonl"
    reached: list[float] = []
    started = time.monotonic()

    def watch() -> None:
        if bench.target is not None and not reached and scores(lines, bench):
            reached.append(time.monotonic() - started)

    environment = {"GRAFT_CACHE": str(bench.folder / f"cache{seed}")}
    _, total = call([*command, "--seed", str(seed)], environment, watch)
    result = runs.read_result(bench.folder / name) or {}
    audit = json.loads((bench.folder / name / "audit.json").read_text("utf-8"))
    shutil.rmtree(bench.folder / name)
    seconds = result["seconds"]["train"] + result["seconds"]["wait"]
    found = {
        "examples_per_second": result["examples"] / seconds,
        "tokens_per_second": result["tokens"] / seconds,
        "padding": result["data"]["padding"],
        "compiled": result["compiled"],
        "first_step_seconds": result["first_step_seconds"],
        "total_seconds": total,
        "peak_memory_mb": result["peak_memory_mb"],
        "score": result["metrics"][bench.workload.metric],
        "flops_per_token": flops_per_token(
            audit["parameters"], bench.config.task.backbone.spec, bench.reach
        ),
    }
    if bench.target is not None:
        found["target_seconds"] = reached[0] if reached else None
    return found


def scores(lines: Path, bench: Any) -> bool:
    """Whether any evaluation so far has the score that is aimed at."""
    if not lines.is_file():
        return False
    split, _, name = bench.workload.metric.partition("/")
    for line in lines.read_text("utf-8").splitlines():
        # The last line may be half written.
        if line.endswith("}"):
            row = json.loads(line)
            if row.get("split") == split and row.get(name, -np.inf) >= bench.target:
                return True
    return False


def call(
    command: list[str], environment: dict[str, str], watch: Callable[[], None] | None = None
) -> tuple[str, float]:
    """Standard output of a command and its seconds, start to end; `watch` is called meanwhile.

    Raises ConfigError with the end of what it complained of.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as complained:
        with subprocess.Popen(
            command, env=os.environ | environment, stdout=told, stderr=complained
        ) as process:
            while watch is not None and process.poll() is None:
                watch()
                time.sleep(0.05)
            process.wait()
        seconds = time.monotonic() - started
        told.seek(0)
        complained.seek(0)
        if process.returncode != 0:
            complaint = " ".join(complained.read().strip().splitlines()[-3:])
            raise ConfigError(f"bench: {' '.join(command[:3])} failed: {complaint}")
        return told.read(), seconds
