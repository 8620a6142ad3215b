"""What a config's step is made of: shapes, shardings, a program, and how its state begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from research import initialize
from research.adapt import Strategy
from research.config import Config
from research.optim import Optim
from research.step import Program, TrainState, abstract_state, make_step
from research.strategies.words import SeenWords


@dataclass(frozen=True)
class Assembly:
    """`params` and `state` are trees of ShapeDtypeStruct with shardings; nothing is computed yet.

    `create` makes the state of the first step from parameters, which it may overwrite. `words` are
    the ids of those that alone learn, where some do (see strategies/words.py).
    """

    config: Config
    rows: Any
    params: Any
    state: Any
    create: Callable[..., TrainState]
    program: Program
    words: np.ndarray | None

    def begin(self, report: Callable[[str], None] = lambda said: None) -> TrainState:
        """The state before the first step, drawn or read from `init_from`, of which it reports."""
        given = initialize.starting_params(self.config, self.params, self.rows, report)
        return self.create(given, words=self.words)


def assemble(
    config: Config, rows: Any, mesh: Mesh, seen: Callable[[], Any] | None = None
) -> Assembly:
    """The step of a resolved config for batches of the shapes of `rows`, of data that have the
    words `seen`."""
    words = seen() if seen and any(isinstance(p, SeenWords) for p in config.adapt.parts()) else None
    kind = (config.task, config.optim, config.adapt, config.steps or 0, config.microbatches)
    count = None if words is None else len(words)
    made = parts(*kind, initialize.shapes_of(rows), mesh, count)
    return Assembly(config, rows, *made, words)


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
    words: int | None,
) -> tuple[Any, Any, Callable[..., TrainState], Program]:
    """The fields of an Assembly from `params` to `program`."""
    params = initialize.abstract_params(task, dict(rows), mesh, adapt)
    state, create = abstract_state(optim, adapt, steps, params, mesh, words)
    return params, state, create, make_step(task, optim, adapt, steps, microbatches)
