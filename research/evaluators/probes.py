"""Probes: what a simple classifier reads from the vectors of a model that is not changed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from research import metrics, ranking
from research.errors import ConfigError
from research.evaluate import Model, Scores
from research.evaluators import features


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Labelled texts as vectors: a classifier is fitted on `fit` and told of `split`.

    `data` are labelled texts, None the run's own; of their train split the first `limit` rows.
    """

    fit: str = "train"
    split: str = "dev"
    data: Any = None
    limit: int | None = None
    batch_size: int = 128

    def prepare(self, model: Model) -> None:
        """Opens both splits. Raises ConfigError for data without labels."""
        for split in (self.fit, self.split):
            examples = self.model(model).open(split, self.batch_size).examples
            if "labels" not in examples.slots:
                raise ConfigError(f"evals: {type(self).__name__} needs data with labels")

    def model(self, model: Model) -> Model:
        """The model with the data that are asked about."""
        data = features.borrow(self.data, model)
        if self.limit is not None:
            data = dataclasses.replace(data, limit=self.limit)
        return dataclasses.replace(model, data=data)

    def vectors(self, model: Model, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [N, D] and labels [N] of a split."""
        asked = self.model(model)
        found, outputs = features.encode(asked, asked.open(split, self.batch_size))
        return found, np.asarray(outputs["labels"])

    def scores(self, labels: np.ndarray, guesses: np.ndarray) -> dict[str, float]:
        """Accuracy and macro F1."""
        classes = int(max(labels.max(), guesses.max())) + 1
        matrix = metrics.confusion(labels, guesses, classes)
        return {"accuracy": metrics.accuracy(matrix), "macro_f1": metrics.macro_f1(matrix)}


@dataclass(frozen=True, kw_only=True)
class Ridge(Probe):
    """Ridge regression on one-hot labels over standardised vectors; of `penalties` the one that
    leaves out one example best (Hoerl & Kennard, 1970)."""

    name: str = "ridge"
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)

    def __call__(self, model: Model) -> Scores:
        from sklearn.linear_model import RidgeClassifierCV  # takes seconds to import

        known, labels = self.vectors(model, self.fit)
        asked, expected = self.vectors(model, self.split)
        center, spread = known.mean(0), known.std(0) + 1e-8
        ridge = RidgeClassifierCV(self.penalties).fit((known - center) / spread, labels)
        guesses = ridge.predict((asked - center) / spread)
        return Scores(self.scores(expected, guesses) | {"penalty": float(ridge.alpha_)})


@dataclass(frozen=True, kw_only=True)
class Neighbours(Probe):
    """The commonest label of the `count` nearest texts by cosine; of several, the nearest's."""

    name: str = "neighbours"
    count: int = 5

    def __call__(self, model: Model) -> Scores:
        known, labels = self.vectors(model, self.fit)
        asked, expected = self.vectors(model, self.split)
        nearest = ranking.neighbours(ranking.unit(asked), ranking.unit(known), self.count)
        return Scores(self.scores(expected, vote(labels[nearest])))


def vote(labels: np.ndarray) -> np.ndarray:
    """The commonest label of each row, [Q, K] -> [Q]; among equals the one that comes first.

    vote([[2, 1, 1], [3, 0, 3], [5, 4, 6]]) is [1, 3, 5].
    """
    labels = np.asarray(labels)
    counts = (labels[:, :, None] == labels[:, None, :]).sum(2)
    return labels[np.arange(len(labels)), counts.argmax(1)]
