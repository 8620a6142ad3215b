"""Causal language modelling: every token is told from the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import metrics
from research.data.batches import Examples
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers
from research.models.vocabulary import Scored

Batch = dict[str, jax.Array]


class CausalLM(nn.Module):
    """The next token of the same example, by a causal trunk (Radford et al., 2018).

    An example's first token is given, not predicted, and nothing is across examples of a row.
    `z_loss` times log(Z)^2 keeps the softmax's denominator near 1 (Chowdhery et al., 2022, with
    1e-4). With `prefix` the first tokens of an example, a number drawn evenly from its length, see
    each other in both directions and are not predicted: prefix LM (Dong et al., 2019; Raffel et
    al., 2020).
    """

    backbone: Any = None
    z_loss: float = 0.0
    prefix: bool = False
    per_token = ("log_probabilities",)

    def setup(self) -> None:
        if not getattr(self.backbone.spec, "causal", False):
            raise ConfigError(
                "task is causal, but task.backbone.spec.causal is not set: every token would see "
                "what it is asked for"
            )

    def scored(self, batch: Batch, *, noise: jax.Array | None = None) -> tuple[Scored, jax.Array]:
        """The next token of each, scored, and whether it is of the same example: [B, T] each."""
        x = self.backbone(batch, noise=noise)
        labels, inside = following(batch)
        return self.backbone.nll(x, labels), inside

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        key = self.make_rng("noise")
        noise = layers.token_noise(jax.random.fold_in(key, 1), batch) if train else None
        if self.prefix:
            batch = batch | {"prefix": draw_prefix(key, batch)}
        scored, inside = self.scored(batch, noise=noise)
        if self.prefix:
            inside &= ~of_next(batch["prefix"] > 0)
        weights = jnp.where(inside, token_weights(batch), 0.0)
        means = {
            "loss": Mean.of(scored.nll, weights),
            "accuracy": Mean.of(scored.correct, weights),
        }
        if self.z_loss:
            means["nll"] = means["loss"]
            means["loss"] = Mean.of(scored.nll + self.z_loss * jnp.square(scored.log_z), weights)
        return means

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`nll` float32 [B, M], the nats of all predicted tokens of an example, and `count` int32
        [B, M], how many they are."""
        scored, inside = self.scored(batch)
        return {
            "nll": by_example(jnp.where(inside, scored.nll, 0.0), batch),
            "count": by_example(inside.astype(jnp.int32), batch),
        }

    def token_log_probabilities(self, batch: Batch) -> dict[str, jax.Array]:
        """`log_probabilities` float32 [B, T], of each token given those before it, in nats; 0 for
        an example's first token, which is given. For `evaluate.forward`."""
        scored, inside = self.scored(batch)
        logs = jnp.where(inside, -scored.nll, 0.0)
        return {"log_probabilities": jnp.pad(logs, ((0, 0), (1, 0)))[:, :-1]}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Perplexity a token beside the means, and of data that know `bytes` the bits a byte."""
        nats = means.get("nll", means.get("loss", float("nan")))
        numbers = means | {"perplexity": metrics.perplexity(nats)}
        if "bytes" in outputs:
            total = float(np.sum(outputs["nll"], dtype=np.float64))
            numbers["bits_per_byte"] = metrics.bits_per_byte(total, int(outputs["bytes"].sum()))
        return numbers, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"nll": nats, "tokens": how many were predicted, "perplexity": of them} a text."""
        for nats, count in zip(outputs["nll"].tolist(), outputs["count"].tolist()):
            mean = nats / count if count else float("nan")
            yield {"nll": nats, "tokens": count, "perplexity": metrics.perplexity(mean)}


def of_next(x: jax.Array) -> jax.Array:
    """What the next cell of the row holds, 0 after the last: [B, T] -> [B, T]."""
    return jnp.pad(x, ((0, 0), (0, 1)))[:, 1:]


def following(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The next token int32 [B, T], and whether it is one of the same example, bool [B, T]."""
    segments = batch["segments"]
    return of_next(batch["tokens"]), (segments > 0) & (of_next(segments) == segments)


def token_weights(batch: Batch) -> jax.Array:
    """The weight of its example for every token, float32 [B, T]."""
    slots = jnp.maximum(batch["segments"] - 1, 0)
    return jnp.take_along_axis(batch["weights"], slots, axis=1)


def by_example(values: jax.Array, batch: Batch) -> jax.Array:
    """Sums over the tokens of each example: [B, T] -> [B, M]."""
    slots = jnp.arange(1, batch["ids"].shape[1] + 1, dtype=jnp.int32)
    member = batch["segments"][:, None, :] == slots[None, :, None]  # [B, M, T]
    return jnp.sum(jnp.where(member, values[:, None, :], 0), axis=-1)


def draw_prefix(key: jax.Array, batch: Batch) -> jax.Array:
    """1 at the first n of an example's l tokens, n drawn evenly from 1 .. l - 1: int32 [B, T].

    A function of (key, example), wherever packing puts it.
    """
    first = layers.token_noise(key, batch | {"positions": jnp.zeros_like(batch["positions"])})
    slots = jnp.maximum(batch["segments"] - 1, 0)
    lengths = jnp.take_along_axis(batch["lengths"], slots, axis=1)
    room = jnp.maximum(lengths - 1, 1).astype(jnp.uint32)
    size = 1 + (layers.mix(first ^ jnp.uint32(0x66)) % room).astype(jnp.int32)
    return ((batch["positions"] < size) & (batch["segments"] > 0)).astype(jnp.int32)
