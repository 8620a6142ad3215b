"""Language modelling over permutations: tokens predicted in an order drawn anew every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import losses, metrics
from research.data.batches import Examples
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers, products
from research.models.attention import attention_mask
from research.models.pooling import at
from research.models.xlnet import XLNet

Batch = dict[str, jax.Array]


class PermutationLM(nn.Module):
    """XLNet's objective (Yang et al., 2019).

    Of each example one `share`th is predicted (K in the paper): single tokens, the last of a random
    order, or with `spans` stretches of one to `spans` tokens, drawn as long for all of an example,
    one in every `share` times its length. What is not predicted is seen by all, and a predicted
    token by those that come after it in the order. Special tokens are never predicted.

    The query stream, and so the vocabulary, meets predicted positions only: at most T // `share` of
    a row, which none exceeds. The order is a function of (key, example), in any layout.
    """

    backbone: Any = None
    share: int = 6
    spans: int | None = None
    special_ids: tuple[int, ...] = ()
    per_token = ()

    def setup(self) -> None:
        if not isinstance(self.backbone, XLNet):
            raise ConfigError("task.backbone of PermutationLM must be an XLNet: it has two streams")
        if self.share < 2 or (self.spans is not None and self.spans < 1):
            raise ConfigError("task.share must be 2 or more, and task.spans positive")
        self.bias = self.param("bias", nn.initializers.zeros, (self.backbone.spec.vocab_size,))

    def order(self, batch: Batch, key: jax.Array) -> jax.Array:
        """When each token is predicted, int32 [B, T]: 1, 2, ... within its example, 0 for never."""
        noise = layers.token_noise(key, batch)
        special = jnp.isin(batch["tokens"], jnp.asarray(self.special_ids, jnp.int32))
        # Query by key: tokens of one example, and whether the key's draw is the later one.
        mine = attention_mask(batch, causal=False)
        places = batch["positions"]
        tie = (noise[:, None, :] == noise[:, :, None]) & (places[:, None, :] > places[:, :, None])
        later = (noise[:, None, :] > noise[:, :, None]) | tie
        if self.spans is None:
            able = (batch["segments"] > 0) & ~special
            count = jnp.sum(mine & able[:, None, :], axis=2)
            after = jnp.sum(mine & able[:, None, :] & later, axis=2)
            chosen = able & (after < count // self.share)
        else:
            chosen = self.in_spans(batch, key) & ~special
        earlier = jnp.sum(mine & chosen[:, None, :] & ~later, axis=2)  # Itself among them.
        return jnp.where(chosen, earlier, 0).astype(jnp.int32)

    def in_spans(self, batch: Batch, key: jax.Array) -> jax.Array:
        """Which tokens lie in a span that is predicted, bool [B, T].

        An example is cut into windows of `share` times the span's length, with one span in each; an
        unfinished window at its end has none.
        """
        spans = jnp.uint32(self.spans)

        def draw(step: int, places: jax.Array) -> jax.Array:
            own = jax.random.fold_in(key, step)
            return layers.token_noise(own, batch | {"positions": places})

        positions = batch["positions"].astype(jnp.uint32)
        length = 1 + draw(1, jnp.zeros_like(positions)) % spans  # Of all spans of an example.
        window = length * self.share
        start = positions // window * window
        offset = draw(2, start) % (window - length + 1)
        within = positions - start - offset
        slots = jnp.maximum(batch["segments"] - 1, 0)
        size = jnp.take_along_axis(batch["lengths"], slots, axis=1).astype(jnp.uint32)
        return (batch["segments"] > 0) & (within < length) & (start + window <= size)

    def asked(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What each token may see, bool [B, T, T], the places that are predicted, int32 [B, P], and
        their weights float32 [B, P], 0 where a row has no more."""
        rank = self.order(batch, key)
        visible = (rank[:, None, :] < rank[:, :, None]) | (rank[:, None, :] == 0)
        room = max(1, rank.shape[1] // self.share)
        targets = jax.vmap(lambda row: jnp.nonzero(row, size=room, fill_value=0)[0])(rank > 0)
        count = jnp.sum(rank > 0, axis=1, keepdims=True)
        taken = jnp.arange(room, dtype=jnp.int32)[None] < count
        return visible, targets.astype(jnp.int32), taken.astype(jnp.float32)

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every word: [..., D] -> float32 [..., V]."""
        logits = self.backbone.logits(x)
        return logits + products.over_last(self.bias, logits)

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        key = self.make_rng("noise")
        noise = layers.token_noise(jax.random.fold_in(key, 1), batch) if train else None
        visible, targets, weights = self.asked(batch, key)
        streams = self.backbone.streams(batch, visible=visible, targets=targets, noise=noise)
        logits, labels = self.logits(streams.query), at(batch["tokens"], targets)
        accuracy = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        values = losses.cross_entropy(logits, labels)
        return {"loss": Mean.of(values, weights), "accuracy": Mean.of(accuracy, weights)}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """Nothing an example: the means say all."""
        return {}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Beside the means the perplexity over permutations: of a token given a random part of the
        rest, which is no perplexity of a text."""
        return means | {"permutation_perplexity": metrics.perplexity(means["loss"])}, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """Nothing to tell about a single text."""
        return ({} for _ in outputs["ids"])
