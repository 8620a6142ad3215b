"""Evaluators: what is measured of a model, each example of a split exactly once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from research import sharding
from research.errors import ConfigError, PreemptedError
from research.models.spec import check_tables
from research.programs import Program


@dataclass(frozen=True)
class Scores:
    """Numbers by name, and details a report can draw (confusion matrix, worst mistakes)."""

    numbers: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A task with its parameters, and the data it may be asked about.

    `known` is what evaluators have computed of it, by what was asked, for each other.
    """

    task: nn.Module
    params: Any
    data: Any
    mesh: Mesh
    stop: Callable[[], bool] = lambda: False
    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def open(self, split: str, batch_size: int) -> Any:
        """A split in its order, laid out for this mesh. Raises ConfigError for examples that the
        trunk has no tables for."""
        batches = open_split(self.data, split, batch_size, sharding.row_shards(self.mesh))
        check_tables(getattr(self.task, "backbone", None), batches.examples.encoded)
        return batches


def served(task: Any) -> Any:
    """What evaluates, predicts and is exported: the task that an objective is about, or itself."""
    return getattr(task, "task", task)


def served_params(task: Any, params: Any) -> Any:
    """The parameters of what is served: an objective names those it has `beside` its task's."""
    beside = getattr(task, "beside", ())
    return {name: x for name, x in params.items() if name not in beside} if beside else params


class Evaluator(Protocol):
    """Measures a model; `name` prefixes its numbers: "dev" gives "dev/accuracy"."""

    @property
    def name(self) -> str:
        """The prefix."""

    def prepare(self, model: Model) -> None:
        """Opens what will be asked about, so that a bad row stops the run before its first step."""

    def __call__(self, model: Model) -> Scores:
        """Raises PreemptedError as soon as `model.stop()` says so."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The task's own loss and scores on a split.

    `tune` sets the task's thresholds to those that serve this split best: they are among its
    scores, and a finished run predicts by them.
    """

    split: str = "dev"
    batch_size: int = 128
    tune: bool = False

    @property
    def name(self) -> str:
        """The split."""
        return self.split

    def prepare(self, model: Model) -> None:
        """Opens the split. Raises ConfigError for a task that has nothing to tune."""
        if self.tune and not hasattr(model.task, "tuned"):
            raise ConfigError(
                f"evals: tune is set, but {type(model.task).__name__} has no threshold"
            )
        model.open(self.split, self.batch_size)

    def __call__(self, model: Model) -> Scores:
        batches = model.open(self.split, self.batch_size)
        means, outputs = forward(model, batches)
        return self.grade(model, means, outputs, batches.examples)

    def grade(
        self, model: Model, means: dict[str, float], outputs: dict[str, Any], examples: Any
    ) -> Scores:
        """The task's scores of what `forward` gave, its thresholds tuned where that is asked."""
        tuned = model.task.tuned(outputs, examples) if self.tune else {}
        task = model.task.clone(**tuned)
        numbers, details = task.score(means, outputs, examples)
        if tuned:
            details["tuned"] = tuned
        for mistake in details.get("mistakes", ()):
            mistake["text"] = model.data.quote(self.split, mistake["id"])
        return Scores(numbers, details)


@functools.lru_cache(maxsize=16)
def open_split(data: Any, split: str, batch_size: int, multiple: int) -> Any:
    """A split in its order; opened once a process, because every evaluation asks again."""
    return data.open(split, batch_size, multiple=multiple)


@functools.lru_cache(maxsize=16)
def make_forward(task: nn.Module, *, means: bool, method: Any = "predict") -> Program:
    """The compiled (params, batch, key) -> (means, outputs), shared by equal tasks.

    Without `means` the batch needs no labels. What a `method` gives as one array is `vectors`.
    """

    def step(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        variables = {"params": params}
        sums = task.apply(variables, batch, train=False, rngs={"noise": key}) if means else {}
        outputs = task.apply(variables, batch, method=method)
        return sums, outputs if isinstance(outputs, dict) else {"vectors": outputs}

    return Program(step)


def forward(
    model: Model, batches: Any, *, means: bool = True, method: Any = "predict"
) -> tuple[dict[str, float], dict[str, Any]]:
    """Means over all examples, and what `predict` says of each in the order of their ids; or what
    another method of the task says, or a function of (task, batch).

    Outputs are [N, ...], beside the `ids` and the slots of the data; those that the task names in
    `per_token` are lists of N arrays, [length, ...]. The one fixed key makes masks a function of
    the example: every evaluation asks the same.
    """
    program, key = make_forward(model.task, means=means, method=method), jax.random.key(0)
    sums: dict[str, list[float]] = {}
    pieces: dict[str, list[Any]] = {}
    slots = ("ids", *batches.examples.slots)
    for step in range(batches.steps):
        if model.stop():
            raise PreemptedError("told to stop during an evaluation")
        batch = batches.batch(step)
        arrays = sharding.put(batch, model.mesh, whole=True)
        found, outputs = jax.device_get(program(model.params, arrays, key))
        for name, mean in found.items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(mean.total)
            total[1] += float(mean.count)
        taken = batch["ids"] >= 0
        outputs |= {name: batch[name] for name in slots}
        for name, values in outputs.items():
            if name in model.task.per_token:
                pieces.setdefault(name, []).extend(spans(values, batch))
            else:
                pieces.setdefault(name, []).append(np.asarray(values)[taken])
    order = np.argsort(np.concatenate(pieces["ids"]), kind="stable")
    gathered = {
        name: [values[i] for i in order]
        if name in model.task.per_token
        else np.concatenate(values)[order]
        for name, values in pieces.items()
    }
    averages = {
        name: total / count if count else float("nan") for name, (total, count) in sums.items()
    }
    return averages, gathered


def spans(values: np.ndarray, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What an array [B, T, ...] says of each example, row by row: arrays [length, ...]."""
    places = np.argwhere(batch["ids"] >= 0)
    return [
        values[row, batch["starts"][row, slot] :][: batch["lengths"][row, slot]]
        for row, slot in places
    ]
