"""One step: micro-batches, padding and meshes do not change it; what is frozen costs nothing."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from workshop import loss_curve

from research import initialize
from research.adapt import Full, HeadOnly
from research.metrics import Mean
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.step import init_state, make_step, train_step
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM

FULL = Full()
OPTIM = Optim(learning_rate=1e-2, warmup=0)
SPEC = Spec(vocab_size=60, width=16, depth=2, heads=2, hidden=32, max_positions=32, token_types=2)
CLASSIFY = Classify(backbone=Transformer(SPEC), labels=("a", "b", "c"))
MASKED = MaskedLM(backbone=Transformer(SPEC), vocab_size=60, mask_id=4, special_ids=(0, 1))


def batch_of(lengths: list[list[int]], tokens: int = 24, places: int = 4) -> dict[str, np.ndarray]:
    """A packed batch of random examples; lengths[b] are those of row b. Example n is always the
    same, in whatever row it lies."""
    rows = len(lengths)
    batch = {
        name: np.zeros((rows, tokens), np.int32)
        for name in ("tokens", "positions", "segments", "types")
    }
    batch |= {name: np.zeros((rows, places), np.int32) for name in ("starts", "lengths", "labels")}
    batch["ids"] = np.full((rows, places), -1, np.int32)
    batch["weights"] = np.zeros((rows, places), np.float32)
    example = 0
    for b, row in enumerate(lengths):
        start = 0
        for m, length in enumerate(row):
            rng = np.random.default_rng(example)
            span = slice(start, start + length)
            batch["tokens"][b, span] = rng.integers(5, 60, length)
            batch["positions"][b, span] = np.arange(length)
            batch["segments"][b, span] = m + 1
            batch["types"][b, span] = np.arange(length) > length // 2
            batch["starts"][b, m], batch["lengths"][b, m] = start, length
            batch["labels"][b, m], batch["ids"][b, m] = rng.integers(3), example
            batch["weights"][b, m] = 1.0
            start, example = start + length, example + 1
    return batch


PACKED = batch_of([[9, 8, 7], [5, 12], [20], [3, 3, 3, 15]])
PADDED = batch_of([[n] for row in [[9, 8, 7], [5, 12], [20], [3, 3, 3, 15]] for n in row])


@functools.cache
def start(task: nn.Module) -> Any:
    # Host arrays: they belong to no mesh.
    return jax.device_get(initialize.initialize(task, PACKED, jax.random.key(0)))


def step(
    task: nn.Module,
    batch: dict[str, np.ndarray],
    *,
    microbatches: int = 1,
    adapt: Any = FULL,
    params: Any = None,
) -> Any:
    params = start(task) if params is None else params
    rules = adapt.rules(flatten_dict(params, sep="/"))
    tx = OPTIM.build(10, rules)
    state = init_state(params, tx, rules)
    return jax.jit(
        lambda state, batch: train_step(
            task, tx, rules, state, batch, jax.random.key(7), microbatches=microbatches
        )
    )(state, batch)


def assert_close(a: Any, b: Any, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=0), a, b)


def gradients(task: nn.Module, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The mean loss and its gradient with dropout and masking on."""

    def loss(params: Any) -> tuple[jax.Array, dict[str, Mean]]:
        rngs = {"noise": jax.random.key(3)}
        means = task.apply({"params": params}, batch, train=True, rngs=rngs)
        return means["loss"].value, means

    return jax.jit(jax.grad(loss, has_aux=True))(start(task))


@pytest.mark.parametrize("task", [CLASSIFY, MASKED], ids=["classify", "masked"])
def test_packed_equals_padded_with_dropout_on(task: nn.Module) -> None:
    (packed, packed_means), (padded, padded_means) = (
        gradients(task, PACKED),
        gradients(task, PADDED),
    )
    assert_close(packed, padded, 1e-5)
    for name, mean in packed_means.items():
        np.testing.assert_allclose(mean.total, padded_means[name].total, rtol=1e-5)
        assert mean.count == padded_means[name].count


@pytest.mark.parametrize("task", [CLASSIFY, MASKED], ids=["classify", "masked"])
@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_do_not_change_a_ragged_step(task: nn.Module, microbatches: int) -> None:
    whole, means = step(task, PACKED)
    parts, sums = step(task, PACKED, microbatches=microbatches)
    np.testing.assert_allclose(means["grad_norm"].value, sums["grad_norm"].value, rtol=1e-5)
    np.testing.assert_allclose(means["loss"].value, sums["loss"].value, rtol=1e-5)
    np.testing.assert_array_equal(means["loss"].count, sums["loss"].count)
    # Adam's first step is close to sign(g), which magnifies rounding where g is all but zero:
    # compare the moments, which are the gradient itself.
    assert_close(whole.opt_state.mu, parts.opt_state.mu, 1e-6)


@pytest.mark.parametrize("axes", [(2, 1, 1), (8, 1, 1), (1, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_meshes_do_not_change_the_loss_curve(axes: tuple[int, int, int]) -> None:
    def curve(spec: MeshSpec, devices: int) -> list[float]:
        batch = batch_of([[9, 8, 7], [5, 12], [20], [3, 3, 3, 15], [4], [6, 6], [11], [2, 2]])
        return loss_curve(CLASSIFY, OPTIM, batch, start(CLASSIFY), spec, devices, steps=4)

    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py simulates them")
    data, fsdp, tensor = axes
    one = curve(MeshSpec(), 1)
    many = curve(MeshSpec(data=data, fsdp=fsdp, tensor=tensor), data * fsdp * tensor)
    np.testing.assert_allclose(many, one, atol=1e-5)
    assert one[-1] < one[0]


def test_head_only_moves_the_head_alone_and_keeps_no_state_for_the_rest() -> None:
    before = flatten_dict(start(CLASSIFY), sep="/")
    state, _ = step(CLASSIFY, PACKED, adapt=HeadOnly())
    after = flatten_dict(state.params, sep="/")
    moved = {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}
    head = {"head/kernel", "head/bias", "backbone/pooler/kernel", "backbone/pooler/bias"}
    assert moved == head
    assert set(state.opt_state.mu) == head


def test_head_only_costs_no_trunk_gradient() -> None:
    def flops(adapt: Any) -> float:
        program = make_step(CLASSIFY, OPTIM, adapt, 10, 1)
        rules = adapt.rules(flatten_dict(start(CLASSIFY), sep="/"))
        state = jax.device_put(init_state(start(CLASSIFY), OPTIM.build(10, rules), rules))
        program.compiled(state, jax.device_put(PACKED), jax.random.key(0))
        return program.flops()

    assert flops(HeadOnly()) < 0.5 * flops(Full())


def test_a_step_that_is_not_finite_changes_only_the_count() -> None:
    params = jax.tree.map(lambda x: x, start(CLASSIFY))
    params["head"]["bias"] = jnp.full_like(params["head"]["bias"], jnp.inf)
    state, means = step(CLASSIFY, PACKED, params=params)
    assert float(means["skipped"].value) == 1.0
    assert int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert int(state.opt_state.count) == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state.mu))


def test_padding_rows_weigh_nothing() -> None:
    rows = [[9, 8, 7], [5, 12]]
    assert_close(
        gradients(CLASSIFY, batch_of(rows)), gradients(CLASSIFY, batch_of([*rows, [], []])), 1e-7
    )
