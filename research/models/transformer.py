"""One Transformer stack for encoders and decoders; families differ only in its fields.

BERT is post-norm, learned positions, gelu; Llama is pre-norm, rotary, RMS, gated silu, causal.
Examples packed into a row never see each other: attention and positions are per segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import sharding
from research.models import layers
from research.models.layers import ACTIVATIONS, Dense, Embedding

Batch = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The numbers and choices that tell one Transformer from another.

    `kv_heads` below `heads` is grouped-query attention; `gated` is the GLU form of the MLP;
    `norm_first` is pre-norm, with a last norm after the stack, and without `first_norm` none before
    the first attention; `scan` compiles one block instead of `depth`; `remat` keeps only the
    blocks' inputs for the backward pass.

    Vectors of tokens are `embed_width` wide, which a projection brings to `width` (Lan et al.,
    2020); `shared` is one block for all layers; positions begin at `position_offset`. Positions up
    to `window` apart attend, turned by `local_theta`; all do in each `global_every`-th block, the
    first included. `pooler` is an activation, with `pooler_norm` after it; `head_bias` is that of
    the dense layer under a head.
    """

    vocab_size: int
    width: int = 256
    embed_width: int | None = None
    depth: int = 4
    shared: bool = False
    heads: int = 4
    hidden: int = 1024
    kv_heads: int | None = None
    head_width: int | None = None
    causal: bool = False
    positions: Literal["learned", "rotary", "none"] = "learned"
    max_positions: int = 512
    position_offset: int = 0
    rope_theta: float = 10000.0
    window: int | None = None
    global_every: int | None = None
    local_theta: float | None = None
    token_types: int = 0
    norm: layers.Norm = "layer"
    norm_first: bool = False
    first_norm: bool = True
    norm_bias: bool = True
    norm_epsilon: float = 1e-12
    embed_norm: bool = True
    activation: layers.Activation = "gelu"
    gated: bool = False
    bias: bool = True
    tied: bool = True
    pooler: Literal["tanh"] | layers.Activation = "tanh"
    pooler_norm: bool = False
    head_bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: layers.Dtype = "auto"

    def make_norm(self, name: str | None = None) -> nn.Module:
        """The norm this trunk uses, over the last axis."""
        if self.norm == "rms":
            return layers.RMSNorm(self.norm_epsilon, name=name)
        return layers.LayerNorm(self.norm_epsilon, self.norm_bias, name=name)

    def is_global(self, number: Any) -> Any:
        """Whether a block ignores the window; of a traced number, a traced answer."""
        if self.window is None:
            return True
        return False if self.global_every is None else number % self.global_every == 0


class Context(NamedTuple):
    """What all blocks read: masks [B, T, T], `near` that within the window; positions [B, T]; and,
    known while tracing as a structure is, whether blocks `keep` what they return."""

    mask: jax.Array
    near: jax.Array | None
    positions: jax.Array
    keep: tuple[()] | None = None


