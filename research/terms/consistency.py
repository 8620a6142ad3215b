"""Terms that ask for the same prediction twice: R-Drop, pseudo-labels, UDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from research import losses
from research.divergences import kl, symmetric_kl
from research.errors import ConfigError
from research.metrics import Mean
from research.regularize import Term
from research.view import View


@dataclass(frozen=True, kw_only=True)
class RDrop(Term):
    """Two passes under different dropout agree: half of the KL both ways (Liang et al., 2021).

    Every example counts, labelled or not. The paper's loss sums the cross-entropies of both passes;
    here it is that of one, so that a weight of a is its alpha of 2 a.
    """

    name: ClassVar[str] = "rdrop"
    needs: ClassVar[tuple[str, ...]] = ("classes",)

    def __call__(self, view: View) -> Mean:
        values = 0.5 * symmetric_kl(view.main.logits, view.second.logits)
        return Mean.of(values, view.filled)


@dataclass(frozen=True, kw_only=True)
class PseudoLabel(Term):
    """Examples without a label learn the model's own, where it is sure (Lee, 2013).

    The label is that of the pass without dropout, where its probability reaches `threshold` (Sohn
    et al., 2020); the mean is over these examples.
    """

    threshold: float = 0.95

    name: ClassVar[str] = "pseudo_label"
    needs: ClassVar[tuple[str, ...]] = ("classes",)

    def check(self) -> None:
        super().check()
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"task.terms: PseudoLabel.threshold is {self.threshold}, not in 0..1")

    def __call__(self, view: View) -> Mean:
        labels, sure = told(view, self.threshold)
        return Mean.of(losses.cross_entropy(view.main.logits, labels), view.unlabelled * sure)


@dataclass(frozen=True, kw_only=True)
class Uda(Term):
    """Examples without a label: noised predictions follow sharpened plain ones (Xie et al., 2020).

    KL(softmax(plain / `temperature`) || noised) where the plain probability reaches `threshold`.
    The noise is dropout: no text is rewritten. The mean is over all examples without a label, as
    in the paper, so that it is small while the model is unsure.
    """

    temperature: float = 0.4
    threshold: float = 0.8

    name: ClassVar[str] = "uda"
    needs: ClassVar[tuple[str, ...]] = ("classes",)

    def check(self) -> None:
        super().check()
        if self.temperature <= 0.0:
            raise ConfigError(f"task.terms: Uda.temperature is {self.temperature}, not above 0")

    def __call__(self, view: View) -> Mean:
        _, sure = told(view, self.threshold)
        values = kl(view.clean.logits / self.temperature, view.main.logits)
        return Mean.of(values * sure, view.unlabelled)


def told(view: View, threshold: float) -> tuple[jax.Array, jax.Array]:
    """The label that the pass without dropout tells, int [B, M], and whether it is sure of it."""
    probabilities = jax.nn.softmax(view.clean.logits, axis=-1)
    sure = jnp.max(probabilities, axis=-1) >= threshold
    return jnp.argmax(probabilities, axis=-1), sure.astype(jnp.float32)
