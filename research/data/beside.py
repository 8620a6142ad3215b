"""Columns that lie in files of their own: line n belongs to line n of the texts' file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from research.data.rows import Rows
from research.data.sources import DECOMPRESS, read_rows
from research.errors import DataError


def add_columns(rows: Rows, beside: Sequence[str]) -> Rows:
    """The rows with the columns that `beside` names, each as "column=file".

    A file lies in the folder of the rows' own file, and may be compressed: "tags=seq.out" also
    reads seq.out.xz. Raises DataError where it is missing, and where one file has a line that the
    other has not.
    """
    for item in beside:
        column, _, name = item.partition("=")
        found = {file: lines_of(file, column, name) for file in dict.fromkeys(rows.files)}
        for i, row in enumerate(rows):
            other, lines = found[rows.files[rows.file_of[i]]]
            if rows.line_of[i] not in lines:
                raise DataError(f"{rows.where(i)}: {other} has no such line")
            row[column] = lines.pop(rows.line_of[i])
        for file, (other, lines) in found.items():
            if lines:
                raise DataError(f"{other}:{min(lines)}: {file} has no such line")
    return rows


def lines_of(file: str, column: str, name: str) -> tuple[str, dict[int, str]]:
    """The path of the file beside `file`, and its lines by number."""
    paths = [Path(file).with_name(name + suffix) for suffix in ("", *DECOMPRESS)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(f"{paths[0]}: no such file, which data.beside names for {column!r}")
    lines = read_rows(f"txt:{path}", columns=(column,))
    return str(path), {lines.line_of[i]: row[column] for i, row in enumerate(lines)}
