"""Unsupervised SimCSE (Gao et al., 2021): a text is its own positive under another dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from research import contrastive
from research.metrics import Mean
from research.tasks.embed import Batch, Embed, across, both_filled


class SimCSE(Embed):
    """Each text finds itself among the second views of all texts of the batch.

    Learns from plain texts: `Texts` without labels, or `Pairs` with `positive=None`. Evaluation has
    no dropout, so there its loss says only how far apart other texts are.
    """

    views = 2

    def compare(self, views: tuple[jax.Array, ...], batch: Batch) -> dict[str, Mean]:
        scores = self.products(*views) * self.scale()
        ids, places = batch["ids"], batch["ids"].size
        itself = jnp.eye(places, dtype=bool).reshape(*ids.shape, places)
        other = ids[..., None] != across(ids)
        if "texts" in batch:
            other &= batch["texts"][..., None] != across(batch["texts"])
        filled = both_filled(batch)
        values, found = contrastive.info_nce(scores, filled & itself, filled & other)
        weights = batch["weights"] * found
        rival = jnp.max(jnp.where(filled & other, scores, contrastive.NOTHING), axis=-1)
        own = jnp.sum(jnp.where(itself, scores, 0.0), axis=-1)
        hits = (own > rival).astype(jnp.float32)
        return {"loss": Mean.of(values, weights), "accuracy": Mean.of(hits, weights)}
