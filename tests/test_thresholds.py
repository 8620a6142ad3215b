"""Areas and thresholds: equal to scikit-learn's on random cases with ties, and to brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn

from research import thresholds


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 60 scores, few of them distinct in every other case."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 60))
    positive = rng.random(count) < rng.uniform(0.1, 0.9)
    positive[:2] = True, False
    scores = rng.random(count) * 0.5 + 0.4 * positive * rng.random()
    return positive, scores.round(1) if seed % 2 else scores


@pytest.mark.parametrize("seed", range(40))
def test_areas_equal_scikit_learns(seed: int) -> None:
    positive, scores = random_case(seed)
    found = thresholds.auroc(positive, scores)
    assert found == pytest.approx(sklearn.roc_auc_score(positive, scores), abs=1e-12)
    found = thresholds.average_precision(positive, scores)
    assert found == pytest.approx(sklearn.average_precision_score(positive, scores), abs=1e-12)


def test_areas_by_class_are_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    labels, table = rng.integers(0, 4, 80), rng.dirichlet([1.0] * 4, 80)
    areas = thresholds.by_class(np.eye(4)[labels], table)
    auroc = sklearn.roc_auc_score(labels, table, multi_class="ovr", average="macro")
    assert thresholds.mean(areas["auroc"]) == pytest.approx(auroc)
    pr_auc = sklearn.average_precision_score(np.eye(4)[labels], table, average="macro")
    assert thresholds.mean(areas["pr_auc"]) == pytest.approx(pr_auc)


def test_areas_that_are_not_defined_are_nan() -> None:
    for positive in ([], [True, True], [False, False]):
        assert math.isnan(thresholds.auroc(positive, [0.5] * len(positive)))
    assert math.isnan(thresholds.average_precision([False], [0.5]))
    assert thresholds.average_precision([True], [0.5]) == 1.0
    assert thresholds.mean([math.nan, 1.0, 3.0]) == 2.0
    assert math.isnan(thresholds.mean([math.nan]))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("aim", ["f1", "mcc"])
def test_the_best_threshold_beats_all_others(seed: int, aim: Any) -> None:
    positive, scores = random_case(seed)
    score = {"f1": sklearn.f1_score, "mcc": sklearn.matthews_corrcoef}[aim]
    cuts = np.append(np.unique(scores), np.unique(scores) + 1e-9)
    best = max(score(positive, scores >= cut) for cut in cuts if (scores >= cut).any())
    found = thresholds.best_threshold(positive, scores, aim)
    assert score(positive, scores >= found) == pytest.approx(best, abs=1e-12)
    above, below = scores[scores >= found].min(), scores[scores < found].max(initial=0.0)
    assert found == pytest.approx((above + below) / 2)


def test_without_a_yes_the_threshold_is_one_half() -> None:
    assert thresholds.best_threshold([False, False], [0.1, 0.9]) == 0.5
    assert thresholds.best_threshold([], []) == 0.5
