"""The least that chips have to send in one step, by the mode of the mesh.

Data: gradients of what learns are summed everywhere. Fsdp: parameters are gathered for the forward
pass, again for the backward pass where blocks are computed anew, and each chip gets the sum of its
share of the gradients. Tensor: activations are summed after attention and MLP, forward and backward
(Shoeybi et al., 2019), and once more where blocks are computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research import sharding
from research.scale.collectives import KINDS


@dataclass(frozen=True)
class Work:
    """What of a step decides what is sent.

    `parameters`: path -> (shape, whether it learns). `spec` is the trunk's; `rows` are those of a
    batch on each chip that has rows of its own, of `tokens` tokens; of these the share `scored`
    meets the vocabulary. `itemsize` is that of products, in bytes: kernels are gathered and their
    gradients summed in it, vectors in 4.
    """

    parameters: Mapping[str, tuple[tuple[int, ...], bool]]
    spec: Any
    rows: float
    tokens: int
    scored: float
    itemsize: int
    microbatches: int = 1

    @property
    def vectors(self) -> float:
        """Bytes of the residual stream on a chip."""
        return self.rows * self.tokens * self.spec.width * self.itemsize

    def gathers(self, path: str) -> int:
        """How often a step gathers a parameter that is spread: a table only to score words."""
        if path.endswith("/table"):
            words = "embed" if self.spec.tied else "unembed"
            return int(self.scored > 0 and path.endswith(f"/{words}/table"))
        return 1 + int(self.spec.remat and "/block" in path)


def minimum(work: Work, mesh: Any) -> dict[str, float]:
    """Bytes that a chip sends a step, of every kind, by a ring's algorithm."""
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    found = dict.fromkeys(KINDS, 0.0)
    split_words = False
    for path, (shape, learns) in work.parameters.items():
        axes = set(sharding.partition(path, shape, mesh))
        width = work.itemsize if path.endswith(("kernel", "table")) else 4
        size = math.prod(shape) / (tensor if "tensor" in axes else 1)
        if "fsdp" in axes:
            gathers = work.gathers(path) * work.microbatches
            found["all-gather"] += gathers * size * work.itemsize * share(fsdp)
            size = size if learns else 0.0
            if path.endswith("/embed/table"):
                # The vectors go to the tokens, and their gradients back to where the table is.
                found["all-to-all"] += (1 + learns) * work.vectors * share(fsdp)
            if gathers or not path.endswith("/embed/table"):
                found["reduce-scatter"] += size * width * share(fsdp)
            found["all-reduce"] += 2 * size / fsdp * width * share(data)
        elif learns:
            found["all-reduce"] += 2 * size * width * share(data * fsdp)
        split_words |= path.endswith("/embed/table") and "tensor" in axes
    times = work.spec.depth * (5 if work.spec.remat else 4)
    if split_words:
        times += 1 + work.scored
    found["all-reduce"] += 2 * times * work.vectors * share(tensor)
    return found


def share(chips: int) -> float:
    """Of an array that `chips` chips hold together, the part that is not a chip's own."""
    return (chips - 1) / chips
