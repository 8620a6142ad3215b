"""Labelled texts that several studies are asked of: whose config, which files, how they are cut."""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from research import initialize
from research.adapt import Strategy
from research.data.formats import Row
from research.data.sources import read_rows
from research.data.texts import Texts
from research.errors import ConfigError
from research.evaluate import HeldOut
from research.strategies import Frozen, Full
from research.study.runner import Runner

# Without a threshold tuned on it.
ON_DEV = (HeldOut(split="dev"),)


@dataclass(frozen=True)
class Corpus:
    """A data set by its name in configs/, and the score that it is usually told by."""

    name: str
    data: Texts
    metric: str

    def score(self, metrics: dict[str, float]) -> float:
        """That score of a run, on dev."""
        return metrics[f"dev/{self.metric}"]


def corpus(given: str) -> Corpus:
    """NAME, a file in configs/ on labelled texts, with its files; or NAME;TRAIN;DEV.

    Raises ConfigError for another form, and for a config on other data.
    """
    name, *files = given.split(";")
    if len(files) not in (0, 2):
        raise ConfigError(f"data: {given!r} is neither NAME nor NAME;TRAIN;DEV")
    try:
        config = importlib.import_module(f"configs.{name}").config()
    except ModuleNotFoundError:
        raise ConfigError(f"data: there is no configs/{name}.py") from None
    if not isinstance(config.data, Texts) or not config.data.one_label:
        raise ConfigError(f"data: configs/{name}.py has no texts with one label each")
    data = dataclasses.replace(config.data, resample=0.0, test="")
    if files:
        data = dataclasses.replace(data, train=files[0], dev=files[1])
    return Corpus(name, data, (config.track or "").removeprefix("dev/") or "accuracy")


def cut(
    run: Runner, source: Corpus, *, train: int | None, held: int = 0, dev: int | None = None
) -> tuple[Corpus, str]:
    """A corpus as files in the study's folder: `train` rows of its train, `dev` of its dev, each
    drawn once for all seeds, a row of every label in front; and a file of `held` other rows of
    train, of labels that are in it, to choose settings by. None takes all rows."""
    columns = [c for c in (source.data.text, source.data.pair, source.data.label) if c]
    shuffled = {}
    for split in ("train", "dev"):
        rows = read_rows(
            getattr(source.data, split),
            columns=source.data.columns,
            need=tuple(columns),
            quoting=source.data.quoting,
        )
        order = np.argsort(np.random.Philox(0).random_raw(len(rows)), kind="stable")
        shuffled[split] = labels_first([rows[int(i)] for i in order], str(source.data.label))
    most = len(shuffled["train"]) - held
    kept = shuffled["train"][: most if train is None else min(train, most)]
    known = {row[str(source.data.label)] for row in kept}
    rest = [r for r in shuffled["train"][len(kept) :] if r[str(source.data.label)] in known]
    data = dataclasses.replace(
        source.data,
        columns=(),
        train=run.write(f"{source.name}-train.jsonl", kept),
        dev=run.write(f"{source.name}-dev.jsonl", shuffled["dev"][:dev]),
    )
    other = run.write(f"{source.name}-held.jsonl", rest[:held]) if held else ""
    return dataclasses.replace(source, data=data), other


def few(source: Corpus, shots: int, seed: int) -> Corpus:
    """`shots` rows of each label, drawn by the seed, in rows of one length whatever was drawn: so
    the runs of all seeds are one program."""
    length = source.data.max_length
    drawn = dataclasses.replace(source.data, shots=shots, shot_seed=seed, row_length=length)
    return dataclasses.replace(source, data=drawn)


def upper(init_from: str, top: int | None) -> Strategy:
    """Of the trunk of `init_from` only the last `top` blocks learn, None for all of it.

    Two blocks of six cost half a step's products and none of the optimizer's work on the
    vocabulary: what lets a study say something in minutes.
    """
    if top is None:
        return Full()
    depth = initialize.trunk_of(init_from).spec.depth
    if not 0 < top <= depth:
        raise ConfigError(f"top: is {top}, but {init_from} has {depth} blocks")
    lower = tuple(f"^backbone/block_{i}/" for i in range(depth - top))
    return Full() | Frozen(("^backbone/embed", *lower))


def labels_first(rows: list[Row], label: str) -> list[Row]:
    """The same rows, the first of every label in front of all others."""
    seen: set[Any] = set()
    first: list[Row] = []
    later: list[Row] = []
    for row in rows:
        (later if row[label] in seen else first).append(row)
        seen.add(row[label])
    return first + later


def fewest(source: Corpus) -> int:
    """The rows of train that the rarest label has."""
    label = str(source.data.label)
    rows = read_rows(source.data.train, columns=source.data.columns, need=(label,))
    return min(Counter(row[label] for row in rows).values())
