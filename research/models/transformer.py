"""One Transformer stack for encoders and decoders; families differ only in its fields.

BERT is post-norm, learned positions, gelu; Llama is pre-norm, rotary, RMS, gated silu, causal.
Examples packed into a row never see each other: attention and positions are per segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import sharding
from research.models import layers
from research.models.cache import Cache, Past
from research.models.layers import ACTIVATIONS, Dense, Embedding

Batch = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The numbers and choices that tell one Transformer from another.

    `kv_heads` below `heads` is grouped-query attention; `gated` is the GLU form of the MLP;
    `norm_first` is pre-norm, with a last norm after the stack; `scan` compiles one block instead of
    `depth`; `remat` keeps only the blocks' inputs for the backward pass. `window` is the largest
    |i - j| of positions that attend; `qkv_bias` is `bias` where None; `qk_norm` norms every query
    and key head before it is rotated (Henry et al., 2020); `rope_scaling` as in `layers.slowed`.
    """

    vocab_size: int
    width: int = 256
    depth: int = 4
    heads: int = 4
    hidden: int = 1024
    kv_heads: int | None = None
    head_width: int | None = None
    causal: bool = False
    positions: Literal["learned", "rotary", "none"] = "learned"
    max_positions: int = 512
    rope_theta: float = 10000.0
    rope_scaling: layers.RopeScaling | None = None
    window: int | None = None
    token_types: int = 0
    norm: layers.Norm = "layer"
    norm_first: bool = False
    norm_epsilon: float = 1e-12
    embed_norm: bool = True
    activation: layers.Activation = "gelu"
    gated: bool = False
    bias: bool = True
    qkv_bias: bool | None = None
    qk_norm: bool = False
    tied: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: layers.Dtype = "auto"

    def make_norm(self, name: str | None = None) -> nn.Module:
        """The norm this trunk uses, over the last axis."""
        if self.norm == "rms":
            return layers.RMSNorm(self.norm_epsilon, name=name)
        return layers.LayerNorm(self.norm_epsilon, name=name)


