"""What a language model holds likelier: of two sentences the grammatical one, of choices the right.

Both ask for nothing but the likelihood of texts, so models by counting answer, too: `grade` takes
what `CausalLM.predict` or `NGram.outputs` say.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from research import sharding
from research.data.batches import Batches
from research.data.choices import Choices, answered_rows
from research.data.rows import Rows
from research.data.sources import read_rows, signature
from research.data.texts import Texts
from research.errors import ConfigError
from research.evaluate import Model, Scores, forward
from research.evaluators.pseudo import pseudo_nll

# Sums of float32 tell nothing apart that is closer than this, in nats.
TIE = 1e-4

# The paper's 12 phenomena are 13 in its files.
PHENOMENA = {"s-selection": "argument_structure"}


def likelihoods(model: Model, batches: Any, *, pseudo: bool = False) -> dict[str, Any]:
    """`nll` and `count` [N] of each text in nats and tokens, in the order of the examples.

    `pseudo`: as a masked language model has them. Raises ConfigError for a task without them.
    """
    name = type(model.task).__name__
    if pseudo and getattr(model.task, "mask_id", None) is None:
        raise ConfigError(f"evals: pseudo is for masked language models, and {name} has no mask")
    method = pseudo_nll if pseudo else "predict"
    _, outputs = forward(model, batches, means=False, method=method)
    if "nll" not in outputs:
        raise ConfigError(f"evals: {name} tells no likelihood of a text; is it masked: set pseudo")
    return outputs


@dataclass(frozen=True, kw_only=True)
class MinimalPairs:
    """Accuracy on pairs of sentences that differ in one point, which makes one ungrammatical: it is
    right to find the other likelier (BLiMP: Warstadt et al., 2020).

    `source` holds rows as BLiMP's, whose archive is read as it is; of each paradigm the first
    `limit` are used. A tie counts a half. The first token of a sentence is given, so a tokenizer
    that begins texts with a special token leaves out nothing.
    """

    source: str
    limit: int | None = None
    pseudo: bool = False
    max_length: int = 128
    batch_size: int = 256

    @property
    def name(self) -> str:
        """The prefix."""
        return "pairs"

    def prepare(self, model: Model) -> None:
        """Opens the pairs. Raises ConfigError for a sentence that is too long."""
        self.batches(model.data, sharding.row_shards(model.mesh))

    def __call__(self, model: Model) -> Scores:
        batches = self.batches(model.data, sharding.row_shards(model.mesh))
        return self.grade(likelihoods(model, batches, pseudo=self.pseudo))

    def batches(self, data: Any, multiple: int = 1) -> Batches:
        """Example 2 i is the good sentence of pair i, and the next one is the bad."""
        texts = [row[name] for row in self.rows() for name in ("sentence_good", "sentence_bad")]
        return whole(
            tuple(texts), data.needed_tokenizer(), self.max_length, self.batch_size, multiple
        )

    def rows(self) -> list[Mapping[str, str]]:
        """The pairs that are used, in the order of the file."""
        found, seen = list[Mapping[str, str]](), Counter[str]()
        for row in pairs_of(self.source, signature(self.source)):
            seen[row["UID"]] += 1
            if self.limit is None or seen[row["UID"]] <= self.limit:
                found.append(row)
        return found

    def grade(self, outputs: Mapping[str, Any]) -> Scores:
        """`accuracy`, also by phenomenon ("island_effects"); by paradigm among the details."""
        nll = np.asarray(outputs["nll"], np.float64).reshape(-1, 2)
        better = nll[:, 1] - nll[:, 0]
        right = np.where(np.abs(better) < TIE, 0.5, better > 0)
        rows = self.rows()
        terms = [PHENOMENA.get(row["linguistics_term"], row["linguistics_term"]) for row in rows]
        numbers = {"accuracy": float(right.mean())} | means_by(terms, right)
        paradigms = means_by([row["UID"] for row in rows], right)
        return Scores(numbers, {"pairs": len(rows), "paradigms": paradigms})


@dataclass(frozen=True, kw_only=True)
class ChoiceLikelihood:
    """Accuracy of choosing what is likeliest after the question, in three ways: by the sum over the
    choice's tokens, by their mean, and a byte (Brown et al., 2020; Gao et al., 2021).

    The likelihood of a choice is that of question and choice less that of the question, which is
    exact for causal models whose tokenizer puts nothing after a text.
    """

    data: Choices
    split: str = "dev"
    batch_size: int = 128

    @property
    def name(self) -> str:
        """The prefix."""
        return "choices"

    def prepare(self, model: Model) -> None:
        """Opens the questions. Raises ConfigError for one that is too long."""
        self.batches(model.data, sharding.row_shards(model.mesh))

    def __call__(self, model: Model) -> Scores:
        batches = self.batches(model.data, sharding.row_shards(model.mesh))
        return self.grade(likelihoods(model, batches))

    def rows(self) -> Rows:
        """The questions in the order of the file."""
        return answered_rows(self.data, self.split, self.data.signature(self.split))

    def batches(self, data: Any, multiple: int = 1) -> Batches:
        """Of each question an example without a choice, then one with each."""
        texts = []
        for row in self.rows():
            question = row[self.data.question].strip()
            texts.append(question)
            texts += [f"{question} {row[name].strip()}" for name in self.data.offered(row)]
        tokenizer = self.data.tokenizer or data.needed_tokenizer()
        return whole(tuple(texts), tokenizer, self.data.max_length, self.batch_size, multiple)

    def grade(self, outputs: Mapping[str, Any]) -> Scores:
        """`accuracy`, `accuracy_token`, `accuracy_byte`, and `chance`."""
        nll, count = (np.asarray(outputs[name], np.float64) for name in ("nll", "count"))
        hits, first = [], 0
        for row in self.rows():
            names = self.data.offered(row)
            span = slice(first + 1, first + 1 + len(names))
            cost, tokens = nll[span] - nll[first], np.maximum(count[span] - count[first], 1)
            bytes = np.array([len(row[name].strip().encode()) for name in names])
            right = names.index(row[self.data.answer])
            ways = (cost, cost / tokens, cost / bytes)
            hits.append([*(np.argmin(way) == right for way in ways), 1 / len(names)])
            first = span.stop
        means = np.mean(np.array(hits, np.float64), axis=0).tolist()
        names = ("accuracy", "accuracy_token", "accuracy_byte", "chance")
        return Scores(dict(zip(names, means)), {"questions": len(hits)})


def means_by(names: list[str], values: np.ndarray) -> dict[str, float]:
    """The mean of the values that have the same name, by name."""
    found, inverse = np.unique(names, return_inverse=True)
    means = np.bincount(inverse, values) / np.bincount(inverse)
    return dict(zip(found.tolist(), means.tolist()))


@functools.lru_cache(maxsize=4)
def pairs_of(source: str, found: Any) -> Rows:
    """The rows of a file of minimal pairs."""
    need = ("sentence_good", "sentence_bad", "linguistics_term", "UID")
    return read_rows(source, need=need)


@functools.lru_cache(maxsize=4)
def whole(
    texts: tuple[str, ...], tokenizer: str, max_length: int, batch_size: int, multiple: int
) -> Batches:
    """One pass over texts of which none may be cut."""
    data = Texts(label=None, tokenizer=tokenizer, max_length=max_length)
    batches = data.encode_rows(texts, batch_size, multiple=multiple)
    if cut := batches.examples.encoded.truncated:
        raise ConfigError(
            f"evals: {cut} of {len(texts)} texts have more than {max_length} tokens; set max_length"
        )
    return batches
