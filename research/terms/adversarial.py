"""Terms on word embeddings perturbed for the worse: FGM, PGD, FreeLB, VAT, SMART.

Lengths are those of embeddings before their norm, where a word of BERT's is 1 to 1.5 long and a
sentence of 13 words four or five. A perturbation of 1 hides all there is to learn (SST-2 with
all-MiniLM-L6-v2 ends at constant answers), the default of 0.1 does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from research.divergences import kl, symmetric_kl
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers
from research.regularize import Term
from research.view import Batch, Pass, View

NEEDS = ("embeddings",)


@dataclass(frozen=True, kw_only=True)
class Perturbed(Term):
    """A term whose perturbation of an example is at most `epsilon` long."""

    epsilon: float = 0.1

    needs: ClassVar[tuple[str, ...]] = NEEDS

    def check(self) -> None:
        super().check()
        for name in ("epsilon", "step", "steps", "sigma"):
            value = getattr(self, name, 1)
            if value <= 0:
                raise ConfigError(
                    f"task.terms: {type(self).__name__}.{name} is {value}, not above 0"
                )


@dataclass(frozen=True, kw_only=True)
class Fgm(Perturbed):
    """The task's loss at one step of `epsilon` along each example's gradient, by its L2 norm over
    all its word embeddings (Miyato et al., 2017). One forward and backward pass for the step."""

    name: ClassVar[str] = "fgm"

    def __call__(self, view: View) -> Any:
        step = unit(view.slope(own_loss, view.zero), view.batch)
        return view.under(self.epsilon * step).means["loss"]


@dataclass(frozen=True, kw_only=True)
class Pgd(Perturbed):
    """The task's loss after `steps` such steps of length `step`, each example kept within
    `epsilon` of where it was (Madry et al., 2018, in L2)."""

    step: float = 0.05
    steps: int = 3

    name: ClassVar[str] = "pgd"

    def __call__(self, view: View) -> Any:
        delta = view.zero
        for _ in range(self.steps):
            step = self.step * unit(view.slope(own_loss, delta), view.batch)
            delta = within(delta + step, view.batch, self.epsilon)
        return view.under(delta).means["loss"]


@dataclass(frozen=True, kw_only=True)
class FreeLB(Perturbed):
    """The mean of the task's loss over the `steps` points of such an ascent, which starts at a
    random one (Zhu et al., 2020): uniform in +-`epsilon` / sqrt(the example's n D numbers).

    The paper shares each backward pass between the step and the gradient; here a step has its own,
    so that `steps` points cost `steps` - 1 backward passes more.
    """

    step: float = 0.05
    steps: int = 3

    name: ClassVar[str] = "freelb"

    def __call__(self, view: View) -> Any:
        size = norm(jnp.ones_like(view.zero), view.batch)  # sqrt(n D)
        delta = self.epsilon * uniform(view, use=2) / jnp.maximum(size, 1.0)[..., None]
        total = view.under(delta).means["loss"]
        for _ in range(self.steps - 1):
            step = self.step * unit(view.slope(own_loss, delta), view.batch)
            delta = within(delta + step, view.batch, self.epsilon)
            total = total + view.under(delta).means["loss"]
        return total


@dataclass(frozen=True, kw_only=True)
class Vat(Perturbed):
    """KL from the plain prediction, a constant, to that at the worst direction found by `steps`
    power iterations from a random one with differences of `xi` (Miyato et al., 2018).

    Needs no label: every example counts. Both passes have the same dropout.
    """

    xi: float = 1e-1
    steps: int = 1

    name: ClassVar[str] = "vat"
    needs: ClassVar[tuple[str, ...]] = (*NEEDS, "classes")

    def __call__(self, view: View) -> Mean:
        plain = jax.lax.stop_gradient(view.main.logits)

        def away(there: Pass) -> jax.Array:
            return Mean.of(kl(plain, there.logits), view.filled).total

        direction = unit(gauss(view, use=3), view.batch)
        for _ in range(self.steps):
            direction = unit(view.slope(away, self.xi * direction), view.batch)
        return Mean.of(kl(plain, view.under(self.epsilon * direction).logits), view.filled)


@dataclass(frozen=True, kw_only=True)
class Smart(Perturbed):
    """The KL both ways between the plain prediction and that at a perturbation which `steps` steps
    of size `step`, by the largest number of each example's gradient, found within +-`epsilon` of
    each number, from normal noise of deviation `sigma` (Jiang et al., 2020, without its proximal
    point method). Needs no label."""

    epsilon: float = 1e-3
    step: float = 1e-3
    steps: int = 1
    sigma: float = 1e-5

    name: ClassVar[str] = "smart"
    needs: ClassVar[tuple[str, ...]] = (*NEEDS, "classes")

    def __call__(self, view: View) -> Mean:
        plain = jax.lax.stop_gradient(view.main.logits)

        def away(there: Pass) -> jax.Array:
            return Mean.of(symmetric_kl(plain, there.logits), view.filled).total

        delta = self.sigma * gauss(view, use=4)
        for _ in range(self.steps):
            slope = view.slope(away, delta)
            longest = largest(slope, view.batch)[..., None]
            delta = delta + self.step * slope / jnp.where(longest > 0, longest, 1.0)
            delta = jnp.clip(delta, -self.epsilon, self.epsilon)
        return Mean.of(symmetric_kl(view.main.logits, view.under(delta).logits), view.filled)


def own_loss(there: Pass) -> jax.Array:
    """The total of the task's loss: examples that do not meet each have their own gradient."""
    found: jax.Array = there.means["loss"].total
    return found


def together(batch: Batch) -> jax.Array:
    """Which tokens belong to one example: bool [B, T, T], never at padding."""
    segments = batch["segments"]
    return (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]


def norm(x: jax.Array, batch: Batch) -> jax.Array:
    """The L2 norm over all numbers of the example that a token is of: [B, T, D] -> [B, T]."""
    square = jnp.sum(jnp.square(x), axis=-1)
    member = together(batch).astype(x.dtype)
    return jnp.sqrt(jnp.einsum("bts,bs->bt", member, square, precision="highest"))


def largest(x: jax.Array, batch: Batch) -> jax.Array:
    """The largest absolute number of the example that a token is of: [B, T, D] -> [B, T]."""
    most = jnp.max(jnp.abs(x), axis=-1)
    return jnp.max(jnp.where(together(batch), most[:, None, :], 0.0), axis=-1)


def unit(x: jax.Array, batch: Batch) -> jax.Array:
    """Each example's [n, D] divided by its length; 0 where it has none."""
    length = norm(x, batch)[..., None]
    return jnp.where(length > 0, x / jnp.where(length > 0, length, 1.0), 0.0)


def within(x: jax.Array, batch: Batch, most: float) -> jax.Array:
    """Each example's [n, D] shortened to `most` where it is longer."""
    length = norm(x, batch)[..., None]
    return x * jnp.minimum(1.0, most / jnp.maximum(length, 1e-30))


def uniform(view: View, use: int) -> jax.Array:
    """Numbers in (-1, 1) that packing does not change: float32 [B, T, D], 0 at padding."""
    shape = view.zero.shape
    lanes = jnp.arange(shape[-1], dtype=jnp.uint32).reshape(1, 1, -1)
    bits = layers.mix(view.noise(use)[..., None] + lanes * jnp.uint32(0x9E3779B9))
    # 24 bits, which float32 holds exactly, and never an end.
    numbers = ((bits >> 8).astype(jnp.float32) + 0.5) * 2.0**-23 - 1.0
    return jnp.where((view.batch["segments"] > 0)[..., None], numbers, 0.0)


def gauss(view: View, use: int) -> jax.Array:
    """Standard normal numbers that packing does not change: float32 [B, T, D], 0 at padding."""
    numbers = jnp.clip(uniform(view, use), -1.0 + 2.0**-23, 1.0 - 2.0**-23)
    return jnp.sqrt(2.0) * jax.lax.erf_inv(numbers)
