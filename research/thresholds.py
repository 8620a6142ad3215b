"""Scores against yes or no: areas under their curves, and the threshold that serves best.

Each function equals scikit-learn's of the same meaning; ties are one point of a curve.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Numbers = npt.ArrayLike
Aim = Literal["f1", "mcc"]


def sweep(
    positive: Numbers, scores: Numbers
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """True and false positives, each [K], when all with a score of at least cut k are taken.

    The cuts, float64 [K], are the distinct scores, the highest first.
    """
    yes, table = np.asarray(positive, bool), np.asarray(scores, np.float64)
    order = np.argsort(-table, kind="stable")
    table = table[order]
    ends = np.flatnonzero(np.append(np.diff(table) != 0, True)) if len(table) else np.arange(0)
    hits = np.cumsum(yes[order])[ends]
    return hits, ends + 1 - hits, table[ends]


def auroc(positive: Numbers, scores: Numbers) -> float:
    """Area under the ROC curve: how often a yes scores above a no, a tie counting half.

    `positive` bool [N], `scores` [N]; NaN where all are yes or all no.
    """
    hits, alarms, _ = sweep(positive, scores)
    if not len(hits) or hits[-1] == 0 or alarms[-1] == 0:
        return math.nan
    true, false = np.append(0, hits / hits[-1]), np.append(0, alarms / alarms[-1])
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def average_precision(positive: Numbers, scores: Numbers) -> float:
    """Area under the precision-recall curve as the mean precision over recalled examples.

    `positive` bool [N], `scores` [N]; NaN without a yes.
    """
    hits, alarms, _ = sweep(positive, scores)
    if not len(hits) or hits[-1] == 0:
        return math.nan
    return float(np.sum(np.diff(hits, prepend=0) * hits / (hits + alarms)) / hits[-1])


def by_class(positive: Numbers, scores: Numbers) -> dict[str, list[float]]:
    """`auroc` and `pr_auc` of each of C classes against the rest: bool [N, C], [N, C] -> [C]."""
    yes, table = np.asarray(positive, bool), np.asarray(scores)
    columns = range(table.shape[-1])
    return {
        "auroc": [auroc(yes[:, c], table[:, c]) for c in columns],
        "pr_auc": [average_precision(yes[:, c], table[:, c]) for c in columns],
    }


def mean(values: list[float]) -> float:
    """Mean of those that are defined; NaN where none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def best_threshold(positive: Numbers, scores: Numbers, aim: Aim = "f1") -> float:
    """The t for which `scores >= t` has the best F1, or Matthews correlation, of all cuts.

    `positive` bool [N], `scores` [N] in [0, 1]. It lies midway between the two scores it parts, so
    that rounding moves no example over it; the highest of equally good ones; 0.5 without a yes.
    """
    hits, alarms, cuts = sweep(positive, scores)
    if not len(hits) or hits[-1] == 0:
        return 0.5
    misses, rest = hits[-1] - hits, alarms[-1] - alarms
    if aim == "f1":
        quality = 2 * hits / (2 * hits + alarms + misses)
    else:
        top = hits * rest - alarms * misses
        # In floats: the product of four counts overflows 64 bits.
        sides = (hits + alarms, hits + misses, rest + alarms, rest + misses)
        bottom = np.sqrt(np.prod([side.astype(np.float64) for side in sides], axis=0))
        quality = np.divide(top, bottom, out=np.zeros(len(top)), where=bottom > 0)
    best = int(np.argmax(quality))
    below = cuts[best + 1] if best + 1 < len(cuts) else 0.0
    return float((cuts[best] + below) / 2)
