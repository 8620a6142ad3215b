"""What helps when the labels are of another domain than the texts to be told? Seven remedies.

    launch.py study experiments/domain_adaptation.py --init-from DIR --folder fdu_mtl
    ... --small              one pair, three seeds, few rows, two blocks learn: minutes

Reviews of books, films, electronics and kitchen goods (FDU-MTL, Liu et al., 2017), positive or
negative: a model learns from the labelled rows of one domain and is tested on another's. Beside the
source alone: the trunk first goes on with masked language modelling, on the target's unlabelled
texts (DAPT) or on the source's own (TAPT, both Gururangan et al., 2020); the vectors of both
domains are made alike while it learns, by a head that is not to tell them (DANN, Ganin et al.,
2016), by their covariances (CORAL, Sun & Saenko, 2016) or by kernels (MMD, Long et al., 2015);
self-training, by its own confident labels of target texts; and source rows weighted by how much
they look like the target (a domain classifier's odds, Shimodaira, 2000). The ceiling learns from
the target's labels; nothing else reads them but the test. Proxy A-distances (Ben-David et al.,
2010) say how far domains lie apart. DIR: any BERT directory.

`--small --pairs 'books>kitchen_housewares'`, all-MiniLM-L6-v2, three seeds, 7 minutes on two busy
cores, accuracy on 200 kitchen reviews: source only 0.555 ± 0.056, importance weights 0.507 ± 0.025,
MMD 0.527 ± 0.003, self-training 0.573 ± 0.071, DANN 0.580 ± 0.041, DAPT 0.587 ± 0.060, TAPT 0.597 ±
0.064, CORAL 0.612 ± 0.055, the target's labels 0.752 ± 0.028 (p = 0.01 by t-test). In 30 steps of
two blocks no remedy is told from the source alone (p > 0.06); proxy A-distance 1.83.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from experiments.corpora import ON_DEV, upper
from experiments.domain_page import page
from research import sharding
from research.config import Config
from research.data.domains import Domains
from research.data.formats import Row
from research.data.sources import read_rows
from research.data.texts import Texts
from research.evaluators import features
from research.infer.loaded import Loaded, load
from research.infer.predict import predict
from research.optim import Optim
from research.regularize import Objective, Terms
from research.strategies import HeadOnly
from research.study.arms import Arms
from research.study.page import Page
from research.study.runner import PLANNED, Runner
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM
from research.terms.domains import Coral, DomainAdversarial, Mmd

PLAIN, DAPT, TAPT = "source only", "DAPT", "TAPT"
CE = Classify(pool="mean", pooler=False)
# A batch of these holds as many texts of the target as labelled ones, which no arm has fewer of.
# CORAL divides by the square of the width: unweighted it is a hundred-thousandth of the loss.
ALIKE: dict[str, Terms] = {
    "DANN": DomainAdversarial(),
    "CORAL": 1e4 * Coral(),
    "MMD": Mmd(),
}
SELF, WEIGHTED, CEILING = "self-training", "importance weights", "target's labels"
ARMS = (PLAIN, DAPT, TAPT, *ALIKE, SELF, WEIGHTED, CEILING)
DOMAINS = ("books", "dvd", "electronics", "kitchen_housewares")
ALL = tuple(f"{a}>{b}" for a, b in itertools.permutations(DOMAINS, 2))
BAD_ROWS = 20  # a few lines of these files are not UTF-8


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs share."""

    run: Runner
    folder: str
    init_from: str
    limit: int | None
    steps: int
    first_steps: int
    length: int
    top: int | None
    batch: int
    learning_rate: float

    def labelled(self, domain: str, split: str) -> str:
        """The labelled rows of a domain as a file of the study's."""
        rows = read_rows(
            f"tsv:{self.folder}/{domain}.task.{split}*",
            columns=("label", "text"),
            max_bad_rows=BAD_ROWS,
        )
        return self.run.write(f"{domain}-{split}.jsonl", rows[: self.limit])

    def texts(self, domain: str) -> list[Row]:
        """The unlabelled texts of a domain: those of its file, which has no labels."""
        source = f"txt:{self.folder}/{domain}.task.unlabel*"
        return read_rows(source, max_bad_rows=BAD_ROWS)[: self.limit]

    def config(self, name: str, seed: int, data: Texts, **more: object) -> Config:
        """A run of the classifier, evaluated once, at its end."""
        config = Config(
            name=f"{name}-{seed}",
            task=CE,
            data=data,
            optim=Optim(learning_rate=self.learning_rate, warmup=0.1, weight_decay=0.01),
            adapt=upper(self.init_from, self.top),
            steps=self.steps,
            batch_size=self.batch,
            evals=ON_DEV,
            eval_every=self.steps,
            save_every=self.steps,
            init_from=self.init_from,
            seed=seed,
        )
        return dataclasses.replace(config, **more)  # type: ignore[arg-type]


