"""One Transformer stack for encoders and decoders; families differ only in its fields.

BERT is post-norm, learned positions, gelu; Llama is pre-norm, rotary, RMS, gated silu, causal.
Examples packed into a row never see each other: attention and positions are per segment.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import activations
from research.errors import ConfigError
from research.models import attention, grafts, layers, products, vocabulary
from research.models.block import Block, Context
from research.models.cache import Cache
from research.models.layers import Dense, Embedding
from research.models.pooling import Pooler, Trunk
from research.models.spec import Spec

Batch = dict[str, jax.Array]


# The collection that holds what a caller wants to see of the blocks: `apply(mutable=[SEEN])`.
SEEN = "intermediates"


class Transformer(Trunk):
    """Tokens to vectors: batch -> [B, T, D] (Vaswani et al., 2017; Devlin et al., 2019).

    Applied with `mutable=[SEEN]` it also leaves there what its blocks made, as `layers`: a Kept of
    [L + 1, B, T, D] as of the method of that name, and of [L, B, T, H or G, K].
    """

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
        block = Block
        if spec.remat:
            kept = [spec.remat] if isinstance(spec.remat, str) else []
            policy = jax.checkpoint_policies.save_only_these_names(*kept)
            block = nn.remat(Block, prevent_cse=not spec.scan, policy=policy)
        self.blocks: Any
        if spec.scan:
            self.blocks = nn.scan(
                block,
                variable_axes={} if spec.shared else {"params": 0},
                variable_broadcast="params" if spec.shared else False,
                split_rngs={"params": not spec.shared},
                length=spec.depth,
                in_axes=(nn.broadcast, 0, 0),
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
        self.pooler = Pooler(
            spec.width, spec.head_bias, spec.dtype, activation=spec.pooler, make_norm=norm
        )

    def __call__(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] tokens -> [B, T, D]. `noise` uint32 [B, T] drives dropout; None is without."""
        return self.extend(batch, None, noise=noise)[0]

    def extend(
        self, batch: Batch, cache: Cache | None, *, noise: jax.Array | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """The same of tokens that follow those in `cache`, and the cache with them in it."""
        x, cache, _ = self.stack(*self.vectors(batch, noise), cache, keep=False)
        return x[:, : batch["tokens"].shape[1]], cache

    def at(self, batch: Batch, places: jax.Array, *, noise: jax.Array | None = None) -> jax.Array:
        """See `Trunk.at`. In the last block the other tokens are keys and values alone, which
        spares nearly all its products; in a scanned stack blocks are all alike, and it is whole, as
        it is where it is to be seen."""
        if self.spec.scan or self.is_mutable_collection(SEEN):
            return super().at(batch, places, noise=noise)
        return self.stack(*self.vectors(batch, noise), None, keep=False, places=places)[0]

    def layers(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """The vectors under and above every block: [B, T] tokens -> [L + 1, B, T, D].

        The last are those that the trunk returns, after the final norm where it has one.
        """
        kept = self.stack(*self.vectors(batch, noise), None, keep=True)[2]
        found: jax.Array = kept.vectors[:, :, : batch["tokens"].shape[1]]
        return found

    def vectors(
        self, batch: Batch, noise: jax.Array | None
    ) -> tuple[jax.Array, Batch, jax.Array | None]:
        """What goes into the first block, [B, T, D], with batch and noise: longer by the tokens of
        a learned prompt, which lie behind the row's own."""
        spec = self.spec
        x = self.embed(batch["tokens"])
        if "delta" in batch:
            x = x + batch["delta"].astype(x.dtype)
        if spec.positions == "learned":
            x = x + self.embed_positions(batch["positions"] + spec.position_offset)
        if spec.token_types:
            x = x + self.embed_types(batch["types"])
        if self.has_variable("params", "prompt"):
            x, batch, noise = grafts.prompted(self, x, batch, noise)
        if spec.embed_norm:
            x = self.embedding_norm(x)
        x = layers.dropout(x, spec.dropout, noise)
        if spec.embed_width is not None:
            x = self.embed_project(x)
        return activations.constrain_tokens(x), batch, noise

    def stack(
        self,
        x: jax.Array,
        batch: Batch,
        noise: jax.Array | None,
        cache: Cache | None,
        *,
        keep: bool,
        places: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, Any]:
        """All blocks and the final norm: [B, T, D] -> the same, the cache, and where `keep` what
        blocks made, a Kept of [L + 1, B, T, D], the first what comes in and the last what goes out,
        and of [L, B, T, H or G, K].

        With `places` [B, P] the last block returns these tokens alone.

        Raises ConfigError for a cache beside a learned prompt, whose tokens it would hold twice.
        """
        spec, first, asked = self.spec, x, self.is_mutable_collection(SEEN)
        keep = keep or asked
        if cache is not None and self.has_variable("params", "prompt"):
            raise ConfigError("a trunk with a learned prompt cannot go on from a cache")
        keys = batch if cache is None else cache.beside(batch)
        mask = attention.attention_mask(batch, causal=spec.causal, keys=keys)
        mask, near = activations.constrain_tokens(mask), None
        if spec.window is not None:
            near = mask & attention.within(batch["positions"], keys["positions"], spec.window)
        prompted = self.has_variable("params", "prompt")
        rows = attention.Rows(
            causal=spec.causal,
            alone="starts" in batch and batch["starts"].shape[1] == 1 and not prompted,
            in_order=not prompted,
            ahead=spec.causal and "prefix" in keys,
            whole=cache is None,
        )
        seen = attention.Seen(mask, batch["positions"], batch["segments"], rows)
        context = Context(seen, near, () if keep else None)
        # Noise is carried through the stack, each block deriving its own: also under `scan`.
        carry = (x, noise)
        past: Any = cache.blocks if cache else None
        if spec.scan:
            carry, (kept, past) = self.blocks(carry, context, jnp.arange(spec.depth), past)
        else:
            found: list[Any] = []
            for i in range(spec.depth):
                before = None if past is None else past[i]
                last = places if i == spec.depth - 1 else None
                carry, after = self.blocks[i](carry, context, jnp.int32(i), before, last)
                found.append(after)
            made = [one for one, _ in found]
            kept = jax.tree.map(lambda *parts: jnp.stack(parts), *made) if keep else None
            past = tuple(one for _, one in found)
        if cache is not None:
            cache = Cache(past, keys["positions"], keys["segments"])
        last = self.final_norm(carry[0]) if spec.norm_first else carry[0]
        if keep:
            vectors = jnp.concatenate([first[None], kept.vectors[:-1], last[None]])
            kept = kept._replace(vectors=vectors)
        if asked:
            self.sow(SEEN, "layers", kept)
        return last, cache, kept

    def pool(self, x: jax.Array) -> jax.Array:
        """The dense layer between one vector an example and a head: [..., D] -> [..., D]."""
        return self.pooler(x)

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every word: [..., D], or `embed_width` -> float32 [..., V]."""
        return self.words.attend(x)

    def nll(
        self, x: jax.Array, labels: jax.Array, bias: jax.Array | None = None
    ) -> vocabulary.Scored:
        """Labels scored by the softmax of `logits` (+ `bias`), which are never whole in memory."""
        x = x.astype(products.factor_dtype(self.spec.dtype))
        return vocabulary.score(x, self.words.whole, labels, bias)

    def sample(self, x: jax.Array, noise: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Words drawn from the same softmax by `noise`, uint32 [B, ...] -> int32 [B, ...]."""
        x = x.astype(products.factor_dtype(self.spec.dtype))
        return vocabulary.sample(x, self.words.whole, noise, bias)

    @property
    def words(self) -> Embedding:
        """The table that vectors are scored against."""
        return self.embed if self.spec.tied else self.unembed
