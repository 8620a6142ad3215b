"""Semantic textual similarity: do cosines order pairs of sentences as people do?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from research import metrics
from research.data.pairs import ANCHOR, Pairs
from research.evaluate import Model, Scores
from research.evaluators import features
from research.tasks.embed import cosines


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Spearman's correlation of cosines with scores: each set's, and their mean (`spearman`).

    `sets` are names and scored pairs, read from the split `dev` of each. A set of several files is
    ranked as a whole, as is usual for the years of SemEval (Agirre et al., 2012; Gao et al., 2021).
    """

    sets: tuple[tuple[str, Pairs], ...]
    name: str = "sts"
    batch_size: int = 128

    def prepare(self, model: Model) -> None:
        """Opens every set."""
        for _, pairs in self.sets:
            dataclasses.replace(model, data=features.borrow(pairs, model)).open(
                "dev", self.batch_size
            )

    def __call__(self, model: Model) -> Scores:
        numbers, counts = {}, {}
        for name, pairs in self.sets:
            asked = dataclasses.replace(model, data=features.borrow(pairs, model))
            _, outputs = features.encode(asked, asked.open("dev", self.batch_size))
            scores = outputs["scores"][outputs["roles"] == ANCHOR]
            numbers[name] = metrics.spearman(cosines(outputs), scores)
            counts[name] = {"pairs": len(scores), "spearman": numbers[name]}
        mean = float(np.mean(list(numbers.values())))
        return Scores(numbers | {"spearman": mean}, {"sets": counts})


def semeval(folder: str, years: tuple[int, ...] = (2012, 2013, 2014, 2015, 2016)) -> tuple:
    """The sets "STS12" to "STS16" of `folder`/2012/*.test.tsv: score, sentence, sentence.

    Only rows with a score count: of the later years most were never shown to people.
    """
    return tuple(
        (
            f"STS{year % 100}",
            Pairs(
                dev=f"{folder}/{year}/*.test.tsv*",
                scored_columns=("score", "sentence1", "sentence2"),
                unscored="leave-out",
            ),
        )
        for year in years
    )
