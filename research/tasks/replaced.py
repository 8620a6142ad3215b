"""Replaced-token detection: which tokens of a text has a small masked LM made up?"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.data.batches import Examples
from research.errors import ConfigError
from research.metrics import Mean, WeightedSum
from research.models import layers
from research.models.layers import ACTIVATIONS, Dense
from research.tasks.causal import token_weights
from research.tasks.lm import SPREAD, Batch, MaskedLM, places_of, take

# Tables of a trunk that both share where they have the same shape.
SHARED = ("embed", "embed_positions", "embed_types")


class ReplacedTokens(MaskedLM):
    """ELECTRA (Clark et al., 2020): `generator` fills masks, `backbone` tells what it filled in.

    The generator is a small trunk over the same vocabulary, trained as a masked LM, all hidden
    tokens shown as the mask; it has no tables of its own where the trunk's fit. What it samples
    takes the place of the hidden tokens; every token of the text is then told to be the
    original or not, and a hidden token that was sampled right is an original. The loss is that of
    the masked LM and `detection_weight` times the detection's, whose gradient ends at the sample.
    """

    generator: Any = None
    detection_weight: float = 50.0

    def prepare(self) -> None:
        if self.generator is None:
            raise ConfigError("task.generator is not set, expected a trunk smaller than backbone")
        ours, theirs = self.backbone.spec, self.generator.spec
        if theirs.vocab_size != ours.vocab_size or theirs.causal or ours.causal:
            raise ConfigError(
                f"task.generator has {theirs.vocab_size} tokens and backbone {ours.vocab_size}: "
                f"expected as many of each, and neither of them causal"
            )
        self.detector = Dense(ours.width, dtype=ours.dtype)
        self.detection = Dense(1, dtype="float32", kernel_init=layers.small_normal)

    def fill(self, batch: Batch, *, noise: jax.Array | None) -> jax.Array:
        """The generator's vectors [B, T, its D], made of the trunk's tables where they fit."""
        if self.is_initializing():
            self.backbone(batch)
        tables = self.backbone.variables["params"]
        shapes = generator_shapes(self.generator, batch)
        shared = {
            name: tables[name]
            for name in SHARED
            if name in shapes and jax.tree.map(jnp.shape, tables.get(name)) == shapes[name]
        }

        def lend(own: Any) -> Any:
            return {"params": {**own.get("params", {}), **shared}}

        def reclaim(used: Any) -> Any:
            return {"params": {k: v for k, v in used["params"].items() if k not in shared}}

        run = nn.map_variables(
            lambda generator, batch, noise: generator(batch, noise=noise),
            "params",
            trans_in_fn=lend,
            trans_out_fn=reclaim,
            init=self.is_initializing(),
            mutable=self.is_initializing(),
        )
        x: jax.Array = run(self.generator, batch, noise)
        return x

    def corrupt(
        self, batch: Batch, key: jax.Array, *, noise: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """The tokens with samples in place of the hidden ones, int32 [B, T], and the generator's
        loss and accuracy."""
        _, chosen = self.hide(batch, key)
        shown = jnp.where(chosen, jnp.int32(self.mask_id), batch["tokens"])
        x = self.fill(batch | {"tokens": shown}, noise=noise)
        where, weights = places_of(chosen, self.rate, SPREAD[self.unit])
        x, labels = self.head(take(x, where)), take(batch["tokens"], where)
        scored = self.backbone.nll(x, labels, self.bias)
        chance = layers.mix(layers.token_noise(key, batch) ^ jnp.uint32(0x77))
        drawn = self.backbone.sample(x, take(chance, where), self.bias)
        means = {
            "generator_loss": Mean.of(scored.nll, weights),
            "generator_accuracy": Mean.of(scored.correct, weights),
        }
        return put_back(batch["tokens"], where, drawn, weights), means

    def detect(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """The logit of being a replacement, float32 [B, T], for every token."""
        x = self.detector(self.backbone(batch, noise=noise))
        activate = ACTIVATIONS[self.backbone.spec.activation]
        return self.detection(activate(x.astype(jnp.float32)))[..., 0]

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Any]:
        key = self.make_rng("noise")
        noise = layers.token_noise(jax.random.fold_in(key, 1), batch) if train else None
        other = layers.token_noise(jax.random.fold_in(key, 2), batch) if train else None
        tokens, means = self.corrupt(batch, key, noise=other)
        logits = self.detect(batch | {"tokens": tokens}, noise=noise)
        replaced = tokens != batch["tokens"]
        weights = jnp.where(batch["segments"] > 0, token_weights(batch), 0.0)
        values = optax.sigmoid_binary_cross_entropy(logits, replaced.astype(jnp.float32))
        right = ((logits > 0) == replaced).astype(jnp.float32)
        found = Mean.of(values, weights)
        losses = (means["generator_loss"], found)
        return means | {
            "loss": WeightedSum(losses, (1.0, self.detection_weight)),
            "detection_loss": found,
            "detection_accuracy": Mean.of(right, weights),
            "detection_recall": Mean.of(right, jnp.where(replaced, weights, 0.0)),
            "replaced": Mean.of(replaced.astype(jnp.float32), weights),
        }

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The means, the loss summed of those of its terms over the whole split."""
        loss = means["generator_loss"] + self.detection_weight * means["detection_loss"]
        return means | {"loss": loss}, {}


def generator_shapes(generator: nn.Module, batch: Batch) -> dict[str, Any]:
    """The shapes of the parameters that a trunk would have by itself."""
    alone = generator.clone(parent=None)
    found = jax.eval_shape(lambda key: alone.init(key, batch)["params"], jax.random.key(0))
    return {name: jax.tree.map(jnp.shape, tree) for name, tree in found.items()}


def put_back(
    tokens: jax.Array, where: jax.Array, drawn: jax.Array, weights: jax.Array
) -> jax.Array:
    """int32 [B, T] with `drawn` [G, S] at the places `where` that do not weigh 0."""
    flat = tokens.reshape(where.shape[0], -1)
    # Unused places point at a real token: they are sent past the end, and dropped there.
    target = jnp.where(weights > 0, where, flat.shape[1])
    put = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))
    written: jax.Array = put(flat, target, drawn)
    return written.reshape(tokens.shape)
