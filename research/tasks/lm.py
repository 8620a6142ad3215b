"""Language modelling by masks: the trunk learns to restore what was hidden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import losses, metrics, sharding
from research.data.batches import Examples
from research.metrics import Mean
from research.models import layers
from research.models.layers import ACTIVATIONS, Dense

Batch = dict[str, jax.Array]


class MaskedLM(nn.Module):
    """BERT's objective with masks drawn anew every step (Devlin et al., 2019; Liu et al., 2019).

    `rate` of the tokens, or of the words with `whole_word`, are predicted; of these 80 % are shown
    as the mask, 10 % as a random token, 10 % as themselves. Only they meet the vocabulary:
    [B, T, V] is never formed.
    """

    backbone: Any = None
    rate: float = 0.15
    whole_word: bool = False
    vocab_size: int | None = None
    mask_id: int | None = None
    special_ids: tuple[int, ...] = ()
    per_token = ()

    def setup(self) -> None:
        spec = self.backbone.spec
        self.transform = Dense(spec.embed_width or spec.width, spec.head_bias, spec.dtype)
        self.norm = spec.make_norm()
        self.bias = self.param("bias", nn.initializers.zeros, (spec.vocab_size,))

    def hide(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is shown, int32 [B, T], and which tokens are to be restored, bool [B, T]."""
        tokens = batch["tokens"]
        special = jnp.isin(tokens, jnp.asarray(self.special_ids, jnp.int32))
        noise = layers.token_noise(key, batch)
        unit = noise
        if self.whole_word:
            unit = layers.token_noise(key, batch | {"positions": batch["words"]})
        chosen = layers.mix(unit ^ jnp.uint32(0x11)) < jnp.uint32(round(self.rate * 2**32))
        chosen &= (batch["segments"] > 0) & ~special
        fate = layers.mix(noise ^ jnp.uint32(0x22))
        other = (layers.mix(noise ^ jnp.uint32(0x33)) % jnp.uint32(self.vocab_size)).astype(
            jnp.int32
        )
        shown = jnp.where(fate < jnp.uint32(round(0.8 * 2**32)), jnp.int32(self.mask_id), tokens)
        shown = jnp.where(fate >= jnp.uint32(round(0.9 * 2**32)), other, shown)
        return jnp.where(chosen, shown, tokens), chosen

    def logits(self, x: jax.Array) -> jax.Array:
        """BERT's prediction head: [..., D] -> float32 [..., V]."""
        activate = ACTIVATIONS[self.backbone.spec.activation]
        x = self.norm(activate(self.transform(x).astype(jnp.float32)))
        logits = self.backbone.logits(x)
        return logits + layers.over_last(self.bias, logits)

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        key = self.make_rng("noise")
        shown, chosen = self.hide(batch, key)
        noise = layers.token_noise(jax.random.fold_in(key, 1), batch) if train else None
        x = self.backbone(batch | {"tokens": shown}, noise=noise)
        x, labels, weights = gather_chosen(
            x, batch["tokens"], chosen, self.rate, spread=8 if self.whole_word else 1
        )
        logits = self.logits(x)
        accuracy = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        values = losses.cross_entropy(logits, labels)
        return {"loss": Mean.of(values, weights), "accuracy": Mean.of(accuracy, weights)}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """Nothing an example: the means say all."""
        return {}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Pseudo-perplexity over the masked tokens beside the means."""
        return means | {"perplexity": metrics.perplexity(means["loss"])}, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """Nothing to tell about a single text."""
        return ({} for _ in outputs["ids"])


def gather_chosen(
    x: jax.Array, tokens: jax.Array, chosen: jax.Array, rate: float, spread: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The supervised positions of a batch, packed: x [G, S, D], labels [G, S], weights [G, S].

    G is the number of shards of the batch, so that no position leaves its device. S is static: the
    expected count and six standard deviations of draws that each bring up to `spread` tokens; what
    does not fit, less than one batch in millions, is not predicted.
    """
    groups = sharding.batch_shards(x.shape[0])
    x, tokens, chosen = (a.reshape(groups, -1, *a.shape[2:]) for a in (x, tokens, chosen))
    size = tokens.shape[1]
    room = min(size, round(size * rate + 6 * (spread * size * rate) ** 0.5))

    def one(x: jax.Array, tokens: jax.Array, chosen: jax.Array) -> tuple[jax.Array, ...]:
        (where,) = jnp.nonzero(chosen, size=room, fill_value=size)
        weights = (where < size).astype(jnp.float32)
        where = jnp.minimum(where, size - 1)
        return x[where], tokens[where], weights

    gathered = jax.vmap(one)(x, tokens, chosen)
    return gathered[0], gathered[1], gathered[2]
