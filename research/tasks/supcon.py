"""Supervised contrastive learning (Khosla et al., 2020): texts that share a label attract."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research import contrastive
from research.errors import ConfigError
from research.metrics import Mean
from research.tasks.embed import Batch, Embed, across, both_filled


class SupCon(Embed):
    """Each text is drawn to all texts of its label, and away from the others of the batch.

    Learns from labelled texts. A text without a partner in its batch weighs 0. With
    `second_view`, every text is there twice, under another dropout, and so never alone.
    """

    temperature: float = 0.1
    second_view: bool = False
    labels: tuple[str, ...] = ()

    def vectors(self, batch: Batch, *, train: bool) -> tuple[jax.Array, ...]:
        """One view, or two of them in training."""
        if not train:
            return (self.encode(batch),)
        return self.noisy(batch, self.make_rng("noise"), 2 if self.second_view else 1)

    def compare(self, views: tuple[jax.Array, ...], batch: Batch) -> dict[str, Mean]:
        if len(self.labels) < 2:
            raise ConfigError("SupCon learns from labels, and data has fewer than two of them")
        labels, filled = batch["labels"], both_filled(batch)
        alike = labels[..., None] == across(labels)
        own = batch["ids"][..., None] == across(batch["ids"])
        total = count = jnp.zeros((), jnp.float32)
        for i, queries in enumerate(views):
            # The same text in the other view is a positive, in its own view it is the query itself.
            kept = [filled & ~own if j == i else filled for j in range(len(views))]
            scores = [self.products(queries, view) * self.scale() for view in views]
            values, found = contrastive.supcon(
                jnp.concatenate(scores, axis=-1),
                jnp.concatenate([mask & alike for mask in kept], axis=-1),
                jnp.concatenate([mask & ~alike for mask in kept], axis=-1),
            )
            mean = Mean.of(values, batch["weights"] * found)
            total, count = total + mean.total, count + mean.count
        return {"loss": Mean(total, count)}
