"""Do tags that are chosen together beat tags chosen one by one? A CRF against a linear layer.

    launch.py study experiments/tagging.py --init-from DIR --train conll:eng.train ...
    ... --small                                            two seeds, few sentences: minutes

Entity F1 on CoNLL-2003 (or any file of its format), by seed: on a Transformer that comes
pre-trained (DIR: any BERT directory), and on a BiLSTM over words and characters from scratch
(Lample et al., 2016; Ma & Hovy, 2016). Everything but the head is the same on both sides.

With all-MiniLM-L6-v2, 2,000 sentences, two epochs, three seeds: linear 0.757 ± 0.008, CRF 0.825 ±
0.002. BiLSTM, all sentences, three epochs: 0.815 ± 0.007, 0.873 ± 0.003; of 2,000 sentences in two
epochs it learns nothing. Three pairs cannot get below p = 0.25 by sign flips; by t-test 0.003,
0.009.
"""

from __future__ import annotations

import dataclasses

from configs import conll2003, conll2003_bilstm_crf, conll2003_crf
from research.config import Config
from research.study.arms import Arms
from research.study.page import Facts, Heading, Page, Text
from research.study.runner import PLANNED, Runner
from research.tasks.tag import Tag

LINEAR, CHAIN = "linear", "CRF"


def configs_of(trunk: str, init_from: str) -> dict[str, Config]:
    """The two heads on one trunk, alike in all else: tags as IOBES."""
    if trunk == "Transformer":
        chain = dataclasses.replace(conll2003_crf.config(), init_from=init_from)
        single = dataclasses.replace(chain, task=conll2003.config().task)
    else:
        chain = conll2003_bilstm_crf.config()
        task = chain.task
        single = dataclasses.replace(chain, task=Tag(backbone=task.backbone, dropout=task.dropout))
    return {LINEAR: single, CHAIN: chain}


def study(
    run: Runner,
    *,
    init_from: str = "sentence-transformers/all-MiniLM-L6-v2",
    train: str = "conll:eng.train",
    dev: str = "conll:eng.testa",
    scheme: str = "IOB1",
    trunks: tuple[str, ...] = ("Transformer", "BiLSTM"),
    limit: int | None = None,
    epochs: float = 3.0,
    learning_rate: float = 5e-4,
    seeds: int = 5,
    small: bool = False,
) -> Page:
    """`limit` sentences of train; `learning_rate` is the Transformer's."""
    if small:
        limit, seeds, epochs = min(limit or 400, 400), min(seeds, 2), min(epochs, 1.0)
    arms = Arms("entity F1")
    for trunk in trunks:
        for seed in range(seeds):
            for head, config in configs_of(trunk, init_from).items():
                data = dataclasses.replace(
                    config.data, train=train, dev=dev, test=None, scheme=scheme, limit=limit
                )
                optim = config.optim
                if trunk == "Transformer":
                    optim = dataclasses.replace(optim, learning_rate=learning_rate)
                found = run(
                    dataclasses.replace(
                        config,
                        name=f"{trunk}-{head}-{seed}".lower(),
                        data=data,
                        optim=optim,
                        epochs=epochs,
                        seed=seed,
                        eval_every=10**9,
                        save_every=10**9,
                    )
                )
                arms.add(head, trunk, found.metrics["dev/f1"])
    if run.dry:
        return PLANNED
    return Page(
        "Tagging: a CRF against a linear layer",
        f"{len(run.results)} runs; {seeds} seeds; {limit or 'all'} sentences, {epochs:g} epochs",
        [
            Heading("Result"),
            Text("F1 of entities on dev after the last step, no checkpoint chosen by it."),
            arms.table("Entity F1"),
            arms.tests("The CRF minus the linear layer, paired by seed", [(CHAIN, LINEAR)]),
            *arms.figures(),
            Heading("Where the time went"),
            Facts(run.seconds()),
        ],
    )
