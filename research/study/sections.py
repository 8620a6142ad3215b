"""The parts of a run's page: curves, metrics, details of a split, time, audit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.study import plot, predictions
from research.study.curves import ends, noisy
from research.study.page import Block, Details, Facts, Figure, Text
from research.study.plot import Series
from research.study.records import Record, flatten, number
from research.study.table import Cell, Table

COUNTERS = ("examples", "tokens", "skipped")


def loss_figure(record: Record) -> list[Block]:
    """Train loss, smoothed, and that of every evaluated split."""
    series: list[Series] = []
    for split, names in record.history.items():
        if "loss" in names and split == "train":
            series = noisy("train (smoothed)", names["loss"]) + series
        elif "loss" in names:
            series.append(Series(label=split, x=names["loss"][0], y=names["loss"][1]))
    if not series:
        return []
    drawn = plot.curves("Loss", series, xlabel="step", ylabel="loss")
    return [Figure(drawn, f"Loss: {ends(series)}.")]


def score_figures(record: Record) -> list[Block]:
    """Scores within [-1, 1] in one figure, each other one alone; the tracked one first."""
    shared: list[Series] = []
    alone: list[Series] = []
    for score in record.scores():
        split, _, name = score.partition("/")
        if name == "loss" or name not in record.history.get(split, {}):
            continue
        steps, values = record.history[split][name]
        bounded = np.abs(values[np.isfinite(values)]).max(initial=0) <= 1
        (shared if bounded else alone).append(Series(label=score, x=steps, y=values))
    groups = [("Scores", shared[:6])] if shared else []
    groups += [(line.label, [line]) for line in alone[:3]]
    return [
        Figure(
            plot.curves(title, lines, xlabel="step", ylabel=title.lower()),
            f"{title}: {ends(lines)}.",
        )
        for title, lines in groups
    ]


def optimisation(record: Record) -> list[Block]:
    """What else was logged of training: learning rate, gradient norm, further means."""
    figures: list[Block] = []
    for name, curve in record.history.get("train", {}).items():
        if name == "loss" or name in COUNTERS or len(curve[0]) < 2:
            continue
        series = [Series(label=name, x=curve[0], y=curve[1])]
        if name != "learning_rate":
            series = noisy(name, curve)
        drawn = plot.curves(name, series, xlabel="step", ylabel=name, log_y=name == "grad_norm")
        figures.append(Figure(drawn, f"{name} of training."))
    return [Details("Optimisation", figures)] if figures else []


def metric_table(record: Record) -> Table:
    """The final metrics: one row a metric, one column a split."""
    splits = list(dict.fromkeys(name.split("/")[0] for name in record.metrics))
    splits.sort(key="train".__eq__)
    order = [*record.scores(), *record.metrics]
    names = list(dict.fromkeys(name.partition("/")[2] for name in order))
    rows = tuple(
        (name, *(record.metrics.get(f"{split}/{name}") for split in splits)) for name in names
    )
    return Table("", ("metric", *splits), rows)


def detail_blocks(split: str, details: dict[str, Any]) -> list[Block]:
    """All that a split's details hold: the known kinds drawn, others as tables of their leaves."""
    rest = dict(details)
    blocks: list[Block] = []
    if "labels" in rest and "confusion" in rest:
        blocks += predictions.class_blocks(split, rest)
        for name in ("labels", "confusion", "pr_auc"):
            rest.pop(name, None)
    if "points" in rest:
        blocks.append(predictions.scatter(split, rest.pop("points")))
    mistakes = rest.pop("mistakes", None)
    if mistakes:
        blocks.append(predictions.mistake_table(mistakes))
    for name, value in rest.items():
        blocks += _unknown(name, value)
    return blocks


