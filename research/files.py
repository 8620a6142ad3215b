"""Files that are whole or absent, strict JSON, and a lock that dies with its process.

What the disk refuses is a `StorageError` that names the file and the reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.errors import LockedError, StorageError


@contextlib.contextmanager
def storage(file: Path) -> Iterator[None]:
    """Within the block an `OSError` becomes a `StorageError` about `file`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from error


def append(file: Path, line: bytes) -> None:
    """Add `line` to `file` in one write, which a dying process either made or did not."""
    with storage(file), file.open("ab", buffering=0) as stream:
        if stream.write(line) < len(line):
            raise StorageError(f"{file}: the disk took only a part of a line")


def write_atomic(file: Path, data: bytes) -> None:
    """Put `data` in `file` so that after a crash at any instant it holds the old or the new."""
    partial = file.with_name(file.name + ".partial")
    with storage(file):
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dump(value: dict[str, Any], indent: int | None = None) -> bytes:
    """Strict JSON that ends a line; numbers that are not finite become "nan", "inf", "-inf"."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def write_json(file: Path, value: dict[str, Any]) -> None:
    """`write_atomic` of an indented `dump`."""
    write_atomic(file, dump(value, indent=2))


def parse_object(data: bytes) -> dict[str, Any]:
    """One strict JSON object: no NaN, no name twice. Raises `ValueError`."""
    row = json.loads(
        data.decode(), object_pairs_hook=_unique_names, parse_constant=_refuse_constant
    )
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def read_object(file: Path) -> dict[str, Any] | None:
    """The JSON object in `file`, None where there is no file."""
    with storage(file):
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return parse_object(data)
    except ValueError as error:
        raise StorageError(f"{file}: not a JSON object: {error}") from error


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold `file` alone; raises `LockedError` at once, naming the process that holds it."""
    with storage(file):
        lock = _Lock(file)
    with contextlib.closing(lock):
        with storage(file):
            lock.take()
        yield


class _Lock:
    """An flock, which the kernel drops with its process and no forked child keeps alive."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        # A forked worker that outlives its parent would otherwise go on holding the lock.
        close = weakref.WeakMethod(self.close)
        os.register_at_fork(after_in_child=lambda: (close() or bool)())

    def take(self) -> None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{self.file.parent} is in use by {self.holder()}") from None
        os.ftruncate(self.descriptor, 0)
        os.write(self.descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def holder(self) -> str:
        for _ in range(20):
            if text := self.file.read_text(encoding="utf-8"):
                return text
            time.sleep(0.02)  # it holds the lock and has not signed yet
        return "another process"

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name occurs twice")
    return row


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
