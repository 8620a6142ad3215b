"""Retrieval: documents of a collection ranked for queries, against judgements of relevance."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research import ranking, sharding
from research.data import labels
from research.data.dataset import Signature
from research.data.pairs import Pairs
from research.data.rows import Rows, keep_good
from research.data.sources import read_rows, signature
from research.errors import DataError
from research.evaluate import Model, Scores
from research.evaluators import features


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """MRR, nDCG and recall by cosine over the whole collection (Thakur et al., 2021, BEIR).

    `queries` and `documents` are sources with the columns `id` and `text`; `judgements` one with
    `query-id`, `corpus-id` and `score`, 0 for not relevant. Queries that nothing is relevant for
    are left out; a document never answers a query of the same id.
    """

    queries: str
    documents: str
    judgements: str
    name: str = "retrieval"
    id: str = "_id"
    text: str = "text"
    cutoffs: tuple[int, ...] = (1, 10)
    max_length: int = 256
    batch_size: int = 128

    def prepare(self, model: Model) -> None:
        """Reads all three sources and encodes the texts as tokens."""
        self.read(model)

    def read(self, model: Model) -> Collection:
        """What is to be ranked, read once while its files are unchanged."""
        sources = (self.queries, self.documents, self.judgements)
        found = tuple(signature(source) for source in sources)
        return read(self, model.data.tokenizer, sharding.row_shards(model.mesh), found)

    def __call__(self, model: Model) -> Scores:
        collection = self.read(model)
        queries, _ = features.encode(model, collection.queries)
        documents, _ = features.encode(model, collection.documents)
        found = ranking.search(
            ranking.unit(queries)[collection.asked],
            ranking.unit(documents),
            collection.relevant,
            hidden=lambda i: collection.itself[i],
        )
        numbers = ranking.summary(found, collection.gains, self.cutoffs)
        return Scores(numbers, {"queries": len(found), "documents": len(documents)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """Tokens of queries and documents. Of each query asked: its place, the places of relevant
    documents with their gains, and that of the document of its id or None."""

    queries: Any
    documents: Any
    asked: list[int]
    relevant: list[np.ndarray]
    gains: list[np.ndarray]
    itself: list[int | None]


@functools.lru_cache(maxsize=4)
def read(
    evaluator: Retrieval, tokenizer: str, multiple: int, found: Sequence[Signature]
) -> Collection:
    """Reads a collection. Raises DataError "file:line: reason" for a row that does not fit."""
    pairs = Pairs(tokenizer=tokenizer, max_length=evaluator.max_length)
    batches, places = [], []
    for source in (evaluator.queries, evaluator.documents):
        rows = read_rows(source, need=(evaluator.id, evaluator.text))
        blank = [None if row[evaluator.text].strip() else "the text is empty" for row in rows]
        rows = keep_good(rows, blank)
        places.append(numbered(rows, evaluator.id))
        texts = [row[evaluator.text] for row in rows]
        batches.append(
            pairs.encode_rows(texts, evaluator.batch_size, multiple=multiple, where=(source, 1))
        )
    judged = judge(evaluator.judgements, *places)
    asked = sorted(judged)
    names = {place: name for name, place in places[0].items()}
    return Collection(
        queries=batches[0],
        documents=batches[1],
        asked=asked,
        relevant=[np.array(list(judged[query]), np.int64) for query in asked],
        gains=[np.array(list(judged[query].values())) for query in asked],
        itself=[places[1].get(names[query]) for query in asked],
    )


def numbered(rows: Rows, column: str) -> dict[str, int]:
    """The place of every id. Raises DataError for one given twice."""
    places: dict[str, int] = {}
    for i, row in enumerate(rows):
        if places.setdefault(row[column], i) != i:
            raise DataError(f"{rows.where(i)}: {column} {row[column]!r} is given twice")
    return places


def judge(
    source: str, queries: dict[str, int], documents: dict[str, int]
) -> dict[int, dict[int, float]]:
    """{query: {document: gain}} by their places, of what is relevant."""
    judged: dict[int, dict[int, float]] = {}
    rows = read_rows(source, need=("query-id", "corpus-id", "score"))
    for i, row in enumerate(rows):
        gain = labels.number(row["score"])
        if gain is None or gain < 0:
            raise DataError(f"{rows.where(i)}: score {row['score']!r} is no number from 0 up")
        for kind, known, name in (
            ("query", queries, row["query-id"]),
            ("document", documents, row["corpus-id"]),
        ):
            if name not in known:
                raise DataError(f"{rows.where(i)}: there is no {kind} {name!r}")
        if gain > 0:
            judged.setdefault(queries[row["query-id"]], {})[documents[row["corpus-id"]]] = gain
    if not judged:
        raise DataError(f"{source}:1: nothing is relevant to any query")
    return judged
