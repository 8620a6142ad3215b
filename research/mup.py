"""Learning rates found on a narrow trunk that serve a wide one (Yang et al., 2022)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from research.adapt import Rule, decays
from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Mup:
    """Maximal update parametrisation for Adam's relatives: every parameter learns.

    With r = `base_width` / width, hidden kernels learn at r of the learning rate, and so does all
    that makes logits, tables and heads' kernels, which start smaller: so logits neither start nor
    move further in a wider trunk. It is the form without multipliers in the model (the paper's
    table 3); a table is also what words enter by, but there the norm after the embeddings undoes
    its scale, so that `embed_norm` is needed, with an epsilon far below width^-2. Norms and biases
    learn as given. Widen by more heads,
    not wider ones, and keep `hidden` in proportion. At `base_width` it is `Full`.
    """

    base_width: int = 128

    def rules(self, paths: Iterable[str]) -> dict[str, Rule]:
        """One Rule a path; `paths` has shapes too. Raises ConfigError where they tell no width."""
        ratio = self.base_width / width_of(paths)
        return {path: self.rule(path, ratio) for path in paths}

    def rule(self, path: str, ratio: float) -> Rule:
        """The Rule of one path."""
        if path.endswith("table"):
            # Vectors of unit length: each of D elements is D^-1/2, and is to be D^-1.
            return Rule(multiplier=ratio, decays=decays(path), initial=ratio**0.5)
        if path.endswith("kernel"):
            output = not re.search(r"(^|/)backbone/", path)
            return Rule(multiplier=ratio, decays=decays(path), initial=ratio if output else 1.0)
        return Rule(decays=decays(path))


def width_of(shapes: Any) -> int:
    """The width of the trunk whose parameters these are, {path: array or its shape}."""
    if isinstance(shapes, Mapping):
        for path, leaf in shapes.items():
            if re.search(r"(^|/)backbone/.*attention/query/kernel$", path):
                return int(leaf.shape[-2])
    raise ConfigError("adapt: Mup needs a trunk with attention, whose width it reads")
