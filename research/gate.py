"""The gate before products in eight bits: their losses must be those of bfloat16.

A run that asks for float8 anywhere first takes its own first steps both ways, from one start and on
one order of batches. It begins only where the two agree.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from research import sharding
from research.assemble import Assembly, assemble
from research.config import Config, build, describe
from research.errors import ConfigError

EIGHT, SIXTEEN = "float8", "bfloat16"
# Steps that are taken both ways; the losses of the second half are compared.
STEPS = 32


def widened(described: Any) -> Any:
    """A described config whose dtypes of eight bits are of sixteen."""
    if isinstance(described, dict):
        return {
            name: SIXTEEN if name == "dtype" and value == EIGHT else widened(value)
            for name, value in described.items()
        }
    return [widened(value) for value in described] if isinstance(described, list) else described


def losses(assembly: Assembly, batches: Any, mesh: Mesh, key: jax.Array, steps: int) -> np.ndarray:
    """The losses of the first steps, float64 [steps]; the state they lead to is let go."""
    state, found = assembly.begin(), []
    for step in range(steps):
        batch = sharding.put(batches.batch(step), mesh)
        state, means = assembly.program(state, batch, key)
        found.append(float(jax.device_get(means["loss"]).value))
    return np.asarray(found)


def check(assembly: Assembly, batches: Any, mesh: Mesh, key: jax.Array) -> str | None:
    """What the gate saw, in a sentence; None for a run without products in eight bits.

    Raises ConfigError where the mean losses differ by more than `float8_tolerance` of bfloat16's,
    or either is not finite.
    """
    config = assembly.config
    described = describe(config)
    wider = widened(described)
    if wider == described:
        return None
    steps = min(STEPS, config.steps or 0)
    other: Config = build(wider)
    of_eight, of_sixteen = (
        losses(one, batches, mesh, key, steps)[steps // 2 :].mean()
        for one in (assembly, assemble(other, assembly.rows, mesh, lambda: assembly.words))
    )
    apart = abs(of_eight - of_sixteen) / abs(of_sixteen)
    seen = (
        f"float8: over steps {steps // 2 + 1} to {steps} the mean loss is {of_eight:.4g}, "
        f"{of_sixteen:.4g} in bfloat16"
    )
    if not apart <= config.float8_tolerance:
        raise ConfigError(
            f"{seen}: more than float8_tolerance, {config.float8_tolerance:g}, apart; "
            f"take dtype bfloat16"
        )
    return f"{seen}: {apart:.2%} apart"
