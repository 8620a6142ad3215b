"""Labels: several in a cell, numbers within limits, counts of train, and re-sampling."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.data import labels
from research.data.batches import Batches
from research.data.texts import Texts
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError, DataError

ROWS = [(f"text number {i}", "common" if i % 10 else "rare") for i in range(40)]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    tokenizer = train_wordpiece([text for text, _ in ROWS], 80, tmp_path / "tokenizer.json")
    return Texts(
        train=write(tmp_path / "train.tsv", ROWS),
        dev=write(tmp_path / "dev.tsv", ROWS),
        tokenizer=str(tokenizer),
        cache=str(tmp_path / "cache"),
    )


def test_cells_of_several_labels(texts: Texts, tmp_path: Path) -> None:
    cells = ["b,a", "", " a , ", '["c", "a, b"]', "b,b"]
    rows = [(f"text {i}", cell) for i, cell in enumerate(cells)]
    many = dataclasses.replace(texts, train=write(tmp_path / "train.tsv", rows), multilabel=True)
    facts = many.facts()
    assert facts["labels"] == ("a", "a, b", "b", "c")
    assert (facts["label_counts"], facts["train_rows"]) == ((2, 1, 2, 1), 5)
    table = many.open("train", 5).examples.slots["labels"]
    expected = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    np.testing.assert_array_equal(table, expected)
    batch = many.open("train", 5).batch(0)
    for b, m in np.argwhere(batch["ids"] >= 0):
        np.testing.assert_array_equal(batch["labels"][b, m], expected[batch["ids"][b, m]])
    objects = [{"text": f"text {i}", "label": c} for i, c in enumerate([["a", "b"], [], "c"])]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    dev = dataclasses.replace(many, dev=str(tmp_path / "dev.jsonl")).open("dev", 5)
    np.testing.assert_array_equal(
        dev.examples.slots["labels"], [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    )


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("a,z", "label 'z' is not among a, b"),
        ('["a", 1]', "are not a JSON list of texts"),
        ('["a"', "are not a JSON list"),
    ],
)
def test_bad_cells_name_their_line(texts: Texts, tmp_path: Path, cell: str, reason: str) -> None:
    rows = [("text", "a"), ("text", "b"), ("text", cell)]
    many = dataclasses.replace(texts, multilabel=True, labels=("a", "b"))
    many = dataclasses.replace(many, train=write(tmp_path / "train.tsv", rows))
    with pytest.raises(DataError, match=f"train.tsv:4: .*{reason}"):
        many.open("train", 2)
    assert dataclasses.replace(many, max_bad_rows=1).open("train", 2).rows == 2


def test_numbers_keep_to_their_limits(texts: Texts, tmp_path: Path) -> None:
    rows = [("text", "0"), ("number", "5.0"), ("text 1", "2.5"), ("text 2", "5.01")]
    scored = dataclasses.replace(
        texts, train=write(tmp_path / "train.tsv", rows), regression=True, limits=(0.0, 5.0)
    )
    with pytest.raises(DataError, match=r"train.tsv:5: label 5.01 is outside \[0, 5\]"):
        scored.open("train", 2)
    allowed = dataclasses.replace(scored, max_bad_rows=1)
    assert allowed.facts()["label_mean"] == 2.5
    assert dataclasses.replace(scored, limits=None).open("train", 2).rows == 4


def test_a_label_that_train_lacks_is_named(texts: Texts) -> None:
    given = dataclasses.replace(texts, labels=("common", "rare", "absent"))
    with pytest.raises(DataError, match=r"train.tsv:1: data.labels names 'absent', which no row"):
        given.open("train", 4)
    many = dataclasses.replace(given, multilabel=True)
    with pytest.raises(DataError, match="'absent'"):
        many.open("train", 4)
    assert given.open("dev", 4).rows == 40


def test_counts_are_those_of_the_rows_that_are_used(texts: Texts) -> None:
    assert texts.facts()["label_counts"] == (36, 4)
    assert dataclasses.replace(texts, limit=11).facts()["label_counts"] == (9, 2)
    assert dataclasses.replace(texts, shots=3).facts()["label_counts"] == (3, 3)
    assert "label_counts" not in dataclasses.replace(texts, label=None).facts()


def drawn(batches: Batches, epochs: int) -> np.ndarray:
    """How often each example was drawn: int [examples]."""
    steps = epochs * batches.rows // batches.batch_size
    return np.bincount(
        np.concatenate([batches.examples_of(step) for step in range(steps)]), minlength=40
    )


@pytest.mark.parametrize(("flatten", "share"), [(0.0, 0.1), (0.5, 0.25), (1.0, 0.5)])
def test_resampling_draws_labels_as_often_as_it_says(
    texts: Texts, flatten: float, share: float
) -> None:
    # Shares in proportion to n^(1 - flatten): 36 and 4; 6 and 2; 1 and 1.
    data = dataclasses.replace(texts, resample=flatten)
    batches = data.open("train", 8, steps=100, seed=3)
    rare = np.array([label == "rare" for _, label in ROWS])
    for epochs in (1, 3):
        counts = drawn(batches, epochs)
        assert counts.sum() == 40 * epochs
        assert counts[rare].sum() == pytest.approx(40 * epochs * share, abs=1.0 * epochs)
    expected = 40 * 20 * np.where(rare, share / 4, (1 - share) / 36)
    assert np.abs(drawn(batches, 20) - expected).max() <= 20
    assert data.open("dev", 8).examples.draws is None


def test_resampling_is_a_function_of_seed_and_step(texts: Texts) -> None:
    def order(seed: int, step: int) -> Any:
        data = dataclasses.replace(texts, resample=1.0)
        return data.open("train", 8, steps=100, seed=seed).examples_of(step)

    np.testing.assert_array_equal(order(1, 37), order(1, 37))
    assert not np.array_equal(order(1, 37), order(2, 37))
    first = np.sort(np.concatenate([order(1, step) for step in range(5)]))
    second = np.sort(np.concatenate([order(1, step) for step in range(5, 10)]))
    assert not np.array_equal(first, second)  # which of the frequent rows an epoch has, changes
    plain = texts.open("train", 8, steps=100, seed=1)
    even = dataclasses.replace(texts, resample=1.0).open("train", 8, steps=100, seed=1)
    assert plain.fingerprint != even.fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"regression": True}, {"multilabel": True}, {"label": None}],
    ids=["regression", "multilabel", "no label"],
)
def test_resampling_needs_one_class_a_row(texts: Texts, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.resample needs classes"):
        dataclasses.replace(texts, resample=0.5, **changes).open("train", 4)


def test_weights_of_draws_have_mean_one() -> None:
    found = labels.draws(np.array([0, 0, 0, 1]), 1.0)
    np.testing.assert_allclose(found, [2 / 3, 2 / 3, 2 / 3, 2])
