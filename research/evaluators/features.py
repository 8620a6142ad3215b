"""One vector a text from any task that has `encode`, and data that borrow a run's tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from research.errors import ConfigError
from research.evaluate import Model, forward


def borrow(data: Any, model: Model) -> Any:
    """Data of an evaluator with the run's tokenizer where they have none; None is the run's own."""
    if data is None:
        return model.data
    if data.tokenizer is None:
        return dataclasses.replace(data, tokenizer=model.data.tokenizer)
    return data


def encode(model: Model, batches: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """float32 [N, D] in the order of the examples, and their slots; of several evaluators that ask
    for the same vectors of a model the first computes them.

    Raises ConfigError for a task without `encode`.
    """
    if not hasattr(model.task, "encode"):
        raise ConfigError(f"evals: {type(model.task).__name__} has no encode, so no vectors")
    asked = f"vectors of {batches.fingerprint}"
    if asked not in model.known:
        _, outputs = forward(model, batches, means=False, method="encode")
        model.known[asked] = np.asarray(outputs["vectors"], np.float32), outputs
    found: tuple[np.ndarray, dict[str, Any]] = model.known[asked]
    return found
