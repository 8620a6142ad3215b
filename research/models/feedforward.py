"""The first neural language model, as a trunk: a window of words through one hidden layer."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import activations, sharding
from research.models import layers, products, vocabulary
from research.models.layers import Dense, Embedding
from research.models.pooling import Trunk

Batch = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class FeedforwardSpec:
    """The numbers of a model that sees `context` tokens, each a vector of `embed_width`.

    `direct` adds connections from the vectors to the scores, past the hidden layer. `dropout` is on
    the vectors and on the hidden layer.
    """

    vocab_size: int
    embed_width: int = 64
    hidden: int = 128
    context: int = 4
    direct: bool = True
    dropout: float = 0.0
    dtype: products.Dtype = "auto"

    @property
    def causal(self) -> bool:
        """No token sees a later one."""
        return True

    @property
    def width(self) -> int:
        """What the scores are computed from: the hidden layer, and the window with `direct`."""
        return self.hidden + self.direct * self.context * self.embed_width


class Feedforward(Trunk):
    """Tokens to vectors: batch -> [B, T, D] (Bengio et al., 2003).

    With x the vectors of the last `context` tokens of the segment, zeros before its first, the
    vector is [tanh(H x + d), x] and the scores are b + U tanh(H x + d) + W x.
    """

    spec: FeedforwardSpec

    def setup(self) -> None:
        spec = self.spec
        self.embed = Embedding(spec.vocab_size, spec.embed_width, spec.dtype)
        self.hidden = Dense(spec.hidden, dtype=spec.dtype)
        self.unembed = Embedding(spec.vocab_size, spec.width, spec.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (spec.vocab_size,))

    def __call__(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """[B, T] tokens -> [B, T, D]. `noise` uint32 [B, T] drives dropout; None is without."""
        activations.refuse_sequence("a window of words")
        spec = self.spec
        x = self.embed(batch["tokens"])
        x = sharding.constrain_rows(layers.dropout(x, spec.dropout, noise))
        size = x.shape[1]
        window = []
        for back in range(spec.context):
            earlier = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, :size]
            own = (batch["positions"] >= back)[..., None]
            window.append(jnp.where(own, earlier, jnp.zeros((), x.dtype)))
        x = jnp.concatenate(window, axis=-1)  # [B, T, context * embed_width]
        if noise is not None:
            noise = layers.mix(noise + jnp.uint32(1))
        y = jnp.tanh(self.hidden(x).astype(jnp.float32)).astype(x.dtype)
        y = layers.dropout(y, spec.dropout, noise)
        return jnp.concatenate([y, x], axis=-1) if spec.direct else y

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of every token: [..., D] -> float32 [..., V]."""
        y = self.unembed.attend(x)
        return y + products.over_last(self.bias, y)

    def nll(self, x: jax.Array, labels: jax.Array) -> vocabulary.Scored:
        """Labels scored by the softmax of `logits`, which are never whole in memory."""
        x = x.astype(products.factor_dtype(self.spec.dtype))
        return vocabulary.score(x, self.unembed.whole, labels, self.bias)
