"""What a config's step is made of: shapes, shardings, a program, and how its state begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import linen as nn
from jax.sharding import Mesh

from research import initialize
from research.adapt import Strategy
from research.config import Config
from research.optim import Optim
from research.step import Program, TrainState, abstract_state, make_step


@dataclass(frozen=True)
class Assembly:
    """`params` and `state` are trees of ShapeDtypeStruct with shardings; nothing is computed yet.

    `create` makes the state of the first step from parameters, which it may overwrite.
    """

    config: Config
    rows: Any
    params: Any
    state: Any
    create: Callable[[Any], TrainState]
    program: Program

    def begin(self, report: Callable[[str], None] = lambda said: None) -> TrainState:
        """The state before the first step, drawn or read from `init_from`, of which it reports."""
        given = initialize.starting_params(self.config, self.params, self.rows, report)
        return self.create(given)


def assemble(config: Config, rows: Any, mesh: Mesh) -> Assembly:
    """The step of a resolved config for batches of the shapes of `rows`."""
    kind = (config.task, config.optim, config.adapt, config.steps or 0, config.microbatches)
    return Assembly(config, rows, *parts(*kind, initialize.shapes_of(rows), mesh))


# The runs of an arm differ in seed and data alone: nothing is traced or compiled for a second one.
@functools.lru_cache(maxsize=32)
def parts(
    task: nn.Module,
    optim: Optim,
    adapt: Strategy,
    steps: int,
    microbatches: int,
    rows: initialize.Shapes,
    mesh: Mesh,
) -> tuple[Any, Any, Callable[[Any], TrainState], Program]:
    """The fields of an Assembly from `params` on."""
    params = initialize.abstract_params(task, dict(rows), mesh, adapt)
    state, create = abstract_state(optim, adapt, steps, params, mesh)
    return params, state, create, make_step(task, optim, adapt, steps, microbatches)
