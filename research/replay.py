"""The bundle a run leaves that ends with exit 3: a state and the batch that it cannot take."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from research import config as configs
from research import hosts, runs, sharding
from research.assemble import assemble
from research.checkpoint import Checkpoints, load_tree
from research.config import Config
from research.errors import ConfigError, NonFiniteError
from research.sharding import MeshSpec


def give_up(
    directory: Path, state: Any, batch: dict[str, jax.Array], step: int, tries: int
) -> NoReturn:
    """Keeps the state in which `step` was tried, and its batch, and raises NonFiniteError."""
    bundle = directory / "replay"
    checkpoints = Checkpoints(bundle / "checkpoints")
    before = state.replace(step=jax.device_put(np.int32(step), state.step.sharding))
    checkpoints.save(step, before, {}, wait=True)
    checkpoints.close()
    rows = {name: hosts.whole(x) for name, x in batch.items()}
    if hosts.first():
        save_file(rows, bundle / "batch.safetensors")
    raise NonFiniteError(
        f"{directory}: loss or gradient was not finite in {tries} steps in a row, up to step "
        f"{step + 1}; {bundle} replays the last of them"
    )


def replay(run: str | Path) -> dict[str, float]:
    """Takes the step again that the run could not take; returns its means.

    Raises ConfigError where the run has no bundle.
    """
    bundle = Path(run) / "replay"
    if not (bundle / "batch.safetensors").is_file():
        raise ConfigError(f"{run}: has no replay bundle; only a run that ended with exit 3 has one")
    config: Config = configs.build(runs.read_config(run)["config"])
    batch = load_file(bundle / "batch.safetensors")
    mesh = mesh_for(config, len(batch["tokens"]))
    with jax.set_mesh(mesh):
        saved = bundle / "checkpoints"
        assembly = assemble(config, batch, mesh, lambda: load_tree(saved, "words"))
        restored = Checkpoints(saved).restore(assembly.state)
        if restored is None:
            raise ConfigError(f"{bundle}: the checkpoint in it is damaged")
        key = jax.random.key(config.seed)
        _, means = assembly.program(restored.state, sharding.put(batch, mesh), key)
    return {name: float(mean.value) for name, mean in jax.device_get(means).items()}


def mesh_for(config: Config, rows: int) -> Mesh:
    """The run's mesh; on other devices than the run's, as many of them as the rows of its batch can
    be spread over. A step is the same on any mesh."""
    pieces = rows // config.microbatches
    with contextlib.suppress(ConfigError):
        mesh = config.mesh.build()
        if pieces % sharding.row_shards(mesh) == 0:
            return mesh
    devices = jax.devices()
    return MeshSpec().build(devices[: math.gcd(pieces, len(devices))])
