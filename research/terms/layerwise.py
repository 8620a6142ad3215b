"""Distillation of what lies inside a trunk: hidden states, attention, relations of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.divergences import kl
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers
from research.models.block import Kept
from research.models.layers import Dense
from research.models.transformer import Transformer
from research.terms import distill
from research.terms.distill import Taught
from research.view import View, layers_of

Relation = Literal["query_key", "query_query", "key_key", "value_value"]


@dataclass(frozen=True, kw_only=True)
class Layerwise(Taught):
    """A term between what the blocks of two Transformers make of the same tokens, of real tokens
    alone. Both trunks see both sides of a text, or both only what comes before."""

    needs: ClassVar[tuple[str, ...]] = ("layers",)

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for a teacher whose layers do not compare with the task's."""
        super().check_task(task)
        trunk = distill.load(self.teacher)[0].backbone
        if not isinstance(trunk, Transformer) or trunk.spec.causal != task.backbone.spec.causal:
            raise ConfigError(f"{self.named()} is no Transformer that reads as this trunk does")

    def named(self) -> str:
        """How a complaint begins."""
        return f"task.terms: {type(self).__name__}.teacher {self.teacher}"

    def heads_of(self, task: Any) -> tuple[int, int]:
        """How many heads ask, the teacher's and the student's."""
        return distill.load(self.teacher)[0].backbone.spec.heads, task.backbone.spec.heads

    def taught(self, view: View) -> Kept:
        """What the teacher's blocks make of the batch, as constants."""
        teacher, params = distill.load(self.teacher)
        found: Kept = jax.lax.stop_gradient(layers_of(teacher, params, view.batch))
        return found


@dataclass(frozen=True, kw_only=True)
class DistillHidden(Layerwise):
    """The squared distance of hidden states, a mean over tokens and the teacher's width, summed
    over layers: block i of the student's L learns from block i L' / L of the teacher's L', and its
    word vectors from the teacher's (TinyBERT; Jiao et al., 2020).

    Where the widths differ, one matrix brings the student's to the teacher's, for all layers as in
    the authors' code; it learns, at `distill_hidden`, and is not exported.
    """

    name: ClassVar[str] = "distill_hidden"

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for a depth that the teacher's is no multiple of, too."""
        super().check_task(task)
        check_depths(self, task)

    def head(self, task: Any) -> nn.Module | None:
        width = distill.load(self.teacher)[0].backbone.spec.width
        same = width == task.backbone.spec.width
        return None if same else Dense(width, bias=False, dtype="float32")

    def __call__(self, view: View) -> Mean:
        own, told = view.main.layers.vectors, self.taught(view).vectors
        own = own.astype(jnp.float32)
        if own.shape[-1] != told.shape[-1]:
            own = self.scores(view, own)
        step = (len(told) - 1) // (len(own) - 1)
        gaps = jnp.mean(jnp.square(own - told[::step].astype(jnp.float32)), axis=-1)
        return Mean.of(jnp.sum(gaps, axis=0), real(view))


