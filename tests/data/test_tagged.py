"""Tagged sentences: what a batch says of them, every fault with its place, and real corpora."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tagged_files import write_tagged

from research.config import load
from research.data import tags
from research.data.lexicon import spell, word_tokenizer
from research.data.tagged import Tagged
from research.data.vectors import fill_table, open_vectors
from research.data.vocabulary import tokenizer_of
from research.errors import ConfigError, DataError

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
VOCABULARY = DATA / "ckpt" / "tokenizers" / "bert-base-cased" / "vocab.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("tagged"))


def tagged(folder: Path, **changes: Any) -> Tagged:
    given = {
        "train": str(folder / "train.conll"),
        "dev": str(folder / "dev.conll"),
        "tokenizer": str(folder / "tokenizer.json"),
        "max_length": 12,
        "cache": str(folder / "cache"),
    }
    return Tagged(**(given | changes))


def read_back(data: Tagged, split: str) -> list[list[str]]:
    """The tags of every sentence as the batches of a pass hold them."""
    batches = data.open(split, 5)
    names, row_of = data.tag_names(), batches.examples.encoded.row_of
    found: dict[int, list[str]] = {}
    pieces = {}
    for step in range(batches.steps):
        batch = batches.batch(step)
        for b, m in np.argwhere(batch["ids"] >= 0):
            start, length = batch["starts"][b, m], batch["lengths"][b, m]
            cells = batch["tags"][b, start : start + length]
            pieces[int(batch["ids"][b, m])] = [names[tag] for tag in cells[cells >= 0]]
    for example in sorted(pieces):
        found.setdefault(int(row_of[example]), []).extend(pieces[example])
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize("target", ["BIO", "IOBES"])
@pytest.mark.parametrize("source", ["conll", "jsonl", "seq"])
def test_every_tag_of_every_word_is_in_a_batch_once(folder: Path, target: Any, source: str) -> None:
    lines = (folder / "dev.jsonl").read_text().splitlines()
    wanted = [tags.convert(json.loads(line)["tags"], target) for line in lines]
    changes: dict[str, Any] = {
        "train": str(folder / f"train.{source}"),
        "dev": str(folder / f"dev.{source}"),
    }
    if source == "seq":
        changes = {
            "train": f"txt:{folder}/train/seq.in",
            "dev": f"txt:{folder}/dev/seq.in",
            "columns": ("tokens",),
            "beside": ("tags=seq.out", "intent=label"),
            "intent": "intent",
        }
    data = tagged(folder, target=target, **changes)
    assert read_back(data, "dev") == wanted
    assert data.facts()["labels"] == tags.names(("LOC", "PER"), target)
    if source == "seq":
        assert data.facts()["intents"] == ("person", "place")
        slots = data.open("dev", 5).examples.slots
        first = np.flatnonzero(slots["opens"])
        intents = [json.loads(line)["intent"] for line in lines]
        assert [("person", "place")[i] for i in slots["intents"][first]] == intents


def test_a_batch_counts_sentences_and_marks_their_edges(folder: Path) -> None:
    batches = tagged(folder).open("dev", 4)
    examples = batches.examples
    assert batches.rows == 16
    assert len(examples.encoded.row_of) > 16
    assert examples.slots["opens"].sum() == examples.slots["closes"].sum() == 16
    for row in range(16):
        (windows,) = np.nonzero(examples.encoded.row_of == row)
        assert examples.slots["opens"][windows].tolist() == [1] + [0] * (len(windows) - 1)
        assert examples.slots["closes"][windows].tolist() == [0] * (len(windows) - 1) + [1]


def write(path: Path, rows: str) -> str:
    path.write_text(rows)
    return str(path)


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("a O\nb I-PER\n", {}, r"dev.conll:2: word 2 \('b'\): tag 'I-PER' after 'O' breaks BIO"),
    ("a O\n\nx O\nb B-ORG\n", {}, r"dev.conll:4: word 2 \('b'\): tag 'B-ORG' is of none of"),
    ("a X\n", {}, r"dev.conll:1: word 1 \('a'\): tag 'X' is none of BIO"),
    ("a B-PER\nb O\n", {"scheme": "IOBES", "types": ("PER",)}, r"dev.conll:2: .*breaks IOBES"),
]


@pytest.mark.parametrize(("text", "changes", "reason"), FAULTS)
def test_a_bad_tag_is_told_with_file_line_and_word(
    folder: Path, tmp_path: Path, text: str, changes: dict[str, Any], reason: str
) -> None:
    dev = write(tmp_path / "dev.conll", text)
    with pytest.raises(DataError, match=reason) as caught:
        tagged(folder, dev=dev, **changes).open("dev", 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": [], "tags": []}, "the sentence has no tokens"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens, but 1 tags"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "token 2 is empty"),
        ({"tokens": ["a\nb"], "tags": ["O"]}, "token 1 holds a line break"),
        ({"tokens": ["a"], "tags": ["O"], "intent": "joke"}, "label 'joke' is not among"),
    ],
)
def test_a_bad_row_is_told_or_left_out(
    folder: Path, tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    good = '{"tokens": ["Bo"], "tags": ["B-PER"], "intent": "person"}\n'
    dev = write(tmp_path / "dev.jsonl", f"{good}{json.dumps({'intent': 'person'} | row)}\n{good}")
    changes = {"train": str(folder / "train.jsonl"), "dev": dev, "intent": "intent"}
    with pytest.raises(DataError, match=rf"dev\.jsonl:2: {reason}"):
        tagged(folder, **changes).open("dev", 4)
    batches = tagged(folder, max_bad_rows=1, **changes).open("dev", 4)
    assert (batches.rows, batches.stats()["dropped"]) == (2, 1)


def test_files_beside_must_have_the_same_lines(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "seq.in").write_text("a b\nc\n")
    given = {
        "train": f"txt:{tmp_path}/seq.in",
        "columns": ("tokens",),
        "beside": ("tags=seq.out",),
    }
    with pytest.raises(DataError, match=r"seq\.out: no such file, which data\.beside names"):
        tagged(folder, **given).open("train", 4)
    (tmp_path / "seq.out").write_text("O O\n")
    with pytest.raises(DataError, match=r"seq\.in:2: .*seq\.out has no such line"):
        tagged(folder, **given).open("train", 4)
    (tmp_path / "seq.out").write_text("O O\nO\nO\n")
    with pytest.raises(DataError, match=r"seq\.out:3: .*seq\.in has no such line"):
        tagged(folder, **given).open("train", 4)
    with pytest.raises(ConfigError, match="is not column=file"):
        tagged(folder, **(given | {"beside": ("seq.out",)})).open("train", 4)


def test_new_rows_need_no_files_but_the_tokenizer(folder: Path) -> None:
    data = tagged(folder, train="gone.conll", dev="gone.conll", intent="intent")
    batch = data.encode_rows(["Bo met Ada Quill.", {"tokens": ["Bo"]}]).batch(0)
    assert (batch["tags"] == 0).sum() == 6
    assert not batch["weights"].any()
    assert not batch["intents"].any()


def test_new_rows_without_words_are_refused_with_their_line(folder: Path) -> None:
    data = tagged(folder)
    for row, reason in (
        ({"tokens": []}, "the sentence has no tokens"),
        ({"tokens": "a b"}, "'tokens' is not a list"),
        ({"tokens": ["a", 3]}, "token 2 is not a text"),
        ({"words": ["a"]}, "expected a text"),
        ("   ", "the sentence has no tokens"),
    ):
        with pytest.raises(DataError, match=f"in.txt:8: {reason}"):
            data.encode_rows(["Bo", row], where=("in.txt", 7))


def test_values_that_make_no_sense_are_refused(folder: Path) -> None:
    for changes, reason in (
        ({"limit": 0}, "data.limit is 0"),
        ({"characters": -1}, "data.characters is -1"),
        ({"tokenizer": None}, "data.tokenizer is not set"),
        ({"tokenizer": "words:many"}, "write words:SIZE"),
        ({"max_length": 3}, "data.max_length is 3"),
    ):
        with pytest.raises(ConfigError, match=reason):
            tagged(folder, **changes).open("train", 4)
    with pytest.raises(ConfigError, match=r"data\.test is not set"):
        tagged(folder).open("test", 4)


def test_a_vocabulary_of_words_is_that_of_train_and_of_known_ones() -> None:
    train = [["The", "the", "cat", "Sat", "[UNK]"], ["cat", "New York", "New York"]]
    made = word_tokenizer(train, [["dog", "bird"]], {"dog", "sat"}, 100)
    assert list(made.get_vocab()) and made.get_vocab() == {
        "[PAD]": 0,
        "[UNK]": 1,
        "cat": 2,
        "new york": 3,
        "the": 4,
        "sat": 5,
        "dog": 6,
    }
    found = made.encode(["NEW YORK", "bird", "Dog"], is_pretokenized=True)
    assert found.ids == [3, 1, 6]
    assert len(word_tokenizer(train, [], set(), 3).get_vocab()) == 3


def test_words_are_spelled_by_their_bytes() -> None:
    table = spell([["ab", "abcdef"], ["é"]], 4)
    assert table.tolist() == [[98, 99, 0, 0], [98, 99, 102, 103], [0xC3 + 1, 0xA9 + 1, 0, 0]]
    assert spell([["abcdef"]], 3).tolist() == [[98, 99, 103]]


def test_vectors_fill_the_rows_of_their_words(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(gzip.compress(b"3 2\nada 1 2\nbo 3 4.5\nada 9 9\nnowhere 5 6\n"))
    assert open_vectors(str(path))[0] == {"ada": 0, "bo": 1, "nowhere": 2}
    filled, count = fill_table(np.zeros((4, 2), np.float32), {"bo": 3, "ada": 1, "x": 0}, str(path))
    assert count == 2
    assert filled.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4.5]]
    with pytest.raises(ConfigError, match="vectors of 2 numbers, but the trunk's words have 3"):
        fill_table(np.zeros((4, 3), np.float32), {}, str(path))
    data = tagged(folder, tokenizer="words:60", vectors=str(path), characters=4)
    known = tokenizer_of(data.needed_tokenizer())[0].get_vocab()
    assert "nowhere" not in known
    assert data.open("dev", 4).batch(0)["characters"].shape[-1] == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a 1 2\nb 1\n", r"v\.txt:2: 1 numbers after 'b', expected 2"),
        ("a 1 2\nb x y\n", r"v\.txt:2: expected a word and numbers"),
        ("a 1 nan\n", r"v\.txt:1: a number is not finite"),
        ("", r"v\.txt:1: holds no vectors"),
    ],
)
def test_damaged_vectors_are_told_with_their_line(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "v.txt", text)
    with pytest.raises(DataError, match=reason):
        open_vectors(path)
    with pytest.raises(ConfigError, match="no such file"):
        open_vectors(str(tmp_path / "missing.txt"))


CORPORA = [
    ("ner/conll2003/eng.train.xz", "IOB1", 14041, 203621, {"LOC": 7140, "PER": 6600}),
    ("ner/conll2003/eng.testa.xz", "IOB1", 3250, 51362, {"LOC": 1837, "ORG": 1341}),
    ("ner/wnut17/wnut17train.conll.xz", "BIO", 3394, 62730, {"person": 660, "group": 264}),
    ("ner/wnut17/emerging.dev.conll", "IOB1", 1009, 15733, {"person": 470, "product": 114}),
    ("ner/masakhaner1/amh/train.txt.xz", "BIO", 1750, 25819, {"LOC": 1050, "ORG": 277}),
    ("ner/ncbi_disease/train.txt.xz", "BIO", 5424, 135701, {"Disease": 5134}),
]


@pytest.mark.parametrize(("name", "scheme", "rows", "words", "entities"), CORPORA)
def test_real_corpora_hold_what_their_papers_say(
    tmp_path: Path, name: str, scheme: Any, rows: int, words: int, entities: dict[str, int]
) -> None:
    path = DATA / "data" / name
    if not path.is_file() or not VOCABULARY.is_file():
        pytest.skip(f"no {name} under {DATA}")
    data = Tagged(
        train=f"conll:{path}",
        scheme=scheme,
        tokenizer=str(VOCABULARY),
        max_length=64,
        cache=str(tmp_path),
    )
    examples = data.open("train", 32).examples
    source = examples.source
    assert (len(source.words), sum(map(len, source.words))) == (rows, words)
    found = [kind for row in source.tags for kind, _, _ in tags.entities(row)]
    assert {kind: found.count(kind) for kind in entities} == entities
    assert int((examples.cells["tags"] >= 0).sum()) == words
    assert examples.encoded.lengths.max() <= 64


def test_atis_opens_as_its_config_says(tmp_path: Path) -> None:
    """Every split, with the labels that train has not and the config names."""
    home = DATA / "data" / "intent" / "atis"
    if not home.is_dir() or not VOCABULARY.is_file():
        pytest.skip(f"no {home}")
    given = load(Path(__file__).parents[2] / "configs" / "atis.py")().data
    sources = {split: f"txt:{home}/{split}/seq.in" for split in ("dev", "test")}
    sources |= {"train": f"txt:{home}/train/seq.in.xz"}
    data = dataclasses.replace(given, tokenizer=str(VOCABULARY), cache=str(tmp_path), **sources)
    assert [data.open(split, 64).rows for split in ("train", "dev", "test")] == [4478, 500, 893]
    assert len(data.intent_names()) == 21 + 5
    assert len(data.tag_names()) == 1 + 2 * (79 + 4)
    strict = dataclasses.replace(data, more_intents=())
    with pytest.raises(DataError, match=r"dev/seq\.in:\d+: label 'atis_airfare#atis_flight_time'"):
        strict.open("dev", 64)


def test_real_vectors(tmp_path: Path) -> None:
    path = DATA / "ckpt" / "embeddings" / "glove.6B.100d.sample.txt.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows, vectors = open_vectors(str(path))
    assert vectors.shape == (len(rows), 100)
