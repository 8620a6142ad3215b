"""Which objective of pre-training serves best, when data, tokens and parameters are the same?

    launch.py study experiments/objectives.py                the standard library's English
    ... --small                                              minutes on two cores
    ... --tasks sst2=TRAIN,DEV cola=TRAIN,DEV areas          files for configs/sst2.py, ...
    ... --data 'corpus/*.txt.gz' --tokenizer DIR             any text, one passage a line

Causal, masked, permutation and replaced-token pre-training, and causal and masked mixed, each over
seeds: the same batches of the same texts. What is learned is asked in two ways of every task: by a
ridge regression on vectors of the trunk, which is left as it is, and by fine-tuning all of it.
Beside them a trunk that was never trained. All vectors are means over a text's tokens. All arms
have one learning rate, so the one that it suits best is favoured; a masked step predicts 15 % of
the tokens that a causal one does, and the mixture runs its trunk twice: the page has the times.
The README has the figures of `--steps 400`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from research import initialize
from research.config import Config, load_config
from research.data.texts import Texts
from research.errors import ConfigError
from research.evaluate import HeldOut, Model
from research.evaluators.probes import Ridge
from research.infer.loaded import load
from research.models.transformer import Spec, Transformer
from research.models.xlnet import XLNet, XLNetSpec
from research.optim import Optim
from research.study.arms import Arms
from research.study.page import Facts, Heading, Page, Text
from research.study.runner import Runner
from research.study.statistics import Summary
from research.study.table import Cell, Table
from research.tasks.causal import CausalLM
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM
from research.tasks.mixture import Mixture, Term
from research.tasks.permutation import PermutationLM
from research.tasks.replaced import ReplacedTokens

CAUSAL, MASKED, PERMUTED = "causal", "masked", "permutation"
REPLACED, MIXED, NONE = "replaced tokens", "causal and masked", "not trained"
OBJECTIVES = (CAUSAL, MASKED, PERMUTED, REPLACED, MIXED)
AREAS = Config(
    name="areas",
    task=Classify(),
    data=Texts(train="stdlib:areas-train", dev="stdlib:areas-dev"),
    evals=(HeldOut(),),
    track="dev/macro_f1",
    steps=1,
)
CONFIGS = Path(__file__).parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all arms share: texts, the sizes of the trunk, steps of both kinds and their rates."""

    data: Texts
    width: int
    depth: int
    steps: int
    tune_steps: int
    rate: float = 2e-3
    tune_rate: float = 1e-3

    def trunk(self, objective: str) -> nn.Module:
        """A Transformer, or for permutations an XLNet of nearly as many parameters: its fifth
        matrix an attention, that of distances, is saved in the MLP."""
        size = self.data.vocabulary.size
        hidden = 4 * self.width
        if objective == PERMUTED:
            small = hidden - self.width // 2
            return XLNet(
                XLNetSpec(
                    vocab_size=size,
                    width=self.width,
                    depth=self.depth,
                    heads=4,
                    hidden=small,
                    activation="relu",
                    dropout=0.0,
                )
            )
        return Transformer(self.spec(size, hidden, causal=objective in (CAUSAL, MIXED)))

    def spec(self, size: int, hidden: int, *, causal: bool) -> Spec:
        """The Transformer of all other objectives."""
        return Spec(
            vocab_size=size,
            width=self.width,
            depth=self.depth,
            heads=4,
            hidden=hidden,
            max_positions=self.data.max_length,
            causal=causal,
            activation="relu",
            dropout=0.0,
            attention_dropout=0.0,
        )

    def task(self, objective: str) -> nn.Module:
        """What is learned of the texts."""
        trunk = self.trunk(objective)
        if objective == CAUSAL:
            return CausalLM(backbone=trunk)
        if objective == PERMUTED:
            return PermutationLM(backbone=trunk)
        if objective == REPLACED:
            # As wide as the trunk, so that it has the trunk's table of tokens.
            spec = self.spec(trunk.spec.vocab_size, self.width, causal=False)
            small = dataclasses.replace(spec, depth=1, heads=1)
            return ReplacedTokens(backbone=trunk, generator=Transformer(small))
        if objective == MIXED:
            terms = (Term(name=CAUSAL, task=CausalLM()), Term(name=MASKED, task=MaskedLM()))
            return Mixture(backbone=trunk, terms=terms)
        return MaskedLM(backbone=trunk)


def study(
    run: Runner,
    *,
    data: str = "stdlib:passages",
    tokenizer: str = "stdlib:4000",
    tasks: tuple[str, ...] = ("areas",),
    objectives: tuple[str, ...] = OBJECTIVES,
    seeds: int = 3,
    steps: int = 1200,
    tune_steps: int = 150,
    tune_rows: int = 2000,
    width: int = 128,
    depth: int = 2,
    length: int = 64,
    small: bool = False,
) -> Page:
    """`tasks`: "areas" of the standard library, or NAME=TRAIN,DEV with files for configs/NAME.py of
    a classification, of whose train the first `tune_rows` are used; `length` bounds all texts, in
    tokens. Every seed is one of pre-training and of fine-tuning. `small` bounds the others, and
    trains too little to tell objectives from each other.
    """
    if small:
        seeds, steps, tune_steps = min(seeds, 2), min(steps, 40), min(tune_steps, 20)
        width, depth, length, tune_rows = min(width, 64), 1, min(length, 32), 200
    texts = Texts(
        train=data, label=None, tokenizer=tokenizer, max_length=length, long="split", shapes=1
    )
    setting = Setting(texts, width, depth, steps, tune_steps)
    if wrong := set(objectives) - set(OBJECTIVES):
        raise ConfigError(f"objectives: no {sorted(wrong)[0]!r}; there are {', '.join(OBJECTIVES)}")
    given = dict(labelled(task) for task in tasks)
    arms = Arms("score")
    costs: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for objective in (*objectives, NONE):
            source = None
            if objective != NONE:
                result = run(pretraining(setting, objective, seed))
                source = str(result.path)
                costs.setdefault(objective, []).append(cost(result))
            for name, base in given.items():
                config = finetuning(setting, objective, name, base, source, seed, tune_rows)
                arms.add(objective, f"{name}, probe", probe(config))
                arms.add(objective, f"{name}, fine-tuned", run(config).metrics[str(config.track)])
    return page(arms, costs, run)


