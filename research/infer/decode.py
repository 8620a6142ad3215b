"""Tokens after prompts: one compiled program reads the prompts, one adds a token to all of them."""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.infer.sampling import Sampling, choose, penalised
from research.models import cache
from research.models.cache import Cache
from research.models.transformer import Transformer

Batch = dict[str, jax.Array]


class State(NamedTuple):
    """What decoding carries from token to token.

    `position` int32 [B] is that of the token to come; `seen` bool [B, V] says which tokens a row
    holds, None where nobody asks; `keys` [B] are the rows' random keys.
    """

    cache: Cache
    position: jax.Array
    seen: jax.Array | None
    keys: jax.Array


def lay_out(prompts: Sequence[Sequence[int]], width: int) -> dict[str, np.ndarray]:
    """Prompts as a batch [B, width] whose rows end together, so that all go on at one place."""
    shape = (len(prompts), width)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    for row, prompt in enumerate(prompts):
        here = (row, slice(width - len(prompt), width))
        batch["tokens"][here] = prompt
        batch["positions"][here] = np.arange(len(prompt))
        batch["segments"][here] = 1
    return batch


def bucket(length: int, most: int) -> int:
    """A width that many prompts share, so that few programs are compiled: a power of two."""
    return min(max(16, 1 << (length - 1).bit_length()), max(most, length))


def read(trunk: Transformer, params: Any, batch: Batch, held: Cache) -> tuple[jax.Array, Cache]:
    """Logits after the last column, float32 [B, V], and the cache with the batch in it."""

    def after(trunk: Transformer, batch: Batch, held: Cache) -> tuple[jax.Array, Any]:
        x, present = trunk.extend(batch, held)
        return trunk.logits(x[:, -1]), present

    found: Any = trunk.apply({"params": params}, batch, held, method=after)
    return found[0], found[1]


def pick(state: State, logits: jax.Array, sampling: Sampling) -> tuple[State, jax.Array]:
    """The next token of every row, int32 [B], and the state that knows of it."""
    rows = jnp.arange(len(logits))
    if state.seen is not None:
        logits = penalised(logits, state.seen, sampling.repetition_penalty)
    # A row's draws depend on its key and position alone, not on the rows beside it.
    token = choose(logits, jax.vmap(jax.random.fold_in)(state.keys, state.position), sampling)
    seen = None if state.seen is None else state.seen.at[rows, token].set(True)
    return state._replace(seen=seen), token


@functools.partial(jax.jit, static_argnames=("trunk", "sampling", "slots"))
def start(
    params: Any,
    batch: Batch,
    keys: jax.Array,
    *,
    trunk: Transformer,
    sampling: Sampling,
    slots: int,
) -> tuple[State, jax.Array]:
    """Reads prompts [B, P] into a cache of `slots` and chooses the first token of each."""
    rows = len(keys)
    logits, held = read(trunk, params, batch, cache.empty(trunk.spec, rows, slots))
    seen = None
    if sampling.repetition_penalty != 1.0:
        real = batch["segments"] > 0
        seen = jnp.zeros(logits.shape, bool)
        seen = seen.at[jnp.arange(rows)[:, None], batch["tokens"]].max(real)
    return pick(State(held, batch["positions"][:, -1] + 1, seen, keys), logits, sampling)


@functools.partial(jax.jit, static_argnames=("trunk", "sampling"), donate_argnames="state")
def step(
    params: Any, state: State, token: jax.Array, *, trunk: Transformer, sampling: Sampling
) -> tuple[State, jax.Array]:
    """Reads the tokens [B] chosen last and chooses those after them."""
    batch = {
        "tokens": token[:, None],
        "positions": state.position[:, None],
        "segments": jnp.ones_like(token)[:, None],
    }
    logits, held = read(trunk, params, batch, state.cache)
    return pick(state._replace(cache=held, position=state.position + 1), logits, sampling)


def tokens_after(
    trunk: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    keys: jax.Array,
    sampling: Sampling,
    count: int,
) -> Generator[np.ndarray, None, None]:
    """`count` times the next token of every prompt, int32 [B]; `keys` [B] are what they draw with.

    It knows no end of a text: who has read enough closes it.
    """
    width = bucket(max(map(len, prompts)), trunk.spec.max_positions)
    batch = jax.device_put(lay_out(prompts, width))
    fixed: dict[str, Any] = {"trunk": trunk, "sampling": sampling}
    state, token = start(params, batch, keys, slots=width + count, **fixed)
    for _ in range(count - 1):
        # The device goes on while the host reads what it has just said.
        state, following = step(params, state, token, **fixed)
        yield np.asarray(token)
        token = following
    yield np.asarray(token)
