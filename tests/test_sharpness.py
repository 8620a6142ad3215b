"""Sharpness-aware steps: the gradient of the same batch and noise, taken a little way uphill."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from test_step import PACKED, SPEC, batch_of, start
from workshop import loss_curve

from research.adapt import Full, HeadOnly
from research.errors import ConfigError
from research.models.transformer import Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.step import init_state, train_step
from research.strategies import GradualUnfreeze
from research.tasks.classify import Classify

SMALL = dataclasses.replace(SPEC, depth=1, width=8, hidden=8)
CLASSIFY = Classify(backbone=Transformer(SMALL), labels=("a", "b", "c"))
RHO = 0.3
OPTIM = Optim(learning_rate=1e-2, warmup=0, clip=None, sharpness=RHO)
KEY = jax.random.key(7)
FULL = Full()


@functools.cache
def slopes() -> Any:
    """The gradient of the mean loss by all parameters, under the noise of step 0."""

    def loss(tree: Any) -> Any:
        rngs = {"noise": jax.random.fold_in(KEY, 0)}
        return CLASSIFY.apply({"params": tree}, PACKED, train=True, rngs=rngs)["loss"].value

    return jax.jit(jax.grad(loss))


def gradient(params: dict[str, np.ndarray], learning: list[str]) -> Any:
    """The same by what learns alone, float64 on the host."""
    found = flatten_dict(slopes()(unflatten_dict(params, sep="/")), sep="/")
    return {path: np.asarray(found[path], np.float64) for path in learning}


def uphill(adapt: Any, climbing: Any = None) -> Any:
    """The gradient at params + rho g / |g|, by two plain gradients and numpy in between; only
    the paths that `climbing` accepts are moved."""
    params = {p: np.asarray(x) for p, x in flatten_dict(start(CLASSIFY), sep="/").items()}
    learning = [path for path, rule in adapt.rules(params).items() if rule.learns]
    slope = gradient(params, learning)
    if climbing is not None:
        slope = {path: x * bool(climbing(path)) for path, x in slope.items()}
    length = np.sqrt(sum((x**2).sum() for x in slope.values()))
    moved = {p: np.float32(params[p] + RHO * x / length) for p, x in slope.items()}
    return gradient(params | moved, learning)


def taken(adapt: Any = FULL, microbatches: int = 1) -> Any:
    """The gradient that a step hands to Adam, which keeps a tenth of it, and its means."""
    rules = adapt.rules(flatten_dict(start(CLASSIFY), sep="/"))
    tx = OPTIM.build(10, rules)
    options: Any = {"microbatches": microbatches, "sharpness": RHO}

    def step(state: Any, batch: Any) -> Any:
        return train_step(CLASSIFY, tx, rules, state, batch, KEY, **options)

    state, means = jax.jit(step)(init_state(start(CLASSIFY), tx, rules), PACKED)
    return {path: np.asarray(m) / 0.1 for path, m in state.opt_state.mu.items()}, means


def assert_close(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=2e-5, rtol=1e-4, err_msg=path)


def test_a_step_is_the_gradient_a_distance_uphill() -> None:
    found, means = taken()
    expected = uphill(FULL)
    assert_close(found, expected)
    # Far enough that the plain gradient is another one; the loss told is that at the start.
    params = {p: np.asarray(x) for p, x in flatten_dict(start(CLASSIFY), sep="/").items()}
    plain = gradient(params, list(params))
    assert max(np.abs(plain[path] - leaf).max() for path, leaf in expected.items()) > 1e-3
    length = np.sqrt(sum((x**2).sum() for x in expected.values()))
    np.testing.assert_allclose(means["grad_norm"].value, length, rtol=1e-4)


def test_it_climbs_by_the_gradient_of_the_whole_batch() -> None:
    assert_close(taken(microbatches=2)[0], uphill(FULL))


@pytest.mark.parametrize("adapt", [HeadOnly(), FULL | GradualUnfreeze((1,))], ids=["head", "late"])
def test_only_what_learns_now_is_climbed_by(adapt: Any) -> None:
    expected = uphill(adapt, lambda path: path.startswith(("head/", "backbone/pooler/")))
    assert_close(taken(adapt)[0], expected)


def test_meshes_do_not_change_the_loss_curve() -> None:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py simulates them")
    batch = batch_of([[9, 8, 7], [5, 12], [20], [3, 3, 3, 15], [4], [6, 6], [11], [2, 2]])

    def curve(spec: MeshSpec, devices: int) -> list[float]:
        return loss_curve(CLASSIFY, OPTIM, batch, start(CLASSIFY), spec, devices, steps=2)

    many = curve(MeshSpec(data=2, fsdp=2, tensor=2), 8)
    np.testing.assert_allclose(many, curve(MeshSpec(), 1), atol=1e-5)


@pytest.mark.parametrize("distance", [0.0, -0.1, float("inf"), float("nan")])
def test_what_is_no_distance_is_refused(distance: float) -> None:
    with pytest.raises(ConfigError, match=r"optim\.sharpness: .* is not a distance above 0"):
        Optim(sharpness=distance).rate(10)
