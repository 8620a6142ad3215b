"""A task as a pure function of batch and noise: what the terms of an objective look through."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models import layers
from research.models.transformer import SEEN

Batch = dict[str, jax.Array]
METHODS = ("logits", "encode")


@dataclass(frozen=True)
class Pass:
    """One forward pass: the task's `means`, and of what it computed on the way `logits` float32
    [B, M, C] and `vectors` [B, M, D], one an example; each None where the task has none. `layers`
    is what the blocks of a Transformer made (a Kept), None where that was not asked for."""

    means: dict[str, Any]
    logits: Any
    vectors: Any
    layers: Any = None


def forward(
    task: nn.Module,
    params: Any,
    batch: Batch,
    key: jax.Array,
    *,
    train: bool,
    inside: bool = False,
) -> Pass:
    """What the trainer would see of a task, and what the task's own methods gave meanwhile, with
    `inside` the blocks of its trunk too."""
    seen: dict[str, jax.Array] = {}

    def keep(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        found = call(*args, **kwargs)
        if context.method_name in METHODS and type(context.module) is type(task):
            seen.setdefault(context.method_name, found)
        return found

    with nn.intercept_methods(keep):
        means: Any
        means, more = task.apply(
            {"params": params},
            batch,
            train=train,
            rngs={"noise": key},
            mutable=[SEEN] if inside else [],
        )
    return Pass(means, seen.get("logits"), seen.get("encode"), kept(more, batch))


def kept(found: Any, batch: Batch) -> Any:
    """Of what a trunk left to be seen, that which is of the batch's own tokens."""
    if SEEN not in found:
        return None
    tokens = batch["tokens"].shape[1]
    return jax.tree.map(lambda x: x[:, :, :tokens], found[SEEN]["backbone"]["layers"][0])


def layers_of(task: nn.Module, params: Any, batch: Batch) -> Any:
    """What the blocks of a task's trunk make of a batch without dropout: a Kept."""

    def run(task: Any, batch: Batch) -> jax.Array:
        found: jax.Array = task.backbone(batch)
        return found

    found: Any = task.apply({"params": params}, batch, method=run, mutable=[SEEN])
    return kept(found[1], batch)


@dataclass(frozen=True, eq=False)
class View:
    """A task, its parameters, a batch and the step's noise: passes over it, each made once.

    `progress` is the share of the run that is done, a float32 scalar in [0, 1]. With `inside` the
    main pass shows what the trunk's blocks made.
    """

    task: nn.Module
    params: Any
    batch: Batch
    key: jax.Array
    progress: jax.Array
    inside: bool = False

    @functools.cached_property
    def main(self) -> Pass:
        """The pass of the task's own loss."""
        return self.under()

    @functools.cached_property
    def second(self) -> Pass:
        """The same batch under another dropout."""
        key = jax.random.fold_in(self.key, 1)
        return forward(self.task, self.params, self.batch, key, train=True)

    @functools.cached_property
    def clean(self) -> Pass:
        """The same batch without dropout, as a constant."""
        params = jax.lax.stop_gradient(self.params)
        return forward(self.task, params, self.batch, self.key, train=False)

    def under(self, delta: jax.Array | None = None) -> Pass:
        """The main pass with `delta` [B, T, D] added to the word embeddings, dropout the same."""
        inside = self.inside and delta is None
        batch = self.batch if delta is None else self.batch | {"delta": delta}
        return forward(self.task, self.params, batch, self.key, train=True, inside=inside)

    def slope(self, value: Callable[[Pass], jax.Array], delta: jax.Array) -> jax.Array:
        """The gradient by `delta`, float32 [B, T, D] and a constant, of a scalar of the pass."""
        fixed = dataclasses.replace(self, params=jax.lax.stop_gradient(self.params))
        gradient = jax.grad(lambda delta: value(fixed.under(delta)))(jax.lax.stop_gradient(delta))
        return jax.lax.stop_gradient(gradient)

    @functools.cached_property
    def losses(self) -> jax.Array:
        """The task's loss of every example, before any weight: float32 [B, M]."""
        given, labels = {"params": self.params}, self.batch["labels"]
        found: Any = self.task.apply(given, self.main.logits, labels, method="values")
        return jnp.asarray(found, jnp.float32)

    def head(self, vectors: jax.Array) -> jax.Array:
        """The logits float32 [B, M, C] of any vectors [B, M, D] in the place of the encoded."""

        def of(task: Any, vectors: jax.Array) -> jax.Array:
            logits: jax.Array = task.head(vectors.astype(jnp.float32))
            return logits

        found: Any = self.task.apply({"params": self.params}, vectors, method=of)
        return found

    @property
    def zero(self) -> jax.Array:
        """No perturbation: float32 [B, T, D of the word embeddings]."""
        spec = self.task.backbone.spec
        shape = (*self.batch["tokens"].shape, spec.embed_width or spec.width)
        return jnp.zeros(shape, jnp.float32)

    @property
    def filled(self) -> jax.Array:
        """1 where a place holds an example, labelled or not: float32 [B, M]."""
        return (self.batch["ids"] >= 0).astype(jnp.float32)

    @property
    def unlabelled(self) -> jax.Array:
        """1 where a place holds an example whose label weighs 0: float32 [B, M]."""
        return self.filled * (self.batch["weights"] == 0)

    def noise(self, use: int) -> jax.Array:
        """A random uint32 a token, [B, T], of (step, example, position, `use`) alone."""
        return layers.token_noise(jax.random.fold_in(self.key, use), self.batch)