class Transformer(nn.Module):
    """Tokens to vectors: batch -> [B, T, D] (Vaswani et al., 2017; Devlin et al., 2019)."""

    spec: Spec

    def setup(self) -> None:
        spec = self.spec
        self.embed = Embedding(spec.vocab_size, spec.width, spec.dtype)
        if spec.positions == "learned":
            self.embed_positions = Embedding(spec.max_positions, spec.width, spec.dtype)
        if spec.token_types:
            self.embed_types = Embedding(spec.token_types, spec.width, spec.dtype)
        if spec.embed_norm:
            self.embedding_norm = spec.make_norm()
        block = nn.remat(Block, prevent_cse=not spec.scan) if spec.remat else Block
        self.blocks: Any
        if spec.scan:
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=spec.depth,
                in_axes=(nn.broadcast, 0),
            )(spec)
        else:
            self.blocks = [block(spec, name=f"block_{i}") for i in range(spec.depth)]
        if spec.norm_first:
            self.final_norm = spec.make_norm()
        if not spec.tied:
            self.unembed = Embedding(spec.vocab_size, spec.width, spec.dtype)
        self.pooler = Dense(spec.width, dtype=spec.dtype)

    def __call__(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] tokens -> [B, T, D]. `noise` uint32 [B, T] drives dropout; None is without."""
        return self.extend(batch, None, noise=noise)[0]

    def extend(
        self, batch: Batch, cache: Cache | None, *, noise: jax.Array | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """The same of tokens that follow those in `cache`, and the cache with them in it."""
        spec = self.spec
        x = self.embed(batch["tokens"])
        if spec.positions == "learned":
            x = x + self.embed_positions(batch["positions"])
        if spec.token_types:
            x = x + self.embed_types(batch["types"])
        if spec.embed_norm:
            x = self.embedding_norm(x)
        x = sharding.constrain_rows(layers.dropout(x, spec.dropout, noise))
        # Noise is carried through the stack, each block deriving its own: also under `scan`.
        carry = (x, noise)
        keys = batch if cache is None else cache.beside(batch)
        mask = layers.attention_mask(batch, causal=spec.causal, window=spec.window, keys=keys)
        context = (mask, batch["positions"])
        past: Any = cache.blocks if cache else None if spec.scan else (None,) * spec.depth
        present: Any = []
        if spec.scan:
            carry, present = self.blocks(carry, context, past)
        else:
            for block, before in zip(self.blocks, past):
                carry, after = block(carry, context, before)
                present.append(after)
        if cache is not None:
            held = present if spec.scan else tuple(present)
            cache = Cache(held, keys["positions"], keys["segments"])
        x = carry[0]
        return self.final_norm(x) if spec.norm_first else x, cache

    def pool(self, x: jax.Array) -> jax.Array:
        """BERT's pooler on the vectors of first tokens: [..., D] -> [..., D]."""
        return jnp.tanh(self.pooler(x))

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every word: [..., D] -> float32 [..., V]."""
        return (self.embed if self.spec.tied else self.unembed).attend(x)


class Block(nn.Module):
    """Attention and MLP, each in a residual branch: [B, T, D] -> [B, T, D]."""

    spec: Spec

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        context: tuple[jax.Array, jax.Array],
        past: Past | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array | None], Past | None]:
        spec = self.spec
        x, noise = carry
        if noise is not None:
            noise = layers.mix(noise + jnp.uint32(1))
        attention = Attention(spec, name="attention")
        mlp = Mlp(spec, name="mlp")
        attention_norm = spec.make_norm("attention_norm")
        mlp_norm = spec.make_norm("mlp_norm")

        def drop(y: jax.Array, site: int) -> jax.Array:
            return layers.dropout(
                y, spec.dropout, None if noise is None else noise ^ jnp.uint32(site)
            )

        if spec.norm_first:
            y, past = attention(attention_norm(x), context, noise, past)
            x = x + drop(y, 0x1)
            x = x + drop(mlp(mlp_norm(x)), 0x2)
        else:
            y, past = attention(x, context, noise, past)
            x = attention_norm(x + drop(y, 0x1))
            x = mlp_norm(x + drop(mlp(x), 0x2))
        return (sharding.constrain_rows(x), noise), past


class Attention(nn.Module):
    """Multi-head self-attention within each segment: [B, T, D] -> [B, T, D].

    With `past`, tokens attend to those before the batch too, and the result holds them all.
    """

    spec: Spec

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: tuple[jax.Array, jax.Array],
        noise: jax.Array | None,
        past: Past | None,
    ) -> tuple[jax.Array, Past | None]:
        spec = self.spec
        mask, positions = context
        width = spec.head_width or spec.width // spec.heads
        bias = spec.bias if spec.qkv_bias is None else spec.qkv_bias

        def heads(name: str, count: int) -> jax.Array:
            y = Dense(count * width, bias, spec.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], count, width)

        query = heads("query", spec.heads)
        key = heads("key", spec.kv_heads or spec.heads)
        value = heads("value", spec.kv_heads or spec.heads)
        if spec.qk_norm:
            query, key = spec.make_norm("query_norm")(query), spec.make_norm("key_norm")(key)
        if spec.positions == "rotary":
            query = layers.rotate(query, positions, spec.rope_theta, spec.rope_scaling)
            key = layers.rotate(key, positions, spec.rope_theta, spec.rope_scaling)
        if past is not None:
            past = past.extended(key, value)
            key, value = past.keys, past.values
        y = layers.attend(
            query,
            key,
            value,
            mask,
            rate=spec.attention_dropout,
            noise=noise,
            positions=positions,
        )
        y = y.reshape(*y.shape[:-2], spec.heads * width)
        return Dense(spec.width, spec.bias, spec.dtype, name="out")(y), past


class Mlp(nn.Module):
    """Two dense layers around an activation, optionally gated (Shazeer, 2020)."""

    spec: Spec

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spec = self.spec
        y = Dense(spec.hidden, spec.bias, spec.dtype, name="up")(x)
        # Exact gelu in bfloat16 is many times slower than in float32 on a CPU.
        activate = ACTIVATIONS[spec.activation]
        if spec.gated:
            gate = Dense(spec.hidden, spec.bias, spec.dtype, name="gate")(x)
            y = activate(gate.astype(jnp.float32)).astype(y.dtype) * y
        else:
            y = activate(y.astype(jnp.float32)).astype(y.dtype)
        return Dense(spec.width, spec.bias, spec.dtype, name="down")(y)
