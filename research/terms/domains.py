"""Terms that make two domains look alike: DANN, CORAL, MMD. For data that say `domains`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from research import losses
from research.divergences import coral, mmd
from research.metrics import Mean
from research.models import layers
from research.models.layers import Dense
from research.ramps import Constant, Dann, Warm
from research.regularize import Term
from research.view import View

NEEDS = ("vectors", "domains")


class DomainHead(nn.Module):
    """Tells the domain of a vector: [..., D] -> float32 [..., domains], one hidden layer."""

    hidden: int
    domains: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = Dense(self.hidden, dtype="float32", name="up")(x.astype(jnp.float32))
        start = layers.small_normal
        return Dense(self.domains, dtype="float32", kernel_init=start, name="out")(jax.nn.relu(y))


@dataclass(frozen=True, kw_only=True)
class DomainAdversarial(Term):
    """A head learns to tell the domains while the trunk learns to hide them (DANN; Ganin et al.,
    2016): the gradient that reaches the trunk is times -`reversal`, which rises with the run.

    The head has `hidden` units and its parameters at `domain_adversarial`. At its best the logged
    cross-entropy is log(`domains`).
    """

    hidden: int = 100
    domains: int = 2
    reversal: Constant | Warm | Dann = Dann()

    name: ClassVar[str] = "domain_adversarial"
    needs: ClassVar[tuple[str, ...]] = NEEDS

    def head(self, task: Any) -> nn.Module:
        return DomainHead(self.hidden, self.domains)

    def __call__(self, view: View) -> Mean:
        vectors = reverse(view.main.vectors, self.reversal(view.progress))
        logits = self.scores(view, vectors)
        return Mean.of(losses.cross_entropy(logits, view.batch["domains"]), view.filled)


@dataclass(frozen=True, kw_only=True)
class Coral(Term):
    """The vectors of domain 0 and of the others have one covariance (Sun & Saenko, 2016)."""

    name: ClassVar[str] = "coral"
    whole_batch: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = NEEDS

    def __call__(self, view: View) -> Mean:
        return Mean.of(coral(*sides(view)))


@dataclass(frozen=True, kw_only=True)
class Mmd(Term):
    """The vectors of domain 0 and of the others are alike under `kernels` Gaussians at once (Long
    et al., 2015): the squared maximum mean discrepancy."""

    kernels: int = 5

    name: ClassVar[str] = "mmd"
    whole_batch: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = NEEDS

    def __call__(self, view: View) -> Mean:
        return Mean.of(mmd(*sides(view), self.kernels))


def sides(view: View) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The vectors [N, D] of a batch, and which are of domain 0, and of another: float32 [N]."""
    vectors = view.main.vectors
    source = view.filled * (view.batch["domains"] == 0)
    other = view.filled - source
    return vectors.reshape(-1, vectors.shape[-1]), source.reshape(-1), other.reshape(-1)


def reverse(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x itself, whose gradient is times -`factor`."""
    return jax.lax.stop_gradient(x * (1.0 + factor)) - x * factor
