"""Ranking scores against sklearn and against sorting whole lists."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from research import ranking

RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(7, 3)).astype(np.float32)
DOCUMENTS = RNG.normal(size=(40, 3)).astype(np.float32)
RELEVANT = [RNG.choice(40, size, replace=False) for size in (1, 2, 5, 1, 12, 3, 1)]
GAINS = [RNG.integers(1, 4, len(found)) for found in RELEVANT]


def orders() -> list[list[int]]:
    """All documents of each query, best first, by Python's own sort."""
    scores = QUERIES @ DOCUMENTS.T
    return [sorted(range(40), key=lambda i: (-row[i], i)) for row in scores]


def test_places_among_ties_follow_the_collection() -> None:
    np.testing.assert_array_equal(ranking.places([0.9, 0.1, 0.9, 0.5], [3, 2, 0, 1]), [3, 2, 1, 4])


def test_search_equals_sorting_whole_lists() -> None:
    found = ranking.search(QUERIES, DOCUMENTS, RELEVANT)
    for places, order, relevant in zip(found, orders(), RELEVANT):
        np.testing.assert_array_equal(places, [order.index(i) + 1 for i in relevant])
    first = [min(order.index(i) + 1 for i in r) for order, r in zip(orders(), RELEVANT)]
    assert ranking.reciprocal_rank(found) == pytest.approx(np.mean(1 / np.array(first)))
    capped = [1 / place if place <= 3 else 0 for place in first]
    assert ranking.reciprocal_rank(found, 3) == pytest.approx(np.mean(capped))
    shares = [len(set(order[:10]) & set(r)) / len(r) for order, r in zip(orders(), RELEVANT)]
    assert ranking.recall(found, 10) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("cutoff", [1, 5, 10, 40])
def test_ndcg_equals_scikit_learns(cutoff: int) -> None:
    table = np.zeros((7, 40))
    for row, relevant, gains in zip(table, RELEVANT, GAINS):
        row[relevant] = gains
    expected = ndcg_score(table, QUERIES @ DOCUMENTS.T, k=cutoff)
    found = ranking.search(QUERIES, DOCUMENTS, RELEVANT)
    assert ranking.ndcg(found, cutoff, GAINS) == pytest.approx(expected, abs=1e-9)


def test_pieces_of_a_search_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ranking.search(QUERIES, DOCUMENTS, RELEVANT, hidden=lambda i: i)
    monkeypatch.setattr(ranking, "CELLS", 100)
    pieces = ranking.search(QUERIES, DOCUMENTS, RELEVANT, hidden=lambda i: i)
    for a, b in zip(whole, pieces):
        np.testing.assert_array_equal(a, b)
    nearest = ranking.neighbours(DOCUMENTS, DOCUMENTS, 5, same=True)
    scores = DOCUMENTS @ DOCUMENTS.T
    np.fill_diagonal(scores, -np.inf)
    np.testing.assert_array_equal(nearest, np.argsort(-scores, axis=1, kind="stable")[:, :5])


def test_a_query_without_an_answer_counts_as_missed() -> None:
    found = [np.array([1]), np.array([], np.int64)]
    assert ranking.summary(found) == {
        "mrr": 0.5,
        "ndcg@10": 0.5,
        "recall@1": 0.5,
        "recall@10": 0.5,
    }
