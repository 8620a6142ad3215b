"""What a bench found, as a table with its spread, and all that its figures depend on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

from research import runs
from research.bench import machine
from research.bench.ours import Figures
from research.models import products
from research.study.page import Facts, Page, Text
from research.study.table import Table

UNITS = {
    "examples_per_second": "examples/s",
    "tokens_per_second": "real tokens/s",
    "products_gflops": "its library's matrix products, GFLOP/s",
    "products_share": "share of that rate",
    "padding": "padding, share of cells",
    "compiled": "programs compiled",
    "first_step_seconds": "first step, cold, s",
    "warm_first_step_seconds": "first step, warm, s",
    "total_seconds": "everything, cold, s",
    "warm_total_seconds": "everything, warm, s",
    "target_seconds": "to the target score, cold, s",
    "warm_target_seconds": "to the target score, warm, s",
    "peak_memory_mb": "peak MB",
    "score": "",
}
# What of a processor decides which precision is fast.
FEATURES = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
LOADS = "in use by others before each round"
SWITCHES = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")


def table(found: dict[str, list[Figures]], metric: str) -> Table:
    """Medians and ranges a side, and the ratio of ours to each rival's, round by round."""
    rows = []
    for name, unit in UNITS.items():
        if not all(name in one for results in found.values() for one in results):
            continue
        row = [metric if name == "score" else unit]
        mine = [one[name] for one in found["Graft"]]
        for side, results in found.items():
            values = [one[name] for one in results]
            row.append(spread(values, "{:.4g}"))
            if side != "Graft":
                pairs = zip(mine, values)
                row.append(spread([a / b if a is not None and b else None for a, b in pairs]))
        rows.append(tuple(row))
    columns = [""]
    for side in found:
        columns += [side] if side == "Graft" else [side, "Graft / it"]
    title = "Median (range) over rounds; Graft and its rivals in turn on one machine"
    return Table(title=title, columns=tuple(columns), rows=tuple(rows))


def spread(values: list[float | None], form: str = "{:.2f}") -> str:
    """Median and range; where rounds have no value, in how many there is one."""
    there = [value for value in values if value is not None]
    if not there:
        return "none"
    middle, low, high = (form.format(one) for one in (median(there), min(there), max(there)))
    missing = "" if len(there) == len(values) else f", {len(there)} of {len(values)} rounds"
    return f"{middle} ({low} to {high}{missing})"


def page(title: str, metric: str, found: dict[str, list[Figures]], facts: dict[str, Any]) -> Page:
    """The table, a warning where the machine was busy, and the `circumstances`."""
    loads = facts[LOADS]
    blocks: list[Any] = [table(found, metric)]
    busy = [load for load in loads if load is not None and load > machine.BUSY]
    if busy:
        blocks.append(
            Text(
                f"Others used up to {max(busy):.0%} of the processors before {len(busy)} of "
                f"{len(loads)} rounds: these figures are doubtful, their ratios a little less so."
            )
        )
    blocks.append(Facts({name: told(value) for name, value in facts.items()}))
    return Page(title, facts["date"], blocks)


def circumstances(
    found: dict[str, list[Figures]], loads: list[float | None], arguments: list[str]
) -> dict[str, Any]:
    """Versions, flags, hardware and date."""
    theirs = [one["versions"] for results in found.values() for one in results if "versions" in one]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": ["bench", *arguments],
        **runs.environment(),
        "rival": theirs[0] if theirs else None,
        "precision": {side: results[0]["dtype"] for side, results in found.items()},
        "processor features": sorted(products.features() & FEATURES),
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        LOADS: loads,
    }


def told(value: Any) -> str:
    """A fact in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items()) or "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def keep(folder: Path, page: Page, found: dict[str, list[Figures]], facts: dict[str, Any]) -> None:
    """Writes bench.json, every figure of every round, and bench.md."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {**facts, "runs": found}
    runs.write_atomic(folder / "bench.json", json.dumps(kept, indent=1).encode())
    runs.write_atomic(folder / "bench.md", page.markdown().encode())
