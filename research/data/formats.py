"""Strict parsers of lines: bytes of one file in, rows and bad rows with their numbers out."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Literal

from research.errors import DataError

Row = dict[str, str]
Format = Literal["jsonl", "json", "csv", "tsv", "txt", "conll"]
Quoting = Literal["auto", "csv", "none"]
Document = Literal["line", "paragraph", "file"]

# No text of a data set is this long; without a bound, a damaged or hostile file fills the memory.
LONGEST_LINE = 16 * 2**20
LONGEST_RECORD = 2**20
LONGEST_DOCUMENT = 256 * 2**20
FIELDS = {
    delimiter: re.compile(rf'(?:"([^"]*(?:""[^"]*)*)"|([^"{delimiter}]*))({delimiter}|\Z)')
    for delimiter in (",", "\t")
}


@dataclass(frozen=True)
class Bad:
    """Why a row, or a value in it, cannot be used."""

    reason: str


@dataclass(frozen=True)
class Layout:
    """How the bytes of a file are rows.

    `columns` names the columns of a file without a header; `need`, where not empty, are the only
    columns kept, and a row without one of them is bad. A column in `lists` may hold lists of texts
    where the format has lists: they come as JSON. `inside` is the member of an archive, or the key
    of a JSON object, that is read alone. `document` is what of a .txt file makes a row.
    """

    format: Format
    columns: tuple[str, ...] = ()
    quoting: Quoting = "auto"
    need: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    inside: str = ""
    document: Document = "line"


Parsed = Iterator[tuple[int, Row | Bad]]


def lines_of(name: str, file: IO[bytes]) -> Iterator[tuple[int, str | Bad]]:
    """(number, line without its end); only \\n ends a line, \\r before it goes too."""
    number = 0
    while raw := file.readline(LONGEST_LINE):
        number += 1
        if len(raw) == LONGEST_LINE:
            raise DataError(f"{name}:{number}: the line is longer than {LONGEST_LINE >> 20} MiB")
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        yield number, decode(raw.removesuffix(b"\n").removesuffix(b"\r"))


def decode(raw: bytes) -> str | Bad:
    """Strict UTF-8 without NUL."""
    if b"\0" in raw:
        return Bad(f"a NUL byte at byte {raw.index(0) + 1} of the line; is this UTF-8 text?")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad(f"not UTF-8 at byte {error.start + 1} of the line")


def half_pair(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text)


def parse_txt(name: str, file: IO[bytes], layout: Layout) -> Parsed:
    """A text is a line, or the lines up to a blank one, or all of the file; blank lines separate.

    A line that cannot be read is a bad row, and so is the text that it is in.
    """
    column = layout.columns[0] if layout.columns else "text"
    if missing := set(layout.need) - {column}:
        raise DataError(
            f"{name}:1: a .txt file has the one column {column!r}, not {min(missing)!r}"
        )
    for number, text in texts_of(name, file, layout.document):
        yield number, text if isinstance(text, Bad) else {column: text}


def texts_of(name: str, file: IO[bytes], document: Document) -> Iterator[tuple[int, str | Bad]]:
    """(line of its beginning, text) of every text that is not blank."""
    held: list[str] = []
    first = size = 0
    bad: tuple[int, Bad] | None = None
    for number, line in chain(lines_of(name, file), [(0, "")]):
        end = number == 0 or document == "line"
        if isinstance(line, Bad):
            bad = bad or (number, line)
        elif line.strip() or (held and document == "file" and not end):
            first = first if held else number
            held.append(line)
            size += len(line) + 1
        else:
            end |= document == "paragraph"
        if size > LONGEST_DOCUMENT:
            raise DataError(f"{name}:{first}: is longer than {LONGEST_DOCUMENT >> 20} MiB of text")
        if end and (bad or held):
            yield bad or (first, "\n".join(held).rstrip("\n"))
            held, size, bad = [], 0, None


def parse_table(name: str, file: IO[bytes], layout: Layout) -> Parsed:
    """csv and tsv: the first line is the header unless `columns` names the columns."""
    delimiter = "," if layout.format == "csv" else "\t"
    quoting = layout.quoting
    if quoting == "auto":
        quoting = "csv" if layout.format == "csv" else "none"
    records = split_records(name, file, delimiter, quoted=quoting == "csv")
    columns = layout.columns
    if not columns:
        number, header = next(records, (1, Bad("")))
        if isinstance(header, Bad):
            if header.reason:
                raise DataError(f"{name}:{number}: the header: {header.reason}")
            return
        columns = tuple(header)
    check_columns(name, columns, layout.need)
    keep = [(i, column) for i, column in enumerate(columns) if column in (layout.need or columns)]
    for number, fields in records:
        if isinstance(fields, Bad):
            yield number, fields
        elif len(fields) != len(columns):
            yield number, Bad(f"{len(fields)} columns, expected {len(columns)}")
        else:
            yield number, {column: fields[i] for i, column in keep}


def check_columns(name: str, columns: tuple[str, ...], need: tuple[str, ...]) -> None:
    """Raises DataError for a column named twice or missing."""
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{name}:1: two columns are called {column!r}")
    for column in need:
        if column not in columns:
            raise DataError(f"{name}:1: no column {column!r} among {', '.join(columns)[:200]}")


def split_records(
    name: str, file: IO[bytes], delimiter: str, *, quoted: bool
) -> Iterator[tuple[int, list[str] | Bad]]:
    """(line, fields) of each record.

    A record that breaks ends where its first line does, so that one open quote costs one row.
    """
    source = lines_of(name, file)
    if not quoted:
        yield from (
            (n, line if isinstance(line, Bad) else line.split(delimiter)) for n, line in source
        )
        return
    held: deque[tuple[int, str | Bad]] = deque()
    while True:
        taken = list(islice(source, 1)) if not held else [held.popleft()]
        if not taken:
            return
        number, line = taken[0]
        if isinstance(line, Bad) or '"' not in line:
            yield number, line if isinstance(line, Bad) else line.split(delimiter)
            continue
        following, record = close_quotes(line, source, held)
        fields = split_fields(record, delimiter) if record is not None else Bad(OPEN_QUOTE)
        if isinstance(fields, Bad):
            held.extendleft(reversed(following))
        yield number, fields


OPEN_QUOTE = "a quote is opened here and not closed"


def close_quotes(
    line: str, source: Iterator[tuple[int, str | Bad]], held: deque[tuple[int, str | Bad]]
) -> tuple[list[tuple[int, str | Bad]], str | None]:
    """The lines after `line` that its quotes take in, and the whole record if they ever close."""
    parts, size, is_open = [line], len(line), line.count('"') % 2 == 1
    following: list[tuple[int, str | Bad]] = []
    while is_open and size <= LONGEST_RECORD:
        taken = list(islice(source, 1)) if not held else [held.popleft()]
        if not taken:
            return following, None
        following += taken
        more = taken[0][1]
        if isinstance(more, Bad):
            return following, None
        parts.append(more)
        size += len(more) + 1
        is_open ^= more.count('"') % 2 == 1
    return following, None if is_open else "\n".join(parts)


def split_fields(record: str, delimiter: str) -> list[str] | Bad:
    """The fields of a record, as RFC 4180 quotes them."""
    pattern, position = FIELDS[delimiter], 0
    fields: list[str] = []
    while True:
        found = pattern.match(record, position)
        if found is None:
            return Bad(f"a stray quote in column {len(fields) + 1}; inside quotes it is doubled")
        quoted, bare, end = found.groups()
        fields.append(bare if quoted is None else quoted.replace('""', '"'))
        if not end:
            return fields
        position = found.end()
