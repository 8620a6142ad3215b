"""Pairs: rows become units of texts; scores, filters and bad rows, from files to batches."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from research.data.pairs import Pairs
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError, DataError

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")
TRAIN = [
    ("entailment", f"text {i} of words", f"words of {'many ' * (i % 4)}texts", f"number {i % 3}")
    for i in range(11)
]
DEV = [("a text", "words", "0"), ("number words", "many texts", "2.5"), ("text", "text", "5")]


def write(path: Path, header: str, rows: list[tuple[str, ...]]) -> str:
    lines = [header, *("\t".join(row) for row in rows)]
    path.write_text("\n".join(line for line in lines if line) + "\n")
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    texts = [text for row in TRAIN for text in row[1:]] + [text for row in DEV for text in row[:2]]
    return Pairs(
        train=write(tmp_path / "train.tsv", "label\tanchor\tpositive\tnegative", TRAIN),
        dev=write(tmp_path / "dev.tsv", "sentence1\tsentence2\tscore", DEV),
        negatives=("negative",),
        tokenizer=str(train_wordpiece(texts, 90, tmp_path / "tokenizer.json")),
        cache=str(tmp_path / "cache"),
    )


def places(batch: dict[str, np.ndarray]) -> dict[int, dict[str, float]]:
    """{example: its slots} of a batch."""
    taken = np.argwhere(batch["ids"] >= 0)
    names = ("roles", "pairs", "texts", "weights", "scores")
    return {
        int(batch["ids"][b, m]): {n: batch[n][b, m].item() for n in names if n in batch}
        for b, m in taken
    }


def test_rows_stay_together_and_roles_follow_the_columns(pairs: Pairs) -> None:
    batches = pairs.open("train", 4, steps=6, seed=1)
    assert batches.rows == 11
    for step in (0, 1, 3, 4):  # in steps 2 and 5 epochs meet, and a row may be there twice
        found = places(batches.batch(step))
        assert len(found) == 12
        by_row: dict[float, list[float]] = {}
        for example in sorted(found):
            by_row.setdefault(found[example]["pairs"], []).append(found[example]["roles"])
        assert len(by_row) == 4
        assert all(roles == [0, 1, 2] for roles in by_row.values())


def test_equal_texts_have_equal_numbers(pairs: Pairs) -> None:
    numbers = pairs.open("train", 11).examples.slots["texts"]
    texts = [text for row in TRAIN for text in row[1:]]
    for i, text in enumerate(texts):
        assert [j for j, n in enumerate(numbers) if n == numbers[i]] == [
            j for j, other in enumerate(texts) if other == text
        ]


def test_scores_are_mapped_onto_the_unit_interval(pairs: Pairs) -> None:
    batches = pairs.open("dev", 3)
    found = places(batches.batch(0))
    assert [found[i]["scores"] for i in range(6)] == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert batches.examples.source == [list(row[:2]) for row in DEV]
    assert pairs.quote("dev", 3) == "number words | many texts"
    assert pairs.text_of("train", 4)["positive"] == TRAIN[1][2]


def test_rows_that_do_not_match_are_no_bad_rows(pairs: Pairs, tmp_path: Path) -> None:
    other = ("neutral", "", "no", "n")
    write(tmp_path / "train.tsv", "label\tanchor\tpositive\tnegative", [other, *TRAIN[:3]])
    found = dataclasses.replace(pairs, where=("label", "entailment")).open("train", 3)
    assert found.rows == 3
    with pytest.raises(DataError, match=r"train.tsv:1: no row has 'never' as its 'label'"):
        dataclasses.replace(pairs, where=("label", "never")).open("train", 3)


def test_plain_texts_are_units_of_one(pairs: Pairs, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", "", [("one text",), ("two words",)])
    plain = dataclasses.replace(pairs, train=source, anchor="text", positive=None, negatives=())
    batches = plain.open("train", 2)
    assert batches.examples.units is None
    assert set(batches.examples.slots) == {"texts", "weights"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("a text", "words", "6"), r"dev.tsv:5: 'score' 6 is outside \[0, 5\]"),
        (("a text", "words", "-0.5"), r"dev.tsv:5: 'score' -0.5 is outside"),
        (("a text", "words", "nan"), r"dev.tsv:5: 'score' 'nan' is not a number"),
        (("a text", "words", ""), r"dev.tsv:5: 'score' '' is not a number"),
        (("a text", " ", "1"), r"dev.tsv:5: 'sentence2' is empty"),
        (("", "words", "1"), r"dev.tsv:5: 'sentence1' is empty"),
        (("a text", "1"), r"dev.tsv:5: 2 columns, expected 3"),
    ],
)
def test_a_bad_row_is_named_or_counted(
    pairs: Pairs, tmp_path: Path, row: tuple[str, ...], reason: str
) -> None:
    write(tmp_path / "dev.tsv", "sentence1\tsentence2\tscore", [*DEV, row])
    with pytest.raises(DataError, match=reason):
        pairs.open("dev", 2)
    lenient = dataclasses.replace(pairs, max_bad_rows=1).open("dev", 2)
    assert (lenient.rows, lenient.examples.dropped) == (3, 1)


def test_a_text_without_tokens_takes_its_row_along(pairs: Pairs, tmp_path: Path) -> None:
    rows = [DEV[0], ("\u200b", "words", "4"), *DEV[1:]]
    write(tmp_path / "dev.tsv", "sentence1\tsentence2\tscore", rows)
    with pytest.raises(DataError, match=r"dev.tsv:3: the text has no tokens"):
        pairs.open("dev", 2)
    batches = dataclasses.replace(pairs, max_bad_rows=1).open("dev", 4)
    found = places(batches.batch(0))
    assert [found[i]["scores"] for i in range(6)] == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert batches.examples.dropped == 1
    lenient = dataclasses.replace(pairs, max_bad_rows=1)
    assert [lenient.quote("dev", i) for i in (1, 2)] == [" | ".join(DEV[i][:2]) for i in (0, 1)]


def test_unscored_rows_are_left_out_where_that_is_said(pairs: Pairs, tmp_path: Path) -> None:
    write(tmp_path / "dev.tsv", "sentence1\tsentence2\tscore", [("no", "score", ""), *DEV])
    batches = dataclasses.replace(pairs, unscored="leave-out").open("dev", 4)
    assert (batches.rows, batches.examples.dropped) == (3, 0)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"negatives": ("worst",)}, DataError, r"train.tsv:1: no column 'worst' among"),
        ({"positive": None}, ConfigError, "data.positive None"),
        ({"where": ("label",)}, ConfigError, "expected a column and a value"),
        ({"score_range": (5.0, 0.0)}, ConfigError, "expected lowest, highest"),
        ({"scored": ("dve",)}, ConfigError, "'dve' is none of train, dev, test"),
        ({"limit": 0}, ConfigError, "data.limit is 0"),
        ({"tokenizer": None}, ConfigError, "data.tokenizer is not set"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    pairs: Pairs, changes: dict[str, object], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        dataclasses.replace(pairs, **changes).open("train", 2)


def test_new_rows_are_texts_or_pairs_in_their_order(pairs: Pairs) -> None:
    rows = ["a text", {"sentence1": "words", "sentence2": "text"}, {"anchor": "many"}]
    batches = pairs.encode_rows(rows, 2)
    assert batches.examples.encoded.row_of.tolist() == [0, 1, 1, 2]
    assert batches.examples.source == [["a text"], ["words", "text"], ["many"]]
    for bad, reason in (
        ({"text": "words"}, "in:7: no column 'anchor'"),
        ({"sentence1": "words", "sentence2": 3}, "in:7: 'sentence2' is not a text"),
        ({"sentence1": "words", "sentence2": " "}, "in:7: 'sentence2' is empty"),
        ("\u200b", "in:7: the text has no tokens"),
    ):
        with pytest.raises(DataError, match=reason):
            pairs.encode_rows(["fine", bad], where=("in", 6))


@real
def test_the_sts_files_hold_as_many_scored_pairs_as_their_source_says(pairs: Pairs) -> None:
    """Counts of shared/data/PROVENANCE.md, and those of the STS tasks themselves."""
    bare = dataclasses.replace(
        pairs, scored_columns=("score", "sentence1", "sentence2"), unscored="leave-out"
    )
    folder = DATA / "data" / "sts"
    for name, count in (
        ("2012/MSRpar.test.tsv.xz", 750),
        ("2013/FNWN.test.tsv", 189),
        ("2015/belief.test.tsv.xz", 375),
        ("2016/question-question.test.tsv.xz", 209),
    ):
        assert dataclasses.replace(bare, dev=str(folder / name)).open("dev", 64).rows == count
    glue = DATA / "data" / "glue" / "STS-B" / "dev.tsv.xz"
    assert dataclasses.replace(pairs, dev=str(glue)).open("dev", 64).rows == 1500