def study(
    run: Runner,
    *,
    folder: str = "fdu_mtl",
    init_from: str = "sentence-transformers/all-MiniLM-L6-v2",
    pairs: tuple[str, ...] = ALL,
    arms: tuple[str, ...] = ARMS,
    limit: int | None = None,
    steps: int = 150,
    first_steps: int = 200,
    length: int = 128,
    confident: float = 0.5,
    top: int | None = None,
    batch: int = 32,
    learning_rate: float = 1e-4,
    seeds: int = 5,
    small: bool = False,
) -> Page:
    """`pairs`: "source>target", by the names of the files; `limit` rows of each; `confident`: the
    share of target texts whose labels self-training believes; only the last `top` blocks learn,
    None for all; `batch` labelled texts a step."""
    if small:
        pairs, seeds, limit, top = pairs[:1], min(seeds, 3), min(limit or 200, 200), top or 2
        steps, first_steps, length = min(steps, 30), min(first_steps, 30), min(length, 48)
        batch, learning_rate = 16, 5e-4
    sizes = (limit, steps, first_steps, length, top, batch, learning_rate)
    setting = Setting(run, folder, init_from, *sizes)
    found, apart = Arms("accuracy on the target's test"), dict[str, float]()
    for pair in pairs:
        source, target = pair.split(">")
        data = Texts(
            train=setting.labelled(source, "train"),
            dev=setting.labelled(target, "test"),
            max_length=length,
        )
        texts = setting.texts(target)
        weights, apart[pair] = weighted(setting, pair, data, texts)
        for seed in range(seeds):
            for arm in arms:
                config = arm_of_pair(setting, arm, pair, seed, data, texts, weights, confident)
                found.add(arm, pair, run(config).metrics["dev/accuracy"])
    return PLANNED if run.dry else page(run, found, apart, PLAIN)


def arm_of_pair(
    setting: Setting,
    arm: str,
    pair: str,
    seed: int,
    data: Texts,
    texts: list[Row],
    weights: Texts,
    confident: float,
) -> Config:
    """The run that is told of an arm; what goes before it is made."""
    source, target = pair.split(">")
    name = f"{source}-{target}/{arm.replace(' ', '-')}".replace("'", "")
    if arm in (DAPT, TAPT):
        first = further(setting, target if arm == DAPT else source, arm, seed, texts, data)
        return setting.config(name, seed, data, init_from=first)
    if arm in ALIKE:
        both = Domains(
            **fields(data), target=setting.run.write(f"{target}-unlabelled.jsonl", texts)
        )
        task = Objective(task=CE, terms=ALIKE[arm])
        return setting.config(name, seed, both, task=task, batch_size=2 * setting.batch)
    if arm == SELF:
        teacher = setting.run(setting.config(f"{name}-teacher", seed, data))
        believed = data
        if not setting.run.dry:
            rows = [*read_rows(data.train), *believe(load(teacher.path), texts, confident)]
            file = setting.run.write(f"{source}-{target}-believed-{seed}.jsonl", rows)
            believed = dataclasses.replace(data, train=file)
        return setting.config(name, seed, believed)
    if arm == WEIGHTED:
        return setting.config(name, seed, weights)
    if arm == CEILING:
        own = dataclasses.replace(data, train=setting.labelled(target, "train"))
        return setting.config(name, seed, own)
    return setting.config(name, seed, data)


