"""XLNet: two streams of attention over relative positions (Yang et al., 2019; Dai et al., 2019).

The content stream is a trunk like any other. The query stream predicts tokens: it knows where a
token stands and what it may see, but not the token itself. `causal` without a query stream is
Transformer-XL. Distances are between `positions`, and attention stays within a segment, so that
examples packed into a row never see each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import activations, sharding
from research.errors import ConfigError
from research.models import layers, products
from research.models.attention import attention_mask
from research.models.layers import ACTIVATIONS, Dense, Embedding
from research.models.pooling import Trunk, at
from research.models.relative import Context, RelativeAttention, Stream, View, sinusoids

Batch = dict[str, jax.Array]
Pair = tuple[Stream, Stream | None]


@dataclass(frozen=True, kw_only=True)
class XLNetSpec:
    """The numbers of an XLNet.

    `dropout` is that of everything: vectors, attention and the MLP. `scan` compiles one block
    instead of `depth`; `remat` keeps only the blocks' inputs for the backward pass.
    """

    vocab_size: int
    width: int = 256
    depth: int = 4
    heads: int = 4
    hidden: int = 1024
    causal: bool = False
    norm_epsilon: float = 1e-12
    activation: layers.Activation = "gelu"
    tied: bool = True
    dropout: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: products.Dtype = "auto"

    # Properties of the architecture, and nobody's choice.
    @property
    def max_positions(self) -> None:
        """No length is too long for relative positions."""
        return None

    @property
    def token_types(self) -> int:
        """Those its tokenizer tells apart: first text, second text, <cls>."""
        return 3

    @property
    def reads_last(self) -> bool:
        """Whether an example is summed up by its last token, which is <cls>."""
        return True

    def make_norm(self, name: str | None = None) -> nn.Module:
        """The norm this trunk uses, over the last axis."""
        return layers.LayerNorm(self.norm_epsilon, name=name)


class Streams(NamedTuple):
    """`content` [B, T, D]; `query` [B, P, D], None where nothing was asked; `inputs` [L, B, T, D],
    what each block was given of the content stream."""

    content: jax.Array
    query: jax.Array | None
    inputs: jax.Array


class XLNet(Trunk):
    """Tokens to vectors: batch -> [B, T, D] (Yang et al., 2019)."""

    spec: XLNetSpec

    def setup(self) -> None:
        spec = self.spec
        if spec.width % (2 * spec.heads):
            raise ConfigError(
                f"task.backbone.spec.width is {spec.width}, but must be a multiple of twice the "
                f"{spec.heads} heads"
            )
        self.embed = Embedding(spec.vocab_size, spec.width, spec.dtype)
        unit = nn.initializers.truncated_normal(spec.width**-0.5)
        # What the query stream knows of every token at first.
        self.unknown = self.param("unknown", unit, (1, 1, spec.width))
        block = nn.remat(Block, prevent_cse=not spec.scan) if spec.remat else Block
        self.blocks: Any
        if spec.scan:
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=spec.depth,
                in_axes=(0, nn.broadcast),
            )(spec)
        else:
            self.blocks = [block(spec, name=f"block_{i}") for i in range(spec.depth)]
        if not spec.tied:
            self.unembed = Embedding(spec.vocab_size, spec.width, spec.dtype)
        self.pooler = Dense(spec.width, dtype=spec.dtype)

    def __call__(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] tokens -> [B, T, D]. `noise` uint32 [B, T] drives dropout; None is without."""
        return self.streams(batch, noise=noise).content

    def streams(
        self,
        batch: Batch,
        *,
        visible: jax.Array | None = None,
        targets: jax.Array | None = None,
        memory: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> Streams:
        """Both streams.

        `visible` bool [B, T, T], query by key, narrows what a token sees to what comes before it in
        the order of factorisation; the content stream sees itself besides, the query stream never
        does. `targets` int32 [B, P] are the places that the query stream is asked for. `memory`
        [L, B, M, D], see `remember`, is what the row's first segment goes on from: it is seen
        wholly, at distances as if it stood before, and counts as text of type 0.
        """
        activations.refuse_sequence("XLNet")
        spec = self.spec
        content, query = Stream(self.embed(batch["tokens"]), noise), None
        content = Stream(sharding.constrain_rows(content.drop(content.x, spec.dropout, 0)), noise)
        if targets is not None:
            asked = None if noise is None else layers.mix(at(noise, targets) ^ jnp.uint32(0x8))
            blank = jnp.broadcast_to(self.unknown, (*targets.shape, spec.width))
            query = Stream(blank.astype(content.x.dtype), asked)
            query = Stream(query.drop(query.x, spec.dropout, 0), asked)
        context = self.context(batch, visible, targets, 0 if memory is None else memory.shape[2])
        carry: Pair = (content, query)
        if spec.scan:
            carry, inputs = self.blocks(carry, memory, context)
        else:
            given = []
            for i, block in enumerate(self.blocks):
                carry, x = block(carry, None if memory is None else memory[i], context)
                given.append(x)
            inputs = jnp.stack(given)
        told, asked = (s if s is None else s.drop(s.x, spec.dropout, 0x20) for s in carry)
        assert told is not None
        return Streams(told, asked, inputs)

    def context(
        self,
        batch: Batch,
        visible: jax.Array | None,
        targets: jax.Array | None,
        memory: int,
    ) -> Context:
        """Who sees whom from where, with `memory` keys before those of the row."""
        positions, types = batch["positions"], batch["types"]
        rows, tokens = positions.shape
        before = jnp.broadcast_to(jnp.arange(-memory, 0, dtype=jnp.int32), (rows, memory))
        keys = jnp.concatenate([before, positions], axis=1)
        kinds = jnp.concatenate([jnp.zeros_like(before), types], axis=1)
        first = jnp.broadcast_to((batch["segments"] == 1)[..., None], (rows, tokens, memory))

        # Row 0 of the sinusoids is that of a last key, seen from a first token.
        distance = positions[:, :, None] - keys[:, None, :]

        def view(seen: jax.Array) -> View:
            return View(
                jnp.concatenate([first, seen], axis=2),
                distance + (tokens - 1),
                types[:, :, None] == kinds[:, None, :],
            )

        together = attention_mask(batch, causal=self.spec.causal)
        own = jnp.eye(tokens, dtype=bool)[None]
        content = view(together if visible is None else together & (visible | own))
        query = None
        if targets is not None:
            if visible is None:
                raise ConfigError("XLNet: targets need `visible`, or the content stream tells them")
            query = View(*(at(x, targets) for x in view(together & visible & ~own)))
        distances = jnp.arange(1 - tokens, tokens + memory, dtype=jnp.float32)
        return Context(content, query, keys, sinusoids(distances, self.spec.width))

    def pool(self, x: jax.Array) -> jax.Array:
        """The summary of last tokens: [..., D] -> [..., D]."""
        return jnp.tanh(self.pooler(x))

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every word: [..., D] -> float32 [..., V]."""
        return (self.embed if self.spec.tied else self.unembed).attend(x)


def remember(memory: jax.Array | None, streams: Streams, length: int) -> jax.Array:
    """The last `length` inputs of every block, [L, B, length, D] or fewer, for the next rows.

    A row goes on where the same row of the batch before ended, and is full: padding would be
    remembered. No gradient flows back (Dai et al., 2019).
    """
    known = [streams.inputs] if memory is None else [memory, streams.inputs]
    return jax.lax.stop_gradient(jnp.concatenate(known, axis=2)[:, :, -length:])


class Block(nn.Module):
    """Attention and MLP of both streams, by the same parameters, norms after each; gives what the
    content stream was before, too."""

    spec: XLNetSpec

    @nn.compact
    def __call__(
        self, streams: Pair, memory: jax.Array | None, context: Context
    ) -> tuple[Pair, jax.Array]:
        spec = self.spec
        content, query = (
            stream
            if stream is None or stream.noise is None
            # Each block derives noise of its own.
            else Stream(stream.x, layers.mix(stream.noise + jnp.uint32(1)))
            for stream in streams
        )
        attention = RelativeAttention(spec.heads, spec.dropout, spec.dtype, name="attention")
        attention_norm = spec.make_norm("attention_norm")
        mlp, mlp_norm = FeedForward(spec, name="mlp"), spec.make_norm("mlp_norm")

        def finish(old: Stream, y: jax.Array) -> Stream:
            x = attention_norm(old.x + old.drop(y, spec.dropout, 0x1))
            x = mlp_norm(x + old.drop(mlp(x, old), spec.dropout, 0x2))
            return Stream(sharding.constrain_rows(x), old.noise)

        assert content is not None
        told, asked = attention(content, query, memory, context)
        new = finish(content, told)
        return (new, None if query is None or asked is None else finish(query, asked)), content.x


class FeedForward(nn.Module):
    """Two dense layers around an activation, with dropout between: [B, Q, D] -> [B, Q, D]."""

    spec: XLNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, stream: Stream) -> jax.Array:
        spec = self.spec
        y = Dense(spec.hidden, dtype=spec.dtype, name="up")(x)
        y = ACTIVATIONS[spec.activation](y.astype(jnp.float32)).astype(y.dtype)
        return Dense(spec.width, dtype=spec.dtype, name="down")(stream.drop(y, spec.dropout, 0x10))
