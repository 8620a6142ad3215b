"""Intents with a class for what is none of them, as in CLINC150."""

from __future__ import annotations

from typing import Any

import numpy as np

from research import metrics, thresholds
from research.data.batches import Examples
from research.errors import ConfigError
from research.tasks.classify import Classify


class ScopedClassify(Classify):
    """Classification where the label `outside`, which is trained like any other, means none of
    the others (Larson et al., 2019)."""

    outside: str = "oos"

    def check(self) -> None:
        super().check()
        if self.outside not in self.labels:
            raise ConfigError(f"task.outside is {self.outside!r}, which is not among the labels")

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Beside Classify's: `in_scope_accuracy` and `outside_recall` as Larson et al. have them.

        `outside_auroc` and `outside_pr_auc` tell what is outside by the probability of that label;
        `outside_auroc_by_max` by one minus the highest probability of the others (Hendrycks &
        Gimpel, 2017).
        """
        numbers, details = super().score(means, outputs, examples)
        probabilities, labels = outputs["probabilities"], outputs["labels"]
        outside = self.labels.index(self.outside)
        away = labels == outside
        recall = metrics.precision_recall_f1(np.asarray(details["confusion"]))[1]
        others = np.delete(probabilities, outside, axis=-1).max(-1)
        right = self.guesses(probabilities) == labels
        numbers |= {
            "in_scope_accuracy": float(right[~away].mean()) if (~away).any() else float("nan"),
            "outside_recall": float(recall[outside]),
            "outside_auroc": thresholds.auroc(away, probabilities[:, outside]),
            "outside_auroc_by_max": thresholds.auroc(away, 1.0 - others),
            "outside_pr_auc": thresholds.average_precision(away, probabilities[:, outside]),
        }
        return numbers, details
