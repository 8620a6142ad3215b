"""The plan of a run on chips that are not here: its training step, compiled and weighed."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, Mesh

from research import initialize, sharding
from research.assemble import assemble
from research.config import Config
from research.data.stand_in import StandIn
from research.errors import ConfigError
from research.evaluate import served
from research.models import products
from research.scale import topology
from research.scale.chips import Chip
from research.scale.collectives import by_kind, collectives
from research.scale.flops import flops
from research.scale.hlo import Module
from research.scale.minimum import Work, minimum
from research.scale.traffic import traffic
from research.strategies.words import TABLE

# Over how many chips the growth of a run is told.
COUNTS = (8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step as the compiler made it for a mesh, with what went in, as shapes."""

    config: Config
    mesh: Mesh
    state: Any
    rows: dict[str, Any]
    compiled: Any
    flops: float
    seconds: float


def without_data(config: Config) -> Config:
    """The config with a stand-in for its data, whose rows are as long as they may be.

    Raises ConfigError for a task that needs a trunk or labels which only data would tell.
    """
    task = served(config.task)
    trunk = getattr(task, "backbone", None)
    if trunk is None:
        trunk = initialize.trunk_of(initialize.needed(config, "task.backbone"))
    size = getattr(getattr(trunk, "spec", None), "vocab_size", None)
    if size is None:
        raise ConfigError(f"plan: {type(trunk).__name__} does not tell its vocabulary")
    data = StandIn(data=config.data, vocab_size=size)
    # Steps and epochs decide the schedule, which costs the same whatever they are.
    return dataclasses.replace(config, data=data, steps=config.steps or 1, epochs=None)


def compile_step(config: Config, devices: list[Any]) -> Step:
    """The step of `train.py` for these devices: the same program, state and shardings, of shapes
    alone. Raises ConfigError where it does not fit the memory of a chip."""
    config = initialize.resolve(without_data(config))
    mesh = config.mesh.build(devices)
    with jax.set_mesh(mesh):
        batches = initialize.open_training(config, mesh)
        rows = sharding.abstract_rows(batches.batch(0), mesh)
        assembly = assemble(config, rows, mesh, batches.words)
        program, state = assembly.program, assembly.state
        key = jax.eval_shape(lambda: jax.random.key(0))
        counted = flops(jax.make_jaxpr(program.function)(state, rows, key))
        started = time.monotonic()
        try:
            compiled = program.compiled(state, rows, key)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            said = next((s for s in str(error).splitlines() if "Used" in s), str(error))
            raise ConfigError(
                f"plan: the step does not fit: {said[:200]} More chips, --microbatches and "
                "--task.backbone.spec.remat True take less."
            ) from None
    seconds = time.monotonic() - started
    return Step(config, mesh, state, rows, compiled, counted, seconds)


def plan(config: Config, chip: Chip, count: int) -> dict[str, Any]:
    """What one step takes, and is predicted to take in time, as JSON values: bytes, operations and
    seconds. Raises ConfigError where the chips cannot be had or the step cannot be made."""
    step = compile_step(config, topology.devices(chip, count))
    module = Module(step.compiled.as_text())
    work = work_of(step)
    sent, least = by_kind(collectives(module, count)), minimum(work, step.mesh)
    held = memory(step) | {"hbm": chip.hbm}
    times = {
        "compute": step.flops / count / chip.flops,
        "memory": traffic(module) / chip.bandwidth,
        "links": sum(sent.values()) / chip.links,
    }
    rows, tokens = step.rows["tokens"].shape
    return {
        "name": config.name,
        "topology": f"{chip.name}-{count}",
        "mesh": {axis: int(size) for axis, size in step.mesh.shape.items()},
        "rows": rows,
        "tokens": rows * tokens,
        "parameters": sum(int(np.prod(shape)) for shape, _ in work.parameters.values()),
        "memory": held | {"fits": held["total"] <= chip.hbm},
        "flops": step.flops,
        "collectives": {kind: {"bytes": sent[kind], "minimum": least[kind]} for kind in sent},
        "seconds": times | predicted(times),
        "growth": growth(work, step.mesh, times, sum(least.values())),
        "compile_seconds": step.seconds,
    }


def work_of(step: Step) -> Work:
    """What of a step decides the least that is sent."""
    flat = flatten_dict(step.state.params, sep="/")
    rules, task = step.config.adapt.rules(flat), served(step.config.task)
    spec = task.backbone.spec
    rows, tokens = step.rows["tokens"].shape
    with jax.set_mesh(step.mesh):
        itemsize = products.compute_dtype(spec.dtype).itemsize
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    if (words := step.state.words) is not None:
        shapes[TABLE] = (*words.shape, *shapes[TABLE][1:])
    return Work(
        parameters={path: (shape, rules[path].learns) for path, shape in shapes.items()},
        spec=spec,
        rows=rows / sharding.row_shards(step.mesh),
        tokens=tokens,
        # A task of language modelling scores a share of the tokens; others have their labels.
        scored=0.0 if hasattr(task, "labels") else getattr(task, "rate", 1.0),
        itemsize=itemsize,
        microbatches=step.config.microbatches,
    )


def memory(step: Step) -> dict[str, float]:
    """Bytes on one chip: of parameters, of what else a state holds, and what the step takes
    besides; `aliased` is what of the state is changed in place."""
    size = {
        name: held(getattr(step.state, name)) for name in ("params", "opt_state", "ema", "step")
    }
    stats = step.compiled.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return {
        "parameters": size["params"],
        "optimizer": size["opt_state"] + size["ema"] + size["step"],
        "temporaries": stats.temp_size_in_bytes + results,
        "total": stats.argument_size_in_bytes + stats.temp_size_in_bytes + results,
        "aliased": stats.alias_size_in_bytes,
    }


def held(tree: Any) -> float:
    """Bytes of a tree's shards on one device."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def predicted(times: dict[str, float]) -> dict[str, Any]:
    """The step's seconds where everything overlaps, and where nothing is sent meanwhile (a
    roofline; Williams et al., 2009); and which of the three is the longest."""
    return {
        "overlapped": max(times.values()),
        "serial": max(times["compute"], times["memory"]) + times["links"],
        "bound": max(times, key=lambda name: times[name]),
    }


def growth(work: Work, mesh: Mesh, times: dict[str, float], least: float) -> list[dict[str, float]]:
    """Weak scaling, predicted: the same rows a chip on more chips, by the axis of rows that is the
    larger. What is sent grows as its minimum does; nothing overlaps, and links are all alike."""
    shape = {axis: int(size) for axis, size in mesh.shape.items()}
    grown = "fsdp" if shape["fsdp"] > shape["data"] else "data"
    others = mesh.size // shape[grown]
    found: list[dict[str, float]] = []
    for chips in COUNTS:
        if chips % others:
            continue
        sizes = shape | {grown: chips // others}
        sent = sum(minimum(work, AbstractMesh(tuple(sizes.values()), tuple(sizes))).values())
        links = times["links"] * (sent / least if least else 1.0)
        seconds = max(times["compute"], times["memory"]) + links
        first = found[0]["seconds"] if found else seconds
        found.append({"chips": chips, "seconds": seconds, "efficiency": first / seconds})
    return found
