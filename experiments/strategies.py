"""Which fine-tuning strategy gives the most for what it costs? Sixteen of them, on three tasks.

    launch.py study experiments/strategies.py --init-from DIR --data "sst2;TRAIN;DEV" ...
    ... --small                      one task, two seeds, few rows: minutes
    ... --dry-run                                    the arms and what they will cost

Accuracy (or the task's own score) on dev, parameters that learn, FLOPs of the products that a step
needs, temporary memory of the compiled one, and its time. Each strategy has its own learning rate,
the best of `factors` times a usual one on rows of train that no run learns from, by one seed
of its own: one rate for all would favour full fine-tuning or the small ones. DIR: any BERT folder.
Two CPU cores and all-MiniLM-L6-v2: a night as given; `--factors 1` saves a third of it. A run of
full fine-tuning keeps a checkpoint of 270 MB.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from experiments.corpora import ON_DEV, Corpus, corpus, cut
from research.config import Config
from research.optim import Optim
from research.strategies import (
    IA3,
    Adapter,
    BitFit,
    DecayToInit,
    Full,
    GradualUnfreeze,
    HeadOnly,
    LayerDecay,
    LoRA,
    Prefix,
    Prompt,
    ReinitTop,
    SeenWords,
    Strategy,
)
from research.study.arms import Arms
from research.study.page import Block, Facts, Heading, Page, Text
from research.study.records import read
from research.study.runner import PLANNED, Runner
from research.study.statistics import Summary
from research.study.table import Cell, Table
from research.tasks.classify import Classify
from research.train import Result

FULL = "full"
BATCH = 32
TUNING_SEED = 1000


@dataclass(frozen=True)
class Arm:
    """A strategy and the learning rate that its `factors` multiply: about that of its paper."""

    adapt: Strategy
    rate: float


def arms_of(steps: int) -> dict[str, Arm]:
    """All strategies, for runs of so many steps; a third of them is gradual unfreezing."""
    thirds = tuple(sorted({0, steps // 9, 2 * steps // 9, steps // 3}))
    small = 1e-3
    return {
        FULL: Arm(Full(), 1e-4),
        "seen words": Arm(SeenWords(), 1e-4),
        "head only": Arm(HeadOnly(), 3e-3),
        "layer decay 0.8": Arm(LayerDecay(0.8), 2e-4),
        "BitFit": Arm(BitFit(), small),
        "LoRA r=4": Arm(LoRA(rank=4), small),
        "LoRA r=16": Arm(LoRA(rank=16), small),
        "DoRA r=4": Arm(LoRA(rank=4, magnitude=True), small),
        "adapter, Houlsby": Arm(Adapter(bottleneck=32), small),
        "adapter, Pfeiffer": Arm(Adapter(bottleneck=32, placement="pfeiffer"), small),
        "IA3": Arm(IA3(), 5e-3),
        "prefix": Arm(Prefix(16), 5e-3),
        "prompt": Arm(Prompt(16), 5e-3),
        "decay to init": Arm(Full() | DecayToInit(0.01), 1e-4),
        "top re-drawn": Arm(Full() | ReinitTop(1), 1e-4),
        "gradual": Arm(Full() | GradualUnfreeze(thirds), 1e-4),
    }


def study(
    run: Runner,
    *,
    init_from: str = "sentence-transformers/all-MiniLM-L6-v2",
    data: tuple[str, ...] = ("sst2", "banking77", "cola"),
    only: tuple[str, ...] = (),
    limit: int = 2048,
    held: int = 500,
    dev: int | None = None,
    steps: int = 192,
    factors: tuple[float, ...] = (0.3, 1.0, 3.0),
    seeds: int = 5,
    small: bool = False,
) -> Page:
    """`limit` rows of train, `dev` of dev (all by default), `held` to choose rates by where there
    is more than one factor; `only` some strategies, by name. Each of `data` is a config's name, or
    NAME;TRAIN;DEV with files."""
    if small:
        data, seeds, factors = data[:1], min(seeds, 2), factors[len(factors) // 2 :][:1]
        limit, steps, dev = min(limit, 256), min(steps, 24), min(dev or 200, 200)
    arms, costs = Arms("score on dev"), dict[str, list[Result]]()
    chosen = {name: arm for name, arm in arms_of(steps).items() if not only or name in only}
    rates: dict[tuple[str, str], float] = {}
    for given in data:
        source, other = cut(
            run, corpus(given), train=limit, held=held if len(factors) > 1 else 0, dev=dev
        )
        for name, arm in chosen.items():
            rate = tuned(run, source, other, name, arm, factors, init_from, steps)
            rates[name, source.name] = rate
            for seed in range(seeds):
                config = one(source, name, arm.adapt, rate, init_from, steps, seed)
                result = run(config)
                costs.setdefault(name, []).append(result)
                arms.add(name, f"{source.name}, {source.metric}", source.score(result.metrics))
    return PLANNED if run.dry else page(run, arms, costs, rates)


def one(
    source: Corpus,
    name: str,
    adapt: Strategy,
    rate: float,
    init_from: str,
    steps: int,
    seed: int,
) -> Config:
    """One run, evaluated once, at its end."""
    place = "".join(letter if letter.isalnum() or letter in ".=" else "-" for letter in name)
    return Config(
        name=f"{source.name}/{place.replace('--', '-')}-{rate:g}-{seed}",
        task=Classify(pool="mean", pooler=False),
        data=source.data,
        optim=Optim(learning_rate=rate, warmup=0.1, weight_decay=0.01),
        adapt=adapt,
        steps=steps,
        batch_size=BATCH,
        evals=ON_DEV,
        eval_every=steps,
        save_every=steps,
        init_from=init_from,
        seed=seed,
    )


def tuned(
    run: Runner,
    source: Corpus,
    other: str,
    name: str,
    arm: Arm,
    factors: tuple[float, ...],
    init_from: str,
    steps: int,
) -> float:
    """The rate that is best on rows which are neither learned from nor in dev."""
    rates = [factor * arm.rate for factor in factors]
    if len(rates) == 1:
        return rates[0]
    asked = dataclasses.replace(source, data=dataclasses.replace(source.data, dev=other))
    found = []
    for rate in rates:
        config = one(asked, f"{name}-tuning", arm.adapt, rate, init_from, steps, TUNING_SEED)
        found.append(source.score(run(config).metrics))
    return rates[0] if run.dry else rates[int(np.argmax(found))]


def page(
    run: Runner,
    arms: Arms,
    costs: dict[str, list[Result]],
    rates: dict[tuple[str, str], float],
) -> Page:
    """Scores beside costs, every strategy against full fine-tuning."""
    pairs = [(name, FULL) for name in costs if name != FULL and FULL in costs]
    seeds = len(next(iter(arms.scores.values())))
    blocks: list[Block] = [
        Heading("Result"),
        arms.table("Score on dev after the last step"),
        *(
            [arms.tests("Each strategy minus full fine-tuning, paired by seed", pairs)]
            * bool(pairs)
        ),
        *arms.figures(),
        Heading("Cost"),
        Text(
            "FLOPs are those of the products that a step needs, temporary memory is XLA's of the "
            "compiled step (both of the costliest of its shapes); milliseconds are those of "
            "training over steps, on whatever else the machine was doing. Weights, "
            "gradients and moments come on top: the state."
        ),
        cost_table(costs),
        rate_table(rates),
        Heading("Where the time went"),
        Facts(run.seconds()),
    ]
    title = "Strategies: which gives the most for what it costs?"
    return Page(title, f"{len(run.results)} runs; {seeds} seeds", blocks)


def cost_table(costs: dict[str, list[Result]]) -> Table:
    """What a strategy asks of the machine: the mean over its runs."""
    rows = []
    for name, results in costs.items():
        summary = read(results[0].path).audit["summary"]
        temporary = [r.summary["temporary_mb"] for r in results if r.summary["temporary_mb"]]
        times = [1e3 * r.summary["seconds"]["train"] / r.summary["steps"] for r in results]
        row: tuple[Cell, ...] = (
            name,
            summary["learning"],
            f"{summary['learning_share']:.2%}",
            float(np.mean([r.summary["flops_per_step"] for r in results])) / 1e9,
            float(np.mean(temporary)) if temporary else None,
            summary["state_mb"],
            Summary.of(times),
        )
        rows.append(row)
    heads = ("learn", "share", "GFLOPs a step", "temporary, MB", "state, MB", "ms a step")
    return Table("What a strategy costs", ("", *heads), tuple(rows), lowest=heads[2:5])


def rate_table(rates: dict[tuple[str, str], float]) -> Table:
    """The learning rate of every strategy on every task."""
    names, tasks = (tuple(dict.fromkeys(column)) for column in zip(*rates))
    rows = tuple((name, *(f"{rates[name, task]:g}" for task in tasks)) for name in names)
    return Table("Learning rates", ("", *tasks), rows)
