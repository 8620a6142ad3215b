"""Pseudo-log-likelihood: each token masked in its turn (Salazar et al., 2020)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import metrics
from research.errors import ConfigError
from research.evaluate import Model, Scores, forward
from research.evaluators.features import borrow
from research.tasks.causal import by_example
from research.tasks.lm import MaskedLM


@dataclass(frozen=True, kw_only=True)
class PseudoLikelihood:
    """How likely a masked LM finds the texts of a split, every token seen but the one asked for.

    `pseudo_perplexity` is exp of the mean nats a token, over all tokens but special ones;
    `pseudo_log_likelihood` the mean nats a text. Of data that know `bytes` also
    `pseudo_bits_per_byte`. None is comparable with a causal model's: the factors are no
    decomposition of a probability. As many passes as the longest text has tokens; without `data`,
    the run's own are asked.
    """

    split: str = "dev"
    batch_size: int = 32
    data: Any = None
    name: str = "pseudo"

    def asked(self, model: Model) -> Model:
        """The model with the data that are asked about."""
        return dataclasses.replace(model, data=borrow(self.data, model))

    def prepare(self, model: Model) -> None:
        """Opens the split. Raises ConfigError for a task that is no masked LM."""
        if not isinstance(model.task, MaskedLM):
            raise ConfigError(f"evals: {type(model.task).__name__} is no masked LM")
        self.asked(model).open(self.split, self.batch_size)

    def __call__(self, model: Model) -> Scores:
        asked = self.asked(model)
        batches = asked.open(self.split, self.batch_size)
        _, outputs = forward(asked, batches, means=False, method=pseudo_nll)
        nats = np.asarray(outputs["nll"], np.float64)
        numbers = {
            "pseudo_perplexity": metrics.perplexity(nats.sum() / outputs["count"].sum()),
            "pseudo_log_likelihood": float(-nats.mean()),
        }
        if "bytes" in outputs:
            total = int(outputs["bytes"].sum())
            numbers["pseudo_bits_per_byte"] = metrics.bits_per_byte(float(nats.sum()), total)
        return Scores(numbers)


def pseudo_nll(task: nn.Module, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`nll` float32 [B, M], nats over an example's tokens but the special ones, each hidden alone,
    and `count` int32 [B, M], how many they are: a `method` for `evaluate.forward`.

    Examples of a row do not see each other, so that one pass hides a token of each.
    """
    plain, variables = task.clone(parent=None), {"params": task.variables["params"]}
    tokens, positions = batch["tokens"], batch["positions"]
    special = jnp.isin(tokens, jnp.asarray(task.special_ids, jnp.int32))
    asked = (batch["segments"] > 0) & ~special

    def told(task: Any, shown: jax.Array, here: jax.Array) -> jax.Array:
        x = task.see(batch, shown, noise=None)
        # One token of each example: only they meet the vocabulary.
        at = jnp.minimum(batch["starts"] + here, tokens.shape[1] - 1)
        labels = jnp.take_along_axis(tokens, at, axis=1)
        x = jnp.take_along_axis(x, at[..., None], axis=1)
        nll: jax.Array = task.backbone.nll(task.head(x), labels, task.bias).nll
        counts = (here < batch["lengths"]) & jnp.take_along_axis(asked, at, axis=1)
        return jnp.where(counts, nll, 0.0)

    def add(here: jax.Array, total: jax.Array) -> jax.Array:
        shown = jnp.where((positions == here) & asked, jnp.int32(task.mask_id), tokens)
        nats: Any = plain.apply(variables, shown, here, method=told)
        return total + nats

    nothing = jnp.zeros(batch["ids"].shape, jnp.float32)
    nll = jax.lax.fori_loop(0, jnp.max(batch["lengths"]), add, nothing)
    return {"nll": nll, "count": by_example(asked.astype(jnp.int32), batch)}
