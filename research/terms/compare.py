"""Terms on the vectors of the examples of a batch: SupCon, SimCSE, Mixup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from research import contrastive, losses, sharding
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers
from research.regularize import Term
from research.tasks.embed import across, both_filled
from research.view import View


@dataclass(frozen=True, kw_only=True)
class Contrast(Term):
    """A term of cosines over `temperature` between all examples of a batch."""

    temperature: float = 0.3

    whole_batch: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("vectors",)

    def check(self) -> None:
        super().check()
        if self.temperature <= 0.0:
            name = type(self).__name__
            raise ConfigError(f"task.terms: {name}.temperature is {self.temperature}, not above 0")

    def cosines(self, queries: jax.Array, candidates: jax.Array) -> jax.Array:
        """Cosines over the temperature: [B, M, D] twice -> float32 [B, M, B M]."""
        queries, candidates = unit(queries), unit(candidates)
        flat = candidates.reshape(-1, candidates.shape[-1])
        found = jnp.einsum("bmd,nd->bmn", queries, flat, precision="highest")
        return sharding.constrain_rows(found) / self.temperature


@dataclass(frozen=True, kw_only=True)
class SupCon(Contrast):
    """Examples of one label attract, of others repel (Khosla et al., 2020), beside the task's loss
    as Gunel et al. (2021) have it. An example without a partner, or without a label, weighs 0."""

    name: ClassVar[str] = "supcon"
    needs: ClassVar[tuple[str, ...]] = ("vectors", "labels")

    def __call__(self, view: View) -> Mean:
        batch, labels = view.batch, view.batch["labels"]
        labelled = view.filled * (batch["weights"] > 0)
        other = batch["ids"][..., None] != across(batch["ids"])
        pairs = both_filled(batch) & other & (across(labelled) > 0)
        alike = labels[..., None] == across(labels)
        scores = self.cosines(view.main.vectors, view.main.vectors)
        values, found = contrastive.supcon(scores, pairs & alike, pairs & ~alike)
        return Mean.of(values, batch["weights"] * found)


@dataclass(frozen=True, kw_only=True)
class SimCSE(Contrast):
    """An example finds itself under another dropout among all of the batch (Gao et al., 2021).
    Needs no label. Costs a second forward and backward pass, which RDrop shares."""

    temperature: float = 0.05

    name: ClassVar[str] = "simcse"

    def __call__(self, view: View) -> Mean:
        ids, filled = view.batch["ids"], both_filled(view.batch)
        itself = ids[..., None] == across(ids)
        scores = self.cosines(view.main.vectors, view.second.vectors)
        values, found = contrastive.info_nce(scores, filled & itself, filled & ~itself)
        return Mean.of(values, view.filled * found)


@dataclass(frozen=True, kw_only=True)
class Mixup(Term):
    """The head learns mixtures of two examples' vectors and labels (Zhang et al., 2018; of
    sentence vectors Guo et al., 2019): shares from Beta(`alpha`, `alpha`), no dropout before the
    head. Partners and shares depend on the step and the examples, wherever these lie."""

    alpha: float = 1.0

    name: ClassVar[str] = "mixup"
    whole_batch: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("classes", "labels")

    def check(self) -> None:
        super().check()
        if self.alpha <= 0.0:
            raise ConfigError(f"task.terms: Mixup.alpha is {self.alpha}, not above 0")

    def __call__(self, view: View) -> Mean:
        ids, labels, weights = (view.batch[name] for name in ("ids", "labels", "weights"))
        key = jax.random.fold_in(view.key, 5)
        other = partners(ids, weights > 0, key)
        flat = jnp.maximum(ids, 0).reshape(-1)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, 1), i))(flat)
        share = jax.vmap(lambda key: jax.random.beta(key, self.alpha, self.alpha))(keys)
        share = share.reshape(ids.shape)
        vectors = view.main.vectors.astype(jnp.float32)
        partner = vectors.reshape(-1, vectors.shape[-1])[other]
        logits = view.head(share[..., None] * vectors + (1.0 - share[..., None]) * partner)
        own = losses.cross_entropy(logits, labels)
        theirs = losses.cross_entropy(logits, labels.reshape(-1)[other])
        return Mean.of(share * own + (1.0 - share) * theirs, weights)


def unit(x: jax.Array) -> jax.Array:
    """Vectors of unit length; zero stays zero, and so does its gradient: [..., D] -> same."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def partners(ids: jax.Array, eligible: jax.Array, key: jax.Array) -> jax.Array:
    """Whom each eligible example is mixed with: int32 [B, M], places in the flattened batch.

    A cycle through all that are eligible, in the order of a hash of (key, id): nobody is left out,
    and nobody meets itself unless alone. The others are their own partner.
    """
    seed = jax.random.bits(key, dtype=jnp.uint32)
    hashed = layers.mix(layers.mix(ids.astype(jnp.uint32) ^ seed)).reshape(-1)
    open_ = eligible.reshape(-1)
    order = jnp.lexsort((hashed, ~open_))
    count = jnp.maximum(jnp.sum(open_), 1)
    places = jnp.arange(order.size)
    following = order[jnp.where(places + 1 < count, places + 1, 0)]
    found = jnp.zeros_like(order).at[order].set(following)
    return jnp.where(open_, found, places).reshape(ids.shape)
