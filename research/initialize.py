"""Before the first step: what the config leaves open is filled, and parameters get their values."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from research import audit, average, hosts, manifest, runs, sharding
from research.adapt import ADDED, UNREAD, Flat, Full, Strategy
from research.config import Config, build, fields
from research.data import vocabulary
from research.data.vectors import fill_table
from research.errors import ConfigError
from research.evaluate import served
from research.models import pretrained
from research.models.spec import check_tables
from research.strategies.merge import merge, unmerged

FULL = Full()
# The arrays of a batch by name, in order, as jax.ShapeDtypeStruct.
Shapes: TypeAlias = tuple[tuple[str, Any], ...]


def is_run(path: str | Path) -> bool:
    """Whether a path is a run directory of Graft's, rather than Hugging Face's or a hub id."""
    return (Path(path) / "checkpoints").is_dir()


def resolve(config: Config) -> Config:
    """The same config with nothing left open.

    A task without `backbone` and data without `tokenizer` take those of `init_from`; a task's empty
    fields take the data's facts of the same name (`labels`, `mask_id`, ...); `epochs` become steps.
    """
    config.check()
    task, data = served(config.task), config.data
    if config.microbatches > 1 and (whole := getattr(config.task, "whole_batch", False)):
        name = whole if isinstance(whole, str) else type(task).__name__
        instead = ": use task.chunks, which bounds the memory and changes nothing"
        raise ConfigError(
            f"config: microbatches is {config.microbatches}, but {name} compares "
            f"all examples of a batch{instead if hasattr(task, 'chunks') else ''}"
        )
    if getattr(data, "tokenizer", "") is None:
        data = dataclasses.replace(data, tokenizer=tokenizer_of(needed(config, "data.tokenizer")))
    if getattr(task, "backbone", "") is None:
        task = task.clone(backbone=trunk_of(needed(config, "task.backbone")))
    facts = data.facts()
    unset = {
        name: facts[name] for name, value in fields(task) if value in (None, ()) and name in facts
    }
    task = task.clone(**unset)
    size = facts.get("vocab_size")
    rows = getattr(getattr(task.backbone, "spec", None), "vocab_size", size)
    if size is not None and rows < size:
        raise ConfigError(
            f"the trunk has {rows} token vectors, but the tokenizer {data.tokenizer} makes "
            f"{size} tokens"
        )
    steps = config.steps
    if steps is None:
        examples = data.open("train", config.batch_size).rows
        steps = math.ceil(config.epochs * examples / config.batch_size)
    if config.task is not served(config.task):
        task = config.task.about(task, facts)
    return dataclasses.replace(config, task=task, data=data, steps=steps, epochs=None)


def needed(config: Config, field: str) -> str:
    """`init_from`, which `field` is to be read from."""
    if config.init_from is None:
        raise ConfigError(f"config: {field} is not set, and there is no init_from to take it from")
    return config.init_from


def trunk_of(source: str) -> nn.Module:
    """The trunk of a run or of a Hugging Face directory, without weights."""
    if is_run(source):
        return build(runs.read_config(source))["config"].task.backbone
    return pretrained.trunk(pretrained.resolve(source))


def tokenizer_of(source: str) -> str:
    """Where the tokenizer of a run or of a Hugging Face directory lies."""
    return str(Path(source) / "tokenizer" if is_run(source) else pretrained.resolve(source))


def open_training(config: Config, mesh: Mesh) -> Any:
    """The training stream of a resolved config, laid out for the mesh and for what a step cuts its
    rows into: micro-batches, or a task's own `chunks`. Raises ConfigError for examples that the
    trunk has no tables for."""
    share = sharding.share(mesh)
    pieces = config.microbatches * getattr(served(config.task), "chunks", 1)
    batches = config.data.open(
        "train",
        config.batch_size,
        steps=config.steps,
        seed=config.seed if config.data_seed is None else config.data_seed,
        multiple=sharding.row_shards(mesh) * pieces,
        host=(share.index, share.count),
    )
    check_tables(getattr(config.task, "backbone", None), batches.examples.encoded)
    return batches


def shapes_of(batch: Any) -> Shapes:
    """What a batch is told by where only its shapes matter, and that can be a key."""
    told = ((name, jax.ShapeDtypeStruct(x.shape, x.dtype)) for name, x in batch.items())
    return tuple(sorted(told))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def initialize(task: nn.Module, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, Any]:
    """Parameters from scratch, as a nested dict. One program, not one for every operation."""
    return task.init({"params": key, "noise": key}, batch, train=False)["params"]


def abstract_params(task: nn.Module, batch: Any, mesh: Mesh, adapt: Strategy = FULL) -> Any:
    """Shapes, dtypes and shardings of a task's parameters, with what the strategy adds; nothing is
    computed. Raises ConfigError for a strategy that this tree cannot be meant by."""
    shapes = jax.eval_shape(lambda b: initialize(task, b, jax.random.key(0)), batch)
    leaves = flatten_dict(shapes, sep="/")
    added = jax.eval_shape(lambda flat: adapt.growth(flat, jax.random.key(0)), leaves)
    adapt.rules(leaves | added)
    grown = unflatten_dict(leaves | added, sep="/")
    if added:
        refuse_ignored(task, grown, batch, [p for p in added if not UNREAD.search(p)])
    return sharding.shard(grown, mesh)


def refuse_ignored(task: nn.Module, params: Any, batch: Any, added: list[str]) -> None:
    """Raises ConfigError for added leaves that no layer reads: those of another kind of trunk."""

    def total(params: Any, batch: Any) -> jax.Array:
        rngs = {"noise": jax.random.key(0)}
        means: Any = task.apply({"params": params}, batch, train=True, rngs=rngs)
        return means["loss"].total

    traced = jax.make_jaxpr(total)(params, batch).jaxpr
    # The arguments come in the order of a tree's leaves: those of the parameters first.
    paths = [sharding.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    read = {id(variable) for equation in traced.eqns for variable in equation.invars}
    unread = {p for p, variable in zip(paths, traced.invars) if id(variable) not in read}
    if ignored := [path for path in added if path in unread]:
        kind = type(getattr(task, "backbone", task)).__name__
        raise ConfigError(f"adapt: {kind} has no use for {ignored[0]}")


def starting_params(
    config: Config, abstract: Any, batch: Any, report: Callable[[str], None]
) -> dict[str, Any]:
    """Transferred from a run, loaded from a Hugging Face directory, or drawn anew.

    What `init_from` lacks (the head) is drawn anew, as is what the strategy says; what was not used
    of it is reported by name. What the strategy adds is made of the parameters it is added to, or
    taken from the run.
    """
    everything = flatten_dict(abstract, sep="/")
    wanted = {path: leaf for path, leaf in everything.items() if not ADDED.search(path)}
    abstract = unflatten_dict(wanted, sep="/")
    own: dict[str, Any] = {}
    rules = config.adapt.rules(everything)

    def fresh(paths: Iterable[str]) -> dict[str, jax.Array]:
        asked = tuple((path, rules[path].initial, wanted[path].sharding) for path in paths)
        return drawer(config.task, shapes_of(batch), asked)(jax.random.key(config.seed))

    if config.init_from is None:
        drawn = with_vectors(config, fresh(tuple(wanted)), report)
        return grown(config, drawn, everything, own)
    if is_run(config.init_from):
        saved = Path(config.init_from) / "checkpoints"
        source = merge(average.load(saved, manifest.best(saved)))
        own = kept(config, source, everything)
        params, account = pretrained.transfer(source, abstract, fresh=fresh)
    else:
        directory = pretrained.resolve(config.init_from)
        # A head over other labels, or the same in another order, would be silently wrong.
        same = pretrained.fits(directory, served(config.task))
        params, account = pretrained.load(
            directory, abstract, fresh=fresh, skip="$^" if same else "^head/"
        )
    report(f"{config.init_from}: {account}")
    return grown(config, redrawn(config, flatten_dict(params, sep="/"), fresh), everything, own)


# Runs that differ in seed alone are drawn by one compiled function.
@functools.lru_cache(maxsize=32)
def drawer(
    task: nn.Module, rows: Shapes, asked: tuple[tuple[str, float, Any], ...]
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """From a key, the parameters by path that are `asked` for with a factor and a sharding; no
    others are compiled or drawn."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        batch: Any = {name: np.zeros(x.shape, x.dtype) for name, x in rows}
        flat = flatten_dict(initialize(task, batch, key), sep="/")
        return {path: flat[path] * factor for path, factor, _ in asked}

    drawn: Any = jax.jit(draw, out_shardings={path: sharding for path, _, sharding in asked})
    return drawn


