"""Tasks: a trunk, the head grafted on it, the loss, the scores, and how a prediction is told."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np

from research.metrics import Mean

Batch = dict[str, jax.Array]


class Task(Protocol):
    """What the trainer, the evaluators and `predict` ask of a task: any linen module will do.

    A field that is None or empty and that the data has a fact of the same name for (`labels`,
    `vocab_size`, `mask_id`, ...) is filled from it before the first step.
    """

    backbone: Any

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        """Means over the batch; "loss" is the one that is minimised."""

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """Per example, [B, M, ...]; empty where a task scores by means alone."""

    def score(
        self, means: dict[str, float], outputs: dict[str, np.ndarray]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers of a whole split and details for the report. `outputs` holds what `predict` gave
        for every example, [N, ...], with its `labels` and `ids`."""

    def decode(self, output: dict[str, np.ndarray]) -> dict[str, Any]:
        """One example's prediction, as JSON values."""
