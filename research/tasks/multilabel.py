"""Multi-label classification: any number of labels for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

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
from research.tasks.classify import Batch, Pooled, check_weights, counted


class MultiLabel(Pooled):
    """A yes or no for each of `labels`, by the sigmoid of its logit.

    `label_weights`: what a yes of each label weighs where a no weighs 1, 1 where empty; "balanced"
    is the noes for each yes in train, by `label_counts` of `train_rows`. A label is told where its
    probability reaches its threshold: `thresholds` holds one a label, or one for all, 0.5 where
    empty. Tuned thresholds are best for micro F1; with `tune_each` for the F1 of each label, which
    takes a larger dev split (Lipton et al., 2014).
    """

    labels: tuple[str, ...] = ()
    label_weights: tuple[float, ...] | Literal["balanced"] = ()
    label_counts: tuple[int, ...] = ()
    train_rows: int | None = None
    thresholds: tuple[float, ...] = ()
    tune_each: bool = False
    resampled = ("micro_f1", "macro_f1", "exact_match")

    def check(self) -> None:
        super().check()
        if isinstance(self.label_weights, tuple):
            check_weights(self.label_weights, self.labels)
        if len(self.thresholds) not in (0, 1, len(self.labels)):
            raise ConfigError(
                f"task.thresholds has {len(self.thresholds)} numbers, but needs one or one for "
                f"each of the {len(self.labels)} labels"
            )

    def make_head(self) -> nn.Module:
        return Dense(len(self.labels), dtype="float32", kernel_init=layers.small_normal)

    def positive_weights(self) -> np.ndarray:
        """What a yes of each label weighs: float [C]."""
        if self.label_weights == "balanced":
            counts = np.asarray(counted(self, "label_weights balanced"), np.float64)
            return ((self.train_rows or 0) - counts) / counts
        return np.asarray(self.label_weights or np.ones(len(self.labels)))

    def cuts(self) -> np.ndarray:
        """The threshold of each label: float [C]."""
        return np.broadcast_to(np.asarray(self.thresholds or (0.5,)), (len(self.labels),))

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        logits = self.noisy_logits(batch, train=train)
        weights = jnp.asarray(self.positive_weights(), jnp.float32)
        values = losses.binary_cross_entropy(logits, batch["labels"], weights)
        return {"loss": Mean.of(jnp.mean(values, axis=-1), batch["weights"])}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` float32 [B, M, C]."""
        return {"probabilities": jax.nn.sigmoid(self.logits(batch))}

    def tuned(self, outputs: dict[str, Any], examples: Examples) -> dict[str, Any]:
        """The fields that serve these examples best: the thresholds."""
        yes, table = outputs["labels"] > 0, outputs["probabilities"]
        if not self.tune_each:
            return {"thresholds": (thresholds.best_threshold(yes.ravel(), table.ravel()),)}
        pairs = zip(yes.T, table.T)
        return {"thresholds": tuple(thresholds.best_threshold(y, s) for y, s in pairs)}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Micro and macro F1, exact matches and areas beside the means; a table of the labels."""
        yes, table = outputs["labels"] > 0, outputs["probabilities"]
        told = table >= self.cuts()
        counts = (yes & told).sum(0), told.sum(0), yes.sum(0)
        precision, recall, f1 = metrics.rates(*counts)
        areas = thresholds.by_class(yes, table)
        numbers = {
            "micro_f1": float(metrics.rates(*(count.sum() for count in counts))[2]),
            "macro_f1": float(f1.mean()),
            "exact_match": float((yes == told).all(-1).mean()),
            "auroc": thresholds.mean(areas["auroc"]),
            "pr_auc": thresholds.mean(areas["pr_auc"]),
        }
        if self.thresholds:
            numbers["threshold"] = float(self.cuts().mean())
        by_label = {
            label: {
                "examples": int(yes[:, c].sum()),
                "threshold": float(self.cuts()[c]),
                "precision": float(precision[c]),
                "recall": float(recall[c]),
                "F1": float(f1[c]),
                "PR-AUC": areas["pr_auc"][c],
            }
            for c, label in enumerate(self.labels)
        }
        return means | numbers, {"by_label": by_label, "mistakes": self.mistakes(outputs)}

    def mistakes(self, outputs: dict[str, np.ndarray], most: int = 20) -> list[dict[str, Any]]:
        """The examples with a wrong yes or no that was given with the highest probability."""
        yes, table = outputs["labels"] > 0, outputs["probabilities"]
        told = table >= self.cuts()
        sure = np.where(yes != told, np.where(told, table, 1 - table), 0.0).max(-1)
        wrong = np.flatnonzero((yes != told).any(-1))
        return [
            {
                "id": int(outputs["ids"][i]),
                "label": ", ".join(self.names(yes[i])),
                "prediction": ", ".join(self.names(told[i])),
                "probability": float(sure[i]),
            }
            for i in wrong[np.argsort(-sure[wrong], kind="stable")][:most]
        ]

    def names(self, chosen: np.ndarray) -> list[str]:
        """The labels that are true in bool [C]."""
        return [label for label, taken in zip(self.labels, chosen.tolist()) if taken]

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"labels": [name, ...], "probabilities": {name: p}} for each text."""
        for row in outputs["probabilities"]:
            yield {
                "labels": self.names(row >= self.cuts()),
                "probabilities": dict(zip(self.labels, row.tolist())),
            }