@dataclass(frozen=True, kw_only=True)
class DistillAttention(Layerwise):
    """The squared distance of attention scores before the softmax, a mean over heads and pairs of
    tokens of one text, summed over layers that are paired as by DistillHidden (TinyBERT; Jiao et
    al., 2020). Both trunks have as many heads."""

    name: ClassVar[str] = "distill_attention"

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for other heads, or depths that do not fit, too."""
        super().check_task(task)
        check_depths(self, task)
        told, own = self.heads_of(task)
        if told != own:
            raise ConfigError(f"{self.named()} has {told} heads, but this trunk {own}")

    def __call__(self, view: View) -> Mean:
        own, told = view.main.layers, self.taught(view)
        step = len(told.query) // len(own.query)
        mask = seen(view)
        total, count = jnp.float32(0.0), jnp.float32(0.0)
        for layer in range(len(own.query)):
            pair = [
                products(kept.query[place], kept.key[place])
                for kept, place in ((own, layer), (told, layer * step + step - 1))
            ]
            inside = jnp.broadcast_to(mask[:, None], pair[0].shape)
            mean = Mean.of(jnp.square(pair[0] - pair[1]), inside.astype(jnp.float32))
            total, count = total + mean.total, mean.count
        return Mean(total, count)


@dataclass(frozen=True, kw_only=True)
class DistillRelations(Layerwise):
    """KL from the teacher's relations of tokens to those of the student's last block, a mean over
    heads and tokens, summed over `relations`: softmax(A B^T / sqrt(K)) of a text's queries, keys or
    values A and B (MiniLM; Wang et al., 2020: query_key and value_value).

    `layer` is the teacher's block, counted from 1, its last where None. `heads` divides what the
    attentions' own heads hold anew into as many, so that trunks of other heads compare (Wang et
    al., 2021); None is their own, equally many of both.
    """

    relations: tuple[Relation, ...] = ("query_key", "value_value")
    layer: int | None = None
    heads: int | None = None

    name: ClassVar[str] = "distill_relations"

    def check(self) -> None:
        super().check()
        if not self.relations or len(set(self.relations)) < len(self.relations):
            raise ConfigError(
                f"task.terms: DistillRelations.relations is {self.relations}: some, each once"
            )

    def check_task(self, task: Any) -> None:
        """Raises ConfigError for a block that the teacher lacks, or heads that do not fit, too."""
        super().check_task(task)
        specs = [one.backbone.spec for one in (distill.load(self.teacher)[0], task)]
        if self.layer is not None and not 1 <= self.layer <= specs[0].depth:
            raise ConfigError(f"{self.named()} has {specs[0].depth} blocks, but layer {self.layer}")
        told, own = self.heads_of(task)
        if self.heads is None and told != own:
            raise ConfigError(
                f"{self.named()} has {told} heads, but this trunk {own}; set heads for both"
            )
        for spec in specs:
            width = spec.heads * (spec.head_width or spec.width // spec.heads)
            if self.heads is not None and (self.heads < 1 or width % self.heads):
                raise ConfigError(
                    f"task.terms: DistillRelations.heads is {self.heads}, which do not divide "
                    f"{width}"
                )

    def __call__(self, view: View) -> Mean:
        mask = seen(view)[:, None]

        def related(kept: Kept, layer: int, relation: Relation) -> jax.Array:
            heads = kept.query.shape[-2]
            sides = []
            for side in relation.split("_"):
                x = getattr(kept, side)[layer]
                x = jnp.repeat(x, heads // x.shape[-2], axis=-2)
                sides.append(x.reshape(*x.shape[:2], self.heads or heads, -1))
            return jnp.where(mask, products(*sides), jnp.float32(-1e30))

        own, told = view.main.layers, self.taught(view)
        last = len(told.query) if self.layer is None else self.layer
        total = jnp.float32(0.0)
        weights = real(view)
        for relation in self.relations:
            values = kl(related(told, last - 1, relation), related(own, -1, relation))
            mean = Mean.of(jnp.mean(values, axis=1), weights)
            total = total + mean.total
        return Mean(total, jnp.sum(weights))


def check_depths(term: Layerwise, task: Any) -> None:
    """Raises ConfigError where the teacher has no whole number of blocks for each of the task's."""
    told, own = (one.backbone.spec.depth for one in (distill.load(term.teacher)[0], task))
    if told % own:
        raise ConfigError(
            f"{term.named()} has {told} blocks, which this trunk's {own} do not divide"
        )


def products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products of tokens over the root of the width: [B, T, H, K] twice -> float32
    [B, H, T, T]."""
    found = jnp.einsum("bthk,bshk->bhts", *align(a, b), preferred_element_type=jnp.float32)
    return found * a.shape[-1] ** -0.5


def align(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """b with as many heads as a, which several of a's share."""
    return a, jnp.repeat(b, a.shape[-2] // b.shape[-2], axis=-2)


def real(view: View) -> jax.Array:
    """1 for a token of a text, 0 for padding: float32 [B, T]."""
    return (view.batch["segments"] > 0).astype(jnp.float32)


def seen(view: View) -> jax.Array:
    """Which tokens attend to which: bool [B, T, T]."""
    return layers.attention_mask(view.batch, causal=view.task.backbone.spec.causal)
