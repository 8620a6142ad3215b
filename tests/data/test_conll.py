"""CoNLL columns: what is read of every dialect, and every damage with its line."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from research.data.sources import read_rows
from research.errors import DataError

COLUMNS = ("tokens", "tags")


def read(path: Path, text: str, **options):
    path.write_text(text)
    rows = read_rows(str(path), **{"need": COLUMNS, **options})
    return rows, [[json.loads(row[name]) for name in COLUMNS] for row in rows]


def test_dialects_give_the_same_sentences(tmp_path: Path) -> None:
    wanted = [[["EU", "rejects", "it"], ["B-ORG", "O", "O"]], [["Bo"], ["B-PER"]]]
    dialects = [
        "EU B-ORG\nrejects O\nit O\n\nBo B-PER\n",
        "EU\tB-ORG\nrejects\tO\nit\tO\n\t\nBo\tB-PER",
        "-DOCSTART- -X- O O\n\nEU NNP X B-ORG\nrejects V X O\nit P X O\n\n\n\nBo N X B-PER\n\n",
        "# id = 1\n# text = x y z\nEU   B-ORG \nrejects O\nit O\n   \n# id = 2 x\nBo B-PER\n",
        "\ufeffEU B-ORG\r\nrejects O\r\nit O\r\n\r\nBo B-PER\r\n\ufeff",
    ]
    for text in dialects:
        assert read(tmp_path / "x.conll", text)[1] == wanted, text


def test_tokens_may_hold_anything_but_the_separator(tmp_path: Path) -> None:
    text = "#\tO\n# not a comment\tO\nNew York\tB-LOC\n\xa0x\tO\n[\tO\n"
    tokens = read(tmp_path / "x.conll", text)[1][0][0]
    assert tokens == ["#", "# not a comment", "New York", "\xa0x", "["]
    assert read(tmp_path / "y.conll", "# O\na O\n\n# O\nb O\n")[1][1][0] == ["#", "b"]


def test_rows_are_numbered_by_their_first_word(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.conll", "-DOCSTART- O\n\na O\nb O\n\n# 1 2\nc O\n")
    assert [rows.where(i) for i in range(2)] == [f"{tmp_path}/x.conll:{n}" for n in (3, 7)]


def test_columns_are_named_and_chosen(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    text = "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n"
    names = ("tokens", "pos", "chunk", "ner")
    path.write_text(text)
    (row,) = read_rows(str(path), columns=names, need=("tokens", "pos"))
    assert {k: json.loads(v) for k, v in row.items()} == {
        "tokens": ["EU", "rejects"],
        "pos": ["NNP", "VBZ"],
    }
    (row,) = read_rows(str(path), columns=names)
    assert tuple(row) == names
    (tmp_path / "one.conll").write_text("a\nb\n\nc\n")
    rows = read_rows(str(tmp_path / "one.conll"))
    assert [json.loads(row["tokens"]) for row in rows] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a O\nb O O\n", 1, "line 2: 3 columns, expected 2"),
        ("a O\n\nb\n", 3, "1 columns, expected 2"),
        ("a\tO\n\tO\n", 1, "line 2: a column is empty"),
        ("a O\nb\x00 O\n", 1, "line 2: a NUL byte"),
        ("a\nb\n", 1, "no column 'tags'"),
    ],
)
def test_damage_is_told_with_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "x.conll"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"x\.conll:{line}: {reason}"):
        read_rows(str(path), need=COLUMNS)


def test_bad_sentences_are_left_out_and_counted(tmp_path: Path) -> None:
    text = "a O\n\nb O O\nc O\n\nd O\n"
    rows, found = read(tmp_path / "x.conll", text, max_bad_rows=1)
    assert [tokens for tokens, _ in found] == [["a"], ["d"]]
    assert len(rows.dropped) == 1


def test_any_suffix_and_compression_with_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "eng.train.xz").write_bytes(lzma.compress(b"a O\nb O\n"))
    rows = read_rows(f"conll:{tmp_path}/eng.train.xz", need=COLUMNS)
    assert len(rows) == 1


def test_json_lists_are_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"tokens": ["a", "b"], "tags": ["O", "O"]}\n')
    (row,) = read_rows(str(path), need=COLUMNS, lists=COLUMNS)
    assert json.loads(row["tokens"]) == ["a", "b"]
    with pytest.raises(DataError, match="'tokens' is a list"):
        read_rows(str(path), need=COLUMNS)
    path.write_text('{"tokens": ["a", null], "tags": ["O", "O"]}\n')
    with pytest.raises(DataError, match="'tokens' is a list"):
        read_rows(str(path), need=COLUMNS, lists=COLUMNS)
