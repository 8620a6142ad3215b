"""What can be measured: a config of ours, the rival's script, and the rows that both are given."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research import entities, metrics, spans
from research.bench import ours
from research.config import Config
from research.data.batches import Examples
from research.data.questions import Questions
from research.data.tagged import Tagged
from research.data.texts import Texts

Row = dict[str, Any]
Told = Callable[[Any, str, Examples, int], Row]
Score = Callable[[list[Any], list[Row]], float]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One fine-tune on both sides.

    `config` is a file of configs/, `rival` a script of rivals/ that is called with `kind`, and
    `against` its name; `told` gives a row as the rival reads it; `score` is `metric`, our result's,
    of the rival's outputs and the rows of dev; `same` are overrides that make our head the rival's.
    """

    config: str
    rival: str
    kind: str
    told: Told
    metric: str
    score: Score
    same: tuple[str, ...] = ()
    against: str = "Trainer"
    ours = staticmethod(ours.train)

    def lengths(self, config: Config) -> np.ndarray:
        """Tokens of each example of train."""
        return tokens_of_train(config)

    def write(self, config: Config, folder: Path, seed: int) -> None:
        """The rows of a run in our order, every epoch anew, and those of dev."""
        data, batch_size, steps = config.data, config.batch_size, config.steps or 0
        stream = data.open("train", batch_size, steps=steps, seed=seed)
        examples = (int(i) for step in range(steps) for i in stream.examples_of(step))
        dump(folder / f"train{seed}.jsonl", self.rows(data, "train", stream, examples))
        held = data.open("dev", batch_size)
        dump(folder / "dev.jsonl", self.rows(data, "dev", held, range(len(held.lengths))))

    def arguments(self, config: Config, folder: Path, seed: int) -> list[str]:
        """What the rival's script is called with."""
        found = [self.kind, str(config.init_from)]
        found += [str(folder / f"train{seed}.jsonl"), str(folder / "dev.jsonl")]
        found += ["--seed", str(seed), "--max-length", str(config.data.max_length)]
        found += ["--batch-size", str(config.batch_size), "--warmup", str(config.optim.warmup)]
        found += ["--learning-rate", str(config.optim.learning_rate)]
        if hasattr(config.data, "stride"):
            found += ["--stride", str(config.data.stride)]
        return found

    def grade(self, outputs: list[Any], folder: Path) -> float:
        """The score of what the rival says of dev."""
        lines = (folder / "dev.jsonl").read_text("utf-8").splitlines()
        return self.score(outputs, [json.loads(line) for line in lines])

    def rows(self, data: Any, split: str, batches: Any, examples: Any) -> Iterator[Row]:
        """Each row where its first example, a window of it say, comes up."""
        row_of = batches.examples.encoded.row_of
        for example in examples:
            if example == 0 or row_of[example] != row_of[example - 1]:
                yield self.told(data, split, batches.examples, example)


def tokens_of_train(config: Config) -> np.ndarray:
    """Tokens of each example."""
    found: np.ndarray = config.data.open("train", config.batch_size, steps=1).lengths
    return found


def dump(path: Path, rows: Iterator[Row]) -> None:
    """JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def text(data: Texts, split: str, examples: Examples, example: int) -> Row:
    """{"text", "pair", "label"}, the label a number."""
    row = data.text_of(split, example)
    label = examples.slots["labels"][example].item()
    return {"text": row[data.text], "pair": row[data.pair] if data.pair else None, "label": label}


def sentence(data: Tagged, split: str, examples: Examples, example: int) -> Row:
    """{"tokens", "tags"}, all tags as text."""
    row = int(examples.encoded.row_of[example])
    return {"tokens": examples.source.words[row], "tags": examples.source.tags[row]}


def question(data: Questions, split: str, examples: Examples, example: int) -> Row:
    """{"id", "question", "context", "answers"}, as the SQuAD of the datasets library."""
    row = data.text_of(split, example)
    answers = json.loads(row["answers"])
    return {
        "id": row["id"],
        "question": row["question"],
        "context": row["context"],
        "answers": {
            "answer_start": [start for start, _ in answers],
            "text": [words for _, words in answers],
        },
    }


def of_classes(outputs: list[Any], rows: list[Row], metric: str) -> float:
    """Accuracy, Matthews' correlation, or the F1 of the second class, of logits."""
    logits = np.array(outputs)
    matrix = metrics.confusion([row["label"] for row in rows], logits.argmax(-1), logits.shape[-1])
    if metric == "f1":
        return float(metrics.precision_recall_f1(matrix)[2][1])
    return {"accuracy": metrics.accuracy, "mcc": metrics.matthews}[metric](matrix)


def classification(config: str, metric: str, *same: str) -> Workload:
    """A head on the pooled first token."""
    return Workload(
        config=config,
        rival="transformers_classify.py",
        kind="classify",
        told=text,
        metric=f"dev/{metric}",
        score=functools.partial(of_classes, metric=metric),
        same=same,
    )


def of_numbers(outputs: list[Any], rows: list[Row]) -> float:
    """Spearman's correlation."""
    return metrics.spearman(np.array(outputs)[:, 0], np.array([row["label"] for row in rows]))


def of_tags(outputs: list[Any], rows: list[Row]) -> float:
    """F1 of entities; words beyond the window, which the rival leaves out, count as no entity."""
    gold = [row["tags"] for row in rows]
    told = [guess + ["O"] * (len(tags) - len(guess)) for guess, tags in zip(outputs, gold)]
    return entities.score(gold, told).micro[2]


def of_answers(outputs: list[Any], rows: list[Row]) -> float:
    """F1 of words by the rules of SQuAD 2.0."""
    return float(spans.grade(outputs, [row["answers"]["text"] for row in rows])[1].mean())


FIRST = ("--task.pool", "first", "--task.pooler", "True")
WORKLOADS = {
    "sst2": classification("sst2", "accuracy"),
    "cola": classification("cola", "mcc"),
    "mrpc": classification("mrpc", "f1"),
    "stsb": Workload(
        config="stsb",
        rival="transformers_classify.py",
        kind="regress",
        told=text,
        metric="dev/spearman",
        score=of_numbers,
        same=(*FIRST, "--task.label-mean", "0.0"),
    ),
    "imdb": classification("imdb", "accuracy"),
    "ag_news": classification("ag_news", "accuracy", *FIRST),
    "banking77": classification("banking77", "accuracy", *FIRST),
    "conll2003": Workload(
        config="conll2003",
        rival="transformers_tag.py",
        kind="tag",
        told=sentence,
        metric="dev/f1",
        score=of_tags,
    ),
    "squad2": Workload(
        config="squad2",
        rival="transformers_answer.py",
        kind="answer",
        told=question,
        metric="dev/f1",
        score=of_answers,
    ),
}
