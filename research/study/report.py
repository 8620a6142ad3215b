"""Pages from run directories: one run in full, several side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research import files
from research.errors import ConfigError
from research.study import curves, plot, records, sections
from research.study.page import Block, Code, Details, Facts, Figure, Heading, Page, Text
from research.study.plot import Series
from research.study.records import Record, flatten, rises
from research.study.sections import leaf
from research.study.statistics import Summary, holm, paired_test
from research.study.table import Cell, Table

__all__ = [
    "Code",
    "Details",
    "Facts",
    "Figure",
    "Heading",
    "Page",
    "Table",
    "Text",
    "audit_page",
    "compare_page",
    "run_page",
    "write_page",
]


def write_page(page: Page, directory: str | Path) -> Path:
    """Writes report.html and report.md, each whole or not at all; returns the path of the former.

    Raises StorageError where the directory cannot be written.
    """
    target = Path(directory)
    with files.storage(target):
        target.mkdir(parents=True, exist_ok=True)
    files.write_atomic(target / "report.md", page.markdown().encode())
    files.write_atomic(target / "report.html", page.html().encode())
    return target / "report.html"


def run_page(run_path: str | Path) -> Page:
    """The page of one run, finished or not, from its directory alone.

    Raises ConfigError where that is no run, StorageError where a file of it cannot be read.
    """
    record = records.read(run_path)
    result = record.result
    blocks: list[Block] = [*sections.unfinished(record), *_headline(record)]
    figures = [*sections.loss_figure(record), *sections.score_figures(record)]
    if figures:
        blocks += [Heading("Learning curves"), *figures, *sections.optimisation(record)]
    if record.metrics:
        blocks += [Heading("Final metrics"), sections.metric_table(record)]
    for split, details in (result.get("details") or {}).items():
        found = sections.detail_blocks(split, details)
        blocks += [Heading(f"Results on {split}"), *found] if found else []
    if record.audit:
        blocks += [Heading("What was trained"), *sections.audit_blocks(record.audit)]
    if result.get("seconds"):
        blocks += [Heading("Time"), sections.time_table(result["seconds"])]
    blocks += [Heading("To run it again"), *_provenance(record)]
    return Page(record.name, _subtitle(record), blocks)


def _subtitle(record: Record) -> str:
    device = flatten(record.result.get("device"), "")
    parts = [
        str(record.result.get("status", "no result yet")),
        f"seed {record.config['seed']}" if "seed" in record.config else "",
        " × ".join(str(value) for value in device.values() if value is not None),
    ]
    return " · ".join(part for part in parts if part)


def _headline(record: Record) -> list[Block]:
    """The scores, then what they cost."""
    scores = {name: record.metrics[name] for name in record.scores()[:5]}
    result = record.result
    costs: dict[str, Cell] = {
        name: leaf(result[name]) for name in ("steps", "examples", "tokens") if name in result
    }
    seconds = records.number(result.get("seconds", {}).get("total"))
    if seconds > 0:
        costs["wall time"] = duration(seconds)
        for name in ("examples", "tokens"):
            if name in result:
                costs[f"{name} a second"] = round(result[name] / seconds, 1)
    if result.get("peak_memory_mb"):
        costs["peak memory"] = f"{result['peak_memory_mb']:,.0f} MB"
    if result.get("checkpoint"):
        costs["checkpoint"] = str(result["checkpoint"])
    blocks: list[Block] = [Facts(scores, prominent=True)] if scores else []
    return [*blocks, Facts(costs)] if costs else blocks


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _provenance(record: Record) -> list[Block]:
    """Versions, hardware, fingerprints; then the whole config."""
    facts = sections.provenance(record)
    rows = tuple((name, _spell(value)) for name, value in flatten(record.config).items())
    blocks: list[Block] = [Facts(facts)] if facts else []
    return [*blocks, Details("Config", [Table("", ("key", "value"), rows)])]


def _spell(value: Any) -> str:
    """A config's value as its file says it, digits untouched."""
    return value if isinstance(value, str) else repr(value)


