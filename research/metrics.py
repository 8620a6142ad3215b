"""Means that are two sums, and scores on the host that equal scikit-learn's.

`Mean` is what losses and metrics return inside a jitted step. The functions below it are numpy, run
once a split, and start from a confusion matrix or from the predictions of every example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Numbers = npt.ArrayLike


@flax.struct.dataclass
class Mean:
    """A weighted mean kept as its two sums, so that it is divided once, at the end.

    A pytree of two float32 scalars: add over micro-batches with `+`, over devices with `psum`,
    carry it through `scan`. The means of [1, 5] and of [9] add up to 5; a mean of means says 6.
    """

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | None = None) -> Mean:
        """Sums of `values` of any shape; `weights` has the same shape, 1 where None.

        What weighs 0 is left out even where it is NaN or infinite, in the gradient too.
        Raises ValueError where the shapes differ: broadcasting would count an example twice.
        """
        values = jnp.asarray(values, jnp.float32)
        if weights is None:
            return cls(jnp.sum(values), jnp.asarray(values.size, jnp.float32))
        weights = jnp.asarray(weights, jnp.float32)
        if values.shape != weights.shape:
            raise ValueError(
                f"Mean.of got values of shape {values.shape} and weights of shape {weights.shape};"
                " expected the same shape."
            )
        kept = jnp.where(weights != 0, values, 0.0)
        return cls(jnp.sum(kept * weights), jnp.sum(weights))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> jax.Array:
        """total / count; NaN where nothing was counted, on the device and on the host."""
        if isinstance(self.total, jax.Array):
            return self.total / self.count
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(self.total, self.count)

    def share(self, whole: Mean) -> jax.Array:
        """What this part of a batch adds to the total of the `whole`."""
        return self.total

    def scaled(self, factor: jax.Array) -> Mean:
        """The mean times a factor."""
        return Mean(self.total * factor, self.count)


@flax.struct.dataclass
class WeightedSum:
    """Means of different counts, weighted and added: an objective of several terms.

    Each mean is divided by its own count, so that the terms of parts of a batch add up exactly
    where the whole's counts are known (`share`). As a single mean it counts as its first does. A
    term that counted nothing adds nothing.
    """

    means: tuple[Mean, ...]
    weights: tuple[float, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, losses: Sequence[Any], weights: Sequence[float]) -> WeightedSum:
        """Losses, which may be sums of several themselves, as one."""
        means: list[Any] = []
        factors: list[float] = []
        for loss, weight in zip(losses, weights):
            inner = loss if isinstance(loss, cls) else cls((loss,), (1.0,))
            means += inner.means
            factors += [weight * factor for factor in inner.weights]
        return cls(tuple(means), tuple(factors))

    def __add__(self, other: WeightedSum) -> WeightedSum:
        return WeightedSum(tuple(a + b for a, b in zip(self.means, other.means)), self.weights)

    @property
    def count(self) -> jax.Array:
        """That of the first mean."""
        return self.means[0].count

    @property
    def total(self) -> jax.Array:
        """The weighted sum of the means, times `count`."""
        return self.share(self)

    @property
    def value(self) -> jax.Array:
        """The weighted sum of the means; NaN where the first counted nothing."""
        return Mean(self.total, self.count).value

    def share(self, whole: WeightedSum) -> jax.Array:
        """What this part of a batch adds to the total of the `whole`, by the counts of that."""
        # Operators alone: on the host these are numpy's, and no busy device is asked.
        terms = [
            weight * mean.share(full) / (full.count + (full.count == 0))
            for mean, full, weight in zip(self.means, whole.means, self.weights)
        ]
        return whole.count * sum(terms[1:], terms[0])

    def scaled(self, factor: jax.Array) -> WeightedSum:
        """Every mean times a factor."""
        return WeightedSum(tuple(mean.scaled(factor) for mean in self.means), self.weights)


def confusion(labels: Numbers, predictions: Numbers, classes: int) -> npt.NDArray[np.int64]:
    """Counts [C, C]: row = label, column = prediction, for integers in [0, C) of any one shape.

    Raises ValueError for shapes that differ and for numbers out of range.
    """
    rows, columns = np.asarray(labels), np.asarray(predictions)
    if rows.shape != columns.shape:
        raise ValueError(f"Labels of shape {rows.shape}, predictions of {columns.shape}.")
    for name, numbers in (("label", rows), ("prediction", columns)):
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < classes):
            raise ValueError(f"A {name} is outside [0, {classes}).")
    cells = rows.astype(np.int64).ravel() * classes + columns.astype(np.int64).ravel()
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _ratio(numerator: Numbers, denominator: Numbers, empty: float) -> npt.NDArray[np.float64]:
    """numerator / denominator, `empty` where the denominator is 0."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(top, bottom, out=np.full(top.shape, empty), where=bottom != 0)


