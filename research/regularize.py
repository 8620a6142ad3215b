"""Objectives: a task with weighted terms added to its loss is a task again.

`Objective(task=Classify(), terms=RDrop() + 0.1 * SupCon())`: the parameters keep their paths, and
whatever evaluates, predicts or exports is handed the task within. A term is a value that looks at
the task through a `View` and returns a Mean.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from research.errors import ConfigError
from research.metrics import Mean, WeightedSum
from research.models.transformer import Transformer
from research.ramps import Constant, Dann, Warm
from research.tasks.classify import Classify, Pooled
from research.tasks.embed import Embed
from research.view import View

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Terms(ABC):
    """One term or several. `a + b` is both, `0.1 * a` a tenth of each."""

    @abstractmethod
    def parts(self) -> tuple[Term, ...]:
        """The terms that this is made of."""

    def __add__(self, other: Terms) -> Sum:
        return Sum(left=self, right=other)

    @abstractmethod
    def __rmul__(self, factor: float) -> Terms:
        """The same with every weight times `factor`."""

    def filled(self, facts: dict[str, Any]) -> Terms:
        """The same with what it leaves to the data, whose facts these are."""
        return self


@dataclass(frozen=True, kw_only=True)
class Sum(Terms):
    """Two sides of terms; made by `+`."""

    left: Terms
    right: Terms

    def parts(self) -> tuple[Term, ...]:
        return (*self.left.parts(), *self.right.parts())

    def __rmul__(self, factor: float) -> Terms:
        return Sum(left=factor * self.left, right=factor * self.right)

    def filled(self, facts: dict[str, Any]) -> Terms:
        return Sum(left=self.left.filled(facts), right=self.right.filled(facts))


@dataclass(frozen=True, kw_only=True)
class Term(Terms):
    """What is added to a task's loss, `weight` times `ramp` at the progress of the run.

    A subclass gives its `name`, under which it is logged, and what it `needs` of the task and of
    the batch (see `NEEDS`). One that compares the examples of a batch is `whole_batch`.
    """

    weight: float = 1.0
    ramp: Constant | Warm | Dann = Constant()

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    whole_batch: ClassVar[bool] = False

    def parts(self) -> tuple[Term, ...]:
        return (self,)

    def __rmul__(self, factor: float) -> Terms:
        return dataclasses.replace(self, weight=factor * self.weight)

    def check(self) -> None:
        """Raises ConfigError for fields that cannot be meant."""
        if not (0.0 <= self.weight < math.inf):
            raise ConfigError(f"task.terms: {type(self).__name__}.weight is {self.weight}, below 0")

    def wanted(self) -> tuple[str, ...]:
        """What it needs with its fields as they are."""
        return self.needs

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for a task that the term cannot be meant for."""

    def head(self, task: Any) -> nn.Module | None:
        """A module of the term's own, [..., D] -> [..., C]; its parameters are at `name`."""
        return None

    def carried(self, found: Any) -> dict[str, Any]:
        """Of what the term found, {leaf of its own: what has it after the step as `moved`}."""
        return {}

    def details(self, task: Any, found: Any) -> dict[str, Mean]:
        """Of what the term found, means that are logged under NAME_ and theirs."""
        return {}

    def scores(self, view: View, vectors: jax.Array) -> jax.Array:
        """What the term's own module makes of vectors."""
        head: Any = self.head(view.task)
        found: jax.Array = head.apply({"params": view.params[self.name]}, vectors)
        return found

    @abstractmethod
    def __call__(self, view: View) -> Mean:
        """The mean that is minimised, before its weight."""


def has_embeddings(task: Any) -> bool:
    """Whether the trunk adds `delta` to its word embeddings."""
    return isinstance(task.backbone, Transformer)


def has_layers(task: Any) -> bool:
    """Whether a pass shows what the trunk's blocks made; parts encoded apart do not."""
    return has_embeddings(task) and getattr(task, "chunks", 1) == 1


def has_vectors(task: Any) -> bool:
    """Whether a pass shows one vector an example; parts of a batch encoded apart do not."""
    return isinstance(task, Pooled | Embed) and getattr(task, "chunks", 1) == 1


# What a term may need: whether a task and a batch have it, and how it is called.
NEEDS: dict[str, tuple[Any, str]] = {
    "classes": (lambda task, batch: isinstance(task, Classify), "class probabilities"),
    "labels": (
        lambda task, batch: len(getattr(task, "labels", ())) > 1 and "labels" in batch,
        "labels",
    ),
    "domains": (lambda task, batch: "domains" in batch, "a domain for every example"),
    "groups": (lambda task, batch: "groups" in batch, "a group for every example (data.group)"),
    "vectors": (lambda task, batch: has_vectors(task), "one vector an example, task.chunks 1"),
    "layers": (lambda task, batch: has_layers(task), "a Transformer's layers, task.chunks 1"),
    "embeddings": (lambda task, batch: has_embeddings(task), "a Transformer's word embeddings"),
}


