"""Prototypes: a text is told by the nearest mean vector of a class (Snell et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from research import ranking
from research.errors import ConfigError
from research.evaluate import Model, Scores
from research.evaluators.probes import Probe


@dataclass(frozen=True, kw_only=True)
class Prototypes(Probe):
    """The class whose mean over `fit` is nearest; means are those of vectors of unit length."""

    name: str = "prototypes"

    def __call__(self, model: Model) -> Scores:
        known, labels = self.vectors(model, self.fit)
        asked, expected = self.vectors(model, self.split)
        classes, places = np.unique(labels, return_inverse=True)
        means = class_means(ranking.unit(known), places, len(classes))
        return Scores(self.scores(expected, classes[nearest(ranking.unit(asked), means)]))


@dataclass(frozen=True, kw_only=True)
class Episodes(Probe):
    """Accuracy over episodes: `ways` classes drawn of `split`, each number of `shots` of examples
    of each to know them by, `queries` others of each to tell (Vinyals et al., 2016), by the nearest
    mean: {"1_shot": accuracy, "1_shot_low": ..., "1_shot_high": ...}.

    Nothing is fitted but the means, so `split` should hold classes that the model has not learned.
    Low and high bound the mean over episodes (95 %, normal): they say nothing of the spread over
    seeds of training. The episodes are a function of `seed`, the same for every model.
    """

    name: str = "episodes"
    ways: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 5
    episodes: int = 600
    seed: int = 0

    def prepare(self, model: Model) -> None:
        """Opens the split. Raises ConfigError for too few classes or examples of one."""
        super().prepare(model)
        opened = self.model(model).open(self.split, self.batch_size)
        counts = np.bincount(opened.examples.slots["labels"])
        counts = counts[counts > 0]
        most = max(self.shots)
        if self.ways < 2 or len(counts) < self.ways or counts.min() < most + self.queries:
            raise ConfigError(
                f"evals: {self.name} draws {self.ways} classes of {most} + {self.queries} "
                f"examples, but {self.split} has {len(counts)} classes, one of {counts.min()}"
            )

    def __call__(self, model: Model) -> Scores:
        vectors, labels = self.vectors(model, self.split)
        numbers: dict[str, float] = {}
        for shots in self.shots:
            found = self.accuracies(ranking.unit(vectors), labels, shots)
            mean = float(found.mean())
            half = 1.96 * float(found.std(ddof=1)) / len(found) ** 0.5
            bounds = {"": mean, "_low": mean - half, "_high": mean + half}
            numbers |= {f"{shots}_shot{name}": value for name, value in bounds.items()}
        return Scores(numbers)

    def accuracies(self, vectors: np.ndarray, labels: np.ndarray, shots: int) -> np.ndarray:
        """The share of queries told right in each episode: [N, D], [N] -> float64 [episodes]."""
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        generator = np.random.default_rng(self.seed)
        truth = np.repeat(np.arange(self.ways), self.queries)
        found = np.empty(self.episodes)
        for episode in range(self.episodes):
            chosen = [
                generator.permutation(members[c])[: shots + self.queries]
                for c in generator.permutation(len(members))[: self.ways]
            ]
            drawn = np.stack(chosen)  # [ways, shots + queries]
            means = vectors[drawn[:, :shots]].mean(1)
            asked = vectors[drawn[:, shots:].reshape(-1)]
            found[episode] = np.mean(nearest(asked, means) == truth)
        return found


def class_means(vectors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean vector of each class, every one of which occurs: [N, D], [N] -> [C, D]."""
    return np.stack([vectors[labels == label].mean(0) for label in range(classes)])


def nearest(vectors: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The place of the mean at the least squared distance: [N, D], [C, D] -> [N].

    nearest([[1, 0], [0, 3]], [[0, 1], [2, 0]]) is [1, 0].
    """
    vectors, means = np.asarray(vectors), np.asarray(means)
    distance = np.square(means).sum(1)[None] - 2 * vectors @ means.T
    return np.asarray(distance.argmin(1))
