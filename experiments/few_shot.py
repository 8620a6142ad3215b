"""How many labels does a pre-trained trunk save? Ten ways to learn from k rows of each label.

    launch.py study experiments/few_shot.py --init-from DIR --data "banking77;TRAIN;DEV" ...
    ... --words "0=terrible,1=great"                 with a prompt too, where DIR has a masked LM
    ... --relations val_wiki.json                    with relations that nobody has been taught
    ... --small                     one task, three seeds, k = 8, two blocks learn: minutes

Fine-tuning, LoRA, BitFit, a linear head; a ridge probe, nearest neighbours and prototypes (the
nearest class mean, Snell et al., 2017) on the trunk as it is, and prototypes on the fine-tuned one;
contrastive pairs and then a ridge (SetFit, Tunstall et al., 2022, whose head is a logistic
regression), and the word at a mask (Schick & Schütze, 2021; Gao et al., 2021, whose seeds the
default ones are). All see the same k rows of a seed, and none sees others. DIR: any BERT directory.

`--small` on BANKING77 (77 labels, k = 8), all-MiniLM-L6-v2, three seeds, 5 minutes on two busy
cores, accuracy on 300 rows: prototypes 0.798 ± 0.010, nearest neighbours 0.783 ± 0.012, ridge 0.779
± 0.017, pairs and then a ridge 0.771 ± 0.015; after 30 steps a head alone reaches 0.300 ± 0.079,
LoRA 0.188, BitFit 0.182, all of two blocks 0.121 ± 0.016, though prototypes on the latter 0.790: so
few steps teach the head nothing, and cost the trunk nothing. FewRel, 5 ways, 1 and 5 shots: as it
is 0.669 ± 0.071 and 0.842 ± 0.079, fine-tuned by cross entropy on other relations 0.701 ± 0.093 and
0.856 ± 0.088 (p = 0.03 by sign flips over both, 0.19 after Holm), by SupCon no better.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from experiments.corpora import ON_DEV, Corpus, corpus, cut, few, fewest, upper
from experiments.fewrel import FROZEN, fewrel
from research import initialize, runs
from research.config import Config
from research.data import labels
from research.data.pairs import Pairs
from research.data.sources import read_rows
from research.evaluators.probes import Neighbours, Ridge
from research.evaluators.prototypes import Prototypes
from research.models import pretrained
from research.optim import Optim
from research.strategies import BitFit, Full, HeadOnly, LoRA, Strategy
from research.study.arms import Arms
from research.study.page import Block, Facts, Heading, Page, Text
from research.study.runner import PLANNED, Runner
from research.tasks.classify import Classify
from research.tasks.embed import CosineRegression
from research.tasks.prompt import Prompt, verbalise

PLAIN, HEAD, PAIRS, PROMPT = "fine-tuning", "head only", "pairs, then ridge", "prompt"
RIDGE, NEIGHBOURS = "ridge probe", "nearest neighbours"
MEANS, TUNED_MEANS = "prototypes", "prototypes, fine-tuned"
TRAINED: dict[str, tuple[Strategy, float]] = {
    PLAIN: (Full(), 1e-4),
    "LoRA": (LoRA(rank=8), 1e-3),
    "BitFit": (BitFit(), 1e-3),
    HEAD: (HeadOnly(), 3e-3),
}


def study(
    run: Runner,
    *,
    init_from: str = "sentence-transformers/all-MiniLM-L6-v2",
    data: tuple[str, ...] = ("clinc150", "banking77", "sst2"),
    shots: tuple[int, ...] = (4, 8, 16, 32, 64),
    seeds: tuple[int, ...] = (13, 21, 42, 87, 100),
    dev: int | None = None,
    steps: int = 200,
    pair_steps: int = 100,
    relations: str = "",
    instances: int = 100,
    top: int | None = None,
    words: str = "",
    template: str = "It was [MASK]. {}",
    small: bool = False,
) -> Page:
    """`shots` rows of each label; where a label of a task has fewer, that task is left out there.
    `words`: "label=word,..." makes the arm with a prompt, on tasks with these labels. `relations`:
    FewRel's file, of whose relations `instances` each are taken. What is fine-tuned as a whole
    learns in its last `top` blocks, None for all."""
    if small:
        data, seeds, shots, dev = data[:1], seeds[:3], shots[:2][-1:], min(dev or 300, 300)
        steps, pair_steps, instances, top = min(steps, 30), min(pair_steps, 20), 40, top or 2
    said = dict(part.split("=") for part in words.split(",") if part)
    all_arms = []
    for given in data:
        source, _ = cut(run, corpus(given), train=None, dev=dev)
        asked = prompted(run, source, said, template, init_from)
        arms = Arms(f"{source.name}, accuracy on dev")
        all_arms.append(arms)
        for k in [k for k in shots if k <= fewest(source)]:
            for seed in seeds:
                drawn = few(source, k, seed)
                for name in TRAINED:
                    trained(run, arms, one(drawn, name, init_from, steps, top), name, k)
                config = pairs(run, drawn, init_from, pair_steps, top)
                arms.add(PAIRS, f"{k}", run(config).metrics["ridge/accuracy"])
                if asked is not None:
                    task, train, held = asked
                    config = dataclasses.replace(
                        one(drawn, PROMPT, init_from, steps, top),
                        task=task,
                        data=dataclasses.replace(drawn.data, train=train, dev=held),
                    )
                    arms.add(PROMPT, f"{k}", run(config).metrics["dev/accuracy"])
    episodes = None
    if relations:
        given_to_all: dict[str, Any] = {"seeds": seeds, "instances": instances, "steps": steps}
        episodes = fewrel(run, relations, init_from, **given_to_all, top=top)
    return PLANNED if run.dry else page(run, all_arms, episodes)


def one(drawn: Corpus, name: str, init_from: str, steps: int, top: int | None) -> Config:
    """A run on the drawn rows, evaluated once, at its end."""
    adapt, rate = TRAINED.get(name, TRAINED[PLAIN])
    adapt = upper(init_from, top) if adapt == Full() else adapt
    seed = drawn.data.shot_seed
    return Config(
        name=f"{drawn.name}/{name.replace(' ', '-')}-{drawn.data.shots}-{seed}",
        task=Classify(pool="mean", pooler=False),
        data=drawn.data,
        optim=Optim(learning_rate=rate, warmup=0.1, weight_decay=0.01),
        adapt=adapt,
        steps=steps,
        batch_size=16,
        evals=ON_DEV,
        eval_every=steps,
        save_every=steps,
        init_from=init_from,
        seed=seed,
    )


def trained(run: Runner, arms: Arms, config: Config, name: str, k: int) -> None:
    """A run of cross entropy; that of the head alone leaves the trunk as it is, so that its run is
    asked by the probes as well, and fine-tuning by prototypes."""
    if name == PLAIN:
        config = dataclasses.replace(config, evals=(*ON_DEV, Prototypes()))
    if name == HEAD:
        probes = (Ridge(), Neighbours(count=min(5, k)), Prototypes())
        config = dataclasses.replace(config, evals=(*ON_DEV, *probes))
    metrics = run(config).metrics
    arms.add(name, f"{k}", metrics["dev/accuracy"])
    if name == PLAIN:
        arms.add(TUNED_MEANS, f"{k}", metrics["prototypes/accuracy"])
    if name == HEAD:
        arms.add(MEANS, f"{k}", metrics["prototypes/accuracy"])
        arms.add(RIDGE, f"{k}", metrics["ridge/accuracy"])
        arms.add(NEIGHBOURS, f"{k}", metrics["neighbours/accuracy"])


def pairs(run: Runner, drawn: Corpus, init_from: str, steps: int, top: int | None) -> Config:
    """A run in which pairs of the drawn rows learn to be near, of one label, or far; then a ridge.

    Each row has eight partners of its label and eight of others, drawn by the seed.
    """
    texts, seed = drawn.data, drawn.data.shot_seed
    rows = read_rows(texts.train, need=(texts.text, str(texts.label)))
    cells = [row[str(texts.label)] for row in rows]
    names = labels.infer(cells)
    numbers, _ = labels.read(cells, names)
    chosen = np.array(labels.few(numbers, names, int(texts.shots or 0), seed))
    generator = np.random.default_rng(seed)
    found = []
    for i in chosen:
        same = numbers[chosen] == numbers[i]
        for score, partners in (("1", chosen[same & (chosen != i)]), ("0", chosen[~same])):
            for j in generator.choice(partners, min(8, len(partners)), replace=False):
                found.append({"a": rows[i][texts.text], "b": rows[j][texts.text], "score": score})
    place = f"{drawn.name}-pairs-{texts.shots}-{seed}"
    data = Pairs(
        train=run.write(f"{place}.jsonl", found),
        first="a",
        second="b",
        scored=("train",),
        score_range=(0.0, 1.0),
        max_length=texts.max_length,
    )
    config = one(drawn, PAIRS.replace(",", ""), init_from, steps, top)
    return dataclasses.replace(
        config,
        task=CosineRegression(pool="mean"),
        data=data,
        optim=dataclasses.replace(config.optim, learning_rate=5e-5),
        evals=(Ridge(data=texts),),
    )


def prompted(
    run: Runner, source: Corpus, said: dict[str, str], template: str, init_from: str
) -> tuple[Prompt, str, str] | None:
    """The task of the prompt and its files, a template around every text; None where the words are
    not those of the task's labels, or the trunk has no head for words."""
    data = source.data
    rows = read_rows(data.train, need=(data.text, str(data.label)))
    names = labels.infer(row[str(data.label)] for row in rows)
    if set(names) != set(said) or not speaks(init_from):
        return None
    ids = verbalise(initialize.tokenizer_of(init_from), [said[name] for name in names])
    files = {}
    for split in ("train", "dev"):
        made = read_rows(getattr(data, split), need=(data.text, str(data.label)))
        filled = [row | {data.text: template.format(row[data.text])} for row in made]
        files[split] = run.write(f"{source.name}-prompt-{split}.jsonl", filled)
    return Prompt(word_ids=ids), files["train"], files["dev"]


