"""Means are exact under every transformation; scores equal scikit-learn's and scipy's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from research import metrics
from research.metrics import Mean

CASES = 500


def cases(seed: int):
    """Labels and predictions over C classes of which some are absent from either or from both."""
    generator = np.random.default_rng(seed)
    for _ in range(CASES):
        classes, size = int(generator.integers(2, 8)), int(generator.integers(1, 40))
        present = generator.choice(classes, int(generator.integers(1, classes + 1)), replace=False)
        guessed = generator.choice(classes, int(generator.integers(1, classes + 1)), replace=False)
        labels, predictions = generator.choice(present, size), generator.choice(guessed, size)
        copied = generator.random(size) < generator.random()
        yield labels, np.where(copied, labels, predictions), classes


def test_mean_is_the_weighted_average_however_it_is_split():
    generator = np.random.default_rng(0)
    values = generator.integers(-8, 8, (12, 5)).astype(np.float32)
    weights = generator.integers(0, 3, (12, 5)).astype(np.float32)
    expected = (values * weights).sum() / weights.sum()
    whole = Mean.of(values, weights)
    for cuts in ([1], [3, 4], [2, 5, 6, 11]):
        pieces = zip(np.split(values, cuts), np.split(weights, cuts))
        first, *others = (Mean.of(v, w) for v, w in pieces)
        total = sum(others, first)
        assert (total.total, total.count) == (whole.total, whole.count)
        assert total.value == np.float32(expected)
    assert Mean.of(values).value == values.mean()


def test_what_weighs_nothing_is_left_out_of_value_and_gradient():
    values = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])
    assert Mean.of(values, weights).value == 7 / 3
    assert Mean.of(values, weights).count == 3
    gradient = jax.grad(lambda v: Mean.of(v, weights).total)(values)
    assert gradient.tolist() == [1.0, 0.0, 2.0, 0.0]
    by_weight = jax.grad(lambda w: Mean.of(values, w).total)(weights)
    assert by_weight.tolist() == [1.0, 0.0, 3.0, 0.0]


def test_mean_of_nothing_is_nan_on_device_and_host():
    empty = Mean.of(jnp.ones(3), jnp.zeros(3))
    assert jnp.isnan(empty.value)
    assert np.isnan(jax.device_get(empty).value)
    assert np.isnan(jax.jit(lambda mean: mean.value)(empty))
    assert np.isnan(Mean(0.0, 0.0).value)
    assert Mean(6.0, 3.0).value == 2


def test_mean_goes_through_jit_scan_and_psum():
    rows = jnp.arange(24.0).reshape(4, 6)
    weights = (rows % 5 > 0).astype(jnp.float32)
    whole = Mean.of(rows, weights)

    def step(carry, row):
        return carry + Mean.of(*row), None

    zero = Mean(jnp.zeros(()), jnp.zeros(()))
    scanned, _ = jax.jit(lambda r, w: jax.lax.scan(step, zero, (r, w)))(rows, weights)
    assert (scanned.total, scanned.count) == (whole.total, whole.count)

    def on_device(row, weight):
        return jax.tree.map(lambda leaf: jax.lax.psum(leaf, "data"), Mean.of(row, weight))

    summed = jax.vmap(on_device, axis_name="data")(rows, weights)
    assert summed.total.tolist() == [float(whole.total)] * 4
    assert summed.value.tolist() == [float(whole.value)] * 4
    doubled = jax.tree.map(jnp.add, whole, whole)
    assert doubled.value == whole.value


def test_mean_of_integers_and_of_half_precision_is_summed_in_float32():
    assert Mean.of(jnp.ones(4096, jnp.bfloat16)).total == 4096
    mean = Mean.of(jnp.array([True, False]), jnp.array([1, 1]))
    assert mean.total.dtype == mean.count.dtype == jnp.float32
    assert mean.value == 0.5


def test_mean_refuses_weights_of_another_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 1\)"):
        Mean.of(jnp.ones((2, 3)), jnp.ones((2, 1)))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_scores_equal_scikit_learn():
    for labels, predictions, classes in cases(1):
        matrix = metrics.confusion(labels, predictions, classes)
        everything = list(range(classes))
        counted = np.zeros((classes, classes), np.int64)
        np.add.at(counted, (labels, predictions), 1)
        assert (matrix == counted).all()
        by_class = reference.precision_recall_fscore_support(
            labels, predictions, labels=everything, zero_division=0
        )
        for found, wanted in zip(metrics.precision_recall_f1(matrix), by_class):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        agreement = np.mean(labels == predictions)
        wanted = [
            agreement,
            reference.f1_score(labels, predictions, average="macro", zero_division=0),
            agreement,  # micro F1, of one label an example
            reference.matthews_corrcoef(labels, predictions),
            reference.balanced_accuracy_score(labels, predictions),
        ]
        scores = (metrics.accuracy, metrics.macro_f1, metrics.micro_f1, metrics.matthews)
        found = [score(matrix) for score in (*scores, metrics.balanced_accuracy)]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_scores_of_no_example_are_nan():
    empty = metrics.confusion(np.zeros(0, np.int64), np.zeros(0, np.int64), 3)
    scores = (metrics.accuracy, metrics.macro_f1, metrics.micro_f1, metrics.balanced_accuracy)
    assert all(math.isnan(score(empty)) for score in scores)
    assert metrics.matthews(empty) == 0
    assert math.isnan(metrics.brier(np.zeros((0, 3)), np.zeros(0, np.int64)))
    assert math.isnan(metrics.expected_calibration_error(np.zeros((0, 3)), np.zeros(0, np.int64)))


def test_matthews_does_not_overflow():
    matrix = np.array([[3, 1], [1, 3]], np.int64)
    assert metrics.matthews(matrix * 10**12) == metrics.matthews(matrix) == 0.5


def test_confusion_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="shape"):
        metrics.confusion([0, 1], [0], 2)
    for labels, predictions in (([0, 2], [0, 0]), ([0, 0], [0, -1])):
        with pytest.raises(ValueError, match="outside"):
            metrics.confusion(labels, predictions, 2)


def test_correlations_equal_scipy_and_are_nan_for_a_constant():
    generator = np.random.default_rng(2)
    for _ in range(CASES // 5):
        a, b = generator.integers(0, 6, (2, int(generator.integers(8, 40))))
        assert metrics.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], rel=0, abs=1e-12)
        ranks = np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]
        assert metrics.spearman(a, b) == pytest.approx(ranks, rel=0, abs=1e-12)
    for score in (metrics.pearson, metrics.spearman):
        assert math.isnan(score([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
        assert math.isnan(score([1.0], [2.0]))
    assert metrics.spearman([1, 2, 3], [1, 8, 27]) == pytest.approx(1, abs=1e-12)


def test_perplexity_and_bits_per_byte():
    assert metrics.perplexity(math.log(50)) == pytest.approx(50, rel=1e-12)
    assert metrics.perplexity(1e6) == math.inf
    assert math.isnan(metrics.perplexity(math.nan))
    assert metrics.bits_per_byte(80 * math.log(2), 10) == pytest.approx(8, rel=1e-12)
    assert math.isnan(metrics.bits_per_byte(0.0, 0))


def test_brier_equals_scikit_learn():
    generator = np.random.default_rng(3)
    for _ in range(CASES):
        size, classes = int(generator.integers(1, 30)), int(generator.integers(2, 6))
        table = generator.dirichlet(np.ones(classes), size)
        labels = generator.integers(0, classes, size)
        wanted = reference.brier_score_loss(
            labels, table if classes > 2 else table[:, 1], labels=range(classes),
            scale_by_half=False,
        )  # fmt: skip
        assert metrics.brier(table, labels) == pytest.approx(wanted, rel=0, abs=1e-12)


def test_calibration_error_equals_the_definition():
    generator = np.random.default_rng(4)
    for _ in range(CASES // 5):
        size, bins = int(generator.integers(1, 60)), int(generator.integers(1, 20))
        table = generator.dirichlet(np.full(3, 0.4), size)
        labels = generator.integers(0, 3, size)
        wanted = 0.0
        for number in range(bins):
            members = [
                (row.max(), row.argmax() == label)
                for row, label in zip(table, labels)
                if number / bins < row.max() <= (number + 1) / bins
            ]
            if members:
                confidence, correct = np.mean(members, axis=0)
                wanted += len(members) / size * abs(confidence - correct)
        found = metrics.expected_calibration_error(table, labels, bins)
        assert found == pytest.approx(wanted, rel=0, abs=1e-12)


def test_calibration_error_of_certainty():
    sure = np.eye(2)[[0, 0, 1, 1]]
    assert metrics.expected_calibration_error(sure, [0, 0, 1, 1]) == 0
    assert metrics.expected_calibration_error(sure, [1, 1, 0, 0]) == 1
    assert metrics.expected_calibration_error(sure, [0, 1, 1, 0]) == 0.5
