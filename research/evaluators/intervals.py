"""Held-out scores with bootstrap intervals: how much a score owes to the examples at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import numpy.typing as npt

from research.evaluate import HeldOut, Model, Scores, forward

# Names of what `weighed` adds to the outputs of a task.
TOTAL, COUNT = "total of ", "count of "


@dataclass(frozen=True, kw_only=True)
class Intervals(HeldOut):
    """HeldOut, and of every mean a percentile interval over resampled examples (Efron, 1979).

    So too of the scores that the task names in a class attribute `resampled`: those that are the
    same function of any choice of examples. What belongs together (the texts of a pair) is drawn
    together. Intervals are in the details, {name: {"value", "low", "high"}}; they say nothing of
    the spread over seeds.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __call__(self, model: Model) -> Scores:
        batches = model.open(self.split, self.batch_size)
        means, outputs = forward(model, batches, method=weighed)
        added = [name for name in outputs if name.startswith((TOTAL, COUNT))]
        sums = {name: outputs.pop(name) for name in added}
        scores = self.grade(model, means, outputs, batches.examples)
        bounds = batches.examples.bounds
        samples = mean_samples(sums, bounds, self.draws(len(bounds) - 1))
        samples |= self.score_samples(model.task, outputs, batches.examples)
        tail = (1 - self.confidence) / 2
        found = {}
        for name, values in samples.items():
            low, high = np.nanquantile(values, [tail, 1 - tail])
            found[name] = {"value": scores.numbers[name], "low": float(low), "high": float(high)}
        return Scores(scores.numbers, scores.details | {"intervals": found})

    def draws(self, units: int) -> Iterator[npt.NDArray[np.int64]]:
        """The units of each resample, with repetition."""
        generator = np.random.default_rng(self.seed)
        return (generator.integers(0, units, units) for _ in range(self.resamples))

    def score_samples(self, task: Any, outputs: dict[str, Any], examples: Any) -> dict[str, Any]:
        """The task's scores of every resample."""
        names = getattr(task, "resampled", ())
        bounds = examples.bounds
        found: dict[str, list[float]] = {}
        for drawn in self.draws(len(bounds) - 1) if names else ():
            chosen = np.concatenate([np.arange(bounds[u], bounds[u + 1]) for u in drawn])
            again = {
                name: [x[i] for i in chosen] if isinstance(x, list) else x[chosen]
                for name, x in outputs.items()
            }
            numbers, _ = task.score({}, again, examples)
            for name in names:
                if name in numbers:
                    found.setdefault(name, []).append(numbers[name])
        return found


def weighed(task: nn.Module, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What `predict` gives, and what each example adds to the two sums of every mean.

    A total is linear in the examples' weights, so that its derivative by them is each example's own
    value; the trunk does not depend on them, and no backward pass goes through it.
    """
    plain, params = task.clone(parent=None), task.variables["params"]

    def sums(weights: jax.Array) -> dict[str, jax.Array]:
        rngs = {"noise": jax.random.key(0)}
        means: Any = plain.apply(
            {"params": params}, batch | {"weights": weights}, train=False, rngs=rngs
        )
        totals = {TOTAL + name: mean.total for name, mean in means.items()}
        return totals | {COUNT + name: mean.count for name, mean in means.items()}

    added = jax.jacrev(sums)(batch["weights"]) if "weights" in batch else {}
    own = {name: values * batch["weights"] for name, values in added.items()}
    predicted: Any = plain.apply({"params": params}, batch, method="predict")
    return predicted | own


def mean_samples(
    sums: dict[str, np.ndarray],
    bounds: npt.NDArray[np.int64],
    draws: Iterator[npt.NDArray[np.int64]],
) -> dict[str, npt.NDArray[np.float64]]:
    """Every mean of every resample of units; none for a mean that weights do not reach."""
    units = {
        name: np.add.reduceat(np.asarray(values, np.float64), bounds[:-1])
        for name, values in sums.items()
    }
    names = [
        name.removeprefix(COUNT)
        for name, values in units.items()
        if name.startswith(COUNT) and values.any()
    ]
    found: dict[str, list[float]] = {name: [] for name in names}
    for drawn in draws if names else ():
        for name in names:
            count = units[COUNT + name][drawn].sum()
            total = units[TOTAL + name][drawn].sum()
            found[name].append(total / count if count else np.nan)
    return {name: np.array(values) for name, values in found.items()}
