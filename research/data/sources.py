"""Rows of text from files, archives, TFDS and the Python library, strictly read.

A row is a dict of texts. A damaged one is an error that names file, line and reason, or, up to
`max_bad_rows` of them, is left out and counted.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

from research.data import stdlib, tfds
from research.data.conll import parse_conll
from research.data.formats import (
    Bad,
    Format,
    Layout,
    Parsed,
    Quoting,
    Row,
    parse_table,
    parse_txt,
)
from research.data.json_rows import parse_json, parse_jsonl
from research.data.rows import Rows
from research.data.stored import Stored
from research.errors import ConfigError, DataError

PARSERS: dict[Format, Callable[[str, IO[bytes], Layout], Parsed]] = {
    "jsonl": parse_jsonl,
    "json": parse_json,
    "csv": parse_table,
    "tsv": parse_table,
    "txt": parse_txt,
    "conll": parse_conll,
}
DECOMPRESS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
}
# What the decompressors raise on damaged, encrypted or unsupported input.
DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
)


def read_rows(
    source: str,
    *,
    columns: tuple[str, ...] = (),
    need: tuple[str, ...] = (),
    lists: tuple[str, ...] = (),
    quoting: Quoting = "auto",
    max_bad_rows: int = 0,
    keep_in: Path | None = None,
) -> Rows:
    """All rows of a source, in memory, or in files without a name in `keep_in`.

    A source is a path, a glob, several of them joined by commas, `tfds:NAME[/CONFIG]:SPLIT`, or
    `stdlib:passages`, `stdlib:areas-train`, `stdlib:areas-dev`. A file's suffix says its format:
    .jsonl, .json, .csv, .tsv, .txt, .conll, each also .gz, .xz, .bz2 or inside a .zip; `tsv:PATH`
    says it where the suffix does not. `columns` names the columns of files without a header, `need`
    those that are kept and that every row must have; a column in `lists` may hold lists of texts,
    which come as JSON. Unquoted is what tsv is by default, as in GLUE. A path may go on into a .zip
    to one of its members, or into a .json to one key of its object: all.json/train.

    Raises DataError "file:line: reason", and ConfigError for a source that makes no sense.
    """
    layout = Layout("txt", columns, quoting, need, lists)
    rows = Rows(source, max_bad_rows)
    if keep_in is not None:
        rows.rows = Stored(keep_in)
    try:
        for name, line, row in read(source, layout):
            if isinstance(row, Bad):
                rows.drop(f"{name}:{line}", row.reason)
            else:
                rows.add(name, line, row)
    finally:
        if isinstance(rows.rows, Stored):
            rows.rows.close()
    if not rows:
        more = f"; all {len(rows.dropped)} are bad" if rows.dropped else ""
        raise DataError(f"{source}:1: holds no rows{more}")
    return rows


def read(source: str, layout: Layout) -> Iterator[tuple[str, int, Row | Bad]]:
    """(file, line, row) one after another; only one row is held."""
    kind, _, rest = source.partition(":")
    if kind in ("tfds", "stdlib"):
        found = tfds.rows(rest) if kind == "tfds" else stdlib.rows(rest)
        for number, row in enumerate(found, 1):
            yield source, number, keep(row, layout.need)
        return
    for path, format, inside in files_of(source):
        yield from read_file(path, format, replace(layout, inside=inside))


def keep(row: Row, need: tuple[str, ...]) -> Row | Bad:
    """The needed columns of a row."""
    for column in need:
        if column not in row:
            return Bad(f"no column {column!r} among {', '.join(row)[:200]}")
    return {column: row[column] for column in need} if need else row


def files_of(source: str) -> list[tuple[Path, Format | None, str]]:
    """The files that a source names, in the order of their names, each with the format it
    prescribes and the part of the file it means."""
    if not source:
        raise ConfigError("data: the source of a split is empty; expected a path")
    found: list[tuple[Path, Format | None, str]] = []
    for part in [source] if "\0" not in source and Path(source).exists() else source.split(","):
        prefix = re.match(rf"({'|'.join(PARSERS)}):", part)
        format = cast(Format, prefix[1]) if prefix else None
        pattern = part[prefix.end() :] if prefix else part
        pattern, inside = outside(pattern.strip())
        found += [(path, format, inside) for path in match(pattern)]
    return found


def outside(pattern: str) -> tuple[str, str]:
    """A path that goes on into a file, as that file and the rest."""
    for parent in Path(pattern).expanduser().parents if "\0" not in pattern else ():
        if parent.is_file():
            return str(parent), str(Path(pattern).expanduser().relative_to(parent))
    return pattern, ""


def match(pattern: str) -> list[Path]:
    """The files of a path or glob. Raises DataError where there is none."""
    if "\0" in pattern or not pattern:
        raise ConfigError(f"data: {pattern!r} is not a path")
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError(f"{pattern}: is a directory; name its files, or a glob such as *.jsonl")
    if path.exists():
        return [path]
    # Path.glob takes no absolute pattern.
    paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(f"{pattern}: no such file")
    return paths


def read_file(
    path: Path, format: Format | None, layout: Layout
) -> Iterator[tuple[str, int, Row | Bad]]:
    """The rows of one file; of a .zip, those of every member whose name has a known suffix."""
    name, line = str(path), 1
    inside = f"/{layout.inside}" if layout.inside else ""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".zip":
                members = read_zip(name, file, layout)
            else:
                members = read_stream(name + inside, file, path.name, format, layout)
            for name, line, row in members:
                yield name, line, row
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}:{line}: cannot be read any further: {reason}") from None


def read_zip(name: str, file: IO[bytes], layout: Layout) -> Iterator[tuple[str, int, Row | Bad]]:
    """Member names only label the rows; nothing is ever written under them."""
    with zipfile.ZipFile(file) as archive:
        members = [
            member
            for member in archive.infolist()
            if format_of(member.filename)[0] is not None
            and "__MACOSX" not in member.filename
            and layout.inside in ("", member.filename)
        ]
        if not members and layout.inside:
            raise DataError(f"{name}:1: the archive has no member {layout.inside!r} of rows")
        if not members:
            raise DataError(f"{name}:1: the archive has no member that ends in {known()}")
        for member in members:
            with archive.open(member) as stream:
                label = f"{name}/{member.filename}"
                plain = replace(layout, inside="")
                yield from read_stream(label, stream, member.filename, None, plain)


def read_stream(
    name: str, file: IO[bytes], filename: str, format: Format | None, layout: Layout
) -> Iterator[tuple[str, int, Row | Bad]]:
    """The rows of an open file."""
    by_suffix, compression = format_of(filename)
    format = format or by_suffix
    if format is None:
        raise DataError(
            f"{name}:1: the suffix is none of {known()}; tsv:{name} would read it as tab-separated"
        )
    if layout.inside and format != "json":
        raise DataError(f"{name}:1: only of a .zip or of a .json can a part be named")
    if compression:
        file = io.BufferedReader(DECOMPRESS[compression](file))
    given = replace(layout, format=format)
    for line, row in PARSERS[format](name, file, given):
        yield name, line, row


def format_of(filename: str) -> tuple[Format | None, str]:
    """Format and compression, by suffix."""
    path = Path(filename.lower())
    compression = path.suffix if path.suffix in DECOMPRESS else ""
    suffix = (path.with_suffix("") if compression else path).suffix[1:]
    return (suffix if suffix in PARSERS else None), compression


def known() -> str:
    """The suffixes there are."""
    return ", ".join(f".{format}" for format in PARSERS) + " (also .gz, .xz, .bz2)"


def signature(source: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file: equal while a source is unchanged."""
    if source.partition(":")[0] in ("tfds", "stdlib"):
        return ((source, 0, 0),)
    stats = [(str(path), path.stat()) for path, *_ in files_of(source)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
