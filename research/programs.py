"""Compiled programs: each is compiled once a batch shape, ahead of its first call, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


class Program:
    """A jitted function of (state, batch, key) with an executable for every shape of batch.

    `seconds` is the time spent tracing and compiling, `len(program.executables)` the compile count.
    """

    def __init__(self, function: Callable[..., Any], *, donate: bool = False) -> None:
        self.function, self.donate = function, donate
        self.executables: dict[Any, jax.stages.Compiled] = {}
        self.seconds = 0.0

    def __call__(self, state: Any, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        return self.compiled(state, batch, key)(state, batch, key)

    def compiled(self, state: Any, batch: Any, key: Any) -> jax.stages.Compiled:
        """The executable for arguments of these shapes; arrays or ShapeDtypeStructs."""
        shapes = tuple(sorted((name, tuple(x.shape)) for name, x in batch.items()))
        leaves, structure = jax.tree.flatten(state)
        # Tasks that are equal may have trees that are not: with and without LoRA, of any rank.
        layout = (structure, leaves[0].sharding, tuple(x.shape for x in leaves))
        if (shapes, layout) not in self.executables:
            started = time.monotonic()
            jitted = jax.jit(self.function)
            if self.donate:
                # The new state takes the place of the old: left to itself, XLA may shard it anew.
                same = jax.tree.map(lambda leaf: leaf.sharding, state)
                jitted = jax.jit(self.function, donate_argnums=0, out_shardings=(same, None))
            self.executables[shapes, layout] = jitted.lower(state, batch, key).compile()
            self.seconds += time.monotonic() - started
        return self.executables[shapes, layout]

    def flops(self) -> float:
        """Floating-point operations of the costliest executable, as XLA counts them."""
        costs = [executable.cost_analysis() for executable in self.executables.values()]
        return max((cost.get("flops", 0.0) for cost in costs if cost), default=0.0)
