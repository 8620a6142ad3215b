"""Beam search: the most probable text, as far as looking at a few at a time can find it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.infer.decode import Batch, bucket, lay_out, read
from research.models import cache
from research.models.cache import Cache
from research.models.transformer import Transformer


class Beams(NamedTuple):
    """W continuations of one prompt, the best first, and what goes on from them.

    `tokens` int32 [W, N]; `lengths` int32 [W]; `scores` float32 [W], the log-probability of each;
    `done` bool [W], those that have ended; `position` int32 [], that of the token to come.
    """

    cache: Cache
    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    done: jax.Array
    position: jax.Array


def advance(
    beams: Beams, logits: jax.Array, at: jax.Array, eos: tuple[int, ...], length_penalty: float
) -> Beams:
    """The best W of all continuations by one token, number `at`; those that ended stay as they are.

    Continuations are compared by log-probability / length ** `length_penalty`.
    """
    width, words = logits.shape
    more = jax.nn.log_softmax(logits, axis=-1)
    # What has ended has one continuation, itself.
    stay = jnp.where(jnp.arange(words) == 0, 0.0, -jnp.inf)[None]
    scores = beams.scores[:, None] + jnp.where(beams.done[:, None], stay, more)
    lengths = beams.lengths + ~beams.done
    ranks = scores / lengths[:, None].astype(jnp.float32) ** length_penalty
    _, best = jax.lax.top_k(ranks.reshape(-1), width)
    parent, token = best // words, (best % words).astype(jnp.int32)
    done, lengths = beams.done[parent], lengths[parent]
    tokens = beams.tokens[parent]
    tokens = tokens.at[:, at].set(jnp.where(done, tokens[:, at], token))
    ended = done | jnp.isin(token, jnp.asarray(eos, jnp.int32))
    held = beams.cache.rows(parent)
    return Beams(held, tokens, lengths, scores.reshape(-1)[best], ended, beams.position)


FIXED = ("trunk", "eos", "length_penalty")


@functools.partial(jax.jit, static_argnames=(*FIXED, "width", "count"))
def start(
    params: Any,
    batch: Batch,
    *,
    trunk: Transformer,
    eos: tuple[int, ...],
    length_penalty: float,
    width: int,
    count: int,
) -> Beams:
    """Reads one prompt [1, P]; its best `width` first tokens, with room for `count` of them."""
    slots = batch["tokens"].shape[1] + count
    logits, held = read(trunk, params, batch, cache.empty(trunk.spec, 1, slots))
    beams = Beams(
        cache=held.rows(jnp.zeros(width, jnp.int32)),
        tokens=jnp.zeros((width, count), jnp.int32),
        lengths=jnp.zeros(width, jnp.int32),
        # All are the same prompt: only the first may go on.
        scores=jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf),
        done=jnp.zeros(width, bool),
        position=batch["positions"][0, -1] + 1,
    )
    logits = jnp.broadcast_to(logits, (width, logits.shape[-1]))
    return advance(beams, logits, jnp.int32(0), eos, length_penalty)


@functools.partial(jax.jit, static_argnames=FIXED, donate_argnames="beams")
def step(
    params: Any,
    beams: Beams,
    at: jax.Array,
    *,
    trunk: Transformer,
    eos: tuple[int, ...],
    length_penalty: float,
) -> Beams:
    """Token number `at` of every beam."""
    token = jnp.take(beams.tokens, at - 1, axis=1)[:, None]
    batch = {
        "tokens": token,
        "positions": jnp.broadcast_to(beams.position, token.shape),
        "segments": jnp.ones_like(token),
    }
    logits, held = read(trunk, params, batch, beams.cache)
    beams = beams._replace(cache=held, position=beams.position + 1)
    return advance(beams, logits, at, eos, length_penalty)


def search(
    trunk: Transformer,
    params: Any,
    prompt: Sequence[int],
    *,
    width: int,
    count: int,
    eos: tuple[int, ...],
    length_penalty: float = 1.0,
) -> tuple[list[int], float]:
    """The best of `width` continuations of at most `count` tokens, its end token included, and its
    log-probability (Graves, 2012; lengths are made up for as by Wu et al., 2016, without the 5).

    One that ends keeps its place until all have ended or better ones take it.
    """
    columns = bucket(len(prompt), trunk.spec.max_positions)
    batch = jax.device_put(lay_out([prompt], columns))
    fixed: dict[str, Any] = {"trunk": trunk, "eos": eos, "length_penalty": length_penalty}
    beams = start(params, batch, width=width, count=count, **fixed)
    for at in range(1, count):
        if np.asarray(beams.done).all():
            break
        beams = step(params, beams, jnp.int32(at), **fixed)
    best = np.asarray(beams.tokens)[0, : int(beams.lengths[0])]
    return best.tolist(), float(beams.scores[0])
