"""Language modelling by masks: the trunk learns to restore what was hidden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import activations, metrics, sharding
from research.data.batches import Examples
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers, products
from research.models.layers import ACTIVATIONS, Dense
from research.tasks import span_masks

Batch = dict[str, jax.Array]
Unit = Literal["token", "word", "span"]

# Tokens that one draw hides, at the most that is usual: what the room for them is reckoned by.
SPREAD: dict[str, int] = {"token": 1, "word": 8, "span": 48}


class MaskedLM(nn.Module):
    """BERT's objective with masks drawn anew every step (Devlin et al., 2019; Liu et al., 2019).

    `rate` of the tokens are predicted: each `unit` for itself, a token, a word, or a span of words
    whose length is geometric (SpanBERT's, Joshi et al., 2020, see `span_masks`; without its
    boundary objective). Of these 80 % are shown as the mask, 10 % as a random token, 10 % as
    themselves; the tokens of a span share that fate. Only predicted tokens meet the vocabulary, and
    [N, V] is never whole. A causal trunk sees all of an example here.
    """

    backbone: Any = None
    rate: float = 0.15
    unit: Unit = "token"
    vocab_size: int | None = None
    mask_id: int | None = None
    special_ids: tuple[int, ...] = ()
    per_token = ()

    def setup(self) -> None:
        if self.mask_id is None or self.vocab_size is None:
            raise ConfigError("task.mask_id is not set, and the tokenizer has no mask token")
        spec = self.backbone.spec
        self.transform = Dense(spec.embed_width or spec.width, spec.head_bias, spec.dtype)
        self.norm = spec.make_norm()
        self.bias = self.param("bias", nn.initializers.zeros, (spec.vocab_size,))
        self.prepare()

    def prepare(self) -> None:
        """What a subclass sets up besides."""

    def hide(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is shown, int32 [B, T], and which tokens are to be restored, bool [B, T]."""
        tokens = batch["tokens"]
        special = jnp.isin(tokens, jnp.asarray(self.special_ids, jnp.int32))
        noise = layers.token_noise(key, batch)
        if self.unit != "token" and "words" not in batch:
            raise ConfigError(f"task.unit is {self.unit!r}, but data.words is not set")
        if self.unit == "span":
            chosen, common = span_masks.choose(key, batch, self.rate)
        else:
            unit = noise
            if self.unit == "word":
                unit = layers.token_noise(key, batch | {"positions": batch["words"]})
            chosen = layers.mix(unit ^ jnp.uint32(0x11)) < jnp.uint32(round(self.rate * 2**32))
            common = noise
        chosen &= (batch["segments"] > 0) & ~special
        fate = layers.mix(common ^ jnp.uint32(0x22))
        other = (layers.mix(noise ^ jnp.uint32(0x33)) % jnp.uint32(self.vocab_size)).astype(
            jnp.int32
        )
        shown = jnp.where(fate < jnp.uint32(round(0.8 * 2**32)), jnp.int32(self.mask_id), tokens)
        shown = jnp.where(fate >= jnp.uint32(round(0.9 * 2**32)), other, shown)
        return jnp.where(chosen, shown, tokens), chosen

    def see(self, batch: Batch, shown: jax.Array, *, noise: jax.Array | None) -> jax.Array:
        """The trunk's vectors of what is shown, [B, T, D], each of the whole example."""
        batch = batch | {"tokens": shown}
        if getattr(self.backbone.spec, "causal", False):
            batch["prefix"] = jnp.ones_like(shown)
        return self.backbone(batch, noise=noise)

    def head(self, x: jax.Array) -> jax.Array:
        """What BERT's prediction head does before the vocabulary: [..., D] -> [..., D]."""
        activate = ACTIVATIONS[self.backbone.spec.activation]
        return self.norm(activate(self.transform(x).astype(jnp.float32)))

    def logits(self, x: jax.Array) -> jax.Array:
        """BERT's prediction head: [..., D] -> float32 [..., V]."""
        logits = self.backbone.logits(self.head(x))
        return logits + products.over_last(self.bias, logits)

    def restore(self, x: jax.Array, batch: Batch, chosen: jax.Array) -> dict[str, Mean]:
        """Loss and accuracy of the chosen tokens from the trunk's vectors [B, T, D]."""
        found = gather_chosen(x, batch["tokens"], chosen, self.rate, spread=SPREAD[self.unit])
        x, labels, weights = found
        scored = self.backbone.nll(self.head(x), labels, self.bias)
        return {
            "loss": Mean.of(scored.nll, weights),
            "accuracy": Mean.of(scored.correct, weights),
        }

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        key = self.make_rng("noise")
        shown, chosen = self.hide(batch, key)
        noise = layers.token_noise(jax.random.fold_in(key, 1), batch) if train else None
        return self.restore(self.see(batch, shown, noise=noise), batch, chosen)

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """Nothing an example: the means say all."""
        return {}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """`pseudo_perplexity` beside the means: of the tokens masked together, which is not the
        probability of a text (see `evaluators.pseudo` for each token masked in its turn)."""
        return means | {"pseudo_perplexity": metrics.perplexity(means["loss"])}, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """Nothing to tell about a single text."""
        return ({} for _ in outputs["ids"])


def gather_chosen(
    x: jax.Array, tokens: jax.Array, chosen: jax.Array, rate: float, spread: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The supervised positions of a batch, packed: x [G, S, D], labels [G, S], weights [G, S]."""
    where, weights = places_of(chosen, rate, spread)
    return take(x, where), take(tokens, where), weights


def places_of(chosen: jax.Array, rate: float, spread: int) -> tuple[jax.Array, jax.Array]:
    """Where the chosen tokens of bool [B, T] are: int32 [G, S] within a shard, weights [G, S].

    G is the number of shards that the rows are spread over, and S has an equal part for each shard
    that tokens are spread over, so that no position leaves its device. S is static: the expected
    count and six standard deviations of draws that each bring up to `spread` tokens; what does not
    fit, less than one batch in millions, is not predicted. Unused places weigh 0.
    """
    rows = sharding.batch_shards(chosen.shape[0])
    chosen = activations.fold(chosen)
    size = chosen.shape[1]
    room = min(size, round(size * rate + 6 * (spread * size * rate) ** 0.5))

    def one(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        (where,) = jnp.nonzero(chosen, size=room, fill_value=size)
        return jnp.minimum(where, size - 1), (where < size).astype(jnp.float32)

    places, weights = jax.vmap(one)(chosen)
    return places.reshape(rows, -1), weights.reshape(rows, -1)


def take(x: jax.Array, where: jax.Array) -> jax.Array:
    """What [B, T, ...] holds at the places [G, S] of `places_of`: [G, S, ...]."""
    x = activations.fold(x)
    taken: jax.Array = jax.vmap(lambda x, where: x[where])(x, where.reshape(len(x), -1))
    return taken.reshape(*where.shape, *x.shape[2:])
