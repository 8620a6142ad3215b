"""Configs that differ in seeds and numbers alone: their grid, and the one program of them all."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from research import config as configs
from research.adapt import Rule
from research.alternatives import replaced
from research.config import Config
from research.errors import ConfigError
from research.programs import Program
from research.step import TrainState, train_step

FREE = ("name", "seed", "data_seed")
# Fields of a Rule that are numbers in the program; the others decide what it is.
SCALES = ("multiplier", "pull", "layers")
MAPPED = TrainState(step=None, params=0, opt_state=0, ema=0, words=0)  # type: ignore[arg-type]


class NotReplicatesError(ConfigError):
    """These configs cannot share a program; each can still be run alone."""


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What `describe` says, leaf by leaf: ("optim.learning_rate", 1e-05)."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flat(inner, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, value


def swept(members: Sequence[Config]) -> tuple[str, ...]:
    """The numbers in which resolved configs differ, as paths: ("optim.learning_rate",).

    Raises NotReplicatesError for fewer than one config, for names that are not distinct, for what
    differs beside seeds and floats of `optim` and `adapt`, for `spikes`, which take back steps, and
    for a strategy that waits for evaluations.
    """
    if not members:
        raise NotReplicatesError("replicates: there are no configs")
    names = [member.name for member in members]
    if twice := [name for name in names if names.count(name) > 1]:
        raise NotReplicatesError(f"replicates: two are called {twice[0]!r}")
    if members[0].spikes is not None:
        raise NotReplicatesError("replicates share their steps: spikes cannot be taken back of one")
    if members[0].adapt.watches:
        raise NotReplicatesError(f"replicates share their state: {members[0].adapt} is of one run")
    told = [dict(flat(configs.describe(member))) for member in members]
    paths = dict.fromkeys(path for one in told for path in one)
    differ = [path for path in paths if any(one.get(path) != told[0].get(path) for one in told)]
    numbers = tuple(path for path in differ if is_number(path, [one.get(path) for one in told]))
    others = [path for path in differ if path not in numbers and path not in FREE]
    if others:
        values = ", ".join(f"{path} {[one.get(path) for one in told][:3]}" for path in others[:5])
        raise NotReplicatesError(
            f"replicates differ in {', '.join(FREE)} and floats of optim and adapt; these also in "
            f"{values}"
        )
    return numbers


def is_number(path: str, values: Sequence[Any]) -> bool:
    """Whether a field may be a number of the program's that differs."""
    floats = all(isinstance(x, float) for x in values)
    return path.startswith(("optim.", "adapt.")) and floats


@dataclass(frozen=True)
class Grid:
    """Replicates by what they share: `sizes` are orders of the data, seeds of each order, and runs
    of each seed; `places` the configs in that order.

    A batch is made once for each order, noise drawn once for each seed. Where the runs are no full
    grid each counts as an order of its own.
    """

    sizes: tuple[int, int, int]
    places: tuple[int, ...]

    @classmethod
    def of(cls, members: Sequence[Config]) -> Grid:
        """The grid of some configs."""
        orders = [m.seed if m.data_seed is None else m.data_seed for m in members]
        labels = [(order, member.seed) for order, member in zip(orders, members)]
        first = {label: number for number, label in reversed(list(enumerate(labels)))}
        start = {order: number for number, order in reversed(list(enumerate(orders)))}
        places = sorted(range(len(members)), key=lambda i: (start[orders[i]], first[labels[i]], i))
        runs = {labels.count(label) for label in labels}
        seeds = {len({label for label in first if label[0] == order}) for order in start}
        if len(runs) > 1 or len(seeds) > 1:
            return cls((len(members), 1, 1), tuple(range(len(members))))
        return cls((len(start), seeds.pop(), runs.pop()), tuple(places))

    @property
    def count(self) -> int:
        """How many replicates."""
        return len(self.places)

    @property
    def outer(self) -> int:
        """The outermost size above 1: what devices can be spread over."""
        return next((size for size in self.sizes if size > 1), 1)

    def order_of(self, number: int) -> int:
        """Which order of the data a replicate has."""
        return number // (self.count // self.sizes[0])

    def axes(self, levels: int = 3) -> tuple[int, ...]:
        """The sizes above 1 of the first `levels` levels: the leading axes of an array of them."""
        return tuple(size for size in self.sizes[:levels] if size > 1)


def expand(config: Config, seeds: Sequence[int], sweeps: Sequence[str]) -> list[Config]:
    """Every seed with every combination of "optim.learning-rate=1e-5,3e-5", each named for it.

    Raises ConfigError for a field that is none, and for a value that it cannot have.
    """
    axes = []
    for sweep in sweeps:
        path, _, values = sweep.partition("=")
        if not values:
            raise ConfigError(f"--sweep {sweep}: expected FIELD=VALUE,VALUE,...")
        axes.append([(path, value) for value in values.split(",")])
    found = []
    for seed in seeds or [config.seed]:
        for choice in itertools.product(*axes):
            overrides = [part for path, value in choice for part in (f"--{path}", value)]
            made = configs.override(config, overrides, "--sweep")
            words = [f"seed{seed}"] if seeds else []
            words += [f"{path.rpartition('.')[2]}={value}" for path, value in choice]
            found.append(dataclasses.replace(made, seed=seed, name="-".join([config.name, *words])))
    return found


