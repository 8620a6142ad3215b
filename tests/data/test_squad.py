"""SQuAD's JSON as rows: every question once, and every fault with its file, line and place."""

import copy
import gzip
import json
import lzma
import zipfile

import pytest
from squad_files import squad, write

from research.data.questions import Questions, usable_rows
from research.data.sources import read_rows, signature
from research.data.squad import answers_of
from research.errors import DataError


def usable(path, allowed=0):
    return usable_rows(str(path), allowed, signature(str(path)))


def test_every_question_is_a_row_in_the_order_of_the_file(tmp_path):
    whole = squad(2, 2)
    rows = read_rows(write(tmp_path / "a.json", whole))
    expected = [
        (article["title"], paragraph["context"], question)
        for article in whole["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    assert len(rows) == len(expected) == 16
    for row, (title, context, question) in zip(rows, expected):
        assert (row["title"], row["context"], row["id"]) == (title, context, question["id"])
        assert row["question"] == question["question"]
        assert row["impossible"] == str(question["is_impossible"]).lower()
        assert answers_of(row) == tuple(
            (answer["answer_start"], answer["text"]) for answer in question["answers"]
        )


def test_packed_files_give_the_same_rows(tmp_path):
    raw = json.dumps(squad(2, 1)).encode()
    (tmp_path / "a.json").write_bytes(raw)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(raw))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside/a.json", raw)
    plain = list(usable(tmp_path / "a.json"))
    for name in ("a.json.gz", "a.json.xz", "a.zip"):
        assert list(usable(tmp_path / name)) == plain


def test_rows_know_their_lines(tmp_path):
    text = json.dumps(squad(2, 1), indent=1)
    (tmp_path / "a.json").write_text(text)
    rows = read_rows(str(tmp_path / "a.json"))
    lines = text.split("\n")
    for i, row in enumerate(rows):
        line = int(rows.where(i).rpartition(":")[2])
        assert f'"id": "{row["id"]}"' in lines[line - 1]


def faults():
    """(what is done to the second question, its paragraph and its article; the complaint)"""
    where = "article 'Article 0', paragraph 1"
    named = f"{where}, question 'q0-0-1'"
    return [
        (lambda q, p, a: q["answers"][0].update(answer_start=1), rf"{named}: .* character 1 .*'"),
        (lambda q, p, a: q["answers"][0].update(answer_start=9999), rf"{named}: .*9999"),
        (lambda q, p, a: q["answers"][0].update(answer_start=-4), rf"{named}: 'answer_start'"),
        (lambda q, p, a: q["answers"][0].update(answer_start=True), rf"{named}: 'answer_start'"),
        (lambda q, p, a: q["answers"][0].pop("answer_start"), rf"{named}: 'answer_start'"),
        (lambda q, p, a: q["answers"][0].pop("text"), rf"{named}, an answer: no 'text'"),
        (lambda q, p, a: q["answers"][0].update(text=" "), rf"{named}, .*'text' is empty"),
        (lambda q, p, a: q.update(answers="apple"), rf"{named}: no list 'answers'"),
        (lambda q, p, a: q.update(answers=["apple"]), rf"{named}, an answer: not a JSON object"),
        (lambda q, p, a: q.pop("answers"), rf"{named}: no list 'answers'"),
        (lambda q, p, a: q.update(is_impossible=True), rf"{named}: is_impossible is true"),
        (lambda q, p, a: q.update(answers=[]), rf"{named}: is_impossible is false"),
        (lambda q, p, a: q.update(id="q0-0-0"), "question id 'q0-0-0' occurs twice"),
        (lambda q, p, a: q.update(id=""), rf"{where}, question 2: 'id' is empty"),
        (lambda q, p, a: q.update(question=["x"]), rf"{where}, question 2: 'question' is not a"),
        (lambda q, p, a: q.update(question="\ud800"), "half a surrogate"),
        (lambda q, p, a: q.pop("question"), rf"{where}, question 2: no 'question'"),
        (lambda q, p, a: p["qas"].__setitem__(1, 7), rf"{where}, question 2: not a JSON object"),
        (lambda q, p, a: p.pop("context"), rf"{where}: no 'context'"),
        (lambda q, p, a: p.update(qas={}), rf"{where}: no list 'qas'"),
        (lambda q, p, a: a["paragraphs"].__setitem__(0, []), rf"{where}: not a JSON object"),
        (lambda q, p, a: a.pop("paragraphs"), "article 'Article 0': no list 'paragraphs'"),
    ]


@pytest.mark.parametrize(("spoil", "complaint"), faults())
def test_a_fault_is_told_with_its_place_and_counts_as_one_bad_row(tmp_path, spoil, complaint):
    whole = squad(2, 1)
    article = whole["data"][0]
    spoil(article["paragraphs"][0]["qas"][1], article["paragraphs"][0], article)
    (tmp_path / "a.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match=rf"a\.json:1: .*{complaint}") as caught:
        usable(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    rows = usable(tmp_path / "a.json", 1)
    assert len(rows.dropped) == 1
    assert len(rows) in (4, 7)


def test_bad_questions_up_to_the_allowance_are_left_out(tmp_path):
    whole = squad(3, 1)
    for article in whole["data"]:
        article["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 0
    path = write(tmp_path / "a.json", whole)
    with pytest.raises(DataError, match=r"\(bad row 3\)"):
        usable(path, 2)
    assert len(usable(path, 3)) == 9


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"data": [', r"a\.json:1: broken JSON"),
        ('{"data": [],\n\n "version": }', r"a\.json:3: broken JSON"),
        ('{"data": []} x', r"a\.json:1: broken JSON"),
        ('{"data": {}}', "expected a list of objects, or SQuAD's object with the list 'data'"),
        ('{"rows": []}', "the list 'data'"),
        ('{"data": [], "data": []}', "the key 'data' occurs twice"),
        ('{"data": [], "version": NaN}', "NaN is not JSON"),
        ('{"data": []}', "holds no rows"),
        ('{"data": [{"title": "x", "title": "y"}]}', r"article '1': the key 'title' occurs twice"),
        ('{"data": ' + "[" * 100_000, "nested too deeply|broken JSON"),
    ],
)
def test_files_that_are_no_squad_say_so(tmp_path, text, complaint):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=complaint):
        usable(tmp_path / "a.json")


def test_other_rows_are_refused_by_the_column_they_lack(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "who?", "context": "me"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no column 'id'"):
        usable(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="no column 'text' among id, title"):
        read_rows(write(tmp_path / "a.json", squad(1, 1)), need=("text",))


def test_a_file_without_is_impossible_says_by_its_answers(tmp_path):
    whole = copy.deepcopy(squad(1, 1))
    for question in whole["data"][0]["paragraphs"][0]["qas"]:
        del question["is_impossible"]
    rows = usable(write(tmp_path / "a.json", whole))
    assert [bool(answers_of(row)) for row in rows] == [True, True, True, False]
    assert Questions(train=str(tmp_path / "a.json")).source("train").endswith("a.json")
