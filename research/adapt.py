"""Strategies: which parameters learn, and how, told path by path.

A strategy is a value: `rules` maps every parameter path to a Rule, `growth` makes the leaves that
it adds to the tree, beside those that they change. The layers use what they find there, so no model
has a field for a strategy. What does not learn costs neither gradient nor optimizer state: the
trainer differentiates by the learning part alone.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from research.errors import ConfigError

Flat = dict[str, jax.Array]
# Arrays, or their shapes, by path.
Leaves = Mapping[str, Any]

TRUNK = re.compile(r"^backbone/(?!pooler/)")
ADDED = re.compile(r"(/|^)(lora_\w+|ia3_\w+|prefix_\w+|prompt|\w+_adapter/.+|\w+_start|thawed)$")
# Of what strategies add, that which the step reads, and no layer.
UNREAD = re.compile(r"(_start|(^|/)thawed)$")
CONSTANT = re.compile(r"(/|^)(lora_scale|lora_dropout|\w+_start|log_shares|thawed)$")
# What the step moves by another way than a gradient.
CARRIED = re.compile(r"/log_shares$")


@dataclass(frozen=True)
class Rule:
    """What happens to one parameter: `multiplier` scales the learning rate, `initial` what is drawn
    anew of it.

    It moves from step `since` on, and once `stage` blocks have thawed; `pull` is the strength of
    its decay to where it started. A parameter of a scanned stack may have one factor a layer more,
    `layers`, and one `since` and `stage` each.
    What is `carried` the step moves by another way than its gradient. Of a table that is `seen`
    only the rows learn that the training data have words for (see strategies/words.py).
    """

    learns: bool = True
    multiplier: float = 1.0
    decays: bool = True
    initial: float = 1.0
    layers: tuple[float, ...] = ()
    since: int | tuple[int, ...] = 0
    stage: int | tuple[int, ...] = 0
    pull: float = 0.0
    carried: bool = False
    seen: bool = False

    @property
    def fixed(self) -> bool:
        """Whether it stays as it is."""
        return not (self.learns or self.carried)


@dataclass(frozen=True)
class Strategy:
    """How a model is adapted. `a | b` is both: what either chooses learns, what either adds is
    there, and what each says of rates, times and decay holds. Of a kind that is `single` there may
    be only one."""

    single: ClassVar[bool] = False

    def __or__(self, other: Strategy) -> Both:
        return Both(left=self, right=other)

    @classmethod
    def kinds(cls) -> tuple[type[Strategy], ...]:
        """The strategies that need no more than their defaults: what `--adapt` may name."""
        return tuple(kind for kind in cls.__subclasses__() if not needed(kind))

    def parts(self) -> tuple[Strategy, ...]:
        """The strategies that this one is made of."""
        return (self,)

    def chosen(self, leaves: Leaves) -> set[str] | None:
        """Paths that learn by this strategy; None where it leaves that to others."""
        return None

    def refine(self, rules: dict[str, Rule], leaves: Leaves) -> dict[str, Rule]:
        """The rules of what was chosen, changed."""
        return rules

    def grow(self, leaves: Leaves, rules: Mapping[str, Rule], key: jax.Array) -> Flat:
        """What is added to `leaves`, whose rules are given."""
        return {}

    def redrawn(self, leaves: Leaves) -> dict[str, int]:
        """Paths whose loaded values are drawn anew: the last n along the first axis, 0 for all."""
        return {}

    def check(self, leaves: Leaves) -> None:
        """Raises ConfigError where this strategy cannot be meant for this tree."""

    @property
    def watches(self) -> bool:
        """Whether evaluations decide what learns."""
        return any(part.watches for part in self.parts() if part is not self)

    def scored(self, memory: dict[str, Any]) -> None:
        """Notes in a run's memory what its newest evaluation, in there, decides."""

    def recalled(self, memory: Mapping[str, Any]) -> dict[str, float]:
        """The leaves, by path, that a run's memory decides, and not its steps."""
        return {}

    def rules(self, leaves: Leaves) -> dict[str, Rule]:
        """One Rule for each path. Raises ConfigError for what contradicts itself."""
        kinds = [type(part) for part in self.parts()]
        for part in self.parts():
            part.check(leaves)
            if part.single and kinds.count(type(part)) > 1:
                raise ConfigError(f"adapt: {self} has {type(part).__name__} twice")
        found = combine(self.parts(), leaves)
        if not any(rule.learns for rule in found.values()):
            raise ConfigError(f"adapt: no parameter learns under {self}")
        for path, rule in found.items():
            if rule.seen and not rule.learns:
                raise ConfigError(f"adapt: {path} does not learn under {self}, so no word does")
        return found

    def growth(self, leaves: Leaves, key: jax.Array) -> Flat:
        """Every leaf that is added to a tree without any, by path; pure, so it may be jitted."""
        rules = combine(self.parts(), leaves)
        found: Flat = {}
        for number, part in enumerate(self.parts()):
            more = part.grow(leaves, rules, jax.random.fold_in(key, number))
            if twice := sorted(more.keys() & found.keys()):
                raise ConfigError(f"adapt: {self} adds {twice[0]} twice")
            found |= more
        return found


