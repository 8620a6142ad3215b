"""Which tricks of fine-tuning survive error bars? One at a time, all else alike, paired by seed.

    launch.py study experiments/tricks.py --init-from DIR --data "sst2;TRAIN;DEV" ...
    ... --small                one task, three seeds, few rows, two blocks learn: minutes

Against plain fine-tuning: FGM (Miyato et al., 2017), R-Drop (Liang et al., 2021), mixup of sentence
vectors (Guo et al., 2019), label smoothing (Szegedy et al., 2016), averaged parameters (EMA) and
layer-wise learning-rate decay (Howard & Ruder, 2018). R-Drop and FGM take a second pass a
step, whose cost the table does not show. DIR: any BERT directory.

SST-2, `--limit 1024 --steps 48 --seeds 3 --dev 400 --learning-rate 2e-4`, all-MiniLM-L6-v2, some 8
minutes on two busy cores: plain 0.780 ± 0.011, FGM 0.785 ± 0.020, R-Drop 0.784 ± 0.006, smoothing
0.780 ± 0.009, layer decay 0.779 ± 0.001, mixup 0.777 ± 0.004, EMA 0.774 ± 0.008. None is told from
plain (p > 0.19 by t-test): a gain of FGM's size would take 28 seeds to be seen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.corpora import ON_DEV, corpus, cut, upper
from research.config import Config
from research.optim import Optim
from research.regularize import Objective
from research.strategies import LayerDecay
from research.study.arms import Arms
from research.study.page import Block, Facts, Heading, Page, Text
from research.study.runner import PLANNED, Runner
from research.tasks.classify import Classify
from research.terms.adversarial import Fgm
from research.terms.compare import Mixup
from research.terms.consistency import RDrop

PLAIN = "plain"
CE = Classify(pool="mean", pooler=False)
# What each trick changes of a plain run.
TRICKS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "FGM": {"task": Objective(task=CE, terms=Fgm())},
    "R-Drop": {"task": Objective(task=CE, terms=RDrop())},
    "mixup": {"task": Objective(task=CE, terms=Mixup())},
    "label smoothing": {"task": CE.clone(label_smoothing=0.1)},
    "EMA": {"optim": {"ema": 0.98}},
    "layer decay": {"adapt": LayerDecay(0.9)},
}


def study(
    run: Runner,
    *,
    init_from: str = "sentence-transformers/all-MiniLM-L6-v2",
    data: tuple[str, ...] = ("sst2", "banking77", "cola"),
    limit: int | None = 2048,
    dev: int | None = None,
    steps: int = 200,
    learning_rate: float = 1e-4,
    top: int | None = None,
    seeds: int = 5,
    small: bool = False,
) -> Page:
    """`limit` rows of train, the same for all seeds, which draw order, dropout and heads; of
    the trunk only the last `top` blocks learn, None for all."""
    if small:
        data, seeds, steps, top = data[:1], min(seeds, 3), min(steps, 30), top or 2
        limit, dev = min(limit or 256, 256), min(dev or 300, 300)
    full = upper(init_from, top)
    blocks: list[Block] = [Heading("Result"), Text("Score on dev after the last step.")]
    for given in data:
        source, _ = cut(run, corpus(given), train=limit, dev=dev)
        arms = Arms(f"{source.name}, {source.metric} on dev")
        for trick, changes in TRICKS.items():
            for seed in range(seeds):
                config = Config(
                    name=f"{source.name}/{trick.replace(' ', '-')}-{seed}",
                    task=CE,
                    data=source.data,
                    optim=Optim(learning_rate=learning_rate, warmup=0.1),
                    adapt=full | changes["adapt"] if "adapt" in changes else full,
                    steps=steps,
                    batch_size=32,
                    evals=ON_DEV,
                    eval_every=steps,
                    save_every=steps,
                    init_from=init_from,
                    seed=seed,
                )
                optim = dataclasses.replace(config.optim, **changes.get("optim", {}))
                task = changes.get("task", CE)
                config = dataclasses.replace(config, task=task, optim=optim)
                arms.add(trick, source.name, source.score(run(config).metrics))
        pairs = [(trick, PLAIN) for trick in TRICKS if trick != PLAIN]
        blocks += [] if run.dry else [arms.table(arms.metric), arms.tests("Minus plain", pairs)]
        blocks += [] if run.dry else arms.figures()
    if run.dry:
        return PLANNED
    blocks += [Heading("Where the time went"), Facts(run.seconds())]
    return Page("Tricks: which survive error bars?", f"{len(run.results)} runs", blocks)
