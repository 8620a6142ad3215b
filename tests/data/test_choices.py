"""Questions with choices: units that stay together, answers, bad rows, the real ARC."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from research.data.choices import Choices
from research.data.tokenize import load_tokenizer
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError, DataError

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")

ROWS = [
    ("Which is hot?", "ice", "fire, and lava", "snow", "", "B"),
    ("What is 2 + 2?", "4", "3", "", "", "A"),
    ("Which is red?", "grass", "sky", "milk", "blood", "D"),
    ("What barks?", "a cat", "a dog", "a cow", "a fish", "B"),
]


def write(path: Path, rows: list[tuple[str, ...]]) -> str:
    """A csv without a header, all quoted."""
    path.write_text("".join(",".join(f'"{field}"' for field in row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def choices(tmp_path: Path) -> Choices:
    words = [field for row in ROWS for field in row if field]
    tokenizer = train_wordpiece(words, 80, tmp_path / "tokenizer.json")
    return Choices(
        train=write(tmp_path / "train.csv", ROWS),
        columns=("question", "A", "B", "C", "D", "answer"),
        tokenizer=str(tokenizer),
        cache=str(tmp_path / "cache"),
    )


def test_a_question_is_a_unit_of_pairs(choices: Choices) -> None:
    batches = choices.open("train", 2)
    assert (batches.rows, batches.steps) == (4, 2)
    words = load_tokenizer(choices.tokenizer or "")
    seen: dict[int, dict[str, int]] = {}
    for step in range(2):
        batch = batches.batch(step)
        assert set(batch["questions"][batch["ids"] >= 0]) == {2 * step, 2 * step + 1}
        for b, m in np.argwhere(batch["ids"] >= 0):
            cells = batch["segments"][b] == m + 1
            texts = [
                words.decode(batch["tokens"][b][cells & (batch["types"][b] == kind)].tolist())
                for kind in (0, 1)
            ]
            question = int(batch["questions"][b, m])
            assert texts[0] == words.decode(words.encode(ROWS[question][0]).ids)
            seen.setdefault(question, {})[texts[1]] = int(batch["labels"][b, m])
    for question, (_, *offered, answer) in enumerate(ROWS):
        texts = {words.decode(words.encode(text).ids): text for text in offered if text}
        right = [texts[told] for told, label in seen[question].items() if label]
        assert seen[question].keys() == texts.keys()
        assert right == [offered["ABCD".index(answer)]]


def test_the_order_is_one_of_questions(choices: Choices) -> None:
    batches = choices.open("train", 3, steps=8, seed=1)
    for step in range(8):
        batch = batches.batch(step)
        taken = batch["ids"] >= 0
        numbers, counts = np.unique(batch["questions"][taken], return_counts=True)
        offered = {q: sum(bool(field) for field in row[1:5]) for q, row in enumerate(ROWS)}
        assert all(count % offered[int(q)] == 0 for q, count in zip(numbers, counts))
        assert batch["labels"][taken].sum() == 3


def test_the_text_of_an_example_is_its_question(choices: Choices) -> None:
    told = choices.quote("train", 3)
    assert told == "What is 2 + 2? | A: 4 | B: 3"
    assert choices.text_of("train", 0)["answer"] == "B"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("", "a", "b", "", "", "A"), "'question' is empty"),
        (("q", "a", "", "", "", "A"), "has 1 choices, expected two or more"),
        (("q", "a", "b", "", "", "C"), "the answer 'C' is not among its choices A, B"),
        (("q", "a", "b", "", "", "1"), "the answer '1' is not among its choices A, B"),
        (("q", "a", "\u200b", "", "", "A"), "the text has no tokens"),
    ],
)
def test_bad_rows_name_their_line(
    choices: Choices, tmp_path: Path, row: tuple, reason: str
) -> None:
    write(tmp_path / "train.csv", [*ROWS[:2], row, *ROWS[2:]])
    with pytest.raises(DataError, match=f"train.csv:3: {reason}"):
        choices.open("train", 2)
    allowed = dataclasses.replace(choices, max_bad_rows=1)
    assert allowed.open("train", 2).rows == 4
    assert allowed.open("train", 2).stats()["dropped"] == 1
    assert allowed.text_of("train", 5)["question"] == ROWS[2][0]


def test_new_questions_are_encoded_in_their_order(choices: Choices) -> None:
    rows = [dict(zip(("question", "A", "B", "C", "D"), row)) for row in ROWS]
    batches = choices.encode_rows(rows, 2, where=("in.jsonl", 1))
    known = choices.open("train", 2)
    for step in range(2):
        new, old = batches.batch(step), known.batch(step)
        assert not new["weights"].any() and not new["labels"].any()
        for name in ("tokens", "questions", "ids"):
            np.testing.assert_array_equal(new[name], old[name])
    with pytest.raises(DataError, match=r"in.jsonl:2: has 0 choices"):
        choices.encode_rows([rows[0], {"question": "q"}], where=("in.jsonl", 1))
    with pytest.raises(DataError, match=r"in.jsonl:1: expected a JSON object with question, A"):
        choices.encode_rows(["a text"], where=("in.jsonl", 1))
    with pytest.raises(DataError, match=r"in.jsonl:1: 'A' is not a text"):
        choices.encode_rows([{"question": "q", "A": 1, "B": "b"}], where=("in.jsonl", 1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"limit": 0}, "data.limit is 0"),
        ({"choices": ("A",)}, "data.choices must name two"),
        ({"choices": ("A", "A")}, "data.choices must name two"),
        ({"tokenizer": None}, "data.tokenizer is not set"),
        ({"train": ""}, "data.train is not set"),
    ],
)
def test_settings_that_do_not_fit(choices: Choices, changes: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(choices, **changes).open("train", 2)


@real
def test_arc_challenge(tmp_path: Path) -> None:
    arc = Choices(
        train=f"{DATA}/data/qa/arc_challenge/arc_challenge_dev.csv.xz",
        dev=f"{DATA}/data/qa/arc_challenge/arc_challenge_test.csv",
        columns=("question", "A", "B", "C", "D", "answer"),
        tokenizer=str(DATA / "ckpt/tokenizers/bert-base-uncased"),
        max_bad_rows=23,
        cache=str(tmp_path),
    )
    train, dev = arc.open("train", 16), arc.open("dev", 16)
    assert (train.rows, train.stats()["dropped"]) == (1096, 23)
    assert (dev.rows, dev.stats()["dropped"]) == (294, 5)
    assert int(dev.examples.slots["labels"].sum()) == 294
