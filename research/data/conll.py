"""Sentences in columns, one word a line and a blank line after each sentence (CoNLL), as rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

from research.data.formats import Bad, Layout, Parsed, Row, lines_of
from research.errors import DataError

DOCUMENT = "-DOCSTART-"
SPACES = re.compile(r"[ \t]+")
# Some files hold a byte-order mark in the middle.
BLANK = " \t\ufeff"

Block = list[tuple[int, list[str] | Bad]]


def parse_conll(name: str, file: IO[bytes], layout: Layout) -> Parsed:
    """One row a sentence: each column as a JSON list with a text a word.

    The first column is "tokens" and the last "tags", or all are as `columns` says. Tabs separate
    the columns of a line that has one, else spaces. Left out are lines that begin with -DOCSTART-
    and, before a sentence's first word, comments: "# ..." with another number of columns. The
    row's number is that of its first word, so that word k stands k lines below.
    """
    width = len(layout.columns)
    for block in blocks(name, file):
        width = width or width_of(block)
        while block and is_comment(block[0][1], width):
            block.pop(0)
        if not block:
            continue
        columns = columns_of(width, layout)
        missing = [column for column in layout.need if column not in columns]
        if width and missing:
            raise DataError(
                f"{name}:{block[0][0]}: no column {missing[0]!r} among {width}; columns names them"
            )
        yield block[0][0], to_row(block, width, layout)


def blocks(name: str, file: IO[bytes]) -> Iterator[Block]:
    """Lines between blank ones or document marks: (number, fields)."""
    block: Block = []
    for number, line in lines_of(name, file):
        if isinstance(line, str) and (not line.strip(BLANK) or line.startswith(DOCUMENT)):
            if block:
                yield block
            block = []
        elif isinstance(line, Bad):
            block.append((number, line))
        else:
            parts = line.split("\t") if "\t" in line else SPACES.split(line.strip(" "))
            block.append((number, parts))
    if block:
        yield block


def width_of(block: Block) -> int:
    """How many columns a file has, by its first sentence; 0 where that does not say."""
    widths = [(fields[0] == "#", len(fields)) for _, fields in block if isinstance(fields, list)]
    return min(widths, key=lambda found: found[0])[1] if widths else 0


def is_comment(fields: list[str] | Bad, width: int) -> bool:
    """Whether a line before a sentence's first word is a comment."""
    return isinstance(fields, list) and fields[0] == "#" and len(fields) != width


def columns_of(width: int, layout: Layout) -> tuple[str, ...]:
    """The columns' names, "" for one that has none."""
    return layout.columns or ("tokens", *[""] * (width - 2), *(["tags"] if width > 1 else []))


def to_row(block: Block, width: int, layout: Layout) -> Row | Bad:
    """The needed columns of a sentence."""
    words = []
    for number, fields in block:
        where = "" if number == block[0][0] else f"line {number}: "
        if isinstance(fields, Bad):
            return Bad(where + fields.reason)
        if len(fields) != width:
            return Bad(f"{where}{len(fields)} columns, expected {width}")
        if not all(field.strip() for field in fields):
            return Bad(f"{where}a column is empty")
        words.append(fields)
    names = columns_of(width, layout)
    return {
        name: json.dumps(column, ensure_ascii=False)
        for name, column in zip(names, map(list, zip(*words)))
        if name and name in (layout.need or names)
    }
