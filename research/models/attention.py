"""Who sees whom, and attention by what suits a call: products, cuDNN, tokamax, splash.

`xla` is the reference and honours everything. A kernel that is asked for by name either honours the
segments, order, window, prefix and dropout of a call or is refused, before anything is compiled;
"auto" takes a kernel only where it would not be refused. Calls in which few tokens ask (a last
block that reads one token an example, a decoder with a cache) have nothing for a kernel to save:
`xla` answers them, whatever the rest is done by.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research import activations, sharding
from research.errors import ConfigError
from research.models import kernels, products, tiles
from research.models.by_products import Drop, by_products

Backend = Literal["xla", "cudnn", "tokamax", "splash"]

# Rows up to here are as fast by products: scores of 512 x 512 are small beside the products.
SHORT = 512
# What "auto" tries, by platform. tokamax is left out until its numerics have been seen on a GPU.
PREFERRED: dict[str, tuple[Backend, ...]] = {"gpu": ("cudnn",), "tpu": ("splash",)}
NEEDS: dict[Backend, str] = {"cudnn": "gpu", "tokamax": "gpu", "splash": "tpu"}


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is known of a call before it is compiled.

    `causal`: no token sees a later one. `alone`: a row is one example, from its first cell on.
    `in_order`: the tokens of an example lie side by side, by position. `ahead`: tokens of a batch's
    `prefix` are seen by earlier ones. `added`: there are keys besides the row's own tokens.
    `whole`: every token of a row asks, and nothing is before it. `window`: keys are at most so far
    away, None for no bound; `settled`: that is known, and not computed from a block's number.
    """

    causal: bool = False
    alone: bool = False
    in_order: bool = False
    ahead: bool = False
    added: bool = False
    whole: bool = False
    window: int | None = None
    settled: bool = True


class Seen(NamedTuple):
    """Who sees whom: bool [B, T, S], query by key; the keys' positions, int32 [B, S]; and for
    kernels, which make masks of their own, the segments int32 [B, T] and what is known of rows."""

    mask: jax.Array
    positions: jax.Array
    segments: jax.Array | None = None
    rows: Rows = Rows()


def attention_mask(
    batch: dict[str, jax.Array], *, causal: bool, keys: dict[str, jax.Array] | None = None
) -> jax.Array:
    """bool [B, T, S], query by key: the same example, and for `causal` not a later position.

    `keys` has positions and segments [B, S]; None is `batch`. Tokens that a `prefix` among the
    keys, int [B, S], marks are seen by their whole example, by earlier tokens too (prefix LM; Dong
    et al., 2019; Raffel et al., 2020).
    """
    keys = batch if keys is None else keys
    segments = keys["segments"][:, None, :]
    mask = (batch["segments"][:, :, None] == segments) & (segments > 0)
    if causal:
        seen = batch["positions"][:, :, None] >= keys["positions"][:, None, :]
        if "prefix" in keys:
            seen |= (keys["prefix"] > 0)[:, None, :]
        mask &= seen
    return mask


def within(queries: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """bool [B, T, S]: positions [B, T] and [B, S] are at most `window` apart."""
    return jnp.abs(queries[:, :, None] - keys[:, None, :]) <= window


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: Seen,
    *,
    rate: float = 0.0,
    noise: jax.Array | None = None,
    backend: Backend | Literal["auto"] = "xla",
    dtype: products.Dtype = "auto",
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017) with grouped key and value heads.

    query [B, T, H, K]; key, value [B, S, G, K], H a multiple of G. `noise` uint32 [B, T] drops
    probabilities at `rate`. `dtype` is what products run in where a CPU has many pairs to score.
    Returns [B, T, H, K]; what padding is given means nothing.

    Raises ConfigError where a kernel that is asked for by name cannot do what the call asks.
    """
    rows, dropped = seen.rows, noise is not None and rate > 0.0
    if seen.segments is None or not rows.whole:
        backend = "xla"
    elif backend == "auto":
        backend = preferred(query, rows, dropped)
    elif reason := refusal(backend, query, rows, dropped):
        raise ConfigError(f"task.backbone.spec.attention is {backend!r}, but {reason}")
    if backend == "xla" or seen.segments is None:
        drop = None if noise is None else Drop(noise, seen.positions)
        if query.shape[1] < products.ROWS or not tiles.pays(query, key):
            return by_products(query, key, value, seen.mask, rate, drop)
        low = products.factor_dtype(dtype)
        asked, keys, values = (x.astype(low) for x in (query, key, value))
        return tiles.by_tiles(asked, keys, values, seen.mask, rate, drop).astype(query.dtype)
    if backend == "tokamax":
        ordered = rows.causal and rows.in_order and not (rows.ahead or rows.added)
        found = kernels.tokamax(query, key, value, seen.mask, causal=ordered)
    else:
        run = kernels.cudnn if backend == "cudnn" else kernels.splash
        found = run(query, key, value, seen.segments, causal=rows.causal, window=rows.window)
    return checkpoint_name(found, "attention")


def preferred(query: jax.Array, rows: Rows, dropped: bool) -> Backend:
    """What "auto" is for a call: a kernel where rows are long and it honours all, else `xla`."""
    if query.shape[1] > SHORT:
        for backend in PREFERRED.get(sharding.platform(), ()):
            if refusal(backend, query, rows, dropped) is None:
                return backend
    return "xla"


def refusal(backend: Backend, query: jax.Array, rows: Rows, dropped: bool) -> str | None:
    """Why a kernel cannot do a call, as the end of a sentence; None where it can."""
    if backend == "xla":
        return None
    here, where = sharding.platform(), NEEDS[backend]
    if here != where:
        return f"it runs on a {where}, and this is a {here}"
    if dropped:
        return (
            "it cannot drop the same pairs of tokens in any layout; set "
            "task.backbone.spec.attention_dropout to 0, or attention to 'auto'"
        )
    if activations.sequence_shards() > 1:
        return "it attends to keys on one device, and mesh.sequence is set; use 'xla'"
    if backend == "tokamax":
        # It is handed the mask itself.
        missing = importlib.util.find_spec("tokamax") is None
        return "tokamax is not installed (Python 3.12: pip install tokamax)" if missing else None
    if rows.added:
        return "it has no place for the keys that adapt's prefix adds"
    if rows.ahead:
        return "it cannot show a prefix to earlier tokens"
    if not rows.settled:
        return "a scanned stack does not tell it which blocks have the window; set scan to False"
    if not rows.in_order and (rows.causal or rows.window is not None):
        return "the tokens of a learned prompt are not in their order"
    return cudnn_refusal(query, rows) if backend == "cudnn" else None


def cudnn_refusal(query: jax.Array, rows: Rows) -> str | None:
    """The same of what is cuDNN's alone."""
    width = query.shape[-1]
    if not rows.alone:
        return "it knows lengths and no segments; set data.layout to 'padded', or use 'auto'"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in 16 bits, and task.backbone.spec.dtype is {query.dtype}"
    if width % 8 or width > 128:
        return f"its heads are up to 128 wide, in steps of 8, and these are {width}"
    if rows.window is not None and not rows.causal:
        return "its window is for causal trunks alone"
    return None
