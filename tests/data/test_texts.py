"""Texts: splits, labels, shots and bad rows, from files to batches."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from research.data.texts import Texts
from research.data.tokenize import load_tokenizer
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError, DataError

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
VOCABULARY = DATA / "ckpt/tokenizers/bert-base-uncased"
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")

LABELS = ("10", "9", "2")
TRAIN = [(f"text number {i} of {'many ' * (i % 5)}words", LABELS[i % 3]) for i in range(30)]
DEV = [("a text", "2"), ("another text of words", "10"), ("number words", "9")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return str(train_wordpiece([text for text, _ in TRAIN + DEV], 80, path))


def write(path, rows):
    """A tsv of rows of values under text, label (or text, pair, label)."""
    header = ["text", "label"] if len(rows[0]) == 2 else ["text", "pair", "label"]
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def texts(tmp_path, tokenizer):
    return Texts(
        train=write(tmp_path / "train.tsv", TRAIN),
        dev=write(tmp_path / "dev.tsv", DEV),
        tokenizer=tokenizer,
        cache=str(tmp_path / "cache"),
    )


def labels_of(batches):
    """{example: label} over a pass."""
    found = {}
    for step in range(batches.steps):
        batch = batches.batch(step)
        taken = batch["ids"] >= 0
        found |= dict(zip(batch["ids"][taken].tolist(), batch["labels"][taken].tolist()))
        assert batch["weights"].sum() == taken.sum()
    return found


def test_labels_are_those_of_train_numbers_by_value(texts):
    assert texts.facts()["labels"] == ("2", "9", "10")
    names = texts.facts()["labels"]
    for split, rows in (("train", TRAIN), ("dev", DEV)):
        found = labels_of(texts.open(split, 4))
        assert [names[found[i]] for i in range(len(rows))] == [label for _, label in rows]
    given = dataclasses.replace(texts, labels=("9", "10", "2"))
    found = labels_of(given.open("dev", 4))
    assert [given.labels[found[i]] for i in range(3)] == ["2", "10", "9"]


def test_labels_that_are_no_numbers_are_sorted_as_texts(texts, tmp_path):
    write(tmp_path / "train.tsv", [("a", "10"), ("b", "9"), ("c", "nan")])
    assert texts.facts()["labels"] == ("10", "9", "nan")


def test_facts_are_those_of_the_tokenizer(texts):
    facts = texts.facts()
    assert (facts["pad_id"], facts["cls_id"], facts["sep_id"], facts["mask_id"]) == (0, 2, 3, 4)
    assert facts["special_ids"] == (0, 1, 2, 3, 4)
    assert isinstance(facts["vocab_size"], int)
    assert max(facts["continue_ids"]) < facts["vocab_size"] <= 80


def test_the_row_of_an_example(texts):
    for i in range(len(TRAIN)):
        assert texts.text_of("train", i) == dict(zip(("text", "label"), TRAIN[i]))


def test_a_label_only_dev_has_is_named(texts, tmp_path):
    write(tmp_path / "dev.tsv", [*DEV, ("a text", "3")])
    with pytest.raises(DataError, match=r"dev.tsv:5: label '3' is not among 2, 9, 10"):
        texts.open("dev", 4)
    allowed = dataclasses.replace(texts, max_bad_rows=1).open("dev", 4)
    assert allowed.rows == 3
    assert allowed.stats()["dropped"] == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((" ", "2"), "'text' is empty"),
        (("\u200b", "2"), "the text has no tokens"),
        (("short",), "1 columns, expected 2"),
        (("a text", ""), "label '' is not among"),
    ],
)
def test_bad_rows_of_every_stage_share_one_allowance(texts, tmp_path, row, reason):
    write(tmp_path / "train.tsv", [TRAIN[0], row, *TRAIN[1:], row])
    for allowed in (0, 1):
        with pytest.raises(DataError, match=r"train.tsv:\d+: ") as caught:
            dataclasses.replace(texts, max_bad_rows=allowed).open("train", 4)
        assert reason in str(caught.value)
        assert f":{(3, 33)[allowed]}: " in str(caught.value)
    batches = dataclasses.replace(texts, max_bad_rows=2).open("train", 4)
    assert batches.stats()["dropped"] == 2
    assert batches.rows == 30
    mixed = [TRAIN[0], row, *TRAIN[1:], ("a text", "unknown"), ("\u200b", "2"), ("", "2")]
    write(tmp_path / "train.tsv", mixed)
    few = dataclasses.replace(texts, labels=LABELS, max_bad_rows=3)
    with pytest.raises(DataError, match=r"\(bad row 4\)"):
        few.open("train", 4)
    again = dataclasses.replace(few, max_bad_rows=4)
    for _ in range(2):
        assert again.open("train", 4).stats()["dropped"] == 4


def test_pairs_are_encoded_together_with_types(texts, tmp_path):
    write(tmp_path / "train.tsv", [("a text", "of words", "1"), ("number", "many words", "0")])
    batches = dataclasses.replace(texts, pair="pair").open("train", 2)
    batch, words = batches.batch(0), load_tokenizer(texts.tokenizer)
    for example, (first, second) in enumerate([("a text", "of words"), ("number", "many words")]):
        (b,), (m,) = np.nonzero(batch["ids"] == example)
        cells = batch["segments"][b] == m + 1
        for kind, text in enumerate((first, second)):
            ids = batch["tokens"][b][cells & (batch["types"][b] == kind)]
            assert words.decode(ids.tolist()) == text
    with pytest.raises(DataError, match="no column 'second' among text, pair, label"):
        dataclasses.replace(texts, pair="second").open("train", 2)


def test_regression_labels_are_floats(texts, tmp_path):
    write(tmp_path / "train.tsv", [("a", "5.000"), ("text", "-0.25"), ("of", "1e-1")])
    scores = dataclasses.replace(texts, regression=True)
    assert scores.facts()["labels"] == ()
    batch = scores.open("train", 3).batch(0)
    assert batch["labels"].dtype == np.float32
    found = dict(zip(batch["ids"].ravel().tolist(), batch["labels"].ravel().tolist()))
    assert [found[i] for i in range(3)] == [np.float32(x) for x in (5.0, -0.25, 0.1)]
    for bad in ("high", "nan", "inf", "1_0", ""):
        write(tmp_path / "train.tsv", [("a", "5.0"), ("text", bad)])
        with pytest.raises(DataError, match=f"train.tsv:3: label '{bad}' is not a number"):
            scores.open("train", 3)


def test_without_a_label_every_example_weighs_one(texts, tmp_path):
    (tmp_path / "train.txt").write_text("a text\nof words\n")
    plain = dataclasses.replace(texts, train=str(tmp_path / "train.txt"), label=None)
    assert plain.facts()["labels"] == ()
    assert set(labels_of(plain.open("train", 4)).values()) == {0}


def test_split_texts_lose_nothing(texts, tmp_path):
    (tmp_path / "train.txt").write_text("".join("words " * n + "\n" for n in (3, 50, 11)))
    plain = dataclasses.replace(
        texts, train=str(tmp_path / "train.txt"), label=None, max_length=8, long="split", words=True
    )
    batches = plain.open("train", 4)
    bodies = sum((batches.batch(step)["words"] >= 0).sum() for step in range(batches.steps))
    assert bodies == 64
    assert batches.rows == 1 + 9 + 2
    owners = [plain.text_of("train", i)["text"].count("words") for i in range(batches.rows)]
    assert owners == [3] + [50] * 9 + [11] * 2
    short = dataclasses.replace(plain, long="truncate").open("train", 4)
    assert (short.stats()["truncated"], short.stats()["tokens_truncated"]) == (2, 44 + 5)


def test_limit_takes_the_first_rows_of_train_alone(texts):
    limited = dataclasses.replace(texts, limit=2)
    assert limited.open("train", 4).rows == 2
    assert limited.open("dev", 4).rows == 3
    assert limited.facts()["labels"] == ("2", "9", "10")
    assert limited.text_of("train", 1)["text"] == TRAIN[1][0]


def test_shots_draw_as_many_of_each_label(texts):
    def drawn(seed, shots=4):
        data = dataclasses.replace(texts, shots=shots, shot_seed=seed)
        rows = [data.text_of("train", i) for i in range(data.open("train", 4).rows)]
        assert [sum(row["label"] == label for row in rows) for label in LABELS] == [shots] * 3
        return [row["text"] for row in rows]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert sorted(drawn(0, 10)) == sorted(text for text, _ in TRAIN)
    with pytest.raises(DataError, match="shots is 11, but label '2' has only 10 rows"):
        drawn(0, 11)


def test_new_rows_are_encoded_in_their_order(texts):
    rows = [{"text": text} for text, _ in DEV]
    batches = texts.encode_rows(rows, 2, multiple=2)
    assert batches.rows == 3
    whole = texts.open("dev", 2, multiple=2)
    for step in range(2):
        new, known = batches.batch(step), whole.batch(step)
        assert not new["weights"].any() and not new["labels"].any()
        for name in ("tokens", "positions", "segments", "types", "ids", "starts", "lengths"):
            np.testing.assert_array_equal(new[name], known[name])
    with pytest.raises(DataError, match="rows:2: 'text' is empty"):
        texts.encode_rows([{"text": "a"}, {"text": " "}])
    with pytest.raises(DataError, match="rows:1: the text has no tokens"):
        texts.encode_rows([{"text": "\u200b"}])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"limit": 0}, "data.limit is 0"),
        ({"shots": 0}, "data.shots is 0"),
        ({"shapes": 0}, "data.shapes is 0"),
        ({"row_length": -1}, "data.row_length is -1"),
        ({"shots": 1, "label": None}, "data.shots needs classes"),
        ({"labels": ("2", "9", "10", "2")}, "'2' is given twice"),
        ({"labels": ("2",), "regression": True}, "data.labels are given"),
        ({"tokenizer": None}, "data.tokenizer is not set"),
        ({"max_length": 2}, "data.max_length is 2"),
        ({"row_length": 8}, "data.row_length is 8, but the longest"),
        ({"train": ""}, "data.train is not set"),
    ],
)
def test_settings_that_do_not_fit_are_config_errors(texts, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(texts, **changes).open("train", 4)


def test_splits_that_are_not_there_are_config_errors(texts):
    with pytest.raises(ConfigError, match="no split 'valid'"):
        texts.open("valid", 4)
    with pytest.raises(ConfigError, match=r"data\.test is not set"):
        texts.open("test", 4)


def test_a_changed_file_is_read_again(texts, tmp_path):
    before = texts.open("train", 4, steps=3)
    write(tmp_path / "train.tsv", [("changed " + text, label) for text, label in TRAIN])
    after = texts.open("train", 4, steps=3)
    assert before.fingerprint != after.fingerprint
    assert texts.text_of("train", 0)["text"].startswith("changed")


@real
def test_sst2_as_glue_has_it(tmp_path):
    sst = Texts(
        train=f"{DATA}/data/glue/SST-2/dev.tsv",
        text="sentence",
        tokenizer=str(VOCABULARY),
        cache=str(tmp_path),
    )
    batches = sst.open("train", 32)
    assert (batches.rows, batches.steps) == (872, 28)
    assert sum(labels_of(batches).values()) == 444
    assert batches.stats()["padding"] < 0.25


@real
def test_banking77_in_few_shots(tmp_path):
    banking = Texts(
        train=f"{DATA}/data/intent/banking77/train.csv.xz",
        dev=f"{DATA}/data/intent/banking77/test.csv.xz",
        label="category",
        shots=5,
        tokenizer=str(VOCABULARY),
        cache=str(tmp_path),
    )
    assert len(banking.facts()["labels"]) == 77
    train, dev = banking.open("train", 16, steps=10), banking.open("dev", 128)
    assert (train.rows, dev.rows) == (385, 3_080)
    counts = np.bincount(list(labels_of(dev).values()), minlength=77)
    assert (counts == 40).all()
