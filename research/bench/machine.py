"""The machine that a bench runs on: what others take of it, and how fast it multiplies matrices."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp

# Above this share of the processors, others are in the way.
BUSY = 0.1


def others(seconds: float = 1.0) -> float | None:
    """The share of all processors in use while this process waits; None where no one tells."""
    if not Path("/proc/stat").is_file():
        return None
    before = ticks()
    time.sleep(seconds)
    busy, total = (after - earlier for after, earlier in zip(ticks(), before))
    return round(busy / total, 3) if total else 0.0


def ticks() -> tuple[int, int]:
    """Busy and all ticks of all processors so far."""
    found = [int(number) for number in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(found) - found[3] - found[4], sum(found)


def products(tokens: int, width: int, hidden: int, dtype: str, seconds: float = 0.5) -> float:
    """GFLOP/s of [tokens, width] @ [width, hidden] and back, as JAX multiplies in `dtype` when
    it is fastest."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((tokens, width), (width, hidden), (hidden, width))
    arrays = [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes)]

    @jax.jit
    def both(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        wide = jnp.matmul(x, up, preferred_element_type=jnp.float32).astype(dtype)
        return jnp.matmul(wide, down, preferred_element_type=jnp.float32)

    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        started = time.perf_counter()
        both(*arrays).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 4 * tokens * width * hidden / best / 1e9
