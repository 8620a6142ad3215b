"""How parameters move: the learning rate by step, decay, clipping, and the update rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import optax

from research.adapt import Rule
from research.errors import ConfigError
from research.optimizers import AdamW, UpdateRule

Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd", "wsd_sqrt"]


@dataclass(frozen=True, kw_only=True)
class Optim:
    """An update rule with its schedule.

    `rule`: AdamW, Lamb, Lion, Muon or Adafactor of research/optimizers.py, each with its fields; on
    the command line `--optim.rule lion`. `warmup`: steps, or below 1 a share of all steps; `final`:
    what is left of the learning rate at the last step, as a share. `schedule` "wsd" warms up, stays
    and decays (Hu et al., 2024) over the last `cooldown` steps, or below 1 that share of all steps:
    in a line, or with "wsd_sqrt" by 1 - sqrt (Hägele et al., 2024). `clip`: largest global gradient
    norm, None for no limit. `ema`: decay of the average of the parameters after each step, which is
    evaluated and exported in their place (research/average.py); None keeps none. `sharpness`: how
    far along its gradient a step climbs before it takes the gradient to descend by, which looks for
    flat minima (SAM; Foret et al., 2021) and doubles the products of a step; None does not climb.
    """

    rule: UpdateRule = AdamW()
    learning_rate: float = 5e-5
    schedule: Schedule = "linear"
    warmup: float = 0.1
    cooldown: float = 0.2
    final: float = 0.0
    weight_decay: float = 0.01
    clip: float | None = 1.0
    ema: float | None = None
    sharpness: float | None = None

    def rate(self, steps: int) -> optax.Schedule:
        """Learning rate by step, for a run of `steps`.

        Step 0 of w steps of warm-up has 1 / w of the full rate; without warm-up it has all of it.
        `Optim(learning_rate=1, warmup=0).rate(10)(5)` is 0.5. Raises ConfigError for a warm-up or a
        cooldown that does not fit, for an `ema` that is no decay and a `sharpness` that is no
        distance.
        """
        warmup, peak = steps_of(self.warmup, steps), self.learning_rate
        if warmup >= steps and warmup > 0:
            raise ConfigError(f"optim.warmup: {warmup} steps of warm-up in a run of {steps}")
        if self.ema is not None and not 0.0 <= self.ema < 1.0:
            raise ConfigError(f"optim.ema: {self.ema} is not a decay in [0, 1)")
        if self.sharpness is not None and not 0.0 < self.sharpness < math.inf:
            raise ConfigError(f"optim.sharpness: {self.sharpness} is not a distance above 0")
        decay = self.after_warmup(steps, warmup)
        if warmup == 0:
            return decay
        rise = (
            optax.linear_schedule(peak / warmup, peak, warmup - 1)
            if warmup > 1
            else optax.constant_schedule(peak)
        )
        return optax.join_schedules([rise, decay], [warmup])

    def after_warmup(self, steps: int, warmup: int) -> optax.Schedule:
        """Learning rate by the number of steps since the warm-up."""
        peak, rest, last = self.learning_rate, steps - warmup, self.learning_rate * self.final
        if self.schedule == "constant":
            return optax.constant_schedule(peak)
        if self.schedule == "linear":
            return optax.linear_schedule(peak, last, rest)
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(peak, rest, self.final)
        if self.schedule == "inverse_sqrt":
            scale = max(warmup, 1)
            return lambda step: peak * (scale / (scale + step)) ** 0.5
        cooldown = steps_of(self.cooldown, steps)
        if not 0 < cooldown <= rest:
            raise ConfigError(
                f"optim.cooldown: {cooldown} steps of cooldown after {warmup} of warm-up in a run "
                f"of {steps}"
            )
        power = 1.0 if self.schedule == "wsd" else 0.5

        def stay_then_fall(step: optax.ScalarOrSchedule) -> optax.ScalarOrSchedule:
            share = jnp.clip((step - (rest - cooldown)) / cooldown, 0.0, 1.0)
            return peak - (peak - last) * share**power

        return stay_then_fall

    def build(self, steps: int, rules: Mapping[str, Rule]) -> optax.GradientTransformationExtraArgs:
        """The update rule for a flat dict {path: array} of the parameters that learn.

        Beside optax's arguments `update` takes what the gradients are still to be divided by,
        `count`, and whether they are `finite`; where not, parameters and state stay as they are.
        """
        learning = {path: rule for path, rule in rules.items() if rule.learns}
        return self.rule.build(self.rate(steps), learning, self.weight_decay, self.clip)


def steps_of(amount: float, steps: int) -> int:
    """A number of steps, or below 1 a share of all steps."""
    return round(amount * steps) if amount < 1 else round(amount)
