"""The journal: which evaluation is the best one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from research.journal import Journal
from research.runs import RunDirectory


@pytest.mark.parametrize(
    ("track", "values", "best"),
    [
        ("dev/pearson", [0.1, 0.3, 0.2], 1),
        ("dev/loss", [0.1, 0.3, 0.05], 2),
        ("dev/pearson", [math.nan, -0.5, -0.7], 1),
        ("dev/loss", [math.nan, 3.0, math.nan], 1),
        ("dev/pearson", [math.nan, math.nan, math.nan], 0),
    ],
)
def test_the_best_evaluation_is_the_best_number(
    tmp_path: Path, track: str, values: list[float], best: int
) -> None:
    with (
        RunDirectory.open(tmp_path / "run") as directory,
        Journal(directory, len(values), show=False) as journal,
    ):
        marked = [journal.scored(step, {track: x}, {}, track) for step, x in enumerate(values)]
    assert marked[best] and not any(marked[best + 1 :])
    assert journal.memory["best"]["step"] == best
    assert journal.memory["since_best"] == len(values) - 1 - best
