"""Where arrays live: the mesh, one table from parameter path to axes, batches on their devices.

Axes: `data` replicates parameters, `fsdp` shards them and their optimizer state (Zhao et al.,
2023), `tensor` splits matrix products (Shoeybi et al., 2019). A batch's rows are spread over
data x fsdp, and the tokens of each row over `sequence`: long rows are held in parts, and attention
gathers the keys and values of whole rows (context parallelism as in Llama 3; Llama Team, 2024).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research import hosts
from research.errors import ConfigError

ROWS = ("data", "fsdp")
# Arrays [B, M], also where a row has as many examples as tokens.
SLOTS = ("ids", "starts", "lengths", "labels", "weights", "domains")

# The first pattern found in the path decides. Axes are those of the last dimensions, so that a
# scanned stack, which has one more in front, needs no rule of its own.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Optimizer state that has not its parameter's axes: Adafactor's rows and columns are vectors.
    (r"(^|/)(v_row|v_col)/|(^|/)ns_coeffs$|^words$", ()),
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
    (r"(bias|scale)$|backbone/unknown$|attention/kinds$|/log_shares$", ()),
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
    sequence: int = 1
    tensor: int = 1

    def build(self, devices: list[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (all by default). Raises ConfigError where they do not fit."""
        devices = jax.devices() if devices is None else devices
        sizes = {name: getattr(self, name) for name in ("data", "fsdp", "sequence", "tensor")}
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


def platform() -> str:
    """What the mesh in force is made of, or else JAX's default: "cpu", "gpu" or "tpu"."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    name: str = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


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
    where, count = places(batch, mesh), share(mesh).count
    return {
        name: jax.ShapeDtypeStruct(
            (count * x.shape[0], *x.shape[1:]), x.dtype, sharding=where[name]
        )
        for name, x in batch.items()
    }


@dataclass(frozen=True)
class Share:
    """Which of `count` equal shares of a batch's rows lies on a process's devices, and whether it
    is the process to be asked about them: those of a tensor axis hold the same."""

    index: int
    count: int
    asked: bool


@functools.lru_cache(maxsize=8)
def share(mesh: Mesh) -> Share:
    """This process's. Raises ConfigError where the mesh gives unequal shares to processes."""
    if hosts.alone():
        return Share(0, 1, True)
    shards = row_shards(mesh)
    held: dict[int, set[int]] = {}
    where: Any = NamedSharding(mesh, PartitionSpec(ROWS)).devices_indices_map((shards,))
    for device, (rows,) in where.items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(shards)))
    me = jax.process_index()
    found = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({len(rows) for rows in found}) > 1 or sum(map(len, found)) != shards or me not in held:
        raise ConfigError(f"mesh {dict(mesh.shape)}: its rows are no equal shares of the processes")
    asked = min(process for process, rows in held.items() if rows == held[me]) == me
    return Share(found.index(tuple(sorted(held[me]))), len(found), asked)


def put(
    batch: Mapping[str, np.ndarray], mesh: Mesh, *, whole: bool = False
) -> dict[str, jax.Array]:
    """This process's rows of a batch, or those of the `whole` of it that are this process's, as
    global arrays spread over the mesh."""
    where, count = places(batch, mesh), 1 if whole else share(mesh).count
    return {
        name: jax.make_array_from_process_local_data(
            where[name], x, (count * x.shape[0], *x.shape[1:])
        )
        for name, x in batch.items()
    }


def places(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, NamedSharding]:
    """Where the arrays of a batch lie: [B, T, ...] over rows and `sequence`, [B, M] over rows.

    Raises ConfigError for rows that cannot be cut into as many parts.
    """
    parts, shape = mesh.shape.get("sequence", 1), batch["tokens"].shape
    if shape[1] % parts:
        raise ConfigError(
            f"mesh.sequence is {parts}, which does not divide rows of {shape[1]} tokens"
        )
    whole = {name: x.shape[:2] != shape or name in SLOTS for name, x in batch.items()}
    tokens = PartitionSpec(ROWS, "sequence") if parts > 1 else PartitionSpec(ROWS)
    return {
        name: NamedSharding(mesh, PartitionSpec(ROWS) if whole[name] else tokens) for name in batch
    }


def sizes(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Any:
    """[examples, tokens, cells] int32 of the batch that the processes have; not waited for."""
    found = [(batch["ids"] >= 0).sum(), batch["lengths"].sum(), batch["tokens"].size]
    return hosts.add_up(np.array(found, np.int32) * share(mesh).asked)
