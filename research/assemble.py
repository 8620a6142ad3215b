"""What a config's step is made of: shapes, shardings, a program, and how its state begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from research import initialize
from research.config import Config
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
    steps = config.steps or 0
    params = initialize.abstract_params(config.task, rows, mesh, config.adapt)
    state, create = abstract_state(config.optim, config.adapt, steps, params, mesh)
    program = make_step(config.task, config.optim, config.adapt, steps, config.microbatches)
    return Assembly(config, rows, params, state, create, program)