def speaks(init_from: str) -> bool:
    """Whether a run or a Hugging Face directory has the head of masked language modelling."""
    if initialize.is_run(init_from):
        return str(runs.read_config(init_from)["config"]["task"]["type"]).endswith(":MaskedLM")
    settings = json.loads((pretrained.resolve(init_from) / "config.json").read_text("utf-8"))
    built = settings.get("architectures") or [""]
    return str(built[0]).endswith(("ForMaskedLM", "ForPreTraining"))


def page(run: Runner, all_arms: list[Arms], episodes: Arms | None) -> Page:
    """Each task by itself: scores and curves over labels, tests against fine-tuning."""
    blocks: list[Block] = [
        Heading("Result"),
        Text("Accuracy on dev after the last step; columns are labels a class."),
    ]
    if not any(PROMPT in arms.arms for arms in all_arms):
        blocks.append(
            Text(
                "The arm with a prompt is left out: it needs words for the labels of a task "
                "(--words) and a trunk that comes with its head of masked language modelling."
            )
        )
    for arms in all_arms:
        at = {condition: float(condition) for condition in arms.conditions}
        rivals = [(name, PLAIN) for name in arms.arms if name != PLAIN]
        blocks.append(arms.table(arms.metric))
        if len(at) > 1:
            blocks.append(arms.curve(arms.metric, "labels a class", at, "Mean ± sd over seeds."))
        blocks.append(arms.tests(f"{arms.metric}: each minus {PLAIN}, paired by seed", rivals))
    if episodes is not None:
        rivals = [(name, FROZEN) for name in episodes.arms if name != FROZEN]
        blocks += [
            Heading("Relations that none has seen"),
            Text("The spread is over seeds, which draw the relations to learn from and to tell."),
            episodes.table(episodes.metric),
            episodes.tests(f"Each minus {FROZEN!r}, paired by seed", rivals),
        ]
    seeds = max(len(values) for arms in all_arms for values in arms.scores.values())
    return Page(
        "Few shots: how many labels does a trunk save?",
        f"{len(run.results)} runs; {seeds} seeds; a seed draws the rows, the head and the order",
        [*blocks, Heading("Where the time went"), Facts(run.seconds())],
    )
