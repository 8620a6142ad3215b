"""Linear-chain conditional random fields over the words of packed examples (Lafferty et al., 2001).

A row holds several chains, and between the words of one lie cells that are none (further sub-words,
special tokens): they are stepped over, and no chain knows of its neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# What may not be: exp of it is 0 in any precision, and its sums stay finite.
NEVER = -1e30


class Weights(NamedTuple):
    """Scores of one tag after another [C, C] (row before column), of a first and of a last one."""

    transitions: jax.Array
    starts: jax.Array
    ends: jax.Array


class Chains(NamedTuple):
    """The words of a batch, each array [B, T].

    `words`: bool; `first` and `last`: bool, a chain's edges; `previous`: int32, the column of the
    word before in the same chain; `opens` and `closes`: bool, whether the edge is that of a whole
    sentence, where `starts` and `ends` count.
    """

    words: jax.Array
    first: jax.Array
    last: jax.Array
    previous: jax.Array
    opens: jax.Array
    closes: jax.Array


def chains(words: jax.Array, segments: jax.Array, opens: jax.Array, closes: jax.Array) -> Chains:
    """Chains of the cells `words`, bool [B, T], one a segment, int32 [B, T]; `opens` and `closes`
    [B, M] say of each segment whether its edges are a sentence's."""
    columns = lax.broadcasted_iota(jnp.int32, words.shape, 1)
    here = lax.cummax(jnp.where(words, columns, -1), axis=1)
    previous = jnp.pad(here, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    previous_segment = jnp.take_along_axis(segments, jnp.maximum(previous, 0), axis=1)
    first = words & ~((previous >= 0) & (previous_segment == segments))
    size = words.shape[1]
    there = lax.cummin(jnp.where(words, columns, size), axis=1, reverse=True)
    following = jnp.pad(there, ((0, 0), (0, 1)), constant_values=size)[:, 1:]
    following_segment = jnp.take_along_axis(segments, jnp.minimum(following, size - 1), axis=1)
    last = words & ~((following < size) & (following_segment == segments))
    slots = jnp.maximum(segments - 1, 0)
    return Chains(
        words=words,
        first=first,
        last=last,
        previous=jnp.maximum(previous, 0),
        opens=first & (jnp.take_along_axis(opens, slots, axis=1) > 0),
        closes=last & (jnp.take_along_axis(closes, slots, axis=1) > 0),
    )


def path_scores(
    emissions: jax.Array, tags: jax.Array, chain: Chains, weights: Weights
) -> jax.Array:
    """What each word adds to the score of the path `tags`: [B, T, C], int32 [B, T] -> [B, T]."""
    own = jnp.take_along_axis(emissions, tags[..., None], axis=-1)[..., 0]
    before = jnp.take_along_axis(tags, chain.previous, axis=1)
    moves = jnp.where(chain.first, 0.0, weights.transitions[before, tags])
    edges = jnp.where(chain.opens, weights.starts[tags], 0.0)
    edges += jnp.where(chain.closes, weights.ends[tags], 0.0)
    return jnp.where(chain.words, own + moves + edges, 0.0)


def log_partition(emissions: jax.Array, chain: Chains, weights: Weights) -> jax.Array:
    """log of the sum over all paths of exp(score), at each chain's last word and 0 elsewhere.

    [B, T, C] -> [B, T]. The forward algorithm in log space.
    """

    def step(alpha: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        emission, word, first, opens, closes = now
        start = jnp.where(opens, weights.starts[None], 0.0)
        moved = jax.nn.logsumexp(alpha[:, :, None] + weights.transitions[None], axis=1)
        alpha = jnp.where(word, emission + jnp.where(first, start, moved), alpha)
        end = jnp.where(closes, weights.ends[None], 0.0)
        return alpha, jax.nn.logsumexp(alpha + end, axis=-1)

    _, totals = lax.scan(step, jnp.zeros_like(emissions[:, 0]), over_time(emissions, chain))
    return jnp.where(chain.last, totals.T, 0.0)


def over_time(emissions: jax.Array, chain: Chains) -> tuple[jax.Array, ...]:
    """Emissions [T, B, C] and what is known of each cell [T, B, 1], for a scan."""
    facts = (chain.words, chain.first, chain.opens, chain.closes)
    return (emissions.swapaxes(0, 1), *(fact.T[..., None] for fact in facts))


def viterbi(emissions: jax.Array, chain: Chains, weights: Weights) -> jax.Array:
    """The path with the highest score: [B, T, C] -> int32 [B, T], 0 where no word is."""

    def forward(alpha: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple]:
        emission, word, first, opens, closes = now
        start = jnp.where(opens, weights.starts[None], 0.0)
        scores = alpha[:, :, None] + weights.transitions[None]  # [B, C, C]
        moved, back = jnp.max(scores, axis=1), jnp.argmax(scores, axis=1)
        alpha = jnp.where(word, emission + jnp.where(first, start, moved), alpha)
        end = jnp.where(closes, weights.ends[None], 0.0)
        return alpha, (back.astype(jnp.int32), jnp.argmax(alpha + end, axis=-1).astype(jnp.int32))

    def backward(wanted: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        back, best, word, last = now
        tag = jnp.where(last, best, wanted)
        before = jnp.take_along_axis(back, tag[:, None], axis=1)[:, 0]
        return jnp.where(word, before, wanted), jnp.where(word, tag, 0)

    initial = jnp.zeros_like(emissions[:, 0])
    _, (back, best) = lax.scan(forward, initial, over_time(emissions, chain))
    steps = (back, best, chain.words.T, chain.last.T)
    _, path = lax.scan(backward, jnp.zeros_like(best[0]), steps, reverse=True)
    return path.T


def marginals(emissions: jax.Array, chain: Chains, weights: Weights) -> jax.Array:
    """The probability of each tag at each word, over all paths: [B, T, C] -> same.

    The gradient of log Z by the emissions is just that.
    """
    return jax.grad(lambda scores: jnp.sum(log_partition(scores, chain, weights)))(emissions)
