"""Objectives for labels of very different frequency: focal, class-balanced, logit-adjusted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from research import losses
from research.errors import ConfigError
from research.tasks.classify import Classify, counted


class Focal(Classify):
    """Examples that are already right weigh less (Lin et al., 2017)."""

    gamma: float = 2.0

    def values(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.focal(logits, labels, self.gamma, smoothing=self.label_smoothing)


class ClassBalanced(Focal):
    """A label weighs by its effective number of rows (Cui et al., 2019).

    `beta` in [0, 1) is how much rows of a label repeat each other: 0 weighs all labels alike, and
    towards 1 the weights become those of label_weights="balanced". `gamma` above 0 makes it focal.
    """

    gamma: float = 0.0
    beta: float = 0.999

    def check(self) -> None:
        super().check()
        if not 0.0 <= self.beta < 1.0:
            raise ConfigError(f"task.beta is {self.beta}, but must be at least 0 and below 1")
        if self.label_weights:
            raise ConfigError("task.label_weights are given, but ClassBalanced has its own")

    def weights_of_labels(self) -> tuple[float, ...]:
        counts = counted(self, "ClassBalanced")
        return tuple(losses.effective_weights(counts, self.beta).tolist())


class LogitAdjusted(Classify):
    """Logits learn what is left to learn beside the labels' frequencies (Menon et al., 2021).

    The loss is that of logits + `tau` log(share of the label in train); predictions are made
    without the addition, so that rare labels are told as readily as frequent ones.
    """

    tau: float = 1.0

    def values(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        counts = np.asarray(counted(self, "LogitAdjusted"), np.float64)
        prior = self.tau * np.log(counts / counts.sum())
        shift = jnp.asarray(prior, jnp.float32).reshape(1, 1, -1)
        return losses.cross_entropy(logits + shift, labels, smoothing=self.label_smoothing)
