"""Rows in a file are the rows in memory, whatever they hold and however they are asked for."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import stored
from research.data.rows import keep_good
from research.data.sources import read_rows
from research.data.stored import Chosen, Column, Stored
from research.errors import DataError

# With NUL, half surrogate pairs and everything else that a text of Python's can hold.
texts = st.text(st.characters(exclude_categories=()), max_size=8)
rows_of = st.lists(st.dictionaries(st.sampled_from("abc"), texts), max_size=12)


def keep(rows, folder):
    found = Stored(folder)
    for row in rows:
        found.append(row)
    found.close()
    return found


def test_rows_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 3)

    @settings(max_examples=60, deadline=None)
    @given(rows_of, st.slices(12))
    def check(rows, part):
        found = keep(rows, tmp_path)
        assert list(found) == rows == [found[i] for i in range(len(rows))]
        assert [list(row) for row in found] == [list(row) for row in rows]
        assert found[part] == rows[part]
        order = np.random.default_rng(len(rows)).permutation(len(rows))
        chosen = Chosen(found, order)
        assert list(chosen) == [rows[i] for i in order]
        assert chosen[part] == [rows[i] for i in order[part]]
        with pytest.raises(IndexError):
            found[len(rows)]

    check()


def test_a_column_is_the_same_text_of_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 3)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.fixed_dictionaries({"a": texts, "b": texts}), max_size=12), st.slices(12))
    def check(rows, part):
        for name in "ab":
            column = Column(keep(rows, tmp_path), name)
            assert list(column) == [row[name] for row in rows]
            assert column[part] == [row[name] for row in rows[part]]

    check()


def test_a_source_reads_the_same_into_memory_and_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 4)
    file = tmp_path / "rows.tsv"
    file.write_text("text\tlabel\n" + "".join(f"word {i}\t{i % 3}\n" for i in range(11)) + "bad\n")
    memory = read_rows(str(file), max_bad_rows=3)
    disk = read_rows(str(file), max_bad_rows=3, keep_in=tmp_path)
    assert list(memory) == list(disk)
    assert memory.dropped == disk.dropped == [f"{file}:13: 1 columns, expected 2"]
    faults = [f"odd {i}" if i in (2, 9) else None for i in range(11)]
    kept, other = keep_good(memory, faults), keep_good(disk, faults)
    assert list(kept) == list(other)
    assert [kept.where(i) for i in range(9)] == [other.where(i) for i in range(9)]
    with pytest.raises(DataError, match=r"rows\.tsv:4: odd 2"):
        keep_good(read_rows(str(file), max_bad_rows=1, keep_in=tmp_path), faults)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(count):
        tracemalloc.start()
        found = keep(({"text": f"some words and the number {i}"} for i in range(count)), tmp_path)
        assert sum(map(len, Column(found, "text"))) > 26 * count
        (_, most), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
        return most

    blocks = stored.BLOCK
    peak(2 * blocks)
    assert peak(12 * blocks) < 1.1 * peak(3 * blocks)
