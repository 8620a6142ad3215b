"""One run of a study made again: does it give the number, or fall where its arm's numbers do?"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research import runs
from research.config import build
from research.errors import ConfigError, StorageError
from research.study.records import number, rises
from research.study.table import Table, show
from research.train import run

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score told and made again; `low` and `high` bound where one more seed of the arm falls, NaN
    for an arm of fewer than two."""

    name: str
    told: float
    found: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What follows of the number."""
        if self.told == self.found or (math.isnan(self.told) and math.isnan(self.found)):
            return "equal"
        if math.isnan(self.low):
            return "differs; its arm has too few runs for an interval"
        return "within" if self.low <= self.found <= self.high else "OUTSIDE"


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Every score of a run made again, and the fingerprints that are no longer the same."""

    name: str
    scores: list[Score]
    changed: list[str]

    @property
    def agrees(self) -> bool:
        """Whether every score is equal or falls within its arm's interval."""
        return all(score.verdict in ("equal", "within") for score in self.scores)

    def table(self) -> Table:
        """A score a row."""
        return Table(
            title=f"{self.name}, made again",
            columns=("score", "told", "now", "its arm, 95 %", "verdict"),
            rows=tuple(
                (
                    score.name,
                    score.told,
                    score.found,
                    f"{show(score.low)} to {show(score.high)}",
                    score.verdict,
                )
                for score in self.scores
            ),
        )


def reproduce(report: str | Path, row: str) -> Reproduction:
    """Trains a run of a study anew, in a folder that is then dropped, and compares its scores.

    `report` is a study's folder, or its report.html or results.jsonl; `row` the name of a run, or
    the number of its line in results.jsonl, from 1 on. The run's data have to be where they were.
    Raises ConfigError where there is no such row.
    """
    folder = Path(report) if Path(report).is_dir() else Path(report).parent
    rows = table_of(folder)
    told = chosen(rows, row, folder)
    config = build(runs.read_config(folder / told["name"])["config"])
    with tempfile.TemporaryDirectory(prefix="reproduced-") as fresh:
        result = run(config, fresh)
        summary: dict[str, Any] = result.summary
    arm = [one for one in rows if arm_of(one) == arm_of(told)]
    scores = []
    for name, value in told["metrics"].items():
        if name.startswith("train/"):
            continue
        low, high = interval([number(one["metrics"].get(name)) for one in arm])
        found = float(result.metrics.get(name, math.nan))
        scores.append(Score(name=name, told=number(value), found=found, low=low, high=high))
    scores.sort(key=lambda score: not rises(score.name))
    changed = [
        name
        for name, value in told["fingerprints"].items()
        if summary["fingerprints"].get(name) != value
    ]
    return Reproduction(name=told["name"], scores=scores, changed=changed)


def table_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.jsonl. Raises ConfigError where it is missing, StorageError where it is
    damaged."""
    file = folder / "results.jsonl"
    if not file.is_file():
        raise ConfigError(f"{folder}: is not the folder of a study: results.jsonl is missing")
    rows = []
    for line, text in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            found = json.loads(text)
            rows.append({key: found[key] for key in ("name", "seed", "metrics", "fingerprints")})
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{file}:{line}: not a row of results: {error}") from None
    return rows


def chosen(rows: list[dict[str, Any]], row: str, folder: Path) -> dict[str, Any]:
    """The row of that name or number."""
    for place, one in enumerate(rows, 1):
        if row in (one["name"], str(place)):
            return one
    raise ConfigError(
        f"{folder}: has no row {row!r}; expected a run's name, such as {rows[0]['name']!r}, or a "
        f"number from 1 to {len(rows)}"
    )


def arm_of(row: dict[str, Any]) -> str:
    """The arm that a row's name tells: see `Runner`."""
    return str(row["name"]).removesuffix(f"-{row['seed']}")


def interval(values: list[float]) -> tuple[float, float]:
    """Where one more number falls with that confidence, were the numbers of a normal distribution.

    mean -+ t s sqrt(1 + 1 / n): [0, 1, 2] gives -3.97 to 5.97. NaN for fewer than two numbers.
    """
    from scipy import stats  # takes seconds to import

    sample = np.asarray(values, np.float64)
    if len(sample) < 2 or not np.isfinite(sample).all():
        return math.nan, math.nan
    t = float(stats.t.isf((1 - CONFIDENCE) / 2, len(sample) - 1))
    half = t * float(sample.std(ddof=1)) * math.sqrt(1 + 1 / len(sample))
    return float(sample.mean()) - half, float(sample.mean()) + half
