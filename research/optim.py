"""AdamW and its schedules, with a learning-rate multiplier and a decay mask for every path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import optax

from research.adapt import Rule
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

    def build(self, steps: int, rules: Mapping[str, Rule]) -> optax.GradientTransformation:
        """The update rule for a flat dict {path: array} of the parameters that learn."""
        learning = {path: rule for path, rule in rules.items() if rule.learns}
        chain = [
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(
                self.weight_decay, {path: rule.decays for path, rule in learning.items()}
            ),
            optax.scale_by_learning_rate(self.rate(steps)),
        ]
        if self.clip is not None:
            chain.insert(0, optax.clip_by_global_norm(self.clip))
        if any(rule.multiplier != 1.0 for rule in learning.values()):
            chain.append(
                optax.stateless(
                    lambda updates, _: {
                        path: update * learning[path].multiplier for path, update in updates.items()
                    }
                )
            )
        return optax.chain(*chain)
