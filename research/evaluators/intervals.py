"""Held-out scores with bootstrap intervals: how much a score owes to the examples at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import numpy.typing as npt

from research.data.batches import Examples
from research.evaluate import HeldOut, Model, Scores, forward

# Names of what `weighed` adds to the outputs of a task.
TOTAL, COUNT = "total of ", "count of "


@dataclass(frozen=True, kw_only=True)
class Intervals(HeldOut):
    """HeldOut, and of every mean a percentile interval over resampled rows (Efron, 1979).

    So too of the scores that the task tells row by row (`by_row`), and of those that it names in a
    class attribute `resampled`: the same function of any choice of examples. What belongs together
    (the texts of a pair, the windows of a row) is drawn together. Intervals are in the details,
    {name: {"value", "low", "high"}}; they say nothing of the spread over seeds.
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
        bounds = together(batches.examples)
        groups = {
            name: np.add.reduceat(np.asarray(values, np.float64), bounds[:-1])
            for name, values in sums.items()
        }
        task = model.task.clone(**scores.details.get("tuned", {}))
        if hasattr(task, "by_row"):
            for name, (total, count) in task.by_row(outputs, batches.examples).items():
                groups |= {TOTAL + name: total, COUNT + name: count}
        samples = mean_samples(groups, self.draws(len(bounds) - 1))
        samples |= self.score_samples(task, outputs, batches.examples)
        tail = (1 - self.confidence) / 2
        found = {}
        for name, values in samples.items():
            low, high = np.nanquantile(values, [tail, 1 - tail])
            found[name] = {"value": scores.numbers[name], "low": float(low), "high": float(high)}
        return Scores(scores.numbers, scores.details | {"intervals": found})

    def draws(self, groups: int) -> Iterator[npt.NDArray[np.int64]]:
        """The groups of each resample, with repetition."""
        generator = np.random.default_rng(self.seed)
        return (generator.integers(0, groups, groups) for _ in range(self.resamples))

    def score_samples(self, task: Any, outputs: dict[str, Any], examples: Any) -> dict[str, Any]:
        """The task's scores of every resample."""
        names = getattr(task, "resampled", ())
        bounds = together(examples)
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


def together(examples: Examples) -> npt.NDArray[np.int64]:
    """What is drawn as one, group g being the examples [bounds[g], bounds[g + 1]): the units of the
    data, or the windows of a row."""
    if examples.units is not None:
        return examples.bounds
    row_of = examples.encoded.row_of
    return np.append(np.flatnonzero(np.diff(row_of, prepend=-1)), len(row_of))


def mean_samples(
    groups: dict[str, np.ndarray], draws: Iterator[npt.NDArray[np.int64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Every mean of every resample of groups; none for a mean that weights do not reach."""
    names = [
        name.removeprefix(COUNT)
        for name, values in groups.items()
        if name.startswith(COUNT) and values.any()
    ]
    found: dict[str, list[float]] = {name: [] for name in names}
    for drawn in draws if names else ():
        for name in names:
            count = groups[COUNT + name][drawn].sum()
            total = groups[TOTAL + name][drawn].sum()
            found[name].append(total / count if count else np.nan)
    return {name: np.array(values) for name, values in found.items()}
