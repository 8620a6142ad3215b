"""Where arrays live: the mesh, one table from parameter path to axes, batches on their devices.

Axes: `data` replicates parameters, `fsdp` shards them and their optimizer state (Zhao et al.,
2023), `tensor` splits matrix products (Shoeybi et al., 2019). A batch's rows are spread over
data x fsdp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.errors import ConfigError

ROWS = ("data", "fsdp")

# The first pattern found in the path decides. Axes are those of the last dimensions, so that a
# scanned stack, which has one more in front, needs no rule of its own.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Optimizer state that has not its parameter's axes: Adafactor's rows and columns are vectors.
    (r"(^|/)(v_row|v_col)/|(^|/)ns_coeffs$", ()),
    # What strategies add is small.
    (r"/(lora_|ia3_|prefix_|prompt$|\w+_adapter/)", ()),
    # Few rows: to split them would cost a sum of activations over `tensor`.
    (r"(embed_positions|embed_types)/table$", (None, "fsdp")),
    (r"(embed|unembed)/table$", ("tensor", "fsdp")),
    (r"attention/(query|key|value|relative)/kernel$", ("fsdp", "tensor")),
    (r"mlp/(up|gate)/kernel$", ("fsdp", "tensor")),
    (r"(attention/out|mlp/down)/kernel$", ("tensor", "fsdp")),
    (r"(attention/(query|key|value)|mlp/(up|gate))/bias$", ("tensor",)),
    (r"backbone/(pooler|embed_project|hidden)/kernel$", ("fsdp", "tensor")),
    (r"(bias|scale)$|backbone/unknown$|attention/kinds$", ()),
    # A recurrent trunk meets its kernels once a token: gathering them each time would cost more.
    (r"block_\d+/(input/|hidden_)kernel$|characters/(letters/table|filters/kernel)$", ()),
    # What a task adds to its trunk is small: only its input side is sharded.
    (r"^(?!.*backbone/).*(kernel|table)$", ("fsdp", None)),
)


@dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """How many devices along each axis; one of them may be -1, which takes the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def build(self, devices: list[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (all by default). Raises ConfigError where they do not fit."""
        devices = jax.devices() if devices is None else devices
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        open_axes = [name for name, size in sizes.items() if size == -1]
        fixed = int(np.prod([size for size in sizes.values() if size != -1]))
        if len(open_axes) > 1 or fixed < 1 or any(size < -1 for size in sizes.values()):
            raise ConfigError(f"mesh {sizes}: sizes are positive, and at most one axis is -1")
        for name in open_axes:
            sizes[name] = len(devices) // fixed
        if int(np.prod(list(sizes.values()))) != len(devices):
            raise ConfigError(f"mesh {sizes} does not fit {len(devices)} devices")
        return jax.make_mesh(
            tuple(sizes.values()),
            tuple(sizes),
            axis_types=(AxisType.Auto,) * len(sizes),
            devices=devices,
        )


def spread(mesh: Mesh, replicates: int) -> Mesh:
    """The same devices with an axis `replicate` in front, taken from `data`: as many of them as
    divide both. Replicates have nothing to tell each other, the rows of a batch have gradients."""
    count = math.gcd(replicates, mesh.shape["data"])
    devices = mesh.devices.reshape(count, mesh.shape["data"] // count, *mesh.devices.shape[1:])
    names = ("replicate", *mesh.axis_names)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def row_shards(mesh: Any) -> int:
    """Over how many shards a batch's rows are spread."""
    return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def batch_shards(rows: int) -> int:
    """The same of the mesh in force (`jax.set_mesh`); 1 without, or where `rows` do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else row_shards(mesh)
    return shards if rows % shards == 0 else 1


def constrain_rows(x: jax.Array) -> jax.Array:
    """Keeps axis 0 of `x` spread over the rows' axes, and whole otherwise."""
    if jax.sharding.get_abstract_mesh().empty or batch_shards(x.shape[0]) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))


def constrain_width(x: jax.Array) -> jax.Array:
    """Spreads the last axis of `x`, [B, ..., D], over `fsdp`, and its rows over `data` alone.

    So the rows of a table that is spread likewise are found, and their gradients added up, where
    they lie: [B, ..., D] moves between devices, and the table [V, D] never does.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1 or x.ndim < 2 or x.shape[-1] % mesh.shape["fsdp"]:
        return x
    rows = "data" if x.shape[0] % row_shards(mesh) == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, *(None,) * (x.ndim - 2), "fsdp"))


def copies(x: jax.Array) -> jax.Array | None:
    """x [B, ...] once for each shard of `tensor`, [S, B, ...]; None where there is one shard.

    Products that read their own shard's copy have gradients that are added up on the shard, so that
    shards meet once however many products there are (`f` of Shoeybi et al., 2019).
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["tensor"]
    if shards == 1:
        return None
    rows = ROWS if batch_shards(x.shape[0]) > 1 else None
    many = jax.numpy.broadcast_to(x[None], (shards, *x.shape))
    return jax.lax.with_sharding_constraint(many, PartitionSpec("tensor", rows))


def platform() -> str:
    """What the mesh in force is made of ("cpu", "gpu", "tpu"), and JAX's own choice without one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as "backbone/block_0/mlp/up/kernel"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def partition(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The axes of one parameter (or of its optimizer state, whose path ends in the parameter's).

    An axis that does not divide its dimension is left out. Raises ConfigError where no rule fits.
    """
    if not shape:
        return PartitionSpec()
    # A copy of where a parameter started lies where the parameter does.
    place = path.removesuffix("_start")
    axes = next((axes for pattern, axes in RULES if re.search(pattern, place)), None)
    if axes is None:
        raise ConfigError(
            f"no sharding rule for parameter {path} {shape}; add one to research/sharding.py"
        )
    axes = (None,) * (len(shape) - len(axes)) + axes
    return PartitionSpec(
        *(
            axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape)
        )
    )


def shard(tree: Any, mesh: Mesh) -> Any:
    """The same tree of ShapeDtypeStruct, each with the sharding that its path asks for."""

    def one(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        spec = partition(path_name(path), leaf.shape, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(one, tree)


def abstract_rows(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Shapes, dtypes and shardings of what `put` makes of a batch."""
    where, hosts = NamedSharding(mesh, PartitionSpec(ROWS)), jax.process_count()
    return {
        name: jax.ShapeDtypeStruct((hosts * x.shape[0], *x.shape[1:]), x.dtype, sharding=where)
        for name, x in batch.items()
    }


def put(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch, as global arrays spread over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