@dataclass(frozen=True)
class Numbers:
    """What differs between the programs of some configs: float32 arrays [replicates, ...].

    `optim` by path below `optim`; `rules` by parameter path and field.
    """

    optim: Mapping[str, np.ndarray]
    rules: Mapping[str, Mapping[str, np.ndarray]]

    @classmethod
    def of(cls, members: Sequence[Config], paths: Sequence[str], leaves: Any) -> Numbers:
        """Of configs that differ in `paths`; `leaves` are their parameters by path.

        Raises NotReplicatesError for a number that decides what the program is.
        """
        rules = [member.adapt.rules(leaves) for member in members]
        optim: dict[str, np.ndarray] = {}
        for path in paths:
            if path.startswith("optim."):
                refuse_static(members[0], path, rules[0], leaves)
                told = [dict(flat(configs.describe(m)))[path] for m in members]
                optim[path.removeprefix("optim.")] = np.array(told, np.float32)
        found: dict[str, dict[str, np.ndarray]] = {}
        for path in leaves:
            mine = [rule[path] for rule in rules]
            if mine.count(mine[0]) == len(mine):
                continue
            blank = [
                dataclasses.replace(r, multiplier=1.0, pull=float(r.pull > 0), layers=(), initial=1)
                for r in mine
            ]
            if blank.count(blank[0]) < len(blank) or len({len(r.layers) for r in mine}) > 1:
                raise NotReplicatesError(f"replicates: adapt treats {path} in different ways")
            found[path] = {
                name: np.array([getattr(rule, name) for rule in mine], np.float32)
                for name in SCALES
                if any(getattr(rule, name) != getattr(mine[0], name) for rule in mine)
            }
        return cls(optim, found)

    def arrays(self) -> dict[str, Any]:
        """As a tree of arrays."""
        return {"optim": dict(self.optim), "rules": {p: dict(x) for p, x in self.rules.items()}}


def refuse_static(config: Config, path: str, rules: Mapping[str, Rule], leaves: Any) -> None:
    """Raises NotReplicatesError where a number of `optim` cannot be one of the program's."""
    learning = {name: leaf for name, leaf in leaves.items() if rules[name].learns}

    def update(number: jax.Array, flat: Any) -> Any:
        optim = replaced(config.optim, path.split(".")[1:], number)
        tx = optim.build(config.steps or 0, rules)
        return tx.update(flat, tx.init(flat), flat), optim.ema

    shapes = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in learning.items()}
    try:
        jax.eval_shape(update, jax.ShapeDtypeStruct((), jnp.float32), shapes)
    except (jax.errors.JAXTypeError, TypeError, ValueError):
        raise NotReplicatesError(f"replicates: {path} decides what a program is") from None


def make_program(
    config: Config, grid: Grid, rules: Mapping[str, Rule], axis: str | None
) -> Program:
    """({"shared": parameters that all have, "own": state}, batch, {"key", "numbers"}) -> the same
    state a step on, and the means of each replicate.

    `own` is a TrainState whose leaves but `step` are [replicates, ...], `key` is [orders x seeds],
    a batch has an axis of orders where there are several. `axis` is the mesh's for replicates.
    """

    def one(shared: Any, own: Any, batch: Any, key: Any, numbers: Any) -> Any:
        optim, told = config.optim, dict(rules)
        for path, number in numbers["optim"].items():
            optim = replaced(optim, path.split("."), number)
        for path, fields in numbers["rules"].items():
            changes: dict[str, Any] = {
                name: tuple(x) if name == "layers" else x for name, x in fields.items()
            }
            told[path] = dataclasses.replace(told[path], **changes)
        tx = optim.build(config.steps or 0, told)
        state: Any = own.replace(params=unflatten_dict(shared | own.params, sep="/"))
        new: Any
        new, means = train_step(
            config.task,
            tx,
            told,
            state,
            batch,
            key,
            microbatches=config.microbatches,
            ema=config.optim.ema,
            sharpness=config.optim.sharpness,
            steps=config.steps,
        )
        learned = flatten_dict(new.params, sep="/")
        return new.replace(params={path: learned[path] for path in own.params}), means

    mapped: Any = one
    levels = [level for level, size in enumerate(grid.sizes) if size > 1]
    for level in reversed(levels):
        batch, key = 0 if level == 0 else None, 0 if level < 2 else None
        mapped = jax.vmap(
            mapped,
            in_axes=(None, MAPPED, batch, key, 0),
            out_axes=(MAPPED, 0),
            spmd_axis_name=axis if level == levels[0] else None,
        )

    def step(state: Any, batch: Any, given: Any) -> Any:
        own, numbers = cut(state["own"], grid.axes()), cut(given["numbers"], grid.axes())
        key = given["key"].reshape(grid.axes(2))
        new, means = mapped(state["shared"], own, batch, key, numbers)
        means = jax.tree.map(lambda x: x.reshape(grid.count, *x.shape[len(grid.axes()) :]), means)
        each = [jax.tree.map(lambda x, i=i: x[i], means) for i in range(grid.count)]
        back = jax.tree.map(lambda x, old: x.reshape(old.shape), new, state["own"])
        return {"shared": state["shared"], "own": back}, each

    return Program(step, donate=True)


def cut(tree: Any, axes: tuple[int, ...]) -> Any:
    """Arrays [replicates, ...] with `axes` for the first; scalars as they are."""
    return jax.tree.map(lambda x: x.reshape(*axes, *x.shape[1:]) if x.ndim else x, tree)
