"""Answers as spans of a text: the best ones found among scores, and graded as SQuAD does."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Rules = Literal["1.1", "2.0"]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Span(NamedTuple):
    """Characters [start, end) of a text, and their score."""

    score: float
    start: int
    end: int


def best_spans(
    start: np.ndarray, end: np.ndarray, *, longest: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` best pairs (first, last) of tokens by start[first] + end[last], both [T].

    A span has 1 to `longest` tokens; all of them are compared, and of equal ones that which starts
    first, then the shorter, comes first; NaN counts as the lowest. Returns scores float64, first
    and last int64, [n] each, where n is `count` or all there are.
    """
    tokens = len(start)
    width = min(longest, tokens)
    first, more = np.nonzero(np.arange(tokens)[:, None] + np.arange(width) < tokens)
    last = first + more
    scores = np.asarray(start, np.float64)[first] + np.asarray(end, np.float64)[last]
    scores = np.where(np.isnan(scores), -np.inf, scores)
    most = min(count, len(scores))
    if most < len(scores):
        least = np.partition(scores, len(scores) - most)[len(scores) - most]
        (kept,) = np.nonzero(scores >= least)
    else:
        kept = np.arange(most)
    chosen = kept[np.argsort(-scores[kept], kind="stable")][:most]
    return scores[chosen], first[chosen], last[chosen]


def merge(found: Iterable[Span], count: int) -> list[Span]:
    """The best `count` of the spans of several windows; one that several of them hold counts once,
    with its highest score."""
    best: dict[tuple[int, int], float] = {}
    for score, start, end in found:
        best[start, end] = max(score, best.get((start, end), -np.inf))
    spans = [Span(score, start, end) for (start, end), score in best.items()]
    return sorted(spans, key=lambda span: (-span.score, span.start, span.end))[:count]


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and needless white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where the two are equal once normalised, else 0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str, rules: Rules = "2.0") -> float:
    """Harmonic mean of the precision and recall of words.

    Where one of the two has no words, 2.0 says 1 if neither has any; 1.1 says 0.
    """
    ours, theirs = normalize(prediction).split(), normalize(answer).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if shared == 0:
        return float(rules == "2.0" and not ours and not theirs)
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def grade(
    predictions: Sequence[str | None], answers: Sequence[Sequence[str]], rules: Rules = "2.0"
) -> tuple[np.ndarray, np.ndarray]:
    """Exact match and F1 of each question, float64 [N], against the nearest of its answers.

    Under 2.0 an answer that normalises to nothing is left out, a question without answers is right
    if predicted "". A prediction that is None, for missing, scores 0 (Rajpurkar et al., 2016, 2018:
    evaluate-v1.1.py, evaluate-v2.0.py).
    """
    exact, overlap = np.zeros(len(predictions)), np.zeros(len(predictions))
    for i, (prediction, given) in enumerate(zip(predictions, answers)):
        if prediction is None:
            continue
        if rules == "2.0":
            given = [answer for answer in given if normalize(answer)] or [""]
        exact[i] = max((exact_match(prediction, answer) for answer in given), default=0.0)
        overlap[i] = max((f1(prediction, answer, rules) for answer in given), default=0.0)
    return exact, overlap


class Threshold(NamedTuple):
    """The `score` reached, the `official` threshold, and the middle `between` the neighbours.

    Every threshold from `official` up to the next difference gives the score; the one in the middle
    is the farthest from changing an answer where the differences are computed again.
    """

    score: float
    official: float
    between: float


def best_threshold(
    differences: np.ndarray, scores: np.ndarray, answerable: np.ndarray
) -> Threshold:
    """The threshold that is best for these questions: answered is what has a difference up to it.

    `differences` float [N], score of no answer minus that of the best span; `scores` float [N],
    what answering with this span earns; `answerable` bool [N]: where it is not, no answer earns 1.
    """
    values = np.asarray(differences, np.float64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    gains = np.where(answerable, scores, -1.0)[order]
    totals = np.cumsum(np.concatenate([[float(np.sum(~answerable))], gains]))
    # Questions of one difference are answered together.
    ends = np.append(np.flatnonzero(np.diff(ordered)) + 1, len(ordered))
    best = int(ends[np.argmax(totals[ends])])
    if totals[best] <= totals[0]:
        below = float(ordered[0]) - 1.0
        return Threshold(float(totals[0]) / len(values), min(0.0, below), below)
    official = float(ordered[best - 1])
    above = float(ordered[best]) if best < len(ordered) else official + 2.0
    return Threshold(float(totals[best]) / len(values), official, (official + above) / 2)