def labelled(task: str) -> tuple[str, Config]:
    """A task by its name, and the config of its files.

    Raises ConfigError for anything but the two forms that `study` takes.
    """
    name, _, files = task.partition("=")
    if task == "areas":
        return task, AREAS
    if not (CONFIGS / f"{name}.py").is_file() or files.count(",") != 1:
        raise ConfigError(f"tasks: {task!r} is neither areas nor NAME=TRAIN,DEV of configs/NAME.py")
    base = load_config(CONFIGS / f"{name}.py", [])
    if not isinstance(base.task, Classify) or not isinstance(base.data, Texts):
        raise ConfigError(f"tasks: configs/{name}.py is no classification of texts")
    train, dev = files.split(",")
    return name, dataclasses.replace(
        base, data=dataclasses.replace(base.data, train=train, dev=dev)
    )


def pretraining(setting: Setting, objective: str, seed: int) -> Config:
    """One run of an objective."""
    return Config(
        name=f"{objective.replace(' ', '-')}-{seed}",
        task=setting.task(objective),
        data=setting.data,
        optim=Optim(learning_rate=setting.rate, warmup=0.1, weight_decay=0.01),
        steps=setting.steps,
        batch_size=32,
        log_every=25,
        save_every=setting.steps,
        seed=seed,
    )


def finetuning(
    setting: Setting,
    objective: str,
    name: str,
    base: Config,
    source: str | None,
    seed: int,
    rows: int,
) -> Config:
    """One fine-tune of an arm's trunk on a task, scored once, at its end."""
    trunk = setting.trunk(MASKED if source is None else objective)
    data = dataclasses.replace(
        base.data,
        limit=rows,
        shapes=1,
        tokenizer=setting.data.tokenizer,
        max_length=setting.data.max_length,
    )
    track = base.track or "dev/accuracy"
    return Config(
        name=f"{objective.replace(' ', '-')}-{name}-{seed}",
        task=base.task.clone(backbone=trunk, pool="mean", pooler=False),
        data=data,
        optim=Optim(learning_rate=setting.tune_rate, warmup=0.1, weight_decay=0.01),
        steps=setting.tune_steps,
        batch_size=16,
        evals=base.evals,
        track=track,
        eval_every=setting.tune_steps,
        save_every=setting.tune_steps,
        init_from=source,
        seed=seed,
    )


def probe(config: Config) -> float:
    """Macro F1 on dev of a ridge regression on the vectors that the fine-tuning begins with."""
    config = initialize.resolve(config)
    mesh = config.mesh.build()
    if config.init_from is None:
        batch = config.data.open("train", config.batch_size).batch(0)
        params = initialize.initialize(config.task, batch, jax.random.key(config.seed))
    else:
        params = jax.device_put(load(config.init_from).params)
    with jax.set_mesh(mesh):
        model = Model(config.task, {"backbone": params["backbone"]}, config.data, mesh)
        return Ridge()(model).numbers["macro_f1"]


def cost(result: Any) -> dict[str, float]:
    """Seconds of a run's steps, its tokens, and the parameters of its trunk and of all."""
    params = load(result.path).params
    trunk = {name: leaf for name, leaf in params["backbone"].items() if name != "pooler"}
    return {
        "seconds": result.summary["seconds"]["train"],
        "tokens": result.summary["tokens"],
        "trunk": sum(leaf.size for leaf in jax.tree.leaves(trunk)),
        "all": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "loss": result.metrics["train/loss"],
    }


def page(arms: Arms, costs: dict[str, list[dict[str, float]]], run: Runner) -> Page:
    """Scores, tests against the untrained trunk and masked LM, and what each objective cost."""
    pairs = [(one, NONE) for one in costs]
    pairs += [(one, MASKED) for one in costs if MASKED in costs and one != MASKED]
    rows: list[tuple[Cell, ...]] = []
    for objective, found in costs.items():
        facts = {name: [one[name] for one in found] for name in found[0]}
        seconds, loss = Summary.of(facts["seconds"]), Summary.of(facts["loss"])
        numbers = [int(facts[name][0]) for name in ("tokens", "trunk", "all")]
        rows.append((objective, seconds, *numbers, loss))
    columns = ("", "seconds of steps", "tokens", "parameters of the trunk", "of all", "last loss")
    return Page(
        "Objectives of pre-training on the same data",
        f"{len(run.results)} runs; {len(next(iter(arms.scores.values())))} seeds",
        [
            Heading("Result"),
            arms.table("Score on dev by task: of a probe macro F1, of fine-tuning the task's own"),
            arms.tests("Differences, paired by seed", pairs),
            Heading("Cost"),
            Table(title="Pre-training", columns=columns, rows=tuple(rows), lowest=columns[1:2]),
            Text(
                "Losses of different objectives do not compare. Replaced tokens need a generator "
                "besides the trunk, and an XLNet has no table of positions."
            ),
            *arms.figures(),
            Heading("Where the time went"),
            Facts(run.seconds()),
        ],
    )