def needed(kind: type[Strategy]) -> list[str]:
    """The fields of a strategy without a default."""
    missing = dataclasses.MISSING
    found = dataclasses.fields(kind)
    return [f.name for f in found if f.default is missing and f.default_factory is missing]


@dataclass(frozen=True, kw_only=True)
class Both(Strategy):
    """Two strategies at once; made by `|`."""

    left: Strategy
    right: Strategy

    def parts(self) -> tuple[Strategy, ...]:
        return (*self.left.parts(), *self.right.parts())

    def redrawn(self, leaves: Leaves) -> dict[str, int]:
        return self.left.redrawn(leaves) | self.right.redrawn(leaves)

    def scored(self, memory: dict[str, Any]) -> None:
        for part in self.parts():
            part.scored(memory)

    def recalled(self, memory: Mapping[str, Any]) -> dict[str, float]:
        return self.left.recalled(memory) | self.right.recalled(memory)

    def __str__(self) -> str:
        return f"{self.left} | {self.right}"


def combine(parts: tuple[Strategy, ...], leaves: Leaves) -> dict[str, Rule]:
    """The rules of several strategies; where none chooses, everything learns."""
    choices = {part: choice for part in parts if (choice := part.chosen(leaves)) is not None}
    full = next((part for part in choices if isinstance(part, Full)), None)
    other = next((part for part in choices if not isinstance(part, Full)), None)
    if full and other:
        raise ConfigError(f"adapt: {full} and {other} contradict: one trains all, the other a part")
    learning = set().union(*choices.values()) if choices else set(leaves)
    found = {
        path: Rule(
            learns=path in learning and not CONSTANT.search(path),
            decays=decays(path),
            carried=bool(CARRIED.search(path)),
        )
        for path in leaves
    }
    for part in parts:
        found = part.refine(found, leaves)
    return found


def decays(path: str) -> bool:
    """Weight decay is for matrices: neither biases nor norms (Loshchilov & Hutter, 2019)."""
    return bool(re.search(r"(kernel|table|lora_[ab])$", path))


def heads(leaves: Leaves) -> set[str]:
    """What a task adds to its trunk; the trunk's pooler belongs to it."""
    return {path for path in leaves if not TRUNK.match(path)}


def key_of(key: jax.Array, path: str) -> jax.Array:
    """A key of a path's own, whatever else is drawn."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def found_in(pattern: str, path: str) -> bool:
    """Whether a regular expression is found in a path. Raises ConfigError where it is none."""
    try:
        return bool(re.search(pattern, path))
    except re.error as error:
        raise ConfigError(f"adapt: {pattern!r} is no regular expression: {error}") from None


def matched(patterns: tuple[str, ...], paths: list[str], what: str) -> list[str]:
    """The paths in which some pattern is found. Raises ConfigError for a pattern found in none."""
    for pattern in patterns:
        if not any(found_in(pattern, path) for path in paths):
            raise ConfigError(f"adapt: {pattern!r} matches no {what}")
    return [path for path in paths if any(found_in(pattern, path) for pattern in patterns)]


@dataclass(frozen=True, kw_only=True)
class Full(Strategy):
    """Every parameter learns."""

    def chosen(self, leaves: Leaves) -> set[str]:
        return set(leaves)


@dataclass(frozen=True, kw_only=True)
class HeadOnly(Strategy):
    """The trunk stays as it was loaded; what the task adds to it learns."""

    def chosen(self, leaves: Leaves) -> set[str]:
        return heads(leaves)
