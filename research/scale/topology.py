"""Devices that are not here, for a compiler to compile for."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax

from research.errors import ConfigError
from research.scale.chips import Chip


def devices(chip: Chip, count: int) -> list[Any]:
    """`count` chips in a slice, or devices of the CPU.

    Raises ConfigError where libtpu is missing, knows no such slice, or JAX has begun with fewer
    devices of the CPU.
    """
    if not chip.libtpu:
        found = jax.devices("cpu")
        if len(found) < count:
            raise ConfigError(f"--topology {chip.name}-{count}: JAX has {len(found)} CPU devices")
        return found[:count]
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology {chip.name}-{count}: compiling for a TPU needs libtpu: "
            f"pip install 'graft-lab[tpu]'"
        )
    from jax.experimental import topologies

    # Off a TPU, libtpu asks a server that is not there what machine it is on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    shape = "x".join(str(side) for side in sides(count, chip.dimensions))
    try:
        return list(topologies.get_topology_desc(f"{chip.libtpu}:{shape}", "tpu").devices)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--topology {chip.name}-{count}: libtpu gives no slice {shape} of {chip.name}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def sides(count: int, dimensions: int) -> tuple[int, ...]:
    """The most even sides of a slice, ascending: 256 in 2 is (16, 16), 32 in 3 is (2, 4, 4)."""
    if dimensions == 1:
        return (count,)
    side = next(s for s in range(round(count ** (1 / dimensions) + 1e-9), 0, -1) if count % s == 0)
    return tuple(sorted((side, *sides(count // side, dimensions - 1))))
