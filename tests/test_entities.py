"""Scores of entities against seqeval, on sentences of random tags."""

from __future__ import annotations

import random

import numpy as np
import pytest
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2, IOBES

from research import entities
from research.data import tags

CASES = 500


def sentences(scheme, seed: int):
    """Labels and predictions that agree on most words and are often badly formed."""
    generator = random.Random(seed)
    labels = tags.names(("LOC", "PER", "x-y"), scheme)
    gold = [
        [generator.choice(labels) for _ in range(generator.randint(1, 9))]
        for _ in range(generator.randint(1, 4))
    ]
    told = [
        [tag if generator.random() < 0.6 else generator.choice(labels) for tag in row]
        for row in gold
    ]
    return gold, told


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("scheme", "theirs"), [("BIO", IOB2), ("IOBES", IOBES)])
def test_scores_equal_seqeval(scheme, theirs, strict) -> None:
    options = {"mode": "strict", "scheme": theirs} if strict else {}
    compared = 0
    for seed in range(CASES):
        gold, told = sentences(scheme, seed)
        found = entities.score(gold, told, strict=scheme if strict else "")
        if not found.kinds:
            continue
        report = classification_report(gold, told, output_dict=True, zero_division=0, **options)
        for name, ours in (("micro avg", found.micro), ("macro avg", found.macro)):
            wanted = [report[name][key] for key in ("precision", "recall", "f1-score")]
            np.testing.assert_allclose(ours, wanted, atol=1e-12)
        assert set(report) == {*found.kinds, "micro avg", "macro avg", "weighted avg"}
        for kind, row in found.by_kind().items():
            wanted = [report[kind][key] for key in ("precision", "recall", "f1-score", "support")]
            ours = [row[key] for key in ("precision", "recall", "F1", "entities")]
            np.testing.assert_allclose(ours, wanted, atol=1e-12)
        compared += 1
    assert compared > 0.9 * CASES


def test_sentences_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tags against 1"):
        entities.score([["O", "O"]], [["O"]])
    with pytest.raises(ValueError):
        entities.score([["O"]], [])


def test_nothing_scores_zero() -> None:
    empty = entities.score([["O"]], [["O"]])
    assert empty.micro == empty.macro == (0.0, 0.0, 0.0)
    assert empty.by_kind() == {}
