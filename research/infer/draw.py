"""Texts drawn from a language model: one token after another, or by masks over and over.

Any trunk will do, since the whole text is computed anew for every token: meant for samples in
reports, not for speed.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.evaluate import Model


def draw(model: Model, start: int, length: int, *, seed: int = 0, sweeps: int = 4) -> np.ndarray:
    """`length` tokens after `start`, int32 [length], none of them special.

    A causal model is sampled from left to right. A masked one has no first word: all tokens begin
    as masks, and `sweeps` times each is drawn given all others (Wang & Cho, 2019).
    """
    masked = hasattr(model.task, "mask_id")
    special = model.data.facts()["special_ids"]
    run = program(model.task, masked, length, sweeps if masked else 1, special)
    return np.asarray(run(model.params, jnp.int32(start), jax.random.key(seed)))[1:]


@functools.lru_cache(maxsize=16)
def program(task: Any, masked: bool, length: int, sweeps: int, special: tuple[int, ...]) -> Any:
    """The compiled (params, start, key) -> int32 [1 + length]."""
    places = jnp.arange(length + 1, dtype=jnp.int32)[None]
    row = {"positions": places, "segments": jnp.ones_like(places), "types": 0 * places}

    def scores(task: Any, tokens: jax.Array, at: jax.Array) -> jax.Array:
        x = task.backbone(row | {"tokens": tokens[None]})[0, at]
        logits: jax.Array = (task if masked else task.backbone).logits(x)
        return logits.at[jnp.asarray(special, jnp.int32)].set(-jnp.inf)

    def run(params: Any, start: jax.Array, key: jax.Array) -> jax.Array:
        def step(tokens: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
            place, number = at[0], at[1]
            shown = tokens.at[place].set(task.mask_id) if masked else tokens
            asked = place if masked else place - 1
            logits = task.apply({"params": params}, shown, asked, method=scores)
            token = jax.random.categorical(jax.random.fold_in(key, number), logits)
            return tokens.at[place].set(token.astype(jnp.int32)), None

        fill = task.mask_id if masked else 0
        tokens = jnp.full((length + 1,), fill, jnp.int32).at[0].set(start)
        order = jnp.tile(jnp.arange(1, length + 1), sweeps)
        tokens, _ = lax.scan(step, tokens, jnp.stack([order, jnp.arange(len(order))], axis=1))
        return tokens

    return jax.jit(run)
