"""Multiple choice: which of a question's choices is right, each scored by one logit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.data.batches import Examples
from research.metrics import Mean
from research.models import layers
from research.models.layers import Dense
from research.tasks.classify import Batch, Pooled


class MultipleChoice(Pooled):
    """A logit for every pair of question and choice, a softmax over those of a question, as
    SWAG is fine-tuned (Devlin et al., 2019). The choices may lie in any rows of a batch.
    """

    # A question's choices may lie in several micro-batches.
    whole_batch = True

    def make_head(self) -> nn.Module:
        return Dense(1, dtype="float32", kernel_init=layers.small_normal)

    def log_probabilities(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """Of each choice among those of its question: float32 [B, M]."""
        return log_softmax_within(self.logits(batch, noise=noise)[..., 0], batch)

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        found = self.log_probabilities(batch, noise=noise)
        # Each question counts once, at the place of its right choice.
        weights = batch["weights"] * batch["labels"].astype(jnp.float32)
        highest = most_within(found, batch)
        return {
            "loss": Mean.of(-found, weights),
            "accuracy": Mean.of((found >= highest).astype(jnp.float32), weights),
        }

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` float32 [B, M], which sum to 1 over the choices of a question."""
        return {"probabilities": jnp.exp(self.log_probabilities(batch))}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The means, and the questions answered wrongly with the highest probability."""
        found: list[dict[str, Any]] = []
        for first, names, sure in questions(outputs, examples):
            right = int(np.argmax(outputs["labels"][first : first + len(names)]))
            guess = int(np.argmax(sure))
            if guess != right:
                found.append(
                    {
                        "id": int(outputs["ids"][first + guess]),
                        "label": names[right],
                        "prediction": names[guess],
                        "probability": float(sure[guess]),
                    }
                )
        found.sort(key=lambda mistake: -mistake["probability"])
        return means, {"mistakes": found[:20]}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"choice": name, "probabilities": {name: p}} for each question."""
        for _, names, sure in questions(outputs, examples):
            yield {
                "choice": names[int(np.argmax(sure))],
                "probabilities": dict(zip(names, sure.tolist())),
            }


def same_question(batch: Batch) -> jax.Array:
    """Which places of a batch hold choices of one question: bool [B M, B M]."""
    question = jnp.where(batch["ids"] >= 0, batch["questions"], -1).ravel()
    return question[:, None] == question[None, :]


def log_softmax_within(logits: jax.Array, batch: Batch) -> jax.Array:
    """log softmax over the places of the same question: [B, M] -> float32 [B, M]."""
    flat = logits.astype(jnp.float32).ravel()
    others = jnp.where(same_question(batch), flat[None, :], -jnp.inf)
    return (flat - jax.nn.logsumexp(others, axis=-1)).reshape(logits.shape)


def most_within(values: jax.Array, batch: Batch) -> jax.Array:
    """The highest value among the places of the same question: [B, M] -> [B, M]."""
    others = jnp.where(same_question(batch), values.ravel()[None, :], -jnp.inf)
    return jnp.max(others, axis=-1).reshape(values.shape)


def questions(
    outputs: dict[str, Any], examples: Examples
) -> Iterator[tuple[int, tuple[str, ...], np.ndarray]]:
    """Of each question its first example, the names of its choices and their probabilities."""
    for question, first in enumerate(examples.bounds[:-1].tolist()):
        names, _ = examples.source[question]
        yield first, names, outputs["probabilities"][first : first + len(names)]
