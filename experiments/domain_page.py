"""The page of the study of domains: accuracies by pair, and how far domains lie apart."""

from __future__ import annotations

from research.study.arms import Arms
from research.study.page import Block, Facts, Heading, Page, Text
from research.study.runner import Runner
from research.study.statistics import Summary
from research.study.table import Table


def page(run: Runner, found: Arms, apart: dict[str, float], plain: str) -> Page:
    """Accuracies by pair and over all, each against `plain`, and what distance says of the loss."""
    rivals = [(arm, plain) for arm in found.arms if arm != plain]
    over_all = Table(
        "Mean over pairs and seeds",
        ("", "accuracy"),
        tuple(
            (arm, Summary.of([v for p in apart for v in found.scores[arm, p]]))
            for arm in found.arms
        ),
        highest=("accuracy",),
    )
    blocks: list[Block] = [
        Heading("Result"),
        over_all,
        found.table("Accuracy on the target's test, by pair"),
        found.tests(f"Each arm minus {plain}, paired by seed", rivals)
        if plain in found.arms
        else Text(f"Without the arm {plain!r} there is nothing to test against."),
        Heading("How far apart"),
        Text("Proxy A-distance: 0 where a linear classifier cannot tell the domains, at most 2."),
        Table(
            "",
            ("pair", "proxy A-distance", "source only"),
            tuple(
                (p, d, Summary.of(found.scores[plain, p]) if plain in found.arms else None)
                for p, d in apart.items()
            ),
        ),
        Heading("Where the time went"),
        Facts(run.seconds()),
    ]
    seeds = len(next(iter(found.scores.values())))
    return Page(
        "Domains: what helps when the labels are of another one?",
        f"{len(run.results)} runs; {len(apart)} pairs, {seeds} seeds",
        blocks,
    )