def accuracy(matrix: npt.NDArray[np.int64]) -> float:
    """Share of the confusion matrix [C, C] on its diagonal; NaN without examples."""
    return float(_ratio(np.trace(matrix), matrix.sum(), math.nan))


def rates(
    hits: Numbers, predicted: Numbers, labelled: Numbers
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Precision, recall and F1 of counts of any one shape; 0 where undefined."""
    hits, predicted, labelled = (np.asarray(n, np.int64) for n in (hits, predicted, labelled))
    return (
        _ratio(hits, predicted, 0.0),
        _ratio(hits, labelled, 0.0),
        _ratio(2 * hits, predicted + labelled, 0.0),
    )


def precision_recall_f1(
    matrix: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Precision, recall and F1, each [C], of a confusion matrix [C, C]; 0 where undefined."""
    return rates(np.diagonal(matrix), matrix.sum(0), matrix.sum(1))


def macro_f1(matrix: npt.NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur as a label or as a prediction; NaN without examples.

    scikit-learn's `f1_score(labels, predictions, average="macro")` leaves the others out as well.
    """
    occurs = matrix.sum(0) + matrix.sum(1) > 0
    return float(precision_recall_f1(matrix)[2][occurs].mean()) if occurs.any() else math.nan


def micro_f1(matrix: npt.NDArray[np.int64]) -> float:
    """F1 of the pooled counts: the accuracy, where each example has one label."""
    return accuracy(matrix)


def matthews(matrix: npt.NDArray[np.int64]) -> float:
    """Matthews correlation of C classes in [-1, 1] (Gorodkin, 2004); 0 for a constant margin."""
    labelled = [int(n) for n in matrix.sum(1)]
    predicted = [int(n) for n in matrix.sum(0)]
    examples, hits = sum(labelled), int(np.trace(matrix))
    # Python's integers: the products overflow 64 bits from about 50,000 examples on.
    covariance = hits * examples - sum(p * q for p, q in zip(predicted, labelled))
    spread = (examples**2 - sum(p * p for p in predicted)) * (
        examples**2 - sum(q * q for q in labelled)
    )
    return covariance / math.sqrt(spread) if spread else 0.0


def balanced_accuracy(matrix: npt.NDArray[np.int64]) -> float:
    """Mean recall over the classes that occur as a label; NaN without examples."""
    labelled = matrix.sum(1) > 0
    return float(precision_recall_f1(matrix)[1][labelled].mean()) if labelled.any() else math.nan


def _constant(numbers: npt.NDArray[np.float64]) -> bool:
    return numbers.size < 2 or bool((numbers == numbers.flat[0]).all())


def pearson(a: Numbers, b: Numbers) -> float:
    """Pearson's correlation of two vectors [N]; NaN where one is constant or N < 2."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if _constant(x) or _constant(y):
        return math.nan
    from scipy import stats  # takes seconds to import

    return float(stats.pearsonr(x, y).statistic)


def spearman(a: Numbers, b: Numbers) -> float:
    """Spearman's rank correlation of two vectors [N], ties averaged; NaN where one is constant."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if _constant(x) or _constant(y):
        return math.nan
    from scipy import stats  # takes seconds to import

    return float(stats.spearmanr(x, y).statistic)


def perplexity(mean_nll: float) -> float:
    """exp of the mean negative log-likelihood in nats a token; infinite where it overflows."""
    try:
        return math.exp(mean_nll)
    except OverflowError:
        return math.inf


def bits_per_byte(nll_nats_total: float, bytes: int) -> float:
    """Total negative log-likelihood in nats over `bytes` bytes of UTF-8, in bits a byte."""
    return float(_ratio(nll_nats_total / math.log(2), bytes, math.nan))


def expected_calibration_error(probabilities: Numbers, labels: Numbers, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy, weighted by bin size (Guo et al., 2017), in [0, 1].

    `probabilities` [N, C]; `labels` [N]; bins of equal width, open to the left: (0, 1/bins], ...
    """
    table, targets = np.asarray(probabilities, np.float64), np.asarray(labels)
    if not targets.size:
        return math.nan
    confidence = table.max(-1)
    correct = table.argmax(-1) == targets
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / targets.size)


def brier(probabilities: Numbers, labels: Numbers) -> float:
    """Mean squared distance between probabilities [N, C] and the one-hot label, in [0, 2].

    The sum over classes of Brier (1950); scikit-learn's with `scale_by_half=False`.
    """
    table, targets = np.asarray(probabilities, np.float64), np.asarray(labels)
    if not targets.size:
        return math.nan
    onehot = np.eye(table.shape[-1])[targets]
    return float(((table - onehot) ** 2).sum(-1).mean())