def _unknown(name: str, value: Any) -> list[Block]:
    """A dict or list of dicts as a table, scalars as facts."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inner = [(str(key), row) for key, row in value.items()]
    elif isinstance(value, list):
        inner = [(str(key), row) for key, row in enumerate(value)]
    if inner and all(isinstance(row, dict) for _, row in inner):
        columns = tuple(dict.fromkeys(key for _, row in inner for key in row))
        rows = tuple((key, *(leaf(row.get(column)) for column in columns)) for key, row in inner)
        return [Table(name, (name, *columns), rows)]
    facts = {key: leaf(item) for key, item in flatten(value, name).items()}
    return [Facts(facts)] if facts else []


def time_table(seconds: dict[str, Any]) -> Table:
    """Seconds by phase with their share of the total, longest first."""
    total = number(seconds["total"]) if "total" in seconds else sum(map(number, seconds.values()))
    phases = {name: number(value) for name, value in seconds.items() if name != "total"}
    rows: list[tuple[Cell, ...]] = [
        (name, f"{value:.1f}", f"{value / total:.1%}" if total else None)
        for name, value in sorted(phases.items(), key=lambda item: -item[1])
    ]
    columns = ("phase", "seconds", "share")
    return Table("", columns, (*rows, ("total", f"{total:.1f}", None)))


def audit_blocks(audit: dict[str, Any]) -> list[Block]:
    """What was trained: the summary, and one row for parameters alike but for their numbers."""
    if not audit:
        return []
    rows = audit.get("parameters", [])
    facts = {
        name: leaf(value)
        for key, group in audit.items()
        if key != "parameters"
        for name, value in flatten(group, "" if isinstance(group, dict) else key).items()
    }
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike = tuple(str(value) for key, value in row.items() if key != "path")
        groups.setdefault((re.sub(r"\d+", "#", row["path"]), *alike), []).append(row)
    lines = tuple(_audit_line(group) for group in groups.values())
    columns = (
        "parameters",
        "shape",
        "dtype",
        "count",
        "learns",
        "from step",
        "rate ×",
        "decay",
        "added",
        "sharding",
    )
    table = Table("", columns, lines)
    folded = Details(f"{len(rows)} parameter arrays", [table], unfolded=len(lines) <= 30)
    return [*([Facts(facts)] if facts else []), folded]


def _audit_line(group: Sequence[dict[str, Any]]) -> tuple[Cell, ...]:
    row = group[0]
    axes = " × ".join(str(axis) if axis else "–" for axis in row["sharding"] or [])
    return (
        merge_paths([member["path"] for member in group]),
        " × ".join(str(size) for size in row["shape"]) or "scalar",
        row["dtype"],
        sum(member["parameters"] for member in group),
        f"{row['rows']:,} rows" if row.get("rows") else "yes" if row["learns"] else "no",
        leaf(row.get("since")),
        f"{number(row['multiplier']):g}",
        f"{number(row['decay']):g}",
        "yes" if row.get("added") else None,
        axes if re.search(r"\w", axes) else None,
    )


def merge_paths(paths: Sequence[str]) -> str:
    """Paths equal but for their numbers as one: a_0/b, a_1/b, a_2/b -> a_{0…2}/b."""
    pieces = [re.split(r"(\d+)", path) for path in paths]
    merged = ""
    for column in zip(*pieces):
        values = list(dict.fromkeys(column))
        if len(values) == 1:
            merged += values[0]
            continue
        numbers = sorted(int(value) for value in values)
        unbroken = numbers == list(range(numbers[0], numbers[-1] + 1))
        ends = f"{numbers[0]}…{numbers[-1]}" if unbroken else ",".join(map(str, numbers))
        merged += f"{{{ends}}}"
    return merged


def leaf(value: Any) -> Cell:
    """A JSON value as a cell."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or None
    return str(value) if value else None


def unfinished(record: Record) -> list[Block]:
    """A warning for a run without a result."""
    if record.result:
        return []
    last = max((c[0][-1] for n in record.history.values() for c in n.values()), default=0)
    return [Text(f"This run has no result: it is still going, or it ended at step {last:g}.")]


def provenance(record: Record) -> dict[str, Cell]:
    """Versions, hardware and fingerprints: what the numbers depend on beside the config."""
    facts: dict[str, Cell] = {}
    for group in ("versions", "device", "cpu", "fingerprints", "data"):
        for name, value in flatten(record.result.get(group)).items():
            if value is not None:
                facts[f"{group.removesuffix('s')} {name}".strip()] = leaf(value)
    return facts
