"""The plan of a study: its arms, how they differ, what they will cost; nothing is trained."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import audit, initialize, runs, sharding
from research import config as configs
from research.config import Config
from research.study import records
from research.study.page import Details, Facts, Heading, Page, Text
from research.study.report import duration
from research.study.runner import Runner, arm_of, changes
from research.study.table import Cell, Table

COLUMNS = (
    *("arm", "runs", "steps", "learn", "TFLOPs a run", "seconds a run"),
    "differs from the first in",
)
SAMPLE = 20  # steps whose tokens stand for those of all


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one second does: FLOPs as the audit counts them, and where that is known from.

    `around`: seconds of a run besides its training, of which compiling is the most.
    """

    flops: float
    around: float
    told: str


def plan(runner: Runner) -> Page:
    """What a dry runner was asked for: an arm a row; the first seed of each stands for the others.

    FLOPs are the audit's, over the cells of the steps, padding included. Raises what opening the
    data of an arm does.
    """
    arms: dict[str, list[Config]] = {}
    for result in runner.results:
        arms.setdefault(arm_of(result.config), []).append(result.config)
    known, resolved = rate(runner.path), dict[str, Config]()
    rows: list[tuple[Cell, ...]] = []
    first: Any = None
    total = 0.0
    for arm, members in arms.items():
        config, summary, cells = examined(members[0], resolved)
        resolved |= {str(runner.path / one.name): config for one in members}
        flops = summary["flops_per_token"] * cells * summary["steps"]
        described = configs.describe(config)
        first = first or described
        seconds = known.around + flops / known.flops
        cost = (summary["steps"], summary["learning"], flops / 1e12, seconds)
        rows.append((arm, len(members), *cost, changes(first, described)))
        total += flops * len(members)
    count = len(runner.results)
    facts: dict[str, Cell] = {
        "runs": count,
        "TFLOPs": total / 1e12,
        "GFLOP/s": known.flops / 1e9,
        "expected time": duration(count * known.around + total / known.flops),
    }
    named = tuple((one.config.name, one.config.seed) for one in runner.results)
    return Page(
        f"Plan of {runner.path.name}",
        f"{count} runs in {len(arms)} arms; nothing was trained",
        [
            Heading("Cost"),
            Facts(facts),
            Text(known.told),
            Table("Arms", COLUMNS, tuple(rows)),
            Details("Runs", [Table("", ("run", "seed"), named)]),
        ],
    )


def examined(config: Config, resolved: dict[str, Config]) -> tuple[Config, dict[str, Any], float]:
    """A config resolved, the audit's summary, and the cells of a mean step.

    A run that starts from one of the plan takes its trunk and tokenizer from that one's config.
    """
    source = resolved.get(config.init_from or "")
    if source is not None:
        task, data = config.task, config.data
        if getattr(task, "backbone", "") is None:
            task = task.clone(backbone=source.task.backbone)
        if getattr(data, "tokenizer", "") is None:
            data = dataclasses.replace(data, tokenizer=source.data.tokenizer)
        config = dataclasses.replace(config, task=task, data=data)
    config = initialize.resolve(config)
    config.optim.rate(config.steps or 0)  # what it refuses, it refuses before the first run
    mesh = config.mesh.build()
    batches = initialize.open_training(config, mesh)
    batch = sharding.abstract_rows(batches.batch(0), mesh)
    params = initialize.abstract_params(config.task, batch, mesh, config.adapt)
    summary = audit.audit(config, params, mesh, batches)["summary"]
    steps = np.unique(np.linspace(0, batches.steps - 1, SAMPLE).astype(int))
    tokens = np.mean([batches.lengths[batches.examples_of(int(step))].sum() for step in steps])
    return config, summary, float(tokens) / (1 - batches.padding)


def rate(folder: Path) -> Rate:
    """That of the finished runs of a study's folder, or else of those beside it, on a machine like
    this one; without any, what a matrix product reaches here, which no training does."""
    here = runs.environment()
    for name, pattern in (("this study", "*/result.json"), ("other runs", "../**/result.json")):
        flops = seconds = around = 0.0
        files = sorted(folder.glob(pattern))
        found = [record for file in files if (record := finished(file.parent, here))]
        for record in found:
            summary, result = record.audit["summary"], record.result
            cells = result["tokens"] / (1 - summary["padding"])
            flops += summary["flops_per_token"] * cells
            seconds += result["seconds"]["train"]
            around += result["seconds"]["total"] - result["seconds"]["train"]
        if flops and seconds:
            told = f"The rate is that of {len(found)} finished runs of {name} on this machine."
            return Rate(flops=flops / seconds, around=around / len(found), told=told)
    return Rate(
        flops=calibrate(),
        around=0.0,
        told="No finished run on this machine is at hand: the rate is that of a matrix product, so "
        "that the time is a lower bound, without compiling and evaluation.",
    )


def finished(path: Path, here: dict[str, Any]) -> records.Record | None:
    """A run's record, where it is done, has an audit, and was made on such a machine as this."""
    if not (path / "config.json").is_file():
        return None
    record = records.read(path)
    same = all(record.result.get(name) == here[name] for name in ("device", "cpu"))
    done = record.result.get("status") == "done" and record.audit
    return record if same and done else None


def calibrate(size: int = 1024) -> float:
    """FLOPs a second of a float32 matrix product of this device, the best of five."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)
