"""Causal language modelling: every token is predicted from those before it."""

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
    """The next token of every text, by the trunk's own vocabulary (Radford et al., 2018)."""

    backbone: Any = None
    per_token = ()

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        logits = self.backbone.logits(self.backbone(batch, noise=noise)[:, :-1])
        segments = batch["segments"]
        weights = (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])
        values = losses.cross_entropy(logits, batch["tokens"][:, 1:])
        return {"loss": Mean.of(values, weights.astype(jnp.float32))}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """Nothing an example: the means say all."""
        return {}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Perplexity a token beside the means."""
        return means | {"perplexity": metrics.perplexity(means["loss"])}, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """Nothing to tell about a single text."""
        return ({} for _ in outputs["ids"])
