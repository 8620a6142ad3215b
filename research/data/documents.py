"""Documents for pre-training: files, archives and whole folders of them, one text after another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from research.data.formats import Bad, Document, Format, Layout, Quoting
from research.data.rows import Rows
from research.data.sources import files_of, format_of, keep, known, read, read_file
from research.errors import DataError

# Documents are handled this many at a time, or this many characters where they are long.
CHUNK, CHUNK_SIGNS = 1024, 2**22


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How a source is read as documents.

    A source is one of `read_rows`, or a folder, which stands for all files below it whose suffix is
    known. `text` is the column of formats that have columns (`columns` names those of files without
    a header), and `document` what of a .txt file is one: a line, the lines up to a blank one, or
    the file. Up to `max_bad_rows` rows that cannot be read are left out.
    """

    text: str = "text"
    document: Document = "line"
    columns: tuple[str, ...] = ()
    quoting: Quoting = "auto"
    max_bad_rows: int = 0
    limit: int | None = None

    def layout(self, format: Format) -> Layout:
        """How files of a format are read."""
        columns = (self.text,) if format == "txt" else self.columns
        return Layout(format, columns, self.quoting, (self.text,), document=self.document)

    def read(self, source: str) -> Iterator[str | Bad]:
        """The documents of a source in order; only one is held. A text may be blank.

        Raises DataError "file:line: reason", also for the first bad row over `max_bad_rows`.
        """
        bad = Rows(source, self.max_bad_rows)
        for name, line, row in islice(self.rows(source), self.limit):
            if isinstance(row, Bad):
                bad.drop(f"{name}:{line}", row.reason)
                yield row
            else:
                yield row[self.text]

    def texts(self, sources: Sequence[str]) -> Iterator[str]:
        """The documents of several sources that can be read and are not blank."""
        for source in sources:
            for text in self.read(source):
                if isinstance(text, str) and text.strip():
                    yield text

    def rows(self, source: str) -> Iterator[tuple[str, int, dict[str, str] | Bad]]:
        """(file, line, row) one after another."""
        if is_named(source):
            layout = replace(self.layout("jsonl"), columns=())
            for name, line, row in read(source, layout):
                yield name, line, row if isinstance(row, Bad) else keep(row, (self.text,))
            return
        for path, format, inside in files(source):
            layout = self.layout(format or format_of(path.name)[0] or "jsonl")
            yield from read_file(path, format, replace(layout, inside=inside))

    def chunks(self, source: str) -> Iterator[Chunk]:
        """The documents a chunk at a time, the bad ones counted."""
        chunk, signs = Chunk(), 0
        for text in self.read(source):
            if isinstance(text, Bad):
                chunk.bad += 1
                continue
            chunk.texts.append(text)
            signs += len(text)
            if len(chunk.texts) == CHUNK or signs > CHUNK_SIGNS:
                yield chunk
                chunk, signs = Chunk(), 0
        yield chunk


@dataclass
class Chunk:
    """Some documents, and how many beside them could not be read."""

    texts: list[str] = field(default_factory=list)
    bad: int = 0


def is_named(source: str) -> bool:
    """Whether a source is a data set's name rather than files."""
    return source.partition(":")[0] in ("tfds", "stdlib")


def files(source: str) -> list[tuple[Path, Format | None, str]]:
    """As `files_of`, where a folder stands for the files below it. DataError for one without."""
    found: list[tuple[Path, Format | None, str]] = []
    for part in source.split(",") if not Path(source).exists() else [source]:
        folder = Path(part.strip()).expanduser()
        if "\0" in part or not folder.is_dir():
            found += files_of(part)
            continue
        below = [path for path in sorted(folder.rglob("*")) if path.is_file() and fits(path)]
        if not below:
            raise DataError(f"{folder}: the folder holds no file that ends in {known()} or .zip")
        found += [(path, None, "") for path in below]
    return found


def fits(path: Path) -> bool:
    """Whether a file is one that rows are read from."""
    return format_of(path.name)[0] is not None or path.suffix.lower() == ".zip"


def signature(source: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file: equal while a source is unchanged."""
    if is_named(source):
        return ((source, 0, 0),)
    stats = [(str(path), path.stat()) for path, *_ in files(source)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def digest(source: str) -> str:
    """SHA-256 over the bytes of the files and what they are read as, or over a data set's rows."""
    total = hashlib.sha256()
    if is_named(source):
        for _, _, row in read(source, Layout("jsonl")):
            total.update(repr(row).encode("utf-8", "surrogatepass"))
        return total.hexdigest()
    for path, format, inside in files(source):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{format or ''.join(path.suffixes[-2:])} {inside} {content}\n".encode())
    return total.hexdigest()
