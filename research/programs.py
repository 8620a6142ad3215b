"""Compiled programs: each is compiled once a shape, ahead of its first call, and counted."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from research import hosts, sharding
from research.scale import flops

# What large temporaries are, in MB.
LARGE_MB = 256.0
# glibc's M_MMAP_THRESHOLD and M_MMAP_MAX: the largest size it lets blocks be mapped from, which it
# comes to by itself where large ones are given back, and how many it maps by itself.
MAPPING = ((-3, 2**25), (-4, 65536))

# What compilers are asked for. Of parameters that are spread over a torus, a TPU's makes gathers
# that stand still into sums of arrays which are zero but for a chip's own share, of twice the bytes
# (pytorch/xla#6528); those that run beside products stay gathers. And products in windows, which it
# makes of gathers on few chips, would send their sums in float32.
OPTIONS: dict[str, dict[str, bool | int]] = {
    "tpu": {
        "xla_enable_async_all_gather": True,
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_tpu_prefer_async_allgather_to_allreduce": True,
    }
}


class Program:
    """A jitted function of (state, batch, key) with an executable for every shape of the two.

    `seconds` is the time spent tracing and compiling, `len(program.executables)` the compile count.
    """

    def __init__(self, function: Callable[..., Any], *, donate: bool = False) -> None:
        self.function, self.donate = function, donate
        self.executables: dict[Any, jax.stages.Compiled] = {}
        self.seconds = 0.0
        self.costs: list[float] = []

    def __call__(self, state: Any, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        return self.compiled(state, batch, key)(state, batch, key)

    def compiled(self, state: Any, batch: Any, key: Any) -> jax.stages.Compiled:
        """The executable for arguments of these shapes; arrays or ShapeDtypeStructs."""
        shapes = tuple(sorted((name, tuple(x.shape)) for name, x in batch.items()))
        # Strategies add leaves to a state: equal tasks may come with different trees.
        leaves, tree = jax.tree.flatten(state)
        places = (leaves[0].sharding, next(iter(batch.values())).sharding)
        kind = (shapes, tree, tuple(leaf.shape for leaf in leaves), places)
        if kind not in self.executables:
            started = time.monotonic()
            told: Any = None
            if not hosts.alone():
                # What every process is to read, whole, whichever of them computed it.
                told = NamedSharding(leaves[0].sharding.mesh, PartitionSpec())
            jitted = jax.jit(self.function, out_shardings=told)
            if self.donate:
                # The new state takes the place of the old: left to itself, XLA may shard it anew.
                same = jax.tree.map(lambda leaf: leaf.sharding, state)
                jitted = jax.jit(self.function, donate_argnums=0, out_shardings=(same, told))
            traced = jitted.trace(state, batch, key)
            self.costs.append(flops.flops(traced.jaxpr))
            platform = sharding.platform()
            options: Any = OPTIONS.get(platform)
            self.executables[kind] = traced.lower().compile(compiler_options=options)
            if platform == "cpu" and (self.temporary_mb() or 0.0) > LARGE_MB:
                map_large_blocks()
            give_back()
            self.seconds += time.monotonic() - started
        return self.executables[kind]

    def flops(self) -> float:
        """Of the matrix products of the costliest executable, over all devices (see `flops.py`)."""
        return max(self.costs, default=0.0)

    def temporary_mb(self) -> float | None:
        """Memory of the costliest executable besides its arguments and results, in MB (10^6 bytes);
        None where the device does not tell."""
        found = [executable.memory_analysis() for executable in self.executables.values()]
        sizes = [memory.temp_size_in_bytes / 1e6 for memory in found if memory is not None]
        return round(max(sizes), 3) if sizes else None


def map_large_blocks() -> None:
    """Has malloc map blocks of 32 MiB and more, and give them back, though `launch.py` told it not
    to; what it does with others is as it was.

    Large temporaries would leave holes in the heap that the next ones do not fit into, until the
    process holds them three times over; and beside their steps, to fault them in costs nothing
    that can be measured. Nothing is done where malloc is not glibc's.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, value in MAPPING:
            mallopt(parameter, value)


def give_back() -> None:
    """Gives the system the free memory that malloc holds, wherever in the heap it lies.

    Compiling leaves as much behind as a small model takes, in pieces that large arrays do not fit
    into. Nothing is done where malloc is not glibc's.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
