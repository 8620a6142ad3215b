"""Scores of entities: an entity counts where its type and both of its ends are right.

Precision, recall and F1 as conlleval's (Tjong Kim Sang & De Meulder, 2003) and seqeval's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from research.data.tags import Scheme, entities, strict_entities
from research.metrics import rates


@dataclass(frozen=True)
class EntityScores:
    """Counts by type, int64 [C] in the order of `kinds`: right ones, told ones, and those there."""

    kinds: tuple[str, ...]
    hits: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray

    @property
    def micro(self) -> tuple[float, float, float]:
        """Precision, recall and F1 of all entities together; 0 where undefined."""
        precision, recall, f1 = rates(self.hits.sum(), self.predicted.sum(), self.labelled.sum())
        return float(precision), float(recall), float(f1)

    @property
    def macro(self) -> tuple[float, float, float]:
        """Means over the types that are there or were told; 0 without any."""
        if not self.kinds:
            return 0.0, 0.0, 0.0
        precision, recall, f1 = rates(self.hits, self.predicted, self.labelled)
        return float(precision.mean()), float(recall.mean()), float(f1.mean())

    def by_kind(self) -> dict[str, dict[str, float | int]]:
        """A row a type, for a report."""
        columns = zip(self.kinds, *rates(self.hits, self.predicted, self.labelled))
        return {
            kind: {
                "entities": int(self.labelled[i]),
                "predicted": int(self.predicted[i]),
                "precision": float(precision),
                "recall": float(recall),
                "F1": float(f1),
            }
            for i, (kind, precision, recall, f1) in enumerate(columns)
        }


def score(
    labelled: Iterable[Sequence[str]],
    predicted: Iterable[Sequence[str]],
    *,
    strict: Scheme | Literal[""] = "",
) -> EntityScores:
    """Counts over sentences, each one tag a word.

    `strict` names a scheme, BIO or IOBES: entities that are not written as it says are none.
    Raises ValueError for sentences of different length.
    """
    hits: Counter[str] = Counter()
    told: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for gold, guess in zip(labelled, predicted, strict=True):
        if len(gold) != len(guess):
            raise ValueError(f"{len(gold)} tags against {len(guess)}")
        real, found = (
            set(strict_entities(tags, strict) if strict else entities(tags))
            for tags in (gold, guess)
        )
        there.update(kind for kind, _, _ in real)
        told.update(kind for kind, _, _ in found)
        hits.update(kind for kind, _, _ in real & found)
    kinds = tuple(sorted(there | told))
    return EntityScores(
        kinds, *(np.array([count[k] for k in kinds], np.int64) for count in (hits, told, there))
    )
