"""Relations that nobody has been taught: N ways, K shots by prototypes, on FewRel.

A part of `experiments/few_shot.py`. The public validation file of FewRel (Han et al., 2018) has 16
relations: a seed draws half of them, on whose sentences a trunk is fine-tuned, and episodes are
made of the other half.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from experiments.corpora import upper
from research.config import Config
from research.data.formats import Row
from research.data.relations import read_relations
from research.data.texts import Texts
from research.evaluators.prototypes import Episodes
from research.optim import Optim
from research.strategies import HeadOnly
from research.study.arms import Arms
from research.study.runner import Runner
from research.tasks.classify import Classify
from research.tasks.supcon import SupCon

FROZEN, CLASSIFIED, CONTRASTED = "as it is", "fine-tuned by cross entropy", "fine-tuned by SupCon"


def fewrel(
    run: Runner,
    source: str,
    init_from: str,
    *,
    seeds: Sequence[int],
    instances: int,
    steps: int,
    shots: tuple[int, ...] = (1, 5),
    ways: int = 5,
    top: int | None = None,
) -> Arms:
    """Scores of the trunk as it is, and of two fine-tunings, on relations that none has seen.

    `instances` sentences of each relation, the first of the file; `top` as for `upper`.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in read_relations(source):
        groups[row["label"]].append(row)
    arms = Arms(f"FewRel, accuracy over episodes of {ways} ways")
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(sorted(groups)).tolist()
        half = len(order) // 2
        known, unseen = (
            run.write(
                f"fewrel-{part}-{seed}.jsonl", [r for g in some for r in groups[g][:instances]]
            )
            for part, some in (("known", order[:half]), ("unseen", order[half:]))
        )
        asked = Texts(train=unseen, dev=unseen, max_length=64)
        frozen = Config(
            name=f"fewrel/as-it-is-{seed}",
            task=Classify(pool="mean", pooler=False),
            data=Texts(train=known, max_length=64, row_length=64),
            optim=Optim(learning_rate=1e-4, warmup=0.1, weight_decay=0.01),
            adapt=HeadOnly(),
            steps=1,
            batch_size=16,
            evals=(Episodes(ways=ways, shots=shots, data=asked),),
            init_from=init_from,
            seed=seed,
        )
        learned = dataclasses.replace(
            frozen, adapt=upper(init_from, top), steps=steps, eval_every=steps, save_every=steps
        )
        made = {
            FROZEN: frozen,
            CLASSIFIED: dataclasses.replace(learned, name=f"fewrel/cross-entropy-{seed}"),
            CONTRASTED: dataclasses.replace(
                learned,
                name=f"fewrel/SupCon-{seed}",
                task=SupCon(pool="mean", second_view=True),
                optim=dataclasses.replace(frozen.optim, learning_rate=5e-5),
            ),
        }
        for arm, config in made.items():
            metrics = run(config).metrics
            for k in shots:
                arms.add(arm, f"{k} shot{'s' * (k > 1)}", metrics[f"episodes/{k}_shot"])
    return arms
