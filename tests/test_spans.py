"""Spans: the search against brute force, the grades of published predictions and by hand."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import spans
from research.data import squad
from research.data.sources import read_rows
from research.spans import Span

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[2] / "shared")) / "data" / "qa"
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")

# Few distinct values make ties common.
logits = st.lists(st.integers(-3, 3).map(float), min_size=0, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 14), st.integers(1, 30))
def test_the_search_equals_trying_every_span(data, longest, count):
    start = data.draw(logits)
    end = data.draw(
        st.lists(st.integers(-3, 3).map(float), min_size=len(start), max_size=len(start))
    )
    everything = [
        (-(start[i] + end[j]), i, j)
        for i in range(len(start))
        for j in range(i, min(len(start), i + longest))
    ]
    expected = [(-score, i, j) for score, i, j in sorted(everything)[:count]]
    found = spans.best_spans(np.array(start), np.array(end), longest=longest, count=count)
    assert list(zip(*(array.tolist() for array in found))) == expected


def test_the_search_never_leaves_the_text_whatever_the_scores():
    start, end = np.array([np.nan, -np.inf, 0.0]), np.array([np.nan, np.nan, -np.inf])
    scores, first, last = spans.best_spans(start, end, longest=2, count=9)
    assert len(scores) == 5
    assert (first <= last).all() and last.max() == 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2), st.integers(3, 5)), max_size=20),
    st.integers(1, 6),
)
def test_a_span_in_several_windows_counts_once_with_its_highest_score(found, count):
    merged = spans.merge([Span(*one) for one in found], count)
    places = [(span.start, span.end) for span in merged]
    assert len(places) == len(set(places)) == min(count, len({one[1:] for one in found}))
    for span in merged:
        assert span.score == max(s for s, a, z in found if (a, z) == (span.start, span.end))
    left = {one[1:]: one[0] for one in sorted(found)}
    others = [score for place, score in left.items() if place not in places]
    assert all(score <= merged[-1].score for score in others)


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("The  Eiffel Tower!", "eiffel tower", 1, 1),
        ("in the tower", "tower in Paris", 0, 0.8),
        ("a cat, a dog", "cat dog", 1, 1),
        ("Theatre", "tre", 0, 0),
        ("dog dog cat", "dog cat cat", 0, 2 / 3),
        ("state-of-the-art", "stateoftheart", 1, 1),
        ("£5", "5", 0, 0),
        ("", "x", 0, 0),
        ("The", "an", 1, 1),
    ],
)
def test_grades_of_one_answer(prediction, answer, exact, f1):
    assert spans.exact_match(prediction, answer) == exact
    assert spans.f1(prediction, answer) == pytest.approx(f1)


def test_the_nearest_answer_counts_and_no_answer_is_the_empty_text():
    predictions = ["red apple", "", "iron", None, "", "the"]
    answers = [("apple", "green"), (), (), ("zinc",), ("the",), ("the",)]
    exact, f1 = spans.grade(predictions, answers)
    assert exact.tolist() == [0, 1, 0, 0, 1, 1]
    assert f1.tolist() == pytest.approx([2 / 3, 1, 0, 0, 1, 1])
    exact, f1 = spans.grade(["the", "the cat"], [("a",), ("cat", "dog")], "1.1")
    assert exact.tolist() == [1, 1]
    assert f1.tolist() == [0, 1]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()),
        min_size=1,
        max_size=15,
    )
)
def test_no_threshold_is_better_than_the_best(rows):
    differences, scores, answerable = (np.array(column) for column in zip(*rows))

    def reached(threshold: float) -> float:
        spoken = differences <= threshold
        earned = np.where(answerable, np.where(spoken, scores, 0.0), ~spoken)
        return float(earned.mean())

    best = spans.best_threshold(differences, scores, answerable)
    cuts = [*(differences + 0.0), differences.min() - 1.0]
    assert best.score == pytest.approx(max(reached(cut) for cut in cuts))
    assert reached(best.official) == pytest.approx(best.score)
    assert reached(best.between) == pytest.approx(best.score)
    assert np.abs(differences - best.between).min() >= 0.5


@real
@pytest.mark.parametrize("name", ["logreg", "bert_ensemble"])
def test_published_predictions_get_the_scores_they_are_known_to_have(name):
    rows = read_rows(f"{DATA}/xquad/xquad.en.json.xz")
    file = f"predictions_{name}_v1.1.json"
    predictions = json.loads(lzma.decompress((DATA / "xquad" / f"{file}.xz").read_bytes()))
    known = json.loads((DATA / "xquad" / "expected_scores.json").read_text())["scores"][file]
    answers = [[text for _, text in squad.answers_of(row)] for row in rows]
    for rules in ("1.1", "2.0"):
        exact, f1 = spans.grade([predictions.get(row["id"]) for row in rows], answers, rules)
        assert len(exact) == known["n"]
        assert 100 * sum(exact) / len(exact) == known["exact"]
        assert 100 * sum(f1) / len(f1) == known["f1"]
