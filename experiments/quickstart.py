"""Does pre-training help when labels are few? Asked of English that every Python carries.

    launch.py study experiments/quickstart.py

The standard library's documentation is the corpus: a tokenizer is trained on it, a small encoder is
pre-trained on it by masked language modelling, and then fine-tuned to tell from which area of the
library a docstring comes. Beside it: the same encoder from scratch, a bag of words with logistic
regression, and the majority class. Two CPU cores, offline, under five minutes.
"""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from research import metrics
from research.config import Config
from research.data.stdlib import areas
from research.data.texts import Texts
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.study import sections
from research.study.arms import Arms
from research.study.page import Facts, Heading, Page, Text
from research.study.records import read
from research.study.runner import PLANNED, Runner
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM
from research.train import Result

VOCABULARY = 5000
TOKENIZER = f"stdlib:{VOCABULARY}"
PRETRAINED, SCRATCH = "pre-trained, fine-tuned", "from scratch"
BAG, MAJORITY = "bag of words, logistic regression", "majority class"


def trunk() -> Transformer:
    return Transformer(
        Spec(
            vocab_size=VOCABULARY,
            width=128,
            depth=2,
            heads=4,
            hidden=512,
            max_positions=64,
            activation="relu",
            dropout=0.0,
            attention_dropout=0.0,
        )
    )


def pretraining(steps: int) -> Config:
    return Config(
        name="pretrain",
        task=MaskedLM(backbone=trunk(), rate=0.2),
        data=Texts(
            train="stdlib:passages",
            label=None,
            tokenizer=TOKENIZER,
            max_length=64,
            long="split",
            shapes=1,
        ),
        optim=Optim(learning_rate=2e-3, warmup=0.1, weight_decay=0.01),
        steps=steps,
        batch_size=16,
        log_every=25,
    )


def finetuning(shots: int, seed: int, steps: int, init_from: str | None) -> Config:
    arm = "scratch" if init_from is None else "pretrained"
    return Config(
        name=f"{arm}-{shots}-{seed}",
        task=Classify(backbone=trunk(), pool="mean", pooler=False),
        data=Texts(
            train="stdlib:areas-train",
            dev="stdlib:areas-dev",
            tokenizer=TOKENIZER,
            max_length=64,
            layout="padded",
            shots=shots,
            shot_seed=seed,
        ),
        optim=Optim(learning_rate=1e-3, warmup=0.1, weight_decay=0.01),
        steps=steps,
        batch_size=16,
        evals=(HeldOut(split="dev"),),
        eval_every=steps,
        save_every=steps,
        init_from=init_from,
        seed=seed,
    )


def study(
    run: Runner,
    *,
    seeds: int = 5,
    shots: tuple[int, ...] = (8, 32),
    pretrain_steps: int = 1200,
    steps: int = 70,
) -> Page:
    """`shots` labels of each area; `steps` of fine-tuning; everything over `seeds` seeds."""
    pretrained = run(pretraining(pretrain_steps))
    arms = Arms("macro F1")
    last: dict[str, Result] = {}
    for k in shots:
        budget = f"{k} labels an area"
        for seed in range(seeds):
            for arm, source in ((PRETRAINED, str(pretrained.path)), (SCRATCH, None)):
                last[arm] = run(finetuning(k, seed, steps, source))
                arms.add(arm, budget, last[arm].metrics["dev/macro_f1"])
            if run.dry:
                continue
            bag, majority = rivals(last[PRETRAINED])
            arms.add(BAG, budget, bag)
            arms.add(MAJORITY, budget, majority)
    return PLANNED if run.dry else page(arms, pretrained, last[PRETRAINED], run)


def rivals(result: Result) -> tuple[float, float]:
    """Macro F1 on dev of TF-IDF with logistic regression, and of the majority class, on the very
    examples that `result` was trained on."""
    data, labels = result.config.data, result.config.task.labels
    train = [data.text_of("train", i) for i in range(data.open("train", 32).rows)]
    dev = list(areas("dev"))
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(vectorizer.fit_transform([row["text"] for row in train]), [r["label"] for r in train])
    guesses = model.predict(vectorizer.transform([row["text"] for row in dev]))
    truth = np.array([labels.index(row["label"]) for row in dev])
    bag = np.array([labels.index(guess) for guess in guesses])
    majority = np.zeros_like(truth)
    score = [metrics.confusion(truth, guess, len(labels)) for guess in (bag, majority)]
    return metrics.macro_f1(score[0]), metrics.macro_f1(score[1])


def page(arms: Arms, pretrained: Result, example: Result, run: Runner) -> Page:
    """What the study found, with everything a reader needs to doubt it."""
    record = read(example.path)
    pairs = [(PRETRAINED, rival) for rival in (SCRATCH, BAG)]
    return Page(
        "Quickstart: does pre-training help when labels are few?",
        f"{len(run.results)} runs; {len(next(iter(arms.scores.values())))} seeds",
        [
            Heading("Result"),
            arms.table("Macro F1 on modules never seen in training"),
            arms.tests(f"“{PRETRAINED}” minus its rivals, paired by seed", pairs),
            *arms.figures(),
            Heading("Pre-training"),
            *sections.loss_figure(read(pretrained.path)),
            Heading("One fine-tuned model"),
            Text(f"The run {example.config.name}, one of the arm “{PRETRAINED}”."),
            *sections.loss_figure(record),
            *sections.detail_blocks("dev", record.result["details"]["dev"]),
            Heading("Audit"),
            *sections.audit_blocks(record.audit),
            Heading("Where the time went"),
            Facts(run.seconds()),
            Facts(sections.provenance(record)),
        ],
    )
