"""One step: the state it changes, the gradient it takes, and the program it becomes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from research import average, sharding
from research.adapt import Flat, Rule, Strategy
from research.average import Average
from research.metrics import Mean
from research.optim import Optim
from research.programs import Program
from research.strategies.words import picked, put_back, shown


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. `opt_state` and `ema` are over the flat dict of what learns;
    `ema` is there only where the run keeps an average. Where only the rows of `words` learn of the
    table of words (int32 [U], ascending; see strategies/words.py), `opt_state` is of these."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Average | None = None
    words: jax.Array | None = None

    @property
    def result(self) -> Any:
        """The parameters to evaluate: their average where one is kept."""
        return self.params if self.ema is None else average.merged(self.params, self.ema.params)


def init_state(
    params: Any,
    tx: optax.GradientTransformation,
    rules: Mapping[str, Rule],
    ema: float | None = None,
    words: jax.Array | None = None,
) -> TrainState:
    """Step 0 with these parameters."""
    learning = {
        path: leaf for path, leaf in flatten_dict(params, sep="/").items() if rules[path].learns
    }
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(picked(learning, words)),
        ema=None if ema is None else average.start(learning),
        words=words,
    )


def abstract_state(
    optim: Optim, adapt: Strategy, steps: int, params: Any, mesh: Mesh, words: int | None = None
) -> tuple[Any, Callable[..., TrainState]]:
    """Shapes and shardings of the state, and the function that turns parameters into it. Where
    only seen words learn, `words` is how many, and the function takes their ids under that name."""
    rules = adapt.rules(flatten_dict(params, sep="/"))
    tx = optim.build(steps, rules)
    create = functools.partial(init_state, tx=tx, rules=rules, ema=optim.ema)
    ids = None if words is None else jax.ShapeDtypeStruct((words,), jnp.int32)
    abstract = sharding.shard(jax.eval_shape(create, params, words=ids), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return abstract, jax.jit(create, out_shardings=shardings, donate_argnums=0)


def recalled(state: TrainState, adapt: Strategy, memory: Mapping[str, Any]) -> TrainState:
    """The state with those leaves that a run's memory decides, and not its steps."""
    flat = flatten_dict(state.params, sep="/")
    for path, value in adapt.recalled(memory).items():
        flat[path] = jax.device_put(np.asarray(value, flat[path].dtype), flat[path].sharding)
    new: TrainState = state.replace(params=unflatten_dict(flat, sep="/"))  # type: ignore[attr-defined]
    return new


def train_step(
    task: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    rules: Mapping[str, Rule],
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    microbatches: int = 1,
    ema: float | None = None,
    sharpness: float | None = None,
    steps: int | None = None,
) -> tuple[TrainState, dict[str, Mean]]:
    """One update of what learns, by the gradient of the batch's mean loss.

    Of a run of `steps` the batch says how much is done: `progress` [B, 1] in [0, 1).

    Totals and counts are summed over micro-batches and divided once, so their number does not
    matter. A step whose loss or gradient is not finite changes nothing but the step count. With
    `sharpness` the gradient is that of the same batch and noise at `climb`, the means are those at
    the parameters. What the task says is `carried` over steps by another way than its gradient,
    {path: what has it as `moved`}, becomes that.
    """
    key = jax.random.fold_in(key, state.step)
    if steps is not None:
        done = state.step.astype(jnp.float32) / steps
        batch = batch | {"progress": jnp.full((batch["ids"].shape[0], 1), done)}
    params, words = flatten_dict(state.params, sep="/"), state.words
    before = {path: leaf for path, leaf in params.items() if rules[path].learns}
    learning = picked(before, words)

    def total(learning: Any, batch: Any, whole: Any) -> tuple[jax.Array, dict[str, Any]]:
        tree = unflatten_dict(params | shown(learning, words), sep="/")
        means: Any = task.apply({"params": tree}, batch, train=True, rngs={"noise": key})
        return means["loss"].share(means["loss"] if whole is None else whole), means

    def gradient(learning: Flat) -> tuple[Flat, dict[str, Any]]:
        def part(batch: Any, whole: Any = None) -> tuple[Any, dict[str, Any]]:
            (_, means), grads = jax.value_and_grad(total, has_aux=True)(learning, batch, whole)
            return grads, means

        def loss(batch: Any) -> Any:
            return total(learning, batch, None)[1]["loss"]

        return part(batch) if microbatches == 1 else accumulate(part, loss, batch, microbatches)

    sums, means = gradient(learning)
    carried = means.pop("carried", {})
    if sharpness is not None:
        begun = begin(sums, rules, state.step, params)
        sums, _ = gradient(climb(learning, begun, sharpness))
    count = jnp.maximum(means["loss"].count, 1e-9)
    sums = pull(sums, picked(params, words), rules, count)
    norm = optax.tree.norm(sums) / count
    finite = jnp.isfinite(norm) & jnp.isfinite(means["loss"].total)
    updates, opt_state = tx.update(sums, state.opt_state, learning, count=count, finite=finite)
    updates = begin(pace(updates, rules), rules, state.step, params)
    learned = put_back(before, optax.apply_updates(learning, updates), words)
    moved = {path: jnp.where(finite, x.moved, params[path]) for path, x in carried.items()}
    means |= {"grad_norm": Mean.of(norm), "skipped": Mean.of(1.0 - finite.astype(jnp.float32))}
    new = TrainState(
        step=state.step + 1,
        params=unflatten_dict(params | learned | moved, sep="/"),
        opt_state=opt_state,
        ema=None if ema is None else average.follow(state.ema, learned, ema, finite),
        words=words,
    )
    return new, means


