"""The audit: what will be trained, parameter by parameter, and what it will cost, before it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from research import hosts, runs, sharding
from research.adapt import ADDED, Rule
from research.config import Config


def audit(config: Config, params: Any, mesh: Mesh, batches: Any) -> dict[str, Any]:
    """{"summary": facts, "parameters": one row a path}, as JSON values; `params` may be abstract.

    FLOPs are those of the blocks' products and attention, 6 a parameter and token where it learns,
    4 where it only passes gradients on, all twice where a step climbs first (`optim.sharpness`);
    bytes are those of parameters, gradients and AdamW's state, and of what it climbed to.
    """
    flat = flatten_dict(params, sep="/")
    rules = config.adapt.rules(flat)
    rows = []
    for path, leaf in flat.items():
        rule = rules[path]
        seen = len(batches.words()) if rule.seen else None
        spec = sharding.partition(path, leaf.shape, mesh)
        rows.append(
            {
                "path": path,
                "shape": list(leaf.shape),
                "dtype": str(leaf.dtype),
                "parameters": math.prod(leaf.shape),
                "learns": rule.learns,
                "rows": seen,
                "multiplier": multiplier(rule) if rule.learns else 0.0,
                "since": top(rule.since) if rule.learns and not rule.stage else None,
                "stage": top(rule.stage) if rule.learns else None,
                "decay": config.optim.weight_decay if rule.learns and rule.decays else 0.0,
                "added": bool(ADDED.search(path)),
                "sharding": list(spec),
            }
        )
    total = sum(row["parameters"] for row in rows)
    learning = sum(moving(row) for row in rows if row["learns"])
    trunk = getattr(config.task.backbone, "spec", None)
    stats, climbs = batches.stats(), config.optim.sharpness is not None
    summary = {
        "parameters": total,
        "learning": learning,
        "learning_share": round(learning / total, 6),
        "added": sum(row["parameters"] for row in rows if row["added"]),
        "flops_per_token": (1 + climbs) * flops_per_token(rows, trunk, batches.shapes[0][1]),
        "state_mb": round((4 * total + (12 + 4 * climbs) * learning) / 2**20, 1),
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "steps": config.steps,
        "batch_size": config.batch_size,
        **stats,
    }
    return {"summary": summary, "parameters": rows}


def moving(row: dict[str, Any]) -> int:
    """How many numbers of a parameter learn, of one that does."""
    shape = row["shape"]
    return math.prod(shape if row["rows"] is None else (row["rows"], *shape[1:]))


def multiplier(rule: Rule) -> float:
    """The factor of the learning rate; of a scanned stack, that of its top layer."""
    return rule.multiplier * (rule.layers[-1] if rule.layers else 1.0)


def top(when: int | tuple[int, ...]) -> int:
    """When a parameter begins to learn; of a scanned stack, its top layer."""
    return when if isinstance(when, int) else when[-1]


def flops_per_token(rows: list[dict[str, Any]], spec: Any, tokens: int) -> float:
    """Floating-point operations of a training step, for each token of a row of `tokens`."""
    products = 0.0
    for row in rows:
        if row["path"].startswith("backbone/block") and row["path"].endswith("kernel"):
            products += row["parameters"] * (6 if row["learns"] else 4)
    attention = 12 * spec.depth * spec.width * tokens if hasattr(spec, "heads") else 0
    return products + attention


def write(
    directory: Any,
    config: Config,
    params: Any,
    mesh: Mesh,
    batches: Any,
) -> None:
    """Keeps the audit beside the run, for its report."""
    found = audit(config, params, mesh, batches)
    if hosts.first():
        runs.write_atomic(Path(directory.path) / "audit.json", json.dumps(found, indent=1).encode())
