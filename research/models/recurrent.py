"""A bidirectional LSTM over words and their characters, as a trunk like any other.

Examples packed into a row never see each other: the state starts anew with every segment, in
either direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from research import activations, sharding
from research.errors import ConfigError
from research.models import layers, products
from research.models.layers import Dense, Embedding
from research.models.pooling import Trunk

Batch = dict[str, jax.Array]

# UTF-8 bytes + 1, and 0 for none.
BYTES = 257
KERNEL = 3


@dataclass(frozen=True, kw_only=True)
class RecurrentSpec:
    """The numbers of a BiLSTM: `width` is that of both directions together.

    `filters` of `character_width`-wide characters join the word's vector of `word_width`; 0 leaves
    the characters out. `dropout` is before the first layer and after each.
    """

    vocab_size: int
    word_width: int = 100
    filters: int = 0
    character_width: int = 30
    width: int = 200
    depth: int = 1
    dropout: float = 0.5
    dtype: products.Dtype = "auto"


class Recurrent(Trunk):
    """Words to vectors: batch -> [B, T, D] (Lample et al., 2016; characters as Ma & Hovy, 2016).

    With `filters` the batch holds `characters` [B, T, W] (see `Tagged.characters`).
    """

    spec: RecurrentSpec

    def setup(self) -> None:
        spec = self.spec
        if spec.width % 2:
            raise ConfigError(f"task.backbone.spec.width is {spec.width}, but must be even")
        self.embed = Embedding(spec.vocab_size, spec.word_width, spec.dtype)
        if spec.filters:
            self.characters = CharacterFilters(spec)
        self.blocks = [BiLSTM(spec, name=f"block_{i}") for i in range(spec.depth)]
        self.pooler = Dense(spec.width, dtype=spec.dtype)

    def __call__(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] words -> [B, T, D]. `noise` uint32 [B, T] drives dropout; None is without."""
        activations.refuse_sequence("an LSTM")
        spec = self.spec
        x = self.embed(batch["tokens"])
        if spec.filters:
            if "characters" not in batch:
                raise ConfigError(
                    "task.backbone.spec.filters is set, but the data has no characters; set "
                    "data.characters, or filters to 0"
                )
            x = jnp.concatenate([x, self.characters(batch["characters"])], axis=-1)
        segments = batch["segments"]
        begins = batch["positions"] == 0
        ends = jnp.pad(segments, ((0, 0), (0, 1)), constant_values=-1)[:, 1:] != segments
        x = sharding.constrain_rows(layers.dropout(x, spec.dropout, noise))
        for block in self.blocks:
            if noise is not None:
                noise = layers.mix(noise + jnp.uint32(1))
            x = layers.dropout(block(x, begins, ends), spec.dropout, noise)
        return jnp.where(segments[..., None] > 0, x, jnp.zeros((), x.dtype))

    def pool(self, x: jax.Array) -> jax.Array:
        """A dense tanh layer on the vectors of examples: [..., D] -> [..., D]."""
        return jnp.tanh(self.pooler(x))


class CharacterFilters(nn.Module):
    """A word's spelling as its strongest matches of learned filters three characters wide, each
    character a vector (Ma & Hovy, 2016): int [B, T, W] -> [B, T, filters]; 0 for words without."""

    spec: RecurrentSpec

    @nn.compact
    def __call__(self, characters: jax.Array) -> jax.Array:
        spec = self.spec
        real = characters > 0
        x = Embedding(BYTES, spec.character_width, spec.dtype, name="letters")(
            jnp.maximum(characters, 0)
        )
        x = jnp.where(real[..., None], x, jnp.zeros((), x.dtype))
        x = jnp.pad(x, ((0, 0), (0, 0), (KERNEL // 2, KERNEL // 2), (0, 0)))
        size = characters.shape[-1]
        near = jnp.concatenate([x[:, :, i : i + size] for i in range(KERNEL)], axis=-1)
        matches = Dense(spec.filters, dtype=spec.dtype, name="filters")(near)  # [B, T, W, filters]
        matches = jnp.where(real[..., None], matches, jnp.asarray(-1e30, matches.dtype))
        strongest = jnp.max(matches, axis=2)
        any_real = jnp.any(real, axis=-1)[..., None]
        return jnp.where(any_real, strongest, jnp.zeros((), strongest.dtype))


class BiLSTM(nn.Module):
    """One LSTM in each direction (Hochreiter & Schmidhuber, 1997), side by side: [B, T, D] ->
    [B, T, width]. `begins` and `ends`, bool [B, T], are each example's first and last cell."""

    spec: RecurrentSpec

    @nn.compact
    def __call__(self, x: jax.Array, begins: jax.Array, ends: jax.Array) -> jax.Array:
        rows, tokens, _ = x.shape
        hidden = self.spec.width // 2
        dtype = products.compute_dtype(self.spec.dtype)
        # What does not depend on the state is one product for all cells and both directions.
        given = Dense(8 * hidden, dtype=self.spec.dtype, name="input")(x)
        given = given.reshape(rows, tokens, 2, 4 * hidden)
        given = jnp.stack([given[:, :, 0], given[:, ::-1, 1]])  # [2, B, T, 4 hidden]
        fresh = jnp.stack([begins, ends[:, ::-1]])
        kernel = self.param("hidden_kernel", recurrent_init, (2, hidden, 4 * hidden))
        ahead, back = recur(given, fresh, kernel, dtype)
        return jnp.concatenate([ahead, back[:, ::-1]], axis=-1)


def recur(given: jax.Array, fresh: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Z LSTMs side by side, from the first cell to the last: [Z, B, T, 4 hidden] -> [Z, B, T,
    hidden] of `dtype`, which is what products with the state run in.

    `given` is what the inputs bring to the gates; `fresh`, bool [Z, B, T], are the cells where the
    state starts anew; `kernel` is float32 [Z, hidden, 4 hidden].
    """
    kernel = kernel.astype(dtype)

    def step(state: Any, now: tuple[jax.Array, jax.Array]) -> Any:
        output, cell = (jnp.where(now[1], 0.0, part) for part in state)
        gates = now[0] + jnp.einsum(
            "zbh,zhk->zbk", output.astype(dtype), kernel, preferred_element_type=jnp.float32
        )
        enter, forget, value, leave = jnp.split(gates, 4, axis=-1)
        # Remembering is the default (Jozefowicz et al., 2015).
        cell = jax.nn.sigmoid(forget + 1.0) * cell + jax.nn.sigmoid(enter) * jnp.tanh(value)
        output = jax.nn.sigmoid(leave) * jnp.tanh(cell)
        return (output, cell), output

    zeros = jnp.zeros((*given.shape[:2], kernel.shape[1]), jnp.float32)
    times = (
        given.astype(jnp.float32).transpose(2, 0, 1, 3),
        fresh.transpose(2, 0, 1)[..., None],
    )
    _, outputs = lax.scan(step, (zeros, zeros), times)  # [T, Z, B, hidden]
    return outputs.transpose(1, 2, 0, 3).astype(dtype)


recurrent_init = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=(0,)
)
