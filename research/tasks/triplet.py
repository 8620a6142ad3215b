"""Triplets: a positive has to be nearer its anchor than the negatives are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research import contrastive
from research.data.pairs import ANCHOR
from research.metrics import Mean
from research.tasks.embed import Batch, Embed, pair_masks


class Triplet(Embed):
    """A positive has to be nearer its anchor than any negative is, by `margin` (see contrastive).

    Negatives are the row's own and those of the batch: the nearest alone, or all of them.
    """

    margin: float = 0.2
    hardest: bool = True

    def compare(self, views: tuple[jax.Array, ...], batch: Batch) -> dict[str, Mean]:
        positive, negative = pair_masks(batch)
        values, found = contrastive.triplet(
            self.products(views[0], views[0]),
            positive,
            negative,
            margin=self.margin,
            hardest=self.hardest,
        )
        weights = batch["weights"] * found * (batch["roles"] == ANCHOR)
        violated = (values > 0.0).astype(jnp.float32)
        return {"loss": Mean.of(values, weights), "violated": Mean.of(violated, weights)}
