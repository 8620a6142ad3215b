"""Several objectives on one trunk: the loss is the weighted sum of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from research.data.batches import Examples
from research.errors import ConfigError
from research.metrics import Mean, WeightedSum

Batch = dict[str, jax.Array]

# Facts of the data that objectives may leave open, as a task does: the mixture hands them on.
FACTS = ("labels", "vocab_size", "mask_id", "special_ids")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One objective of a mixture. `name` begins the names of its metrics: "masked_accuracy"."""

    name: str
    task: nn.Module
    weight: float = 1.0


class Mixture(nn.Module):
    """The sum of `weight` times the loss of each term, all of them of every batch.

    The terms are tasks without a trunk of their own; each runs the shared one on what it makes of
    the batch, with its own noise. A causal trunk serves masked LM as well: that shows it the whole
    example by a prefix (see `attention.attention_mask`), as UL2 and GLM do (Tay et al., 2023; Du et
    al., 2022). The first term tells of single texts.
    """

    backbone: Any = None
    terms: tuple[Term, ...] = ()
    labels: tuple[str, ...] = ()
    vocab_size: int | None = None
    mask_id: int | None = None
    special_ids: tuple[int, ...] = ()

    @property
    def per_token(self) -> tuple[str, ...]:
        """Those of the terms."""
        return tuple(
            outer(i, term.name, name)
            for i, term in enumerate(self.terms)
            for name in getattr(term.task, "per_token", ())
        )

    def setup(self) -> None:
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"task.terms are {names}, expected one or more of different names")
        for term in self.terms:
            if getattr(term.task, "whole_batch", False):
                raise ConfigError(f"task.terms: {term.name} compares the examples of a batch")
        self.objectives = [self.complete(term.task) for term in self.terms]

    def complete(self, task: nn.Module) -> nn.Module:
        """A term's task on the shared trunk, with the facts it left open."""
        given = {name: getattr(self, name) for name in FACTS}
        open_ = {name: value for name, value in given.items() if unset(task, name)}
        return task.clone(parent=None, backbone=self.backbone, **open_)

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Any]:
        means: dict[str, Any] = {}
        losses = []
        for term, task in zip(self.terms, self.objectives):
            found: dict[str, Mean] = task(batch, train=train)
            losses.append(found["loss"])
            means |= {f"{term.name}_{name}": mean for name, mean in found.items()}
        weights = tuple(term.weight for term in self.terms)
        return {"loss": WeightedSum(tuple(losses), weights)} | means

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """What the terms say, each but the first under names that begin with its own."""
        return {
            outer(i, term.name, name): value
            for i, (term, task) in enumerate(zip(self.terms, self.objectives))
            for name, value in task.predict(batch).items()
        }

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The weighted sum of the terms' losses over the whole split, and what each term's own
        score makes of its means and outputs; details are the first term's."""
        numbers: dict[str, float] = {}
        details: dict[str, Any] = {}
        for i, term in enumerate(self.terms):
            start = f"{term.name}_"
            own = inner(means, start)
            said = outputs if i == 0 else outputs | inner(outputs, start)
            scored, found = self.unbound(term.task).score(own, said, examples)
            details = details or found
            numbers |= {start + name: value for name, value in scored.items()}
        total = sum(term.weight * means[f"{term.name}_loss"] for term in self.terms)
        return {"loss": total} | numbers, details

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """What the first term tells."""
        told: Iterator[dict[str, Any]] = self.unbound(self.terms[0].task).decode(outputs, examples)
        return told

    def unbound(self, task: nn.Module) -> nn.Module:
        """A term's task with the facts it left open, for what needs no parameters."""
        given = {name: getattr(self, name) for name in FACTS if unset(task, name)}
        return task.clone(parent=None, **given)


def unset(task: nn.Module, name: str) -> bool:
    """Whether a task has a field of this name that is still open."""
    return hasattr(task, name) and getattr(task, name) in (None, ())


def outer(number: int, term: str, name: str) -> str:
    """The name that an output of a term has among those of the mixture."""
    return f"{term}_{name}" if number else name


def inner(values: dict[str, Any], start: str) -> dict[str, Any]:
    """What is under names that begin so, without the beginning."""
    return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
