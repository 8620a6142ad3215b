"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import losses, metrics, thresholds
from research.data.batches import Examples
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers
from research.models.layers import Dense
from research.models.pooling import Pool, pooled

Batch = dict[str, jax.Array]


class Pooled(nn.Module, ABC):
    """A linear head on one vector an example (Devlin et al., 2019); what it means is a subclass's.

    `pool`: an example's first or last token, or the mean over its tokens; `pooler`: BERT's dense
    tanh layer in between. Without `backbone` the trunk is that of the config's `init_from`.
    """

    backbone: Any = None
    pool: Pool = "first"
    pooler: bool = True
    dropout: float = 0.1
    per_token = ()
    resampled: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "micro_f1", "mcc")

    def setup(self) -> None:
        self.check()
        self.head = self.make_head()

    def check(self) -> None:
        """Raises ConfigError for fields that cannot go together."""
        spec = getattr(self.backbone, "spec", None)
        if self.pool == "first" and getattr(spec, "causal", False):
            raise ConfigError(
                "task.pool is 'first', but a causal trunk's first token sees nothing of the text "
                "after it; use last or mean"
            )
        if self.pool == "first" and getattr(spec, "reads_last", False):
            raise ConfigError(
                f"task.pool is 'first', but <cls> is the last token of a text for "
                f"{type(self.backbone).__name__}; use last or mean"
            )

    @abstractmethod
    def make_head(self) -> nn.Module:
        """The layer from [B, M, D] to what `logits` gives."""

    def encode(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """One vector an example: [B, M, D]; zero at empty places under mean pooling."""
        x = pooled(self.backbone, batch, self.pool, noise)
        return self.backbone.pool(x) if self.pooler else x

    def logits(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """float32 [B, M, outputs of the head]."""
        x = self.encode(batch, noise=noise)
        if noise is not None:
            first = jnp.take_along_axis(noise, batch["starts"], axis=1)
            x = layers.dropout(x, self.dropout, first ^ jnp.uint32(0x4))
        return self.head(x.astype(jnp.float32))

    def noisy_logits(self, batch: Batch, *, train: bool) -> jax.Array:
        """The logits, with dropout where `train`."""
        return self.logits(
            batch, noise=layers.token_noise(self.make_rng("noise"), batch) if train else None
        )


class Classify(Pooled):
    """One of `labels` for every example, by the softmax of its logits.

    `label_smoothing` in [0, 1). `label_weights`: one loss weight a label, in their order, 1 where
    empty; "balanced" makes those of `losses.balanced_weights` of `label_counts`, the rows of each
    label in train. Of two labels the second is told where its probability reaches `threshold`,
    0.5 where None; `tune_for` is what a tuned threshold is best for. The heads of transformers'
    decoders are without `head_bias`.
    """

    labels: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] | Literal["balanced"] = ()
    label_counts: tuple[int, ...] = ()
    threshold: float | None = None
    tune_for: thresholds.Aim = "f1"
    head_bias: bool = True

    def check(self) -> None:
        super().check()
        if isinstance(self.label_weights, tuple):
            check_weights(self.label_weights, self.labels)
        if self.threshold is not None and len(self.labels) != 2:
            raise ConfigError(f"task.threshold is for two labels, but there are {len(self.labels)}")

    def make_head(self) -> nn.Module:
        return Dense(
            len(self.labels), self.head_bias, dtype="float32", kernel_init=layers.small_normal
        )

    def values(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss of every example: float32 [B, M, C], int32 [B, M] -> float32 [B, M]."""
        return losses.cross_entropy(logits, labels, smoothing=self.label_smoothing)

    def weights_of_labels(self) -> tuple[float, ...]:
        """One loss weight a label, or none."""
        if self.label_weights == "balanced":
            return tuple(losses.balanced_weights(counted(self, "label_weights balanced")).tolist())
        return self.label_weights

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        logits = self.noisy_logits(batch, train=train)
        labels, weights = batch["labels"], batch["weights"]
        correct = jnp.argmax(logits, axis=-1) == labels
        accuracy = Mean.of(correct.astype(jnp.float32), weights)
        if by_label := self.weights_of_labels():
            weights = weights * jnp.asarray(by_label, jnp.float32)[labels]
        return {"loss": Mean.of(self.values(logits, labels), weights), "accuracy": accuracy}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` float32 [B, M, C]."""
        return {"probabilities": jax.nn.softmax(self.logits(batch), axis=-1)}

    def guesses(self, probabilities: np.ndarray) -> np.ndarray:
        """The label told of each example: [N, C] -> int [N]."""
        if self.threshold is None:
            return probabilities.argmax(-1)
        return (probabilities[:, 1] >= self.threshold).astype(np.int64)

    def tuned(self, outputs: dict[str, Any], examples: Examples) -> dict[str, Any]:
        """The fields that serve these examples best: the threshold. Raises ConfigError where the
        labels are not two."""
        if len(self.labels) != 2:
            raise ConfigError(f"tune: a threshold is for two labels, not {len(self.labels)}")
        scores = outputs["probabilities"][:, 1]
        return {"threshold": thresholds.best_threshold(outputs["labels"], scores, self.tune_for)}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """F1, MCC and areas under curves beside the means; the confusion matrix as a detail.

        `f1`, `auroc` and `pr_auc` are the second label's of two, else means over the labels.
        """
        probabilities, labels = outputs["probabilities"], outputs["labels"]
        matrix = metrics.confusion(labels, self.guesses(probabilities), len(self.labels))
        areas = thresholds.by_class(np.eye(len(self.labels))[labels], probabilities)
        numbers = {
            "macro_f1": metrics.macro_f1(matrix),
            "micro_f1": metrics.micro_f1(matrix),
            "mcc": metrics.matthews(matrix),
            "balanced_accuracy": metrics.balanced_accuracy(matrix),
            "auroc": thresholds.mean(areas["auroc"]),
            "pr_auc": thresholds.mean(areas["pr_auc"]),
        }
        if len(self.labels) == 2:
            numbers["f1"] = float(metrics.precision_recall_f1(matrix)[2][1])
            numbers |= {name: values[1] for name, values in areas.items()}
        if self.threshold is not None:
            numbers |= {"accuracy": metrics.accuracy(matrix), "threshold": self.threshold}
        details = {
            "labels": list(self.labels),
            "confusion": matrix.tolist(),
            "pr_auc": areas["pr_auc"],
            "mistakes": self.mistakes(outputs),
        }
        return means | numbers, details

    def mistakes(self, outputs: dict[str, np.ndarray], most: int = 20) -> list[dict[str, Any]]:
        """The wrong answers given with the highest probability."""
        guesses = self.guesses(outputs["probabilities"])
        sure = np.take_along_axis(outputs["probabilities"], guesses[:, None], axis=-1)[:, 0]
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
        probabilities = outputs["probabilities"]
        for row, guess in zip(probabilities.tolist(), self.guesses(probabilities).tolist()):
            yield {"label": self.labels[guess], "probabilities": dict(zip(self.labels, row))}


def check_weights(weights: tuple[float, ...], labels: tuple[str, ...]) -> None:
    """Raises ConfigError unless there is one weight a label, or none at all."""
    if weights and len(weights) != len(labels):
        raise ConfigError(
            f"task.label_weights has {len(weights)} numbers, but there are {len(labels)} labels"
        )


def counted(task: Any, wanted: str) -> tuple[int, ...]:
    """`task.label_counts`. Raises ConfigError where they are not known or one of them is 0."""
    counts: tuple[int, ...] = task.label_counts
    if len(counts) != len(task.labels):
        raise ConfigError(f"{wanted} needs task.label_counts, one number for each of the labels")
    for label, count in zip(task.labels, counts):
        if count == 0:
            raise ConfigError(f"{wanted} needs rows of every label, but train has no {label!r}")
    return counts