def fields(data: Texts) -> dict[str, Any]:
    """What a data set was made with."""
    return {one.name: getattr(data, one.name) for one in dataclasses.fields(Texts)}


def further(
    setting: Setting, domain: str, arm: str, seed: int, texts: list[Row], data: Texts
) -> str:
    """A run of masked language modelling on a domain's texts, without their labels."""
    if arm == TAPT:
        texts = [{"text": row["text"]} for row in read_rows(data.train)]
    file = setting.run.write(f"{domain}-{arm}.jsonl", texts)
    plain = Texts(train=file, label=None, max_length=setting.length, long="split")
    steps = setting.first_steps
    config = setting.config(
        f"{arm}-{domain}",
        seed,
        plain,
        task=MaskedLM(),
        steps=steps,
        evals=(),
        eval_every=steps,
        save_every=steps,
    )
    return str(setting.run(config).path)


def believe(teacher: Loaded, texts: list[Row], share: float) -> list[Row]:
    """Target texts with the label that a model gives them: of each label the surest `share`."""
    lines = (" ".join(row["text"].split()).encode() for row in texts)
    told = list(predict(teacher, lines))
    labels = [str(one["label"]) for one in told]
    sure = np.array([one["probabilities"][one["label"]] for one in told])
    kept: list[int] = []
    for label in sorted(set(labels)):
        own = np.flatnonzero(np.array(labels) == label)
        kept += own[np.argsort(-sure[own], kind="stable")][: round(share * len(own))].tolist()
    return [{"text": texts[i]["text"], "label": labels[i]} for i in sorted(kept)]


def weighted(setting: Setting, pair: str, data: Texts, texts: list[Row]) -> tuple[Texts, float]:
    """The source's rows with weights, and the proxy A-distance of the two domains.

    Both are a logistic regression's on vectors of the trunk as it is: the weights its odds of the
    target, of mean 1 and at most 10 times that; the distance 2 (1 - 2 e) by its error e in five
    folds.
    """
    frozen = setting.config(
        f"{pair.replace('>', '-')}/frozen", 0, data, adapt=HeadOnly(), steps=1, evals=()
    )
    found = setting.run(frozen)
    if setting.run.dry:
        return data, 0.0
    from sklearn.linear_model import LogisticRegression  # takes seconds to import
    from sklearn.model_selection import cross_val_predict

    rows = list(read_rows(data.train))
    loaded = load(found.path)
    model = loaded.model()
    with jax.set_mesh(model.mesh):
        asked = [row["text"] for row in rows + list(texts)]
        shards = sharding.row_shards(model.mesh)
        batches = loaded.config.data.encode_rows(asked, multiple=shards)
        vectors, _ = features.encode(model, batches)
    domain = np.repeat([0, 1], [len(rows), len(texts)])
    judge = LogisticRegression(C=1.0, max_iter=2000, class_weight="balanced")
    chance = cross_val_predict(judge, vectors, domain, cv=5, method="predict_proba")[:, 1]
    error = np.mean([np.mean((chance[domain == d] > 0.5) != d) for d in (0, 1)])
    odds = (chance / (1 - chance).clip(1e-6))[: len(rows)]
    weights = np.minimum(odds / odds.mean(), 10.0)
    weights /= weights.mean()
    told = [row | {"weight": f"{w:.4f}"} for row, w in zip(rows, weights.tolist())]
    file = setting.run.write(f"{pair.replace('>', '-')}-weighted.jsonl", told)
    return dataclasses.replace(data, train=file, weight="weight"), float(2 * (1 - 2 * error))