class Objective(nn.Module):
    """The loss of `task` times `task_weight` plus that of every term, each a metric under its name;
    `task_loss` is the task's own. In evaluation it is the task.

    With `report_gradients` every term also has NAME_gradient, the norm of its gradient by all
    parameters before weighting, and NAME_cosine, between that and the gradient of the task's own
    loss. That costs one forward and backward pass more for the task and for each term.
    """

    task: nn.Module
    terms: Terms
    task_weight: float = 1.0
    report_gradients: bool = False

    def about(self, task: nn.Module, facts: dict[str, Any]) -> Objective:
        """The same about a resolved task, its terms filled from the facts of the data."""
        return self.clone(task=task, terms=self.terms.filled(facts))

    @property
    def backbone(self) -> Any:
        """The task's trunk."""
        return self.task.backbone

    @property
    def per_token(self) -> tuple[str, ...]:
        """The task's."""
        found: tuple[str, ...] = self.task.per_token
        return found

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of parameters that are a term's, where it has any, and not the task's."""
        return tuple(part.name for part in self.terms.parts())

    @property
    def whole_batch(self) -> str:
        """What compares all examples of a batch; empty where nothing does."""
        names = [type(part).__name__ for part in self.terms.parts() if part.whole_batch]
        if getattr(self.task, "whole_batch", False):
            names.insert(0, type(self.task).__name__)
        if self.report_gradients:
            names.append("report_gradients")
        return ", ".join(names)

    def check(self, batch: Batch) -> None:
        """Raises ConfigError for terms that task or data cannot serve."""
        kind, parts = type(self.task).__name__, self.terms.parts()
        names = [type(part).__name__ for part in parts]
        if not 0.0 <= self.task_weight < math.inf:
            raise ConfigError(f"task.task_weight is {self.task_weight}, below 0")
        for part, name in zip(parts, names):
            part.check()
            if names.count(name) > 1:
                raise ConfigError(f"task.terms: {name} is there twice; give it one weight")
            for need in part.wanted():
                test, what = NEEDS[need]
                if not test(self.task, batch):
                    raise ConfigError(
                        f"task.terms: {name} needs {what}, which {kind} on these data has not"
                    )
            part.check_task(self.task)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Any]:
        assert self.scope is not None
        plain = self.task.clone(parent=None)
        # The keys themselves: the task draws from them what it would draw alone.
        keys = {name: key.as_jax_rng() for name, key in self.scope.rngs.items()}
        if self.is_initializing():
            self.check(batch)
            self.make(plain, batch, keys)
        params = self.variables["params"]
        if not train:
            found: Any = plain.apply({"params": params}, batch, train=False, rngs=keys)
            return dict(found)
        progress = batch["progress"][0, 0] if "progress" in batch else jnp.float32(1.0)
        parts = self.terms.parts()
        inside = any("layers" in part.needs for part in parts)
        view = View(plain, params, batch, keys["noise"], progress, inside)
        means = dict(view.main.means)
        own = {part.name: part(view) for part in parts}
        carried: dict[str, Any] = {}
        for part, found in zip(parts, own.values()):
            details = part.details(plain, found).items()
            means |= {f"{part.name}_{name}": mean for name, mean in details}
            moved = part.carried(found).items()
            carried |= {f"{part.name}/{leaf}": value for leaf, value in moved}
        ramped = [found.scaled(part.ramp(progress)) for part, found in zip(parts, own.values())]
        weights = [self.task_weight, *(part.weight for part in parts)]
        loss = WeightedSum.of([means["loss"], *ramped], weights)
        means |= {"task_loss": means["loss"]} | ({"carried": carried} if carried else {})
        if self.report_gradients:
            means |= self.gradients(view)
        return means | own | {"loss": loss}

    def make(self, plain: nn.Module, batch: Batch, keys: dict[str, jax.Array]) -> None:
        """The parameters that the task has alone, at the paths where it has them, and those of the
        terms that have a module of their own."""
        made: Any = plain.init(keys, batch, train=False)["params"]
        for name, leaves in made.items():
            self.param(name, lambda _, leaves=leaves: leaves)
        for part in self.terms.parts():
            if (head := part.head(self.task)) is not None:
                vectors = plain.apply({"params": made}, batch, method="encode")
                head.clone(parent=self, name=part.name)(vectors)

    def gradients(self, view: View) -> dict[str, Mean]:
        """The norm of each term's gradient, and its cosine to that of the task's loss."""

        def by_params(loss: Any) -> Any:
            at = dataclasses.replace
            return jax.grad(lambda params: loss(at(view, params=params)).value)(view.params)

        def product(a: Any, b: Any) -> jax.Array:
            return optax.tree.vdot(a, b)

        main = by_params(lambda view: view.main.means["loss"])
        means = {}
        for part in self.terms.parts():
            own = by_params(part)
            square = product(own, own)
            lengths = jnp.sqrt(jnp.maximum(square * product(main, main), 1e-30))
            means[f"{part.name}_gradient"] = Mean.of(jnp.sqrt(square))
            means[f"{part.name}_cosine"] = Mean.of(product(own, main) / lengths)
        return means
