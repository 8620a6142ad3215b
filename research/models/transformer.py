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
from research.models import layers, vocabulary
from research.models.layers import ACTIVATIONS, Dense, Embedding

Batch = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The numbers and choices that tell one Transformer from another.

    `kv_heads` below `heads` is grouped-query attention; `gated` is the GLU form of the MLP;
    `norm_first` is pre-norm, with a last norm after the stack; `scan` compiles one block instead of
    `depth`; `remat` keeps only the blocks' inputs for the backward pass.
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
    token_types: int = 0
    norm: layers.Norm = "layer"
    norm_first: bool = False
    norm_epsilon: float = 1e-12
    embed_norm: bool = True
    activation: layers.Activation = "gelu"
    gated: bool = False
    bias: bool = True
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
                in_axes=nn.broadcast,
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
        context = (layers.attention_mask(batch, causal=spec.causal), batch["positions"])
        if spec.scan:
            carry, _ = self.blocks(carry, context)
        else:
            for block in self.blocks:
                carry, _ = block(carry, context)
        x = carry[0]
        return self.final_norm(x) if spec.norm_first else x

    def pool(self, x: jax.Array) -> jax.Array:
        """BERT's pooler on the vectors of first tokens: [..., D] -> [..., D]."""
        return jnp.tanh(self.pooler(x))

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every word: [..., D] -> float32 [..., V]."""
        return self.words.attend(x)

    def nll(
        self, x: jax.Array, labels: jax.Array, bias: jax.Array | None = None
    ) -> vocabulary.Scored:
        """Labels scored by the softmax of `logits` (+ `bias`), which are never whole in memory."""
        x = x.astype(layers.compute_dtype(self.spec.dtype))
        return vocabulary.score(x, self.words.table, labels, bias)

    def sample(self, x: jax.Array, noise: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Words drawn from the same softmax by `noise`, uint32 [B, ...] -> int32 [B, ...]."""
        x = x.astype(layers.compute_dtype(self.spec.dtype))
        return vocabulary.sample(x, self.words.table, noise, bias)

    @property
    def words(self) -> Embedding:
        """The table that vectors are scored against."""
        return self.embed if self.spec.tied else self.unembed


class Block(nn.Module):
    """Attention and MLP, each in a residual branch: [B, T, D] -> [B, T, D]."""

    spec: Spec

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        context: tuple[jax.Array, jax.Array],
    ) -> tuple[tuple[jax.Array, jax.Array | None], None]:
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
            x = x + drop(attention(attention_norm(x), context, noise), 0x1)
            x = x + drop(mlp(mlp_norm(x)), 0x2)
        else:
            x = attention_norm(x + drop(attention(x, context, noise), 0x1))
            x = mlp_norm(x + drop(mlp(x), 0x2))
        return (sharding.constrain_rows(x), noise), None


class Attention(nn.Module):
    """Multi-head self-attention within each segment: [B, T, D] -> [B, T, D]."""

    spec: Spec

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: tuple[jax.Array, jax.Array],
        noise: jax.Array | None,
    ) -> jax.Array:
        spec = self.spec
        mask, positions = context
        width = spec.head_width or spec.width // spec.heads

        def heads(name: str, count: int) -> jax.Array:
            y = Dense(count * width, spec.bias, spec.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], count, width)

        query = heads("query", spec.heads)
        key = heads("key", spec.kv_heads or spec.heads)
        value = heads("value", spec.kv_heads or spec.heads)
        if spec.positions == "rotary":
            query = layers.rotate(query, positions, spec.rope_theta)
            key = layers.rotate(key, positions, spec.rope_theta)
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
        return Dense(spec.width, spec.bias, spec.dtype, name="out")(y)


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