def accumulate(
    gradient: Callable[[Any, Any], Any],
    loss: Callable[[Any], Any],
    batch: dict[str, jax.Array],
    microbatches: int,
) -> tuple[Flat, dict[str, Mean]]:
    """Sums of gradients and means over pieces of a batch, of which one is in memory at a time."""
    # Every microbatches-th row, so that each shard of the rows stays on its device.
    slices = {
        name: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)
        for name, x in batch.items()
    }
    first = jax.tree.map(lambda x: x[0], slices)

    def add_up(function: Callable[[Any], Any]) -> Any:
        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
        )
        return jax.lax.scan(
            lambda sums, rows: (jax.tree.map(jnp.add, sums, function(rows)), None), zero, slices
        )[0]

    # Terms with counts of their own need those of the whole batch first. Only the counts are used
    # of this pass, so that the compiler drops all that is not needed to count.
    whole = None if isinstance(jax.eval_shape(loss, first), Mean) else add_up(loss)
    sums, means = add_up(lambda rows: gradient(rows, whole))
    return sums, means


def pull(sums: Flat, params: Flat, rules: Mapping[str, Rule], count: jax.Array) -> Flat:
    """Gradients, still to be divided by `count`, with those of decay to the start added."""
    return {
        path: total + count * rules[path].pull * (params[path] - params[f"{path}_start"])
        if f"{path}_start" in params
        else total
        for path, total in sums.items()
    }


def climb(learning: Flat, sums: Flat, distance: float | jax.Array) -> Flat:
    """Parameters `distance` further along their gradients, where a loss is sharp the worst that
    close by (SAM; Foret et al., 2021). What gradients are still to be divided by does not matter.
    """
    length = optax.tree.norm(sums)
    scale = distance / jnp.where(length > 0, length, 1.0)
    return {path: x + scale * sums[path] for path, x in learning.items()}


def along(values: Any, update: jax.Array) -> jax.Array:
    """One value, or one a layer, with the rank of an update."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (update.ndim - values.ndim))


def pace(updates: Flat, rules: Mapping[str, Rule]) -> Flat:
    """Updates with the factor of their layer."""
    return {
        path: update * along(rules[path].layers, update) if rules[path].layers else update
        for path, update in updates.items()
    }


def begin(updates: Flat, rules: Mapping[str, Rule], step: jax.Array, params: Flat) -> Flat:
    """Updates, or gradients, with zero for what does not learn yet."""
    begun = dict(updates)
    for path, update in updates.items():
        rule = rules[path]
        if rule.since or rule.stage:
            due = step >= along(rule.since, update)
            if rule.stage:
                due &= params["thawed"] >= along(rule.stage, update)
            begun[path] = jnp.where(jnp.broadcast_to(due, update.shape), update, 0.0)
    return begun


# A study goes through its arms in turn, seed by seed: with fewer, each would be traced every time.
@functools.lru_cache(maxsize=32)
def make_step(
    task: nn.Module, optim: Optim, adapt: Strategy, steps: int, microbatches: int
) -> Program:
    """The compiled train step; runs that differ in seed or data alone share it."""

    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, Mean]]:
        rules = adapt.rules(flatten_dict(state.params, sep="/"))
        tx = optim.build(steps, rules)
        more: Any = {"microbatches": microbatches, "steps": steps}
        more |= {"ema": optim.ema, "sharpness": optim.sharpness}
        return train_step(task, tx, rules, state, batch, key, **more)

    return Program(step, donate=True)
