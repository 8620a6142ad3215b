"""Logged curves made fit to draw: smoothed, thinned, averaged over seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from research.study.plot import Series
from research.study.records import Curve
from research.study.table import show

POINTS = 400  # of a curve: more than a figure has pixels for


def smooth(values: npt.NDArray[np.float64], span: int) -> npt.NDArray[np.float64]:
    """Exponential moving average over about `span` values, without a bias to 0 at the start.

    What is not finite is left out; a span of 1 changes nothing else.
    """
    keep = 1 - 1 / max(1, span)
    total = weight = 0.0
    means = np.empty(len(values))
    for place, value in enumerate(values):
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        means[place] = total / weight if weight else np.nan
    return means


def noisy(label: str, curve: Curve) -> list[Series]:
    """A curve of single steps: the values pale, their moving average strong, thinned to draw."""
    steps, values = curve
    every = max(1, len(steps) // POINTS)
    average = smooth(values, len(steps) // 25)
    pale = Series(label="", x=steps[::every], y=values[::every], faint=True)
    strong = Series(label=label, x=steps[::every], y=average[::every])
    return [pale, strong] if len(steps) > 25 else [strong]


def mean_curve(label: str, curves: Sequence[Curve], *, noisy: bool) -> Series:
    """The mean of curves over the steps that all have, with one sd each way as its band.

    `noisy` ones are smoothed first, each alone. A gap where a value of any is not finite.
    """
    shared = functools.reduce(np.intersect1d, [steps for steps, _ in curves])
    rows = []
    for steps, values in curves:
        known = smooth(values, len(steps) // 25) if noisy else values
        rows.append(known[np.isin(steps, shared)])
    every = max(1, len(shared) // POINTS)
    table = np.stack(rows)[:, ::every]
    table = np.where(np.isfinite(table), table, np.nan)
    mean = table.mean(0)
    sd = table.std(0, ddof=1) if len(curves) > 1 else np.full_like(mean, np.nan)
    return Series(label=label, x=shared[::every], y=mean, low=mean - sd, high=mean + sd)


def ends(series: Sequence[Series]) -> str:
    """The last value of each line: "train 0.253, dev 0.321 at the end"."""
    values = [(line.label, np.asarray(line.y)) for line in series if not line.faint]
    last = [f"{label} {show(y[-1])}" for label, y in values if y.size]
    return f"{', '.join(last)} at the end"
