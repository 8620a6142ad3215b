"""Schedules against their formulas; AdamW against the textbook; masks and multipliers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.adapt import Full, HeadOnly, Rule
from research.errors import ConfigError
from research.optim import Optim


def test_linear_schedule_is_that_of_transformers_without_warmup() -> None:
    rate = Optim(learning_rate=1.0, warmup=0).rate(10)
    np.testing.assert_allclose([rate(s) for s in range(11)], 1 - np.arange(11) / 10, atol=1e-7)


def test_warmup_rises_in_equal_steps_to_the_peak() -> None:
    rate = Optim(learning_rate=2.0, warmup=4, schedule="constant").rate(20)
    np.testing.assert_allclose([rate(s) for s in range(6)], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    assert Optim(learning_rate=2.0, warmup=0.2, schedule="constant").rate(20)(3) == rate(3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_final_share_is_reached_at_the_last_step(schedule: str) -> None:
    rate = Optim(learning_rate=3.0, schedule=schedule, warmup=2, final=0.1).rate(12)
    assert float(rate(1)) == pytest.approx(3.0)
    assert float(rate(12)) == pytest.approx(0.3)


def test_inverse_sqrt_halves_after_four_times_the_steps() -> None:
    rate = Optim(learning_rate=1.0, schedule="inverse_sqrt", warmup=100).rate(10_000)
    assert float(rate(100)) == pytest.approx(1.0)
    assert float(rate(400)) == pytest.approx(0.5)


@pytest.mark.parametrize(("schedule", "halfway"), [("wsd", 0.5), ("wsd_sqrt", 1 - 0.5**0.5)])
def test_wsd_rises_stays_and_falls(schedule: Any, halfway: float) -> None:
    settings = Optim(learning_rate=2.0, schedule=schedule, warmup=10, cooldown=40, final=0.1)
    values = np.asarray([float(settings.rate(100)(step)) for step in range(102)])
    np.testing.assert_allclose(values[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(values[10:61], 2.0, rtol=1e-6)
    assert (np.diff(values[60:101]) < 0).all()
    assert values[80] == pytest.approx(0.2 + 1.8 * halfway, rel=1e-5)
    np.testing.assert_allclose(values[100:], 0.2, rtol=1e-5)
    shares = dataclasses.replace(settings, warmup=0.1, cooldown=0.4).rate(100)
    np.testing.assert_allclose([float(shares(step)) for step in (3, 70, 99)], values[[3, 70, 99]])
    if schedule == "wsd":  # the joint between staying and a line has equal steps on
        np.testing.assert_allclose(np.diff(values[60:101]), -1.8 / 40, atol=1e-5)


def test_a_cooldown_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="cooldown: 95 steps"):
        Optim(schedule="wsd", warmup=10, cooldown=95).rate(100)
    with pytest.raises(ConfigError, match="ema: 1"):
        Optim(ema=1.0).rate(100)


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="warm-up"):
        Optim(warmup=20).rate(10)


def test_adamw_equals_the_textbook_with_mask_and_multiplier() -> None:
    optim = Optim(learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.5, clip=None)
    rules = {
        "a/kernel": Rule(),
        "b/bias": Rule(decays=False),
        "c/kernel": Rule(multiplier=0.25),
        "d/kernel": Rule(learns=False),
    }
    tx = optim.build(10, rules)
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=3) for path in ("a/kernel", "b/bias", "c/kernel")}
    learned = {path: jnp.asarray(value) for path, value in params.items()}
    state = tx.init(learned)
    first = {path: np.zeros(3) for path in params}
    second = {path: np.zeros(3) for path in params}
    for step in range(1, 6):
        grads = {path: rng.normal(size=3) for path in params}
        updates, state = tx.update({k: jnp.asarray(g) for k, g in grads.items()}, state, learned)
        learned = optax.apply_updates(learned, updates)
        for path, g in grads.items():
            first[path] = 0.9 * first[path] + 0.1 * g
            second[path] = 0.999 * second[path] + 0.001 * g**2
            m = first[path] / (1 - 0.9**step)
            v = second[path] / (1 - 0.999**step)
            decay = 0.5 if rules[path].decays else 0.0
            change = m / (np.sqrt(v) + 1e-8) + decay * params[path]
            params[path] = params[path] - 0.1 * rules[path].multiplier * change
    for path, value in params.items():
        np.testing.assert_allclose(learned[path], value, rtol=2e-5, atol=1e-6)


def test_strategies_tell_every_path() -> None:
    paths = ["backbone/block_0/mlp/up/kernel", "backbone/pooler/bias", "head/kernel", "head/bias"]
    leaves = dict.fromkeys(paths)
    full, head = Full().rules(leaves), HeadOnly().rules(leaves)
    assert all(full[path].learns for path in paths)
    assert [head[path].learns for path in paths] == [False, True, True, True]
    assert [full[path].decays for path in paths] == [True, False, True, False]
