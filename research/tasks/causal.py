"""Language modelling from left to right: each token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import losses, metrics
from research.data.batches import Examples
from research.metrics import Mean
from research.models import layers

Batch = dict[str, jax.Array]


class CausalLM(nn.Module):
    """Next-token prediction within each segment; a segment's first token is given."""

    backbone: Any = None
    vocab_size: int | None = None
    per_token = ()

    def values(self, batch: Batch, noise: jax.Array | None) -> tuple[jax.Array, ...]:
        """Nats and hits of the token after each, and whether there is one: [B, T] each."""
        logits = self.backbone.logits(self.backbone(batch, noise=noise))
        after = jnp.pad(batch["tokens"], ((0, 0), (0, 1)))[:, 1:]
        segments = jnp.pad(batch["segments"], ((0, 0), (0, 1)))
        weights = ((segments[:, :-1] == segments[:, 1:]) & (batch["segments"] > 0)).astype(
            jnp.float32
        )
        hits = (jnp.argmax(logits, axis=-1) == after).astype(jnp.float32)
        return losses.cross_entropy(logits, after), hits, weights

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        values, hits, weights = self.values(batch, noise)
        return {"loss": Mean.of(values, weights), "accuracy": Mean.of(hits, weights)}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`nll`, nats, and `count`, tokens, of each example: float32 [B, M]."""
        values, _, weights = self.values(batch, None)
        slots = jnp.arange(batch["ids"].shape[1])[None, None, :] + 1
        owner = (batch["segments"][..., None] == slots).astype(jnp.float32)
        return {
            "nll": jnp.einsum("btm,bt->bm", owner, jnp.where(weights > 0, values, 0.0)),
            "count": jnp.einsum("btm,bt->bm", owner, weights),
        }

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Perplexity beside the means."""
        return means | {"perplexity": metrics.perplexity(means["loss"])}, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"nll": nats, "count": tokens} for each text."""
        for nll, count in zip(outputs["nll"], outputs["count"]):
            yield {"nll": float(nll), "count": int(count)}
