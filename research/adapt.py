"""Strategies: which parameters learn, and how, told path by path.

A strategy is a value: `rules` maps every parameter path to a Rule. What does not learn costs
neither gradient nor optimizer state: the trainer differentiates by the learning part alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax

Flat = dict[str, jax.Array]


@dataclass(frozen=True)
class Rule:
    """What happens to one parameter: `multiplier` scales the learning rate, `initial` what is drawn
    anew of it."""

    learns: bool = True
    multiplier: float = 1.0
    decays: bool = True
    initial: float = 1.0


class Strategy(Protocol):
    """How a model is adapted."""

    def __hash__(self) -> int:
        """Equal strategies share their compiled step."""

    def rules(self, paths: Iterable[str]) -> Mapping[str, Rule]:
        """One Rule for each parameter path."""


def decays(path: str) -> bool:
    """Weight decay is for matrices: neither biases nor norms (Loshchilov & Hutter, 2019)."""
    return bool(re.search(r"(kernel|table)$", path))


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every parameter learns."""

    def rules(self, paths: Iterable[str]) -> dict[str, Rule]:
        """Learning rate as given, everywhere."""
        return {path: Rule(decays=decays(path)) for path in paths}


@dataclass(frozen=True, kw_only=True)
class HeadOnly:
    """The trunk stays as it was loaded; what the task adds to it learns."""

    def rules(self, paths: Iterable[str]) -> dict[str, Rule]:
        """Nothing under `backbone/` learns, but its pooler does: it belongs to the head."""
        frozen = re.compile(r"^backbone/(?!pooler/)")
        return {path: Rule(learns=not frozen.match(path), decays=decays(path)) for path in paths}
