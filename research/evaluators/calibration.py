"""Calibration: are probabilities right as often as they say, and are they after scaling?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from research import metrics
from research.errors import ConfigError
from research.evaluate import Model, Scores, forward


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration error, Brier score and log-loss of `split`, as they are and with the temperature
    that serves the split `fit` best (Guo et al., 2017)."""

    fit: str = "dev"
    split: str = "test"
    name: str = "calibration"
    bins: int = 15
    batch_size: int = 128

    def prepare(self, model: Model) -> None:
        """Opens both splits. Raises ConfigError where they are one."""
        if self.fit == self.split:
            raise ConfigError(
                f"evals: a temperature fitted on {self.fit} says nothing when told of {self.split}"
            )
        for split in (self.fit, self.split):
            model.open(split, self.batch_size)

    def probabilities(
        self, model: Model, split: str
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """[N, C] and [N]. Raises ConfigError for a task that predicts no probabilities."""
        _, outputs = forward(model, model.open(split, self.batch_size), means=False)
        if "probabilities" not in outputs or np.ndim(outputs["labels"]) != 1:
            raise ConfigError(f"evals: {type(model.task).__name__} gives no class probabilities")
        return np.asarray(outputs["probabilities"], np.float64), np.asarray(outputs["labels"])

    def __call__(self, model: Model) -> Scores:
        temperature = fit_temperature(*self.probabilities(model, self.fit))
        table, labels = self.probabilities(model, self.split)
        scaled = soften(table, temperature)
        numbers = {"temperature": temperature} | self.scores(table, labels)
        numbers |= {f"scaled_{name}": x for name, x in self.scores(scaled, labels).items()}
        return Scores(numbers, {"reliability": self.reliability(table, labels)})

    def scores(self, table: npt.NDArray[np.float64], labels: npt.ArrayLike) -> dict[str, float]:
        """What falls as probabilities get better."""
        return {
            "calibration_error": metrics.expected_calibration_error(table, labels, self.bins),
            "brier": metrics.brier(table, labels),
            "nll": log_loss(table, labels),
        }

    def reliability(
        self, table: npt.NDArray[np.float64], labels: npt.ArrayLike
    ) -> list[dict[str, float]]:
        """Examples, mean confidence and accuracy of each bin that holds any."""
        sure, right = table.max(-1), table.argmax(-1) == np.asarray(labels)
        place = np.clip(np.ceil(sure * self.bins).astype(int) - 1, 0, self.bins - 1)
        return [
            {
                "up to": (i + 1) / self.bins,
                "examples": int((place == i).sum()),
                "confidence": float(sure[place == i].mean()),
                "accuracy": float(right[place == i].mean()),
            }
            for i in range(self.bins)
            if (place == i).any()
        ]


def soften(table: npt.ArrayLike, temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities [N, C] with their logits divided by a temperature; 1 changes nothing."""
    logs = np.log(np.maximum(np.asarray(table, np.float64), 1e-300)) / temperature
    odds = np.exp(logs - logs.max(-1, keepdims=True))
    return np.asarray(odds / odds.sum(-1, keepdims=True))


def log_loss(table: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean negative log-likelihood of the labels in nats."""
    found = np.asarray(table, np.float64)[np.arange(len(np.asarray(labels))), np.asarray(labels)]
    return float(-np.log(np.maximum(found, 1e-300)).mean())


def fit_temperature(table: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The temperature between 1/100 and 100 of least log-loss; it is convex in its inverse."""
    from scipy.optimize import minimize_scalar  # takes seconds to import

    found = minimize_scalar(
        lambda log: log_loss(soften(table, float(np.exp(log))), labels),
        bounds=(-np.log(100.0), np.log(100.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))