class Transformer(nn.Module):
    """Tokens to vectors: batch -> [B, T, D] (Vaswani et al., 2017; Devlin et al., 2019)."""

    spec: Spec

    def setup(self) -> None:
        spec = self.spec
        width = spec.embed_width or spec.width
        self.embed = Embedding(spec.vocab_size, width, spec.dtype)
        if spec.positions == "learned":
            rows = spec.max_positions + spec.position_offset
            self.embed_positions = Embedding(rows, width, spec.dtype)
        if spec.token_types:
            self.embed_types = Embedding(spec.token_types, width, spec.dtype)
        if spec.embed_norm:
            self.embedding_norm = spec.make_norm()
        if spec.embed_width is not None:
            self.embed_project = Dense(spec.width, dtype=spec.dtype)
        block = nn.remat(Block, prevent_cse=not spec.scan) if spec.remat else Block
        self.blocks: Any
        if spec.scan:
            self.blocks = nn.scan(
                block,
                variable_axes={} if spec.shared else {"params": 0},
                variable_broadcast="params" if spec.shared else False,
                split_rngs={"params": not spec.shared},
                length=spec.depth,
                in_axes=(nn.broadcast, 0),
            )(spec, name="block_0" if spec.shared else None)
        elif spec.shared:
            self.blocks = [block(spec, name="block_0")] * spec.depth
        else:
            self.blocks = [block(spec, number=i, name=f"block_{i}") for i in range(spec.depth)]
        if spec.norm_first:
            self.final_norm = spec.make_norm()
        if not spec.tied:
            self.unembed = Embedding(spec.vocab_size, width, spec.dtype)
        norm = spec.make_norm if spec.pooler_norm else None
        self.pooler = layers.Pooler(
            spec.width, spec.head_bias, spec.dtype, activation=spec.pooler, make_norm=norm
        )

    def __call__(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] tokens -> [B, T, D]. `noise` uint32 [B, T] drives dropout; None is without."""
        x, _ = self.stack(self.vectors(batch, noise), batch, noise, keep=False)
        return self.final_norm(x) if self.spec.norm_first else x

    def layers(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """The vectors under and above every block: [B, T] tokens -> [L + 1, B, T, D].

        The last are those that the trunk returns, after the final norm where it has one.
        """
        first = self.vectors(batch, noise)
        x, kept = self.stack(first, batch, noise, keep=True)
        last = self.final_norm(x) if self.spec.norm_first else x
        return jnp.concatenate([first[None], kept[:-1], last[None]])

    def vectors(self, batch: Batch, noise: jax.Array | None) -> jax.Array:
        """What goes into the first block: [B, T, D]."""
        spec = self.spec
        x = self.embed(batch["tokens"])
        if spec.positions == "learned":
            x = x + self.embed_positions(batch["positions"] + spec.position_offset)
        if spec.token_types:
            x = x + self.embed_types(batch["types"])
        if spec.embed_norm:
            x = self.embedding_norm(x)
        x = layers.dropout(x, spec.dropout, noise)
        if spec.embed_width is not None:
            x = self.embed_project(x)
        return sharding.constrain_rows(x)

    def stack(
        self, x: jax.Array, batch: Batch, noise: jax.Array | None, *, keep: bool
    ) -> tuple[jax.Array, Any]:
        """All blocks: [B, T, D] -> the same, and [L, B, T, D] after each of them where `keep`."""
        spec = self.spec
        mask, positions = layers.attention_mask(batch, causal=spec.causal), batch["positions"]
        near = None if spec.window is None else mask & layers.within(positions, spec.window)
        context = Context(mask, near, positions, () if keep else None)
        # Noise is carried through the stack, each block deriving its own: also under `scan`.
        carry = (x, noise)
        if spec.scan:
            carry, kept = self.blocks(carry, context, jnp.arange(spec.depth))
            return carry[0], kept
        found = []
        for i in range(spec.depth):
            carry, y = self.blocks[i](carry, context, jnp.int32(i))
            found.append(y)
        return carry[0], jnp.stack(found) if keep else None

    def pool(self, x: jax.Array) -> jax.Array:
        """The dense layer between one vector an example and a head: [..., D] -> [..., D]."""
        return self.pooler(x)

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every word: [..., D], or `embed_width` -> float32 [..., V]."""
        return (self.embed if self.spec.tied else self.unembed).attend(x)


class Block(nn.Module):
    """Attention and MLP, each in a residual branch: [B, T, D] -> [B, T, D].

    `number` counts from the bottom; where all blocks are compiled once, it comes with the call.
    """

    spec: Spec
    number: int | None = None

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        context: Context,
        number: jax.Array,
    ) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array | None]:
        spec, (x, noise) = self.spec, carry
        place = number if self.number is None else self.number
        if noise is not None:
            noise = layers.mix(noise + jnp.uint32(1))
        attention = Attention(spec, name="attention")
        mlp = Mlp(spec, name="mlp")
        mlp_norm = spec.make_norm("mlp_norm")

        def drop(y: jax.Array, site: int) -> jax.Array:
            here = None if noise is None else noise ^ jnp.uint32(site)
            return layers.dropout(y, spec.dropout, here)

        def normed(y: jax.Array) -> jax.Array:
            bare = spec.norm_first and not spec.first_norm and place == 0
            norm = (lambda y: y) if bare is True else spec.make_norm("attention_norm")
            return layers.choose(bare, y, norm(y))

        if spec.norm_first:
            x = x + drop(attention(normed(x), context, place, noise), 0x1)
            x = x + drop(mlp(mlp_norm(x)), 0x2)
        else:
            x = normed(x + drop(attention(x, context, place, noise), 0x1))
            x = mlp_norm(x + drop(mlp(x), 0x2))
        x = sharding.constrain_rows(x)
        return (x, noise), None if context.keep is None else x


class Attention(nn.Module):
    """Multi-head self-attention within each segment: [B, T, D] -> [B, T, D]."""

    spec: Spec

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: Context,
        number: Any,
        noise: jax.Array | None,
    ) -> jax.Array:
        spec, positions = self.spec, context.positions
        width = spec.head_width or spec.width // spec.heads

        def heads(name: str, count: int) -> jax.Array:
            y = Dense(count * width, spec.bias, spec.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], count, width)

        query = heads("query", spec.heads)
        key = heads("key", spec.kv_heads or spec.heads)
        value = heads("value", spec.kv_heads or spec.heads)
        everywhere = spec.is_global(number)
        if spec.positions == "rotary":
            theta = layers.choose(everywhere, spec.rope_theta, spec.local_theta or spec.rope_theta)
            query = layers.rotate(query, positions, theta)
            key = layers.rotate(key, positions, theta)
        y = layers.attend(
            query,
            key,
            value,
            layers.choose(everywhere, context.mask, context.near),
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
