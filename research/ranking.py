"""Ranking: where the relevant documents of a query come, and scores that say how well. Numpy.

Everything follows from the places of the relevant documents, 1 the first: a document comes after
those of higher score, and among equals in the order of the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

# Scores held at once while a collection is ranked.
CELLS = 2**24


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1: [..., D] -> same; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12))


def places(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> Places:
    """The places of documents `relevant` int [R] among all, given the scores [P] of a query.

    places([0.9, 0.1, 0.9, 0.5], [3, 2]) is [3, 2].
    """
    values, chosen = np.asarray(scores), np.asarray(relevant, np.int64)
    own = values[chosen][:, None]
    before = np.arange(len(values)) < chosen[:, None]
    return 1 + ((values > own) | ((values == own) & before)).sum(1)


def search(
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    relevant: Sequence[npt.ArrayLike],
    *,
    hidden: Callable[[int], int | None] = lambda query: None,
) -> list[Places]:
    """Places of each query's relevant documents by inner product: [Q, D], [P, D] -> Q arrays.

    `hidden` names a document that is not to be found for a query, such as the query itself.
    """
    asked = np.asarray(queries, np.float32)
    found = np.asarray(documents, np.float32)
    step = max(1, CELLS // max(1, len(found)))
    ranked = []
    for start in range(0, len(asked), step):
        scores = asked[start : start + step] @ found.T
        for i, row in enumerate(scores, start):
            taken = hidden(i)
            if taken is not None:
                row[taken] = -np.inf
            ranked.append(places(row, relevant[i]))
    return ranked


def reciprocal_rank(found: Sequence[Places], cutoff: int | None = None) -> float:
    """MRR: the mean of 1 / place of the first relevant document, 0 where it is past `cutoff`."""
    first = np.array([ranks.min() if len(ranks) else np.inf for ranks in found], np.float64)
    values = np.where(first <= (cutoff or np.inf), 1.0 / first, 0.0)
    return float(values.mean()) if len(values) else float("nan")


def recall(found: Sequence[Places], cutoff: int) -> float:
    """The mean share of a query's relevant documents among the first `cutoff`."""
    values = [float((ranks <= cutoff).mean()) if len(ranks) else 0.0 for ranks in found]
    return float(np.mean(values)) if values else float("nan")


def ndcg(
    found: Sequence[Places], cutoff: int, gains: Sequence[npt.ArrayLike] | None = None
) -> float:
    """Mean normalised discounted cumulative gain of the first `cutoff` (Jarvelin & Kekalainen,
    2002): a gain at place r counts gain / log2(1 + r), divided by what the best order would give.

    `gains` are those of the relevant documents, in the order of `found`; 1 each where None.
    """
    values = []
    for i, ranks in enumerate(found):
        gain = np.ones(len(ranks)) if gains is None else np.asarray(gains[i], np.float64)
        kept = ranks <= cutoff
        got = (gain[kept] / np.log2(1.0 + ranks[kept])).sum()
        best = -np.sort(-gain)[:cutoff]
        ideal = (best / np.log2(np.arange(2, len(best) + 2))).sum()
        values.append(got / ideal if ideal else 0.0)
    return float(np.mean(values)) if values else float("nan")


def summary(
    found: Sequence[Places],
    gains: Sequence[npt.ArrayLike] | None = None,
    cutoffs: Sequence[int] = (1, 10),
) -> dict[str, float]:
    """{"mrr", "ndcg@10", "recall@1", "recall@10"} with the last of `cutoffs` for nDCG."""
    numbers = {"mrr": reciprocal_rank(found)}
    numbers[f"ndcg@{cutoffs[-1]}"] = ndcg(found, cutoffs[-1], gains)
    return numbers | {f"recall@{cutoff}": recall(found, cutoff) for cutoff in cutoffs}


def neighbours(
    queries: npt.ArrayLike, bank: npt.ArrayLike, count: int, *, same: bool = False
) -> Places:
    """The `count` rows of a bank nearest each query by inner product, best first.

    [Q, D], [P, D] -> int64 [Q, count]; among equals the first of the bank. With `same`, queries are
    the bank, and none is its own neighbour.
    """
    asked, known = np.asarray(queries, np.float32), np.asarray(bank, np.float32)
    step = max(1, CELLS // max(1, len(known)))
    found = [np.zeros((0, count), np.int64)]
    for start in range(0, len(asked), step):
        scores = asked[start : start + step] @ known.T
        if same:
            own = np.arange(len(scores))
            scores[own, start + own] = -np.inf
        found.append(np.argsort(-scores, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)
