"""Does a contrastive term help fine-tuning, and when? Few labels and more, on three tasks.

    launch.py study experiments/contrastive.py --init-from DIR --data "sst2;TRAIN;DEV" ...
    ... --small                      one task, three seeds, k = 8, two blocks learn: minutes

Cross entropy alone, with SupCon beside it (Gunel et al., 2021), and with R-Drop, which compares no
examples but two dropouts of each (Liang et al., 2021); supervised contrastive learning first, on
the same labelled rows (SupCon, Khosla et al., 2020), then a linear layer on the trunk as it is, or
fine-tuning by cross entropy; and SimCSE first (Gao et al., 2021), which reads the rows of `shots`
without their labels. Gunel et al. saw gains at 20 labels a class that were gone at 1,000. DIR: any
BERT directory.

`--small` on BANKING77 (77 labels, k = 8, 30 steps), all-MiniLM-L6-v2, three seeds, 5 minutes on two
busy cores, accuracy on 300 rows: cross entropy 0.230 ± 0.037, with R-Drop 0.232, with SupCon 0.058
± 0.013 (p = 0.02 by t-test), SupCon and then cross entropy 0.233, SimCSE and then cross entropy
0.246 ± 0.035 (+0.016, p = 0.03), SupCon and then a linear layer 0.594 ± 0.042 (p = 0.0003), whose
rate is thirty times as high. None passes Holm's correction by sign flips of three pairs. So few
steps do not teach a head of 77 labels: they say nothing of the ends that longer runs come to.
"""

from __future__ import annotations

import dataclasses

from experiments.corpora import ON_DEV, Corpus, corpus, cut, few, fewest, upper
from research.adapt import Strategy
from research.config import Config
from research.optim import Optim
from research.regularize import Objective
from research.strategies import HeadOnly
from research.study.arms import Arms
from research.study.page import Block, Facts, Heading, Page, Text
from research.study.runner import PLANNED, Runner
from research.tasks.classify import Classify
from research.tasks.embed import Embed
from research.tasks.simcse import SimCSE
from research.tasks.supcon import SupCon
from research.terms import compare
from research.terms.consistency import RDrop

PLAIN, LINEAR = "cross entropy", "SupCon, then linear"
# What is learned by cross entropy, whose name that is in a run's, and what goes before it; None
# learns as the others do.
CE = Classify(pool="mean", pooler=False)
TASKS = {
    PLAIN: CE,
    "cross entropy with SupCon": Objective(task=CE, terms=compare.SupCon()),
    "cross entropy with R-Drop": Objective(task=CE, terms=RDrop()),
}
FIRST: dict[str, tuple[Embed, Strategy | None]] = {
    LINEAR: (SupCon(pool="mean", second_view=True), HeadOnly()),
    "SupCon, then cross entropy": (SupCon(pool="mean", second_view=True), None),
    "SimCSE, then cross entropy": (SimCSE(pool="mean"), None),
}


def study(
    run: Runner,
    *,
    init_from: str = "sentence-transformers/all-MiniLM-L6-v2",
    data: tuple[str, ...] = ("banking77", "sst2", "cola"),
    shots: tuple[int, ...] = (8, 32, 128),
    dev: int | None = None,
    steps: int = 200,
    first_steps: int = 100,
    learning_rate: float = 1e-4,
    linear_rate: float = 3e-3,
    top: int | None = None,
    seeds: int = 5,
    small: bool = False,
) -> Page:
    """`shots` rows of each label, drawn by the seed; a task with a label of fewer is left out
    there. `steps` by cross entropy, after `first_steps` of what goes before it; of the trunk only
    the last `top` blocks learn, None for all."""
    if small:
        data, seeds, shots, dev = data[:1], min(seeds, 3), shots[:1], min(dev or 300, 300)
        steps, first_steps, top = min(steps, 30), min(first_steps, 15), top or 2
    full = upper(init_from, top)
    all_arms = []
    for given in data:
        source, _ = cut(run, corpus(given), train=None, dev=dev)
        arms = Arms(f"{source.name}, {source.metric} on dev")
        all_arms.append(arms)
        for k in [k for k in shots if k <= fewest(source)]:
            for seed in range(seeds):
                drawn = few(source, k, seed)
                for name, task in TASKS.items():
                    config = one(drawn, name, full, init_from, steps, learning_rate)
                    config = dataclasses.replace(config, task=task)
                    arms.add(name, f"{k}", source.score(run(config).metrics))
                for name, (contrast, adapt) in FIRST.items():
                    before = one(drawn, f"{name}, first", full, init_from, first_steps, 5e-5)
                    before = dataclasses.replace(before, task=contrast, evals=())
                    path = str(run(before).path)
                    rate = linear_rate if name == LINEAR else learning_rate
                    config = one(drawn, name, adapt or full, path, steps, rate)
                    arms.add(name, f"{k}", source.score(run(config).metrics))
    return PLANNED if run.dry else page(run, all_arms)


def one(
    drawn: Corpus, name: str, adapt: Strategy, init_from: str, steps: int, learning_rate: float
) -> Config:
    """A run of cross entropy on the drawn rows, evaluated once, at its end."""
    seed, place = drawn.data.shot_seed, name.replace(",", "").replace(" ", "-")
    return Config(
        name=f"{drawn.name}/{place}-{drawn.data.shots}-{seed}",
        task=TASKS[PLAIN],
        data=drawn.data,
        optim=Optim(learning_rate=learning_rate, warmup=0.1, weight_decay=0.01),
        adapt=adapt,
        steps=steps,
        batch_size=32,
        evals=ON_DEV,
        eval_every=steps,
        save_every=steps,
        init_from=init_from,
        seed=seed,
    )


def page(run: Runner, all_arms: list[Arms]) -> Page:
    """Each task by itself: scores, curves over labels, tests against cross entropy."""
    blocks: list[Block] = [
        Heading("Result"),
        Text("Score on dev after the last step; columns are labels a class."),
    ]
    for arms in all_arms:
        at = {condition: float(condition) for condition in arms.conditions}
        pairs = [(name, PLAIN) for name in arms.arms if name != PLAIN]
        blocks += [arms.table(arms.metric)]
        if len(at) > 1:
            blocks += [arms.curve(arms.metric, "labels a class", at, "Mean ± sd over seeds.")]
        blocks += [arms.tests(f"{arms.metric}: each minus {PLAIN}, paired by seed", pairs)]
    seeds = max(len(values) for arms in all_arms for values in arms.scores.values())
    return Page(
        "Contrastive learning: does it help fine-tuning, and when?",
        f"{len(run.results)} runs; {seeds} seeds; a seed draws the rows, the head and the order",
        [*blocks, Heading("Where the time went"), Facts(run.seconds())],
    )