def compare_page(run_paths: Sequence[str | Path]) -> Page:
    """Several runs: the keys and metrics in which they differ, their curves, and by configuration.

    Runs that differ in nothing but their seed are one arm: mean ± sd (n), and a paired test over
    the seeds shared with the first arm. Raises ConfigError for no run at all.
    """
    if not run_paths:
        raise ConfigError("A comparison needs at least one run directory, got none.")
    runs = [records.read(path) for path in run_paths]
    configs = [flatten(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(k for c in configs for k in c) if key != "name"]
    keys = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    names = list(dict.fromkeys(name for run in runs for name in run.scores()))
    best = Best(tuple(filter(rises, names)), tuple(n for n in names if not rises(n)))
    rows = tuple(
        (
            run.name,
            *(_brief(config.get(key)) for key in keys),
            *(run.metrics.get(name) for name in names),
        )
        for run, config in zip(runs, configs)
    )
    heads = ("run", *(key.removesuffix(".type") for key in keys), *names)
    blocks: list[Block] = [Heading("Runs"), Table("", heads, rows, *best)]
    arms = _arms(runs, configs, [key for key in keys if key != "seed"])
    if len(arms) < len(runs):
        blocks += [Heading("By configuration"), _arm_table(arms, names, best)]
        blocks += _arm_tests(arms, names[0]) if names else []
    figures = _overlays(arms, names[:5])
    if figures:
        blocks += [Heading("Learning curves"), *figures]
    return Page(f"{len(runs)} runs compared", ", ".join(run.name for run in runs), blocks)


Arms = dict[str, dict[Any, Record]]


class Best(NamedTuple):
    """Columns in which the highest, or the lowest, number is the best."""

    highest: tuple[str, ...]
    lowest: tuple[str, ...]


def _brief(value: Any) -> str:
    """A config's value in a few letters: a class without its module."""
    return _spell(value).rpartition(":")[2]


def _arms(runs: Sequence[Record], configs: Sequence[dict[str, Any]], keys: Sequence[str]) -> Arms:
    """Runs by what they differ in besides the seed, then by seed; alike in all, by name."""
    arms: Arms = {}
    for run, config in zip(runs, configs):
        known = [f"{key.removesuffix('.type')} {_brief(config.get(key))}" for key in keys]
        members = arms.setdefault(", ".join(known) or "all", {})
        seed = config.get("seed")
        members[run.name if seed in members else seed] = run
    return arms


def _arm_table(arms: Arms, names: Sequence[str], best: Best) -> Table:
    """One row an arm: each score over its seeds."""
    rows = []
    for label, members in arms.items():
        row: list[Cell] = [label]
        for name in names:
            values = [run.metrics[name] for run in members.values() if name in run.metrics]
            row.append(Summary.of(values) if values else None)
        rows.append(tuple(row))
    return Table("", ("configuration", *names), tuple(rows), *best)


def _arm_tests(arms: Arms, name: str) -> list[Block]:
    """Each arm against the first on one score, over the seeds that both have."""
    (_, first), *others = arms.items()
    tests = []
    for label, members in others:
        pairs = [
            (run.metrics[name], first[seed].metrics[name])
            for seed, run in members.items()
            if seed in first and name in run.metrics and name in first[seed].metrics
        ]
        if len(pairs) > 1 and all(math.isfinite(value) for pair in pairs for value in pair):
            tests.append((label, paired_test(*zip(*pairs))))
    if not tests:
        return []
    rows = tuple(
        (label, test.difference, test.dz, test.n, test.p, p, test.least_p, test.t_p)
        for (label, test), p in zip(tests, holm([test.p for _, test in tests]))
    )
    heads = ("against the first", "difference", "dz", "pairs")
    heads_of_p = ("p (sign flips)", "p (Holm)", "least p", "p (t-test)")
    return [Table(f"{name}, paired by seed", heads + heads_of_p, rows)]


def _overlays(arms: Arms, names: Sequence[str]) -> list[Block]:
    """Train loss and each named score: one line an arm, mean ± sd over its seeds."""
    blocks: list[Block] = []
    for name in ("train/loss", *names):
        split, _, metric = name.partition("/")
        lines: list[Series] = []
        for label, members in arms.items():
            logged = [run.history.get(split, {}).get(metric) for run in members.values()]
            found = [curve for curve in logged if curve is not None]
            title = label if len(arms) > 1 else next(iter(members.values())).name
            if found:
                lines.append(curves.mean_curve(title, found, noisy=split == "train"))
        lines = [line for line in lines if np.size(line.y)]  # seeds logged at other steps
        if lines:
            drawn = plot.curves(name, lines, xlabel="step", ylabel=metric)
            blocks.append(Figure(drawn, f"{name}: {curves.ends(lines)}."))
    return blocks


def audit_page(audit: dict[str, Any]) -> Page:
    """What would be trained, and what it costs: the blocks of a run's page, alone."""
    return Page("Audit", "before the first step", sections.audit_blocks(audit))
