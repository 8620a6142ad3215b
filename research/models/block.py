"""One block of a Transformer: attention and MLP, each in a residual branch.

The last block may be asked for some of its tokens only; the others then are keys and values alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from research import activations, sharding
from research.models import grafts, layers
from research.models.attention import Seen, attend
from research.models.cache import Past
from research.models.layers import ACTIVATIONS, Dense
from research.models.pooling import at
from research.models.spec import Spec


class Context(NamedTuple):
    """What all blocks read: who sees whom, and `near`, the mask [B, T, S] of those within the
    window; and, known while tracing as a structure is, whether blocks `keep` what they make."""

    seen: Seen
    near: jax.Array | None
    keep: tuple[()] | None = None

    def narrowed(self, everywhere: Any, window: int | None, places: jax.Array | None) -> Seen:
        """Who sees whom in one block, which may be `everywhere` global, for the tokens that ask."""
        mask = chosen(layers.choose(everywhere, self.seen.mask, self.near), places)
        rows = replace(
            self.seen.rows,
            window=None if everywhere is True else window,
            settled=isinstance(everywhere, bool),
            whole=self.seen.rows.whole and places is None,
        )
        return self.seen._replace(mask=mask, rows=rows)


class Kept(NamedTuple):
    """What a block makes of B rows: the vectors [B, T, D] that it returns, and of its attention
    queries [B, T, H, K], keys and values [B, T, G, K] of G groups of heads."""

    vectors: jax.Array
    query: jax.Array
    key: jax.Array
    value: jax.Array


def chosen(x: Any, places: jax.Array | None) -> Any:
    """What x [B, T, ...] holds at `places` [B, P], everything where these are None."""
    return x if x is None or places is None else at(x, places)


class Block(nn.Module):
    """Attention and MLP, each in a residual branch: [B, T, D] -> [B, T, D].

    `number` counts from the bottom; where all blocks are compiled once, it comes with the call.
    With `places` [B, P] only these tokens ask and are returned: [B, P, D].
    """

    spec: Spec
    number: int | None = None

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        context: Context,
        number: jax.Array,
        past: Past | None,
        places: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array | None], tuple[Kept | None, Past | None]]:
        spec, (x, noise) = self.spec, carry
        place = number if self.number is None else self.number
        if noise is not None:
            noise = layers.mix(noise + jnp.uint32(1))
        attention = Attention(spec, name="attention")
        mlp = Mlp(spec, name="mlp")
        mlp_norm = spec.make_norm("mlp_norm")

        def drop(y: jax.Array, site: int, adapter: str) -> jax.Array:
            here = None if noise is None else noise ^ jnp.uint32(site)
            y = layers.dropout(y, spec.dropout, here)
            return grafts.bottleneck(self, adapter, y, ACTIVATIONS[spec.activation], spec.dtype)

        def normed(y: jax.Array) -> jax.Array:
            bare = spec.norm_first and not spec.first_norm and place == 0
            norm = (lambda y: y) if bare is True else spec.make_norm("attention_norm")
            return layers.choose(bare, y, norm(y))

        whole = normed(x) if spec.norm_first else x
        y, past, heads = attention(whole, context, place, noise, past, places)
        x, noise = chosen(x, places), chosen(noise, places)
        x = x + drop(y, 0x1, "attention_adapter")
        if spec.norm_first:
            x = x + drop(mlp(mlp_norm(x), noise), 0x2, "mlp_adapter")
        else:
            x = normed(x)
            x = mlp_norm(x + drop(mlp(x, noise), 0x2, "mlp_adapter"))
        x = activations.constrain_tokens(x) if places is None else sharding.constrain_rows(x)
        return (x, noise), (None if context.keep is None else Kept(x, *heads), past)


class Attention(nn.Module):
    """Multi-head self-attention within each segment: [B, T, D] -> [B, T, D].

    With `past`, tokens attend to those before the batch too, and the result holds them all. With
    `places` [B, P] only these tokens attend, to all: [B, P, D]. Queries, keys and values are the
    last result.
    """

    spec: Spec

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: Context,
        number: Any,
        noise: jax.Array | None,
        past: Past | None,
        places: jax.Array | None = None,
    ) -> tuple[jax.Array, Past | None, tuple[jax.Array, jax.Array, jax.Array]]:
        spec, positions = self.spec, context.seen.positions
        width = spec.head_width or spec.width // spec.heads
        bias = spec.bias if spec.qkv_bias is None else spec.qkv_bias
        asking, copies = chosen(noise, places), activations.copies(x)

        def heads(name: str, count: int, places: jax.Array | None = None) -> jax.Array:
            dense = Dense(count * width, bias, spec.dtype, name=name)
            own = copies if places is None else None
            y = dense(chosen(x, places), chosen(noise, places), own)
            return y.reshape(*y.shape[:-1], count, width)

        query = heads("query", spec.heads, places)
        key = heads("key", spec.kv_heads or spec.heads)
        value = heads("value", spec.kv_heads or spec.heads)
        if spec.qk_norm:
            query, key = spec.make_norm("query_norm")(query), spec.make_norm("key_norm")(key)
        everywhere = spec.is_global(number)
        if spec.positions == "rotary":
            theta = layers.choose(everywhere, spec.rope_theta, spec.local_theta or spec.rope_theta)
            query = layers.rotate(query, chosen(positions, places), theta, spec.rope_scaling)
            key = layers.rotate(key, positions, theta, spec.rope_scaling)
        own = (query, key, value)
        query, key, value = (checkpoint_name(x, "attention") for x in (query, key, value))
        if past is not None:
            past = past.extended(key, value)
            key, value = past.keys, past.values
        elif places is None:
            # For few tokens that ask, keys stay where they are: softmax adds up over shards.
            key, value = activations.gather_tokens(key), activations.gather_tokens(value)
        seen = context.narrowed(everywhere, spec.window, places)
        if self.has_variable("params", "prefix_key"):
            key, value, mask, positions = grafts.prefixed(self, key, value, *seen[:2])
            seen = Seen(mask, positions, seen.segments, replace(seen.rows, added=True))
        y = attend(
            *(query, key, value, seen),
            rate=spec.attention_dropout,
            noise=asking,
            backend=spec.attention,
            dtype=spec.dtype,
        )
        y = y.reshape(*y.shape[:-2], spec.heads * width)
        return Dense(spec.width, spec.bias, spec.dtype, name="out")(y, asking), past, own


class Mlp(nn.Module):
    """Two dense layers around an activation, optionally gated (Shazeer, 2020)."""

    spec: Spec

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        spec = self.spec
        copies = activations.copies(x) if spec.gated else None
        y = Dense(spec.hidden, spec.bias, spec.dtype, name="up")(x, noise, copies)
        y = checkpoint_name(y, "mlp")
        # Exact gelu in bfloat16 is many times slower than in float32 on a CPU.
        activate = ACTIVATIONS[spec.activation]
        if spec.gated:
            gate = Dense(spec.hidden, spec.bias, spec.dtype, name="gate")(x, noise, copies)
            gate = checkpoint_name(gate, "mlp")
            y = activate(gate.astype(jnp.float32)).astype(y.dtype) * y
        else:
            y = activate(y.astype(jnp.float32)).astype(y.dtype)
        return Dense(spec.width, spec.bias, spec.dtype, name="down")(y, noise)
