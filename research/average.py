"""The average of a run's parameters over its steps, which is evaluated in their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from research.adapt import Flat
from research.checkpoint import load_tree, whole


@flax.struct.dataclass
class Average:
    """The average of what learns, {path: array}, and the number of steps it is over."""

    count: jax.Array
    params: Flat


def start(learning: Flat) -> Average:
    """Before the first step: the parameters themselves, which the first step forgets."""
    return Average(jnp.zeros((), jnp.int32), {path: jnp.copy(x) for path, x in learning.items()})


def follow(average: Average | None, learned: Flat, decay: float, finite: jax.Array) -> Average:
    """The average after one more step; a step that is not `finite` leaves it as it was.

    Of the t parameters so far the i-th weighs decay^(t - i), and the weights are divided by their
    sum: where the run started from weighs nothing, as in Adam's bias correction.
    """
    assert average is not None
    count = average.count + jnp.asarray(finite, jnp.int32)
    kept = jnp.float32(decay)
    share = (1 - kept) / (1 - kept ** count.astype(jnp.float32))
    params = {
        path: jnp.where(finite, old + share * (learned[path] - old), old)
        for path, old in average.params.items()
    }
    return Average(count, params)


def merged(params: Any, average: Mapping[str, Any]) -> Any:
    """Nested parameters with those of the flat dict `average` in their places."""
    return unflatten_dict(flatten_dict(params, sep="/") | dict(average), sep="/")


def load(directory: str | Path, step: int | None) -> dict[str, Any]:
    """What a checkpoint says the model is: its parameters, or their average where it holds one.

    Nested dicts of numpy arrays. `step` None is the newest that verifies. Raises as `load_tree`.
    """
    folder, tree = whole(Path(directory).absolute(), step)
    params = load_tree(directory, "params", int(folder.name))
    if not any(path.startswith("ema/params/") for path in tree):
        return params
    average = load_tree(directory, "ema/params", int(folder.name))
    return merged(params, flatten_dict(average, sep="/"))
