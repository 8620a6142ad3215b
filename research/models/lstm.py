"""The recurrent language model: an LSTM from left to right, as a trunk like any other."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import activations, sharding
from research.models import layers, products, vocabulary
from research.models.layers import Dense, Embedding
from research.models.pooling import Trunk
from research.models.recurrent import recur, recurrent_init

Batch = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class LstmSpec:
    """The numbers of a stack of `depth` LSTMs, each of `width`.

    `dropout` is before the first layer and after each, never on the state (Zaremba et al., 2014);
    `tied` scores by the vectors of the words themselves (Press & Wolf, 2017).
    """

    vocab_size: int
    width: int = 256
    depth: int = 1
    tied: bool = True
    dropout: float = 0.2
    dtype: products.Dtype = "auto"

    @property
    def causal(self) -> bool:
        """No token sees a later one."""
        return True


class Lstm(Trunk):
    """Tokens to vectors: batch -> [B, T, D] (Mikolov et al., 2010; Zaremba et al., 2014).

    The state starts anew with every segment.
    """

    spec: LstmSpec

    def setup(self) -> None:
        spec = self.spec
        self.embed = Embedding(spec.vocab_size, spec.width, spec.dtype)
        self.blocks = [LstmLayer(spec, name=f"block_{i}") for i in range(spec.depth)]
        if not spec.tied:
            self.unembed = Embedding(spec.vocab_size, spec.width, spec.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (spec.vocab_size,))

    def __call__(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] tokens -> [B, T, D]. `noise` uint32 [B, T] drives dropout; None is without."""
        activations.refuse_sequence("an LSTM")
        rate = self.spec.dropout
        begins = batch["positions"] == 0
        x = layers.dropout(self.embed(batch["tokens"]), rate, noise)
        x = sharding.constrain_rows(x)
        for block in self.blocks:
            if noise is not None:
                noise = layers.mix(noise + jnp.uint32(1))
            x = layers.dropout(block(x, begins), rate, noise)
        return x

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every token: [..., D] -> float32 [..., V]."""
        y = self.words.attend(x)
        return y + products.over_last(self.bias, y)

    def nll(self, x: jax.Array, labels: jax.Array) -> vocabulary.Scored:
        """Labels scored by the softmax of `logits`, which are never whole in memory."""
        x = x.astype(products.factor_dtype(self.spec.dtype))
        return vocabulary.score(x, self.words.whole, labels, self.bias)

    @property
    def words(self) -> Embedding:
        """The table that vectors are scored against."""
        return self.embed if self.spec.tied else self.unembed


class LstmLayer(nn.Module):
    """One LSTM (Hochreiter & Schmidhuber, 1997): [B, T, D] -> [B, T, width].

    `begins`, bool [B, T], are the first cells of examples.
    """

    spec: LstmSpec

    @nn.compact
    def __call__(self, x: jax.Array, begins: jax.Array) -> jax.Array:
        width = self.spec.width
        given = Dense(4 * width, dtype=self.spec.dtype, name="input")(x)
        kernel = self.param("hidden_kernel", recurrent_init, (1, width, 4 * width))
        return recur(given[None], begins[None], kernel, products.compute_dtype(self.spec.dtype))[0]
