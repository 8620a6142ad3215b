"""Learning rates found on a narrow trunk that serve a wide one (Yang et al., 2022)."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from research.adapt import Leaves, Rule, Strategy
from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Mup(Strategy):
    """Maximal update parametrisation for Adam's relatives.

    With r = `base_width` / width, hidden kernels learn at r of the learning rate, and so does all
    that makes logits, tables and heads' kernels, which start smaller: so logits neither start nor
    move further in a wider trunk. It is the form without multipliers in the model (the paper's
    table 3); a table is also what words enter by, but there the norm after the embeddings undoes
    its scale, so that `embed_norm` is needed, with an epsilon far below width^-2. Norms and biases
    learn as given. Widen by more heads, not wider ones, and keep `hidden` in proportion. At
    `base_width` it changes nothing.
    """

    base_width: int = 128

    def check(self, leaves: Leaves) -> None:
        width_of(leaves)

    def refine(self, rules: dict[str, Rule], leaves: Leaves) -> dict[str, Rule]:
        ratio = self.base_width / width_of(leaves)
        return {path: self.rule(path, rule, ratio) for path, rule in rules.items()}

    def rule(self, path: str, rule: Rule, ratio: float) -> Rule:
        """The Rule of one path, which was `rule`."""
        if not path.endswith(("table", "kernel")):
            return rule
        if path.endswith("table"):
            # Vectors of unit length: each of D elements is D^-1/2, and is to be D^-1.
            initial = ratio**0.5
        else:
            initial = 1.0 if re.search(r"(^|/)backbone/", path) else ratio
        return dataclasses.replace(rule, multiplier=rule.multiplier * ratio, initial=initial)


def width_of(leaves: Leaves) -> int:
    """The width of the trunk of which these are the leaves. Raises ConfigError for one without."""
    for path, leaf in leaves.items():
        if re.search(r"(^|/)backbone/.*attention/query/kernel$", path):
            return int(leaf.shape[-2])
    raise ConfigError("adapt: Mup needs a trunk with attention, whose width it reads")
