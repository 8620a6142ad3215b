"""Strategies that only choose among the parameters that are there: Frozen and BitFit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from research.adapt import Leaves, Rule, Strategy, found_in, heads, matched


@dataclass(frozen=True)
class Frozen(Strategy):
    """What any of these regular expressions is found in does not learn; the rest is left as others
    have it. `Frozen(("embed", r"block_[0-3]/"))` trains the upper blocks alone."""

    patterns: tuple[str, ...]

    def check(self, leaves: Leaves) -> None:
        matched(self.patterns, list(leaves), "parameter")

    def refine(self, rules: dict[str, Rule], leaves: Leaves) -> dict[str, Rule]:
        return {
            path: dataclasses.replace(rule, learns=False)
            if any(found_in(pattern, path) for pattern in self.patterns)
            else rule
            for path, rule in rules.items()
        }


@dataclass(frozen=True, kw_only=True)
class BitFit(Strategy):
    """Of the trunk only the biases learn (Ben Zaken et al., 2022)."""

    def chosen(self, leaves: Leaves) -> set[str]:
        return heads(leaves) | {path for path in leaves if path.endswith("bias")}
