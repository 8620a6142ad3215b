"""AdamW and its schedules, with a learning-rate multiplier and a decay mask for every path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from research.adapt import Flat, Rule
from research.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt"]


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW (Loshchilov & Hutter, 2019).

    `warmup`: steps, or below 1 a share of all steps; `final`: what is left of the learning rate at
    the last step, as a share; `clip`: largest global gradient norm, None for no limit.
    """

    learning_rate: float = 5e-5
    schedule: Schedule = "linear"
    warmup: float = 0.1
    final: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float | None = 1.0

    def rate(self, steps: int) -> optax.Schedule:
        """Learning rate by step, for a run of `steps`.

        Step 0 of w steps of warm-up has 1 / w of the full rate; without warm-up it has all of it.
        `Optim(learning_rate=1, warmup=0).rate(10)(5)` is 0.5.
        """
        warmup = round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)
        if warmup >= steps and warmup > 0:
            raise ConfigError(f"optim.warmup: {warmup} steps of warm-up in a run of {steps}")
        peak, rest, last = self.learning_rate, steps - warmup, self.learning_rate * self.final
        decay: optax.Schedule
        if self.schedule == "constant":
            decay = optax.constant_schedule(peak)
        elif self.schedule == "linear":
            decay = optax.linear_schedule(peak, last, rest)
        elif self.schedule == "cosine":
            decay = optax.cosine_decay_schedule(peak, rest, self.final)
        else:
            scale = max(warmup, 1)
            decay = lambda step: peak * (scale / (scale + step)) ** 0.5  # noqa: E731
        if warmup == 0:
            return decay
        rise = (
            optax.linear_schedule(peak / warmup, peak, warmup - 1)
            if warmup > 1
            else optax.constant_schedule(peak)
        )
        return optax.join_schedules([rise, decay], [warmup])

    def build(self, steps: int, rules: Mapping[str, Rule]) -> optax.GradientTransformationExtraArgs:
        """The update rule for a flat dict {path: array} of the parameters that learn.

        Beside optax's arguments `update` takes what the gradients are still to be divided by,
        `count`, and whether they are `finite`; where not, parameters and state stay as they are.
        """
        learning = {path: rule for path, rule in rules.items() if rule.learns}
        rate = self.rate(steps)

        def init(params: Flat) -> optax.ScaleByAdamState:
            mu, nu = ({path: jnp.zeros_like(leaf) for path, leaf in params.items()} for _ in "mn")
            return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

        def update(
            sums: Flat,
            state: optax.ScaleByAdamState,
            params: Flat,
            *,
            count: jax.Array | float = 1.0,
            finite: jax.Array | bool = True,
        ) -> tuple[Flat, optax.ScaleByAdamState]:
            # All that is the same for every element is worked out once, `finite` included: what is
            # left is one pass an array, in place. A `where` over old and new would copy both.
            scale = 1.0 / count
            if self.clip is not None:
                scale *= jnp.minimum(1.0, self.clip / (optax.tree.norm(sums) * scale))
            step = state.count + 1
            scale, speed = jnp.where(finite, jnp.array([scale, rate(state.count)]), 0.0)
            old1, old2 = jnp.where(finite, jnp.array([self.beta1, self.beta2]), 1.0)
            new1, new2 = (1 - self.beta1) * scale, (1 - self.beta2) * scale**2
            first, second = 1 - self.beta1**step, lax.rsqrt(1 - self.beta2**step)
            mu, nu, updates = {}, {}, {}
            for path, total in sums.items():
                grad = jnp.where(finite, total, 0.0)
                mu[path] = m = old1 * state.mu[path] + new1 * grad
                nu[path] = v = old2 * state.nu[path] + new2 * jnp.square(grad)
                pace = speed * learning[path].multiplier
                updates[path] = -(pace / first) * m / (jnp.sqrt(v) * second + self.epsilon)
                if learning[path].decays:
                    updates[path] -= pace * self.weight_decay * params[path]
            steps_taken = state.count + jnp.asarray(finite, jnp.int32)
            return updates, optax.ScaleByAdamState(steps_taken, mu, nu)

        return optax.GradientTransformationExtraArgs(init, update)
