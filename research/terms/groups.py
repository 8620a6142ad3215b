"""Group DRO: the groups of examples that a task does worst on weigh most (Sagawa et al., 2020)."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from research.errors import ConfigError
from research.metrics import Mean
from research.regularize import Term
from research.view import Batch, View

GroupBy = Literal["label", "group"]


@flax.struct.dataclass
class GroupLoss:
    """The mean losses of G groups, weighed by shares that an exponentiated gradient moves.

    Sums over parts of a batch, as a Mean is: float32 [G] `totals`, which are differentiated and may
    be scaled, `losses`, the same as constants, and `counts`. `log_shares` is a Mean because every
    part has it: those before the step. `pace` is the step of the exponentiated gradient.
    """

    totals: jax.Array
    losses: jax.Array
    counts: jax.Array
    log_shares: Mean
    pace: float = flax.struct.field(pytree_node=False)

    def __add__(self, other: GroupLoss) -> GroupLoss:
        return jax.tree.map(lambda a, b: a + b, self, other)

    @property
    def moved(self) -> jax.Array:
        """The logarithms of the shares after the step, [G]: q_g exp(pace * loss_g), normalised; a
        group without an example has a loss of 0."""
        # On the host these are numpy's, and no busy device is asked.
        host = jnp if isinstance(self.counts, jax.Array) else np
        means = self.losses / (self.counts + (self.counts == 0))
        found = self.log_shares.value + self.pace * means
        return found - host.log(host.sum(host.exp(found - host.max(found)))) - host.max(found)

    @property
    def count(self) -> jax.Array:
        """The weight of all examples."""
        return self.counts.sum()

    @property
    def total(self) -> jax.Array:
        """The weighed loss, times `count`."""
        return self.share(self)

    @property
    def value(self) -> jax.Array:
        """The mean losses of the groups, weighed by their shares after the step."""
        return Mean(self.total, self.count).value

    def share(self, whole: GroupLoss) -> jax.Array:
        """What this part of a batch adds to the total of the `whole`, by the shares of that."""
        host = jnp if isinstance(self.counts, jax.Array) else np
        means = self.totals / (whole.counts + (whole.counts == 0))
        return whole.count * (host.exp(whole.moved) * means).sum()

    def scaled(self, factor: jax.Array) -> GroupLoss:
        """Times a factor, which does not move the shares."""
        return dataclasses.replace(self, totals=self.totals * factor)


class Shares(nn.Module):
    """The logarithms of the shares of `groups` groups, float32 [G]: all alike at first. No gradient
    reaches them; the step moves them."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        even = nn.initializers.constant(-math.log(self.groups))
        return self.param("log_shares", even, (self.groups,))


@dataclass(frozen=True, kw_only=True)
class GroupDRO(Term):
    """The mean losses of groups, each weighed by a share that grows while the group's loss is above
    that of the others: distributionally robust optimisation over groups (Sagawa et al., 2020).

    `by`: an example's label, its value in the column that `data.group` names, or both at once;
    `groups` are that column's values, taken from the data. Every step multiplies shares by
    exp(`pace` * loss) and divides them by their sum, then weighs the losses by them; a group that
    a batch lacks has a loss of 0. They are parameters, at `group_dro/log_shares`, and so kept in
    checkpoints. The paper minimises this alone: `Objective(..., task_weight=0.0)`. Over
    micro-batches the losses are worked out twice, for the shares come first. Each group's loss is
    logged.
    """

    by: tuple[GroupBy, ...] = ("label", "group")
    groups: tuple[str, ...] = ()
    pace: float = 0.01

    name: ClassVar[str] = "group_dro"
    needs: ClassVar[tuple[str, ...]] = ("classes", "labels")

    def wanted(self) -> tuple[str, ...]:
        return self.needs + (("groups",) if "group" in self.by else ())

    def filled(self, facts: dict[str, Any]) -> GroupDRO:
        return self if self.groups else dataclasses.replace(self, groups=facts.get("groups", ()))

    def check(self) -> None:
        super().check()
        if not self.by or len(set(self.by)) < len(self.by):
            raise ConfigError(f"task.terms: GroupDRO.by is {self.by}, not label, group or both")
        if not 0.0 < self.pace < math.inf:
            raise ConfigError(f"task.terms: GroupDRO.pace is {self.pace}, not above 0")

    def check_task(self, task: Any) -> None:
        """Raises ConfigError where there are not two groups to weigh."""
        if len(self.names(task)) < 2:
            raise ConfigError(
                f"task.terms: GroupDRO by {' and '.join(self.by)} finds fewer than two groups"
            )

    def names(self, task: Any) -> tuple[str, ...]:
        """The groups, in the order of their shares."""
        labels, groups = tuple(map(str, task.labels)), self.groups
        if self.by == ("label",):
            return labels
        if self.by == ("group",):
            return groups
        return tuple(f"{label}_{group}" for label in labels for group in groups)

    def of(self, batch: Batch) -> jax.Array:
        """The group of every example: int32 [B, M]."""
        if self.by == ("label",):
            return batch["labels"]
        if self.by == ("group",):
            return batch["groups"]
        return batch["labels"] * len(self.groups) + batch["groups"]

    def head(self, task: Any) -> nn.Module:
        return Shares(len(self.names(task)))

    def __call__(self, view: View) -> Any:
        weights = view.batch["weights"]
        kept = jnp.where(weights != 0, view.losses, 0.0) * weights
        groups = jnp.arange(len(self.names(view.task)), dtype=jnp.int32)
        member = (self.of(view.batch)[..., None] == groups.reshape(1, 1, -1)).astype(jnp.float32)
        totals = jnp.sum(kept[..., None] * member, axis=(0, 1))
        counts = jnp.sum(weights[..., None] * member, axis=(0, 1))
        held = jax.lax.stop_gradient(self.scores(view, totals))
        one = Mean(held, jnp.float32(1.0))
        return GroupLoss(totals, jax.lax.stop_gradient(totals), counts, one, self.pace)

    def carried(self, found: Any) -> dict[str, Any]:
        return {"log_shares": found}

    def details(self, task: Any, found: Any) -> dict[str, Mean]:
        # A label may be any text, the name of a metric may not.
        names = [f"{i}_{re.sub(r'[^A-Za-z0-9]+', '_', x)}" for i, x in enumerate(self.names(task))]
        return {name: Mean(found.losses[i], found.counts[i]) for i, name in enumerate(names)}
