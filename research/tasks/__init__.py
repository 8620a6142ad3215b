"""Tasks: a trunk, the head grafted on it, the loss, the scores, and how a prediction is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import jax

from research.data.batches import Examples
from research.metrics import Mean

Batch = dict[str, jax.Array]


class Task(Protocol):
    """What the trainer, the evaluators and `predict` ask of a task: any linen module will do.

    A field that is None or empty and that the data has a fact of the same name for (`labels`,
    `vocab_size`, `mask_id`, ...) is filled from it before the first step.
    """

    backbone: Any
    per_token: tuple[str, ...]
    """Names of the outputs of `predict` that are [B, T, ...]; a class attribute, not a field.

    A class attribute `whole_batch` that is true, or names what, refuses micro-batches: the loss
    compares examples. Where a task has a field `task`, that one serves once it is trained.
    One called `resampled` names scores that are a function of any choice of examples, each on its
    own: they get bootstrap intervals. So do those that a method `by_row(outputs, examples)`, where
    there is one, tells as two sums a row, {name: (totals [rows], counts [rows])}. A method
    `tuned(outputs, examples)`, where there is one, gives fields that serve the examples best.
    """

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        """Means over the batch; "loss" is the one that is minimised."""

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """Per example, [B, M, ...], or per token; empty where a task scores by means alone."""

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers of a whole split and details for the report. `outputs` are those of
        `evaluate.forward`: what `predict` gave for every example, with its slots and `ids`."""

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """The prediction for each row that the examples are of, in order, as JSON values."""
