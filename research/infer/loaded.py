"""A finished run, read back: its config, its task and its best parameters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from research import average, manifest, runs
from research.config import Config, build
from research.errors import ConfigError
from research.evaluate import Model, served, served_params


@dataclass(frozen=True)
class Loaded:
    """What a run directory holds. The tokenizer is the run's own copy, and the task has what its
    evaluators tuned."""

    path: Path
    config: Config
    params: Any

    @property
    def task(self) -> nn.Module:
        """The resolved task."""
        return self.config.task

    def model(self) -> Model:
        """The model on this process's devices."""
        mesh = dataclasses.replace(self.config.mesh, data=-1).build()
        return Model(self.task, jax.device_put(self.params), self.config.data, mesh)


def load(path: str | Path) -> Loaded:
    """A run's best checkpoint, or its newest where nothing was tracked.

    Raises ConfigError where `path` is no run or has no checkpoint.
    """
    path = Path(path)
    config = build(runs.read_config(path)["config"])
    directory = path / "checkpoints"
    step = manifest.best(directory) or manifest.latest(directory)
    if step is None:
        raise ConfigError(f"{path}: has no checkpoint yet")
    params = served_params(config.task, average.load(directory, step))
    config = dataclasses.replace(config, task=served(config.task))
    if getattr(config.data, "tokenizer", None) is not None:
        data = dataclasses.replace(config.data, tokenizer=str(path / "tokenizer"))
        config = dataclasses.replace(config, data=data)
    details = (runs.read_result(path) or {}).get("details", {})
    for found in details.values():
        config = dataclasses.replace(
            config, task=config.task.clone(**build(found.get("tuned", {})))
        )
    return Loaded(path, config, jax.tree.map(np.asarray, params))
