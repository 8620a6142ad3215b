"""Spans of words to hide, of geometric length (SpanBERT; Joshi et al., 2020), without a loop."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from research.models import layers

# The length of a span is geometric with this chance to end, and cut off at so many words: 3.8 on
# average.
ENDS, LONGEST = 0.2, 10


def reach() -> list[float]:
    """P(length > j) for j = 0 .. LONGEST - 1 words: [1, 0.776, ..., 0.030]."""
    stay = 1.0 - ENDS
    return [(stay**j - stay**LONGEST) / (1.0 - stay**LONGEST) for j in range(LONGEST)]


@functools.cache
def start_rate(rate: float) -> float:
    """The chance of a word to begin a span with which `rate` of the words lie in one.

    A word is free where none of the LONGEST words up to it began a span that reaches it:
    1 - rate is the product of 1 - chance x P(length > j). Found by bisection.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle, free = (low + high) / 2, 1.0
        for beyond in reach():
            free *= 1.0 - middle * beyond
        low, high = (low, middle) if 1.0 - free > rate else (middle, high)
    return high


def choose(key: jax.Array, batch: dict[str, jax.Array], rate: float) -> tuple[jax.Array, jax.Array]:
    """The tokens in a span, bool [B, T], and noise that the tokens of a span share, uint32 [B, T].

    Every word begins a span with one chance, whatever other spans do, and so do the words before
    the first one, that the beginning of a text is hidden as often as the rest. Spans may touch and
    overlap. A function of (key, example, word): packing does not matter.
    """
    begin = jnp.uint32(round(start_rate(rate) * 2**32))
    chosen = jnp.zeros(batch["words"].shape, bool)
    common = jnp.zeros(batch["words"].shape, jnp.uint32)
    for back, beyond in enumerate(reach()):
        first = layers.token_noise(key, batch | {"positions": batch["words"] - back})
        begins = layers.mix(first ^ jnp.uint32(0x44)) < begin
        reaches = layers.mix(first ^ jnp.uint32(0x55)) <= jnp.uint32(
            min(round(beyond * 2**32), 2**32 - 1)
        )
        new = begins & reaches & ~chosen
        common = jnp.where(new, first, common)
        chosen |= new
    return chosen & (batch["words"] >= 0), common
