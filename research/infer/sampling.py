"""Which token comes next: the most probable one, or one drawn from what is left of a softmax."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn, in the order of the fields; `temperature` 0 takes the best (greedy).

    `repetition_penalty` divides the positive logits of tokens that were seen and multiplies the
    negative ones (Keskar et al., 2019). Of the rest of the softmax remain the `top_k` most probable
    (Fan et al., 2018), then the fewest that reach `top_p` together (Holtzman et al., 2020), then
    those of at least `min_p` times the best one's probability (Nguyen et al., 2024).
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}, expected a number from 0 up")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}, expected a positive integer")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p is {self.top_p}, expected a number in (0, 1]")
        if not 0.0 <= self.min_p <= 1.0:
            raise ConfigError(f"min_p is {self.min_p}, expected a number in [0, 1]")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise ConfigError(
                f"repetition_penalty is {self.repetition_penalty}, expected a number above 0"
            )
        if self.temperature == 0.0 and (self.top_k, self.top_p, self.min_p) != (None, 1.0, 0.0):
            raise ConfigError(
                "temperature is 0, which takes the best token and draws none, so that top_k, top_p "
                "and min_p would do nothing"
            )


def penalised(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Logits [B, V] with those lowered of tokens that were `seen`, bool [B, V]."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [B, V] divided by the temperature, -inf where a token is not to be drawn.

    Tokens as probable as the last one that is kept are kept too.
    """
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        last = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits >= last, logits, -jnp.inf)
    if sampling.top_p < 1.0:
        ranked = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probabilities = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        last = jnp.min(jnp.where(before < sampling.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= last, logits, -jnp.inf)
    if sampling.min_p > 0.0:
        best = jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.where(logits >= best + jnp.log(sampling.min_p), logits, -jnp.inf)
    return logits


def choose(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token of every row: float32 [B, V], keys [B] -> int32 [B]."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    drawn = jax.vmap(jax.random.categorical)(keys, filtered(logits, sampling))
    return drawn.astype(jnp.int32)