def redrawn(config: Config, loaded: Flat, fresh: Callable[[Iterable[str]], Flat]) -> Flat:
    """What was loaded, with what the strategy begins anew drawn anew."""
    wanted = config.adapt.redrawn(loaded)
    drawn = fresh(tuple(wanted)) if wanted else {}
    for path, last in wanted.items():
        if last:
            joined = jnp.concatenate([loaded[path][:-last], drawn[path][-last:]])
            drawn[path] = jax.device_put(joined, loaded[path].sharding)
    return loaded | drawn


def kept(config: Config, source: Any, everything: Any) -> dict[str, Any]:
    """What a run's strategy added and cannot be merged, for the same strategy to go on with.

    Raises ConfigError where this one has no place for it: the trunk would not be what was trained.
    """
    flat = flatten_dict(source, sep="/")
    found = {path: flat[path] for path in unmerged(source)}
    for path, leaf in found.items():
        if path not in everything or everything[path].shape != leaf.shape:
            raise ConfigError(
                f"{config.init_from}: was trained with {path} {leaf.shape}, for which this run's "
                f"strategy has no place"
            )
    return found


def grown(config: Config, params: Flat, everything: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The tree of parameters and of what the strategy adds, of which a run may bring its `own`."""
    where = {path: leaf.sharding for path, leaf in everything.items() if path not in params}
    added = {}
    if where:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        added = jax.jit(config.adapt.growth, out_shardings=where)(params, key)
        added |= {path: jax.device_put(leaf, where[path]) for path, leaf in own.items()}
    return unflatten_dict(params | added, sep="/")


def with_vectors(
    config: Config, params: dict[str, jax.Array], report: Callable[[str], None]
) -> dict[str, jax.Array]:
    """Parameters by path, the trunk's words with the vectors that `data.vectors` has for them."""
    source = getattr(config.data, "vectors", "")
    if not source:
        return params
    words = vocabulary.tokenizer_of(config.data.needed_tokenizer())[0].get_vocab()
    path = "backbone/embed/table"
    table, count = fill_table(hosts.whole(params[path]), words, source)
    report(f"{source}: vectors for {count} of {len(words)} words")
    return params | {path: jax.device_put(table, params[path].sharding)}


def examine(config: Config) -> dict[str, Any]:
    """The audit of a config, without training it: data are opened, parameters are not made."""
    config = resolve(config)
    mesh = config.mesh.build()
    batches = open_training(config, mesh)
    batch = sharding.abstract_rows(batches.batch(0), mesh)
    params = abstract_params(config.task, batch, mesh, config.adapt)
    return audit.audit(config, params, mesh, batches)
