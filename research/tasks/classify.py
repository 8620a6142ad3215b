"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import losses, metrics
from research.data.batches import Examples
from research.metrics import Mean
from research.models import layers
from research.models.layers import Dense
from research.models.pooling import Pool, pool

Batch = dict[str, jax.Array]


class Classify(nn.Module):
    """A linear head on one vector an example (Devlin et al., 2019).

    `pool`: an example's first or last token, or the mean over its tokens; `pooler`: BERT's dense
    tanh layer in between; `label_smoothing` in [0, 1); `label_weights`: one loss weight a label, in
    their order, 1 where empty. Without `backbone` the trunk is that of the config's `init_from`.
    """

    backbone: Any = None
    labels: tuple[str, ...] = ()
    pool: Pool = "first"
    pooler: bool = True
    dropout: float = 0.1
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] = ()
    per_token = ()

    def setup(self) -> None:
        self.head = Dense(len(self.labels), dtype="float32", kernel_init=layers.small_normal)

    def encode(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """One vector an example: [B, M, D]; zero at empty places under mean pooling."""
        x = self.backbone(batch, noise=noise)
        x = pool(x, batch, self.pool)
        return self.backbone.pool(x) if self.pooler else x

    def logits(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """float32 [B, M, C]."""
        x = self.encode(batch, noise=noise)
        if noise is not None:
            first = jnp.take_along_axis(noise, batch["starts"], axis=1)
            x = layers.dropout(x, self.dropout, first ^ jnp.uint32(0x4))
        return self.head(x.astype(jnp.float32))

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        logits = self.logits(batch, noise=noise)
        labels, weights = batch["labels"], batch["weights"]
        values = losses.cross_entropy(logits, labels, smoothing=self.label_smoothing)
        correct = jnp.argmax(logits, axis=-1) == labels
        accuracy = Mean.of(correct.astype(jnp.float32), weights)
        if self.label_weights:
            weights = weights * jnp.asarray(self.label_weights, jnp.float32)[labels]
        return {"loss": Mean.of(values, weights), "accuracy": accuracy}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` float32 [B, M, C]."""
        return {"probabilities": jax.nn.softmax(self.logits(batch), axis=-1)}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Macro and micro F1 and MCC beside the means; the confusion matrix as a detail."""
        guesses = outputs["probabilities"].argmax(-1)
        matrix = metrics.confusion(outputs["labels"], guesses, len(self.labels))
        numbers = {
            "macro_f1": metrics.macro_f1(matrix),
            "micro_f1": metrics.micro_f1(matrix),
            "mcc": metrics.matthews(matrix),
        }
        details = {"labels": list(self.labels), "confusion": matrix.tolist()}
        return means | numbers, details | {"mistakes": self.mistakes(outputs)}

    def mistakes(self, outputs: dict[str, np.ndarray], most: int = 20) -> list[dict[str, Any]]:
        """The wrong answers given with the highest probability."""
        guesses = outputs["probabilities"].argmax(-1)
        sure = outputs["probabilities"].max(-1)
        wrong = np.flatnonzero(guesses != outputs["labels"])
        return [
            {
                "id": int(outputs["ids"][i]),
                "label": self.labels[outputs["labels"][i]],
                "prediction": self.labels[guesses[i]],
                "probability": float(sure[i]),
            }
            for i in wrong[np.argsort(-sure[wrong], kind="stable")][:most]
        ]

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"label": name, "probabilities": {name: p}} for each text."""
        for row in outputs["probabilities"].tolist():
            yield {
                "label": self.labels[np.argmax(row)],
                "probabilities": dict(zip(self.labels, row)),
            }
