"""Pairs of segments: labels right by brute force, halves of each, nothing else than the text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from research.data.byte_counts import byte_counts
from research.data.segments import Segments
from research.data.texts import Texts
from research.data.tokenize import encode, load_tokenizer, train_wordpiece
from research.errors import ConfigError, DataError

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def sentence(document: int, number: int) -> str:
    """Names its document and its place."""
    return f"{NUMBERS[document % 10]} of {NUMBERS[document // 10]} is {NUMBERS[number]}."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Segments:
    """100 documents of 2 to 9 sentences, and a sentence alone."""
    folder = tmp_path_factory.mktemp("segments")
    documents = [" ".join(sentence(d, n) for n in range(2 + d % 8)) for d in range(100)]
    (folder / "train.txt").write_text("\n".join([*documents, "nobody knows"]) + "\n")
    train_wordpiece([*documents, "nobody knows"], 90, folder / "tokenizer.json")
    return Segments(
        train=str(folder / "train.txt"),
        tokenizer=str(folder / "tokenizer.json"),
        max_length=32,
        copies=4,
        cache=str(folder / "cache"),
    )


def halves(data: Segments) -> list[tuple[list[tuple[int, int]], list[tuple[int, int]], int]]:
    """Each example as the (document, place) of its sentences, twice, and its label."""
    examples = data.examples("train")
    tokenizer = load_tokenizer(str(data.tokenizer))
    found = []
    for i, label in enumerate(examples.slots["labels"].tolist()):
        here = slice(examples.encoded.offsets[i], examples.encoded.offsets[i + 1])
        tokens, types = examples.encoded.tokens[here], examples.encoded.types[here]
        sides = []
        for side in (0, 1):
            words = tokenizer.decode(tokens[types == side].tolist()).replace(".", " . ").split()
            sentences = " ".join(words).split(" .")
            parts = [text.split() for text in sentences if len(text.split()) == 5]
            sides.append(
                [
                    (NUMBERS.index(p[0]) + 10 * NUMBERS.index(p[2]), NUMBERS.index(p[4]))
                    for p in parts
                ]
            )
        found.append((sides[0], sides[1], label))
    return found


@pytest.mark.parametrize("objective", ["next", "order"])
def test_labels_are_right_by_brute_force(data: Segments, objective: str) -> None:
    data = dataclasses.replace(data, objective=objective)
    pairs = halves(data)
    assert len(pairs) >= 400
    for one, two, label in pairs:
        ends, begins = one[-1], two[0]
        follows = ends[0] == begins[0] and ends[1] + 1 == begins[1]
        if objective == "order":
            before, after = (two, one) if label else (one, two)
            assert before[-1][0] == after[0][0] and before[-1][1] + 1 == after[0][1]
        else:
            assert follows == (label == 0)
            assert label == 0 or ends[0] != begins[0]
    labels = np.array([label for _, _, label in pairs])
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / len(labels) ** 0.5


def test_pairs_are_a_function_of_seed_and_step(data: Segments) -> None:
    one, two = (data.open("train", 16, steps=8, seed=3).batch(5) for _ in range(2))
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    other = dataclasses.replace(data, pair_seed=1).examples("train")
    assert not np.array_equal(other.encoded.tokens, data.examples("train").encoded.tokens)
    assert data.examples("train").encoded.lengths.max() <= 32


def test_documents_that_give_no_pair_are_refused(data: Segments, tmp_path: Path) -> None:
    alone = tmp_path / "alone.txt"
    alone.write_text("nobody knows\n")
    with pytest.raises(DataError, match="no document has two sentences"):
        dataclasses.replace(data, train=str(alone)).examples("train")
    alone.write_text("one is two. two is three.\n")
    with pytest.raises(DataError, match="another document is needed"):
        dataclasses.replace(data, train=str(alone)).examples("train")
    with pytest.raises(DataError, match=r"rows:1: .* no second"):
        data.new_examples([{"first": "one"}], ("rows", 1))


def test_bytes_of_windows_are_those_of_their_text(data: Segments) -> None:
    tokenizer = load_tokenizer(str(data.tokenizer))
    texts = ["one is two. größer is three. four of five is six.", "seven", "é one two three"]
    split = encode(texts, None, tokenizer, max_length=6, long="split")
    counts = byte_counts(texts, split, tokenizer)
    for row, text in enumerate(texts):
        assert counts[split.row_of == row].sum() == len(text.encode())
    assert (counts > 0).all() and len(counts) > 4
    cut = byte_counts(texts, encode(texts, None, tokenizer, max_length=6), tokenizer)
    assert cut[0] < len(texts[0].encode()) and cut[1] == 5
    with pytest.raises(ConfigError, match=r"data\.bytes is for single texts"):
        Texts(pair="b", bytes=True).check()
