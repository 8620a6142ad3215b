"""Which remedy against rare labels survives error bars? Long-tailed train rows, even test rows.

    launch.py study experiments/imbalance.py --init-from DIR --train train.csv --test test.csv
    ... --small              one skew, three seeds, few rows, two blocks learn: minutes

The labels of `train`, BANKING77's intents say, are put in a random order and thinned, the last to
1 / skew of the first, geometrically in between (Cui et al., 2019; Cao et al., 2019); `test` is left
as it is. Macro F1 is what a user with rare labels cares for. DIR: any BERT directory.

BANKING77, 1 : 30, all-MiniLM-L6-v2, three seeds (`--skews 30 --most 30 --seeds 3 --learning-rate
5e-4`, 10 minutes): cross entropy 0.325 ± 0.006, label smoothing 0.334, focal 0.343, logit
adjustment 0.390 ± 0.004, class-balanced 0.519 ± 0.039, balanced weights 0.526 ± 0.039, re-sampling
0.649 ± 0.024: all above cross entropy (p < 0.02 by t-test; three pairs flip no sign below 0.25).
In some 60 steps nothing is learned to the end, so part of this is the speed of learning.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np

from experiments.corpora import upper
from research.adapt import Strategy
from research.config import Config
from research.data.sources import read_rows
from research.data.texts import Texts
from research.errors import ConfigError, DataError
from research.evaluate import HeldOut
from research.optim import Optim
from research.study.arms import Arms
from research.study.page import Facts, Heading, Page, Text
from research.study.runner import PLANNED, Runner
from research.tasks.classify import Classify
from research.tasks.imbalance import ClassBalanced, Focal, LogitAdjusted

PLAIN = "cross entropy"
REMEDIES = {
    PLAIN: Classify(pool="mean", pooler=False),
    "balanced weights": Classify(pool="mean", pooler=False, label_weights="balanced"),
    "focal loss": Focal(pool="mean", pooler=False),
    "class-balanced": ClassBalanced(pool="mean", pooler=False, beta=0.99),
    "logit adjustment": LogitAdjusted(pool="mean", pooler=False),
    "label smoothing": Classify(pool="mean", pooler=False, label_smoothing=0.1),
    "re-sampling": Classify(pool="mean", pooler=False),
}


def study(
    run: Runner,
    *,
    init_from: str = "sentence-transformers/all-MiniLM-L6-v2",
    train: str = "banking_data/train.csv",
    test: str = "banking_data/test.csv",
    text: str = "text",
    label: str = "category",
    skews: tuple[int, ...] = (1, 10, 100),
    remedies: tuple[str, ...] = tuple(REMEDIES),
    most: int = 80,
    epochs: float = 3.0,
    learning_rate: float = 2e-4,
    top: int | None = None,
    seeds: int = 5,
    small: bool = False,
) -> Page:
    """`most` rows of the most frequent label; `skew` times fewer of the rarest, at least one; of
    the trunk only the last `top` blocks learn, None for all."""
    if unknown := [name for name in remedies if name not in REMEDIES]:
        raise ConfigError(f"remedies: no {unknown[0]!r}; there are {', '.join(REMEDIES)}")
    if PLAIN not in remedies:
        raise ConfigError(f"remedies: {PLAIN!r} is missing, which the others are set against")
    if small:
        skews, seeds, most, top = skews[-1:], min(seeds, 3), min(most, 20), top or 2
    adapt = upper(init_from, top)
    arms = Arms("macro F1")
    sizes = {}
    for skew in skews:
        for seed in range(seeds):
            rows = thin(train, text, label, skew, most, seed)
            sizes[f"1 : {skew}, train rows"] = len(rows)
            file = run.write(f"train-{skew}-{seed}.jsonl", rows)
            data = Texts(train=file, dev=test, text=text, label=label, max_length=64)
            for arm in remedies:
                config = arm_config(arm, data, init_from, epochs, learning_rate, adapt)
                name = f"{arm.replace(' ', '-')}-{skew}-{seed}"
                found = run(dataclasses.replace(config, name=name, seed=seed))
                arms.add(arm, f"1 : {skew}", found.metrics["dev/macro_f1"])
    if run.dry:
        return PLANNED
    pairs = [(arm, PLAIN) for arm in remedies if arm != PLAIN]
    return Page(
        "Imbalance: which remedy survives error bars?",
        f"{len(run.results)} runs; {seeds} seeds; train {Path(train).name}, test {Path(test).name}",
        [
            Heading("Result"),
            Text("Macro F1 on the test rows as they are; one training set a seed, for all arms."),
            arms.table("Macro F1 by skew, the most frequent label to the rarest"),
            arms.tests(f"Each remedy minus {PLAIN}, paired by seed", pairs),
            *arms.figures(),
            Heading("Size and time"),
            Facts({**sizes, **run.seconds()}),
        ],
    )


def arm_config(
    arm: str,
    data: Texts,
    init_from: str,
    epochs: float,
    learning_rate: float,
    adapt: Strategy,
) -> Config:
    """One remedy with its task and, for re-sampling, its data."""
    return Config(
        name="imbalance",
        task=REMEDIES[arm],
        data=dataclasses.replace(data, resample=1.0 if arm == "re-sampling" else 0.0),
        optim=Optim(learning_rate=learning_rate, warmup=0.1),
        adapt=adapt,
        epochs=epochs,
        batch_size=32,
        evals=(HeldOut(split="dev"),),
        eval_every=10**9,
        save_every=10**9,
        init_from=init_from,
    )


def thin(
    source: str, text: str, label: str, skew: int, most: int, seed: int
) -> list[dict[str, str]]:
    """Rows of `source`, label c of C in a random order having most x skew^(-c / (C - 1)) of them.

    Raises DataError where a label has fewer rows than it should keep.
    """
    by_label: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read_rows(source, need=(text, label)):
        by_label[row[label]].append({text: row[text], label: row[label]})
    generator = np.random.default_rng([seed, skew])
    names = [sorted(by_label)[i] for i in generator.permutation(len(by_label))]
    kept = []
    for c, name in enumerate(names):
        count = max(1, round(most * skew ** (-c / max(1, len(names) - 1))))
        if count > len(by_label[name]):
            raise DataError(f"{source}: label {name!r} has fewer than {count} rows")
        chosen = generator.permutation(len(by_label[name]))[:count]
        kept += [by_label[name][i] for i in sorted(chosen)]
    return kept
