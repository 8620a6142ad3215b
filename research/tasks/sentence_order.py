"""Masked LM with a question about the pair: next-sentence or sentence-order prediction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from research import losses, metrics
from research.data.batches import Examples
from research.metrics import Mean, WeightedSum
from research.models import layers
from research.models.layers import Dense
from research.models.pooling import pool
from research.tasks.lm import Batch, MaskedLM


class SentenceOrder(MaskedLM):
    """BERT's two objectives in one pass (Devlin et al., 2019), or ALBERT's (Lan et al., 2020).

    Masked LM, and from the pooled first token of what is shown, one of the two `labels` of
    `data.segments`: which of the papers it is depends on `Segments.objective`. The loss is the
    sum of both means, the second times `order_weight`.
    """

    labels: tuple[str, ...] = ()
    order_weight: float = 1.0

    def prepare(self) -> None:
        self.order = Dense(len(self.labels), dtype="float32", kernel_init=layers.small_normal)

    def order_logits(self, x: jax.Array, batch: Batch) -> jax.Array:
        """The trunk's vectors [B, T, D] -> float32 [B, M, 2]."""
        return self.order(self.backbone.pool(pool(x, batch, "first")).astype(jnp.float32))

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Any]:
        key = self.make_rng("noise")
        shown, chosen = self.hide(batch, key)
        noise = layers.token_noise(jax.random.fold_in(key, 1), batch) if train else None
        x = self.see(batch, shown, noise=noise)
        masked = self.restore(x, batch, chosen)
        logits, labels = self.order_logits(x, batch), batch["labels"]
        order = Mean.of(losses.cross_entropy(logits, labels), batch["weights"])
        right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        return {
            "loss": WeightedSum((masked["loss"], order), (1.0, self.order_weight)),
            "masked_loss": masked["loss"],
            "masked_accuracy": masked["accuracy"],
            "order_loss": order,
            "order_accuracy": Mean.of(right, batch["weights"]),
        }

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` float32 [B, M, 2] of the labels, nothing hidden."""
        x = self.see(batch, batch["tokens"], noise=None)
        return {"probabilities": jax.nn.softmax(self.order_logits(x, batch), axis=-1)}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """`pseudo_perplexity` of the masked tokens beside the means, and `unmasked_order_accuracy`,
        the order told from texts without masks."""
        told = outputs["probabilities"].argmax(-1)
        return means | {
            "loss": means["masked_loss"] + self.order_weight * means["order_loss"],
            "pseudo_perplexity": metrics.perplexity(means["masked_loss"]),
            "unmasked_order_accuracy": float((told == outputs["labels"]).mean()),
        }, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"label": name, "probabilities": {name: p}} for each pair."""
        for row in outputs["probabilities"].tolist():
            odds = dict(zip(self.labels, row))
            yield {"label": max(odds, key=lambda name: odds[name]), "probabilities": odds}
