"""The docstring tasks: balanced, without leaks, the same every time."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from research.data import stdlib
from research.data.sources import read_rows
from research.errors import DataError


@pytest.fixture(scope="module")
def train():
    return stdlib.areas("train")


@pytest.fixture(scope="module")
def dev():
    return stdlib.areas("dev")


@pytest.fixture(scope="module")
def passages():
    return stdlib.passages()


def modules(side):
    """Every module of one side of the table."""
    return {module for sides in stdlib.AREAS.values() for module in sides[side].split()}


def test_the_table_gives_every_module_one_place():
    listed = [m for sides in stdlib.AREAS.values() for side in sides for m in side.split()]
    assert len(listed) == len(set(listed))
    assert 8 <= len(stdlib.AREAS) <= 12


def test_areas_are_balanced(train, dev):
    for rows, most in ((train, stdlib.TRAIN_ROWS), (dev, stdlib.DEV_ROWS)):
        counts = Counter(row["label"] for row in rows)
        assert counts.keys() == stdlib.AREAS.keys()
        assert set(counts.values()) == {most}
        assert rows != sorted(rows, key=lambda row: row["label"])


def test_dev_modules_and_texts_are_unseen_in_training(train, dev, passages):
    unseen = modules(1)
    for rows in (train, passages):
        assert not {row["module"].split(".")[0] for row in rows} & unseen
    assert {row["module"].split(".")[0] for row in dev} <= unseen
    assert not {row["text"] for row in train} & {row["text"] for row in dev}


def test_no_statement_of_a_dev_module_is_in_the_passages(passages):
    def statements(text):
        folded = (" ".join(re.findall(r"[A-Za-z_]\w*", s.lower())) for s in stdlib.sentences(text))
        return {s for s in folded if len(s.split()) >= 4}

    held_out = set().union(
        *(statements(stdlib.clean(d.text)) for d in stdlib.docstrings() if d.top in modules(1))
    )
    assert len(held_out) > 3000
    assert not held_out & set().union(*(statements(row["text"]) for row in passages))


def test_no_text_holds_a_name_that_tells_its_area(train, dev):
    for row in train + dev:
        words = {word.strip("_") for word in re.findall(r"\w+", row["text"].lower())}
        names = set(" ".join(stdlib.AREAS[row["label"]]).split()) | set(row["module"].split("."))
        assert not words & {name.lower().strip("_") for name in names}


def test_names_of_what_is_documented_are_removed():
    docstring = stdlib.Docstring("_pydecimal.inner", ("Context", "__add__"), "")
    text = "Context.add adds decimal numbers in a CONTEXT, as __add__ of _pydecimal random does."
    found = stdlib.remove(text, docstring, frozenset({"random"}))
    assert found == ". adds numbers in a , as of does."


def test_texts_are_prose_of_some_length(train, dev, passages):
    for row in train + dev + passages:
        assert sum(any(map(str.isalpha, word)) for word in row["text"].split()) >= 8
        assert row["text"] == " ".join(row["text"].split())
        assert row["text"].isprintable() or not row["text"].isascii()
    assert len({row["text"] for row in passages}) == len(passages)
    assert sum(len(row["text"]) for row in passages) > 1_000_000
    assert all(row.keys() == {"text", "module"} for row in passages)


PROGRAM = """
import hashlib, pathlib, sys
from research.data import stdlib
stdlib.library = lambda: pathlib.Path(sys.argv[1])
rows = [stdlib.areas("train"), stdlib.areas("dev"), stdlib.passages()]
print([len(part) for part in rows], hashlib.sha256(repr(rows).encode()).hexdigest())
"""


def test_the_same_sources_give_the_same_rows_in_any_process(tmp_path):
    for pair in stdlib.AREAS.values():
        for side in pair:
            found = [stdlib.library() / f"{module}.py" for module in side.split()]
            for path in [path for path in found if path.is_file()][:2]:
                shutil.copy(path, tmp_path)
    for package in ("tkinter", "asyncio", "idlelib", "email", "urllib", "unittest"):
        (tmp_path / package).mkdir()
        for path in sorted((stdlib.library() / package).glob("*.py"))[:4]:
            shutil.copy(path, tmp_path / package)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != ""


def test_sources_name_them(dev, passages):
    assert list(read_rows("stdlib:areas-dev")) == dev
    rows = read_rows("stdlib:passages", need=("text",))
    assert rows.where(4) == "stdlib:passages:5"
    assert [row["text"] for row in rows] == [row["text"] for row in passages]


def test_a_python_without_sources_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib, "library", lambda: tmp_path)
    stdlib.docstrings.cache_clear()
    try:
        with pytest.raises(DataError, match="no sources of its standard library"):
            stdlib.docstrings()
        (tmp_path / "textwrap.py").write_text('"""Wraps."""')
        with pytest.raises(DataError, match="has none of the modules of 'concurrency'"):
            stdlib.areas("train")
    finally:
        stdlib.docstrings.cache_clear()
