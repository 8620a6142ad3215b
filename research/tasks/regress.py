"""Regression: one number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import metrics
from research.data.batches import Examples
from research.metrics import Mean
from research.models import layers
from research.tasks.classify import Batch, Pooled

SHOWN_POINTS = 500


class Regress(Pooled):
    """One number an example, by least squares, as STS-B is fine-tuned (Devlin et al., 2019).

    The head's bias begins at `label_mean`, that of train where None: at a fine-tuning rate it
    would take hundreds of steps to get there.
    """

    label_mean: float | None = None
    resampled = ("pearson", "spearman")

    def make_head(self) -> nn.Module:
        return nn.Dense(
            1,
            kernel_init=layers.small_normal,
            bias_init=nn.initializers.constant(self.label_mean or 0.0),
        )

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        scores = self.noisy_logits(batch, train=train)[..., 0]
        error = scores - batch["labels"].astype(jnp.float32)
        return {
            "loss": Mean.of(jnp.square(error), batch["weights"]),
            "absolute_error": Mean.of(jnp.abs(error), batch["weights"]),
        }

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`scores` float32 [B, M]."""
        return {"scores": self.logits(batch)[..., 0]}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Pearson's and Spearman's correlation beside the means; points for a scatter."""
        scores, labels = outputs["scores"], outputs["labels"]
        numbers = {
            "pearson": metrics.pearson(scores, labels),
            "spearman": metrics.spearman(scores, labels),
        }
        # Evenly spread over the split, so that a page of thousands of points stays small.
        some = np.unique(np.linspace(0, len(scores) - 1, SHOWN_POINTS).astype(np.int64))
        points = {"label": labels[some].tolist(), "prediction": scores[some].tolist()}
        return means | numbers, {"points": points, "mistakes": mistakes(outputs)}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"score": number} for each text."""
        for score in outputs["scores"].tolist():
            yield {"score": score}


def mistakes(outputs: dict[str, np.ndarray], most: int = 20) -> list[dict[str, Any]]:
    """The predictions that are furthest off."""
    error = np.abs(outputs["scores"] - outputs["labels"])
    return [
        {
            "id": int(outputs["ids"][i]),
            "label": float(outputs["labels"][i]),
            "prediction": float(outputs["scores"][i]),
            "error": float(error[i]),
        }
        for i in np.argsort(-error, kind="stable")[:most]
    ]
