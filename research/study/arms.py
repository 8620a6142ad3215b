"""Arms of a study under several conditions, a score a seed: the table, the tests, the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from research.errors import ConfigError
from research.study import plot
from research.study.page import Figure
from research.study.plot import Series
from research.study.statistics import PairedTest, Summary, holm, paired_test, seeds_needed
from research.study.table import Cell, Table

LEAST_EFFECT = 0.05  # of which more than 3,000 pairs are needed


@dataclass(frozen=True)
class Arms:
    """Scores by (arm, condition), in the order of their seeds: pair i of two arms is seed i.

    `metric` is what is scored; higher is better.
    """

    metric: str
    scores: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, arm: str, condition: str, score: float) -> None:
        """One more seed of an arm."""
        self.scores.setdefault((arm, condition), []).append(score)

    @property
    def arms(self) -> list[str]:
        """The arms, as they came."""
        return list(dict.fromkeys(arm for arm, _ in self.scores))

    @property
    def conditions(self) -> list[str]:
        """The conditions, as they came."""
        return list(dict.fromkeys(condition for _, condition in self.scores))

    def table(self, title: str) -> Table:
        """Mean, standard deviation and n of every arm, a column a condition."""
        columns = tuple(self.conditions)
        rows = []
        for arm in self.arms:
            found = (self.scores.get((arm, condition)) for condition in columns)
            rows.append((arm, *(Summary.of(values) if values else "" for values in found)))
        return Table(title=title, columns=("", *columns), rows=tuple(rows), highest=columns)

    def tests(self, title: str, pairs: Sequence[tuple[str, str]]) -> Table:
        """The first arm of each pair minus the second, paired by seed, under every condition and,
        where there are several, over all; the p of sign flips also by Holm's correction over the
        table. Empty with a single seed. The last column is how many pairs would find an effect of
        that size in four studies of five.

        Raises ConfigError where the two arms of a pair have not the same seeds.
        """
        found = []
        for arm, rival in pairs:
            shared = [c for c in self.conditions if (arm, c) in self.scores]
            groups = {c: [c] for c in shared} | ({"all": shared} if len(shared) > 1 else {})
            for name, group in groups.items():
                ours, theirs = (
                    [value for c in group for value in self.scores.get((one, c), [])]
                    for one in (arm, rival)
                )
                if len(ours) != len(theirs):
                    raise ConfigError(
                        f"{arm!r} has {len(ours)} scores under {name!r} and {rival!r} {len(theirs)}"
                    )
                if len(ours) > 1:
                    found.append((arm, rival, name, paired_test(ours, theirs)))
        adjusted = holm([test.p for *_, test in found]) if found else []
        return Table(
            title=title,
            columns=(
                "arm",
                "minus",
                "at",
                "difference",
                "pairs",
                "p",
                "p, Holm",
                "p, t-test",
                "dz",
                "pairs needed",
            ),
            rows=tuple(
                (
                    *(arm, rival, name, test.difference, test.n, test.p, p, test.t_p),
                    None if np.isnan(test.dz) else test.dz,
                    needed(test),
                )
                for (arm, rival, name, test), p in zip(found, adjusted)
            ),
        )

    def curve(self, title: str, xlabel: str, at: Mapping[str, float], caption: str) -> Figure:
        """A line an arm over the numbers that the conditions stand for, with one sd each way as its
        band where there are several seeds; the axis is logarithmic where numbers are above 0."""
        lines = []
        for arm in self.arms:
            held = [
                (at[c], self.scores[arm, c]) for c in self.conditions if (arm, c) in self.scores
            ]
            held.sort(key=lambda point: point[0])
            x = [place for place, _ in held]
            mean = np.array([np.mean(values) for _, values in held])
            sd = np.array([np.std(v, ddof=1) if len(v) > 1 else np.nan for _, v in held])
            lines.append(Series(label=arm, x=x, y=mean, low=mean - sd, high=mean + sd))
        drawn = plot.curves(
            title, lines, xlabel=xlabel, ylabel=self.metric, log_x=min(at.values()) > 0
        )
        return Figure(drawn, caption)

    def figures(self) -> list[Figure]:
        """A bar an arm, a figure a condition."""
        drawn = []
        for condition in self.conditions:
            values = {
                arm: Summary.of(self.scores[arm, condition])
                for arm in self.arms
                if (arm, condition) in self.scores
            }
            svg = plot.bars(condition, values, ylabel=self.metric)
            drawn.append(Figure(svg, f"All arms: {condition}."))
        return drawn


def needed(test: PairedTest) -> Cell:
    """Pairs with which a t-test finds an effect of the size of this one with a chance of 0.8."""
    if np.isnan(test.dz):
        return None
    if abs(test.dz) < LEAST_EFFECT:
        return "> 3,000"
    return 2 if np.isinf(test.dz) else seeds_needed(1.0, test.dz)
