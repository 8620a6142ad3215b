"""Arrays in a folder: written whole or not at all, checked when read, mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from research.errors import StorageError

Arrays = dict[str, np.ndarray]
DAY = 86_400.0


def directory(given: str = "") -> Path:
    """Where tokens are kept: `given`, else `$GRAFT_CACHE`, else `~/.cache/graft`."""
    root = given or os.environ.get("GRAFT_CACHE") or "~/.cache/graft"
    return Path(root).expanduser() / "tokens"


class Growing:
    """An array that grows in `folder`, flat in memory however long it gets; in memory with None."""

    def __init__(self, folder: Path | None, dtype: Any) -> None:
        self.dtype, self.size = np.dtype(dtype), 0
        self.file: IO[bytes] = io.BytesIO()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # Without a name: what a killed process leaves is gone with it.
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def append(self, values: np.ndarray) -> None:
        """Adds to the end. Raises StorageError where the disk is full."""
        try:
            self.file.write(np.ascontiguousarray(values, self.dtype).data)
        except OSError as error:
            raise StorageError(f"the token cache cannot be written: {error}") from error
        self.size += len(values)

    def mapped(self) -> np.ndarray:
        """All that was added; it outlives the file."""
        self.file.flush()
        if not self.size:
            return np.zeros(0, self.dtype)
        if isinstance(self.file, io.BytesIO):
            return np.frombuffer(self.file.getvalue(), self.dtype)
        return np.memmap(self.file, self.dtype, mode="r", shape=(self.size,))


def load_or_make(
    folder: Path, make: Callable[[], tuple[Arrays, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """What `folder` holds, or what `make` returns, kept there first.

    A damaged folder is made again. Several processes may do this at once: each writes its own
    copy, the first rename wins, and all copies are equal. Raises StorageError where the folder
    cannot be written.
    """
    found = load(folder)
    if found is not None:
        return found
    arrays, facts = make()
    try:
        store(folder, arrays, facts)
    except OSError as error:
        raise StorageError(f"{folder}: cannot keep the tokens there: {error}") from error
    return load(folder) or (arrays, facts)


def load(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """Arrays (memory-mapped, read-only) and facts; None where a byte is missing or changed."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["digest"] != digest_of(meta["files"], meta["facts"]):
            return None
        for name, expected in meta["files"].items():
            if file_digest(folder / f"{name}.npy") != expected:
                return None
        arrays = {name: read_array(folder / f"{name}.npy") for name in meta["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return arrays, meta["facts"]


def read_array(path: Path) -> np.ndarray:
    """Maps an array; an empty one cannot be mapped and is read."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array if array.size else np.load(path, allow_pickle=False)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(files: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """SHA-256 over what the meta file says."""
    return hashlib.sha256(json.dumps([files, facts], sort_keys=True).encode()).hexdigest()


def store(folder: Path, arrays: Arrays, facts: dict[str, Any]) -> None:
    """Writes a temporary folder beside `folder` and renames it.

    A whole folder already there is left alone, a damaged one is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        files = {}
        for name, array in arrays.items():
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                flush(file)
            files[name] = file_digest(temporary / f"{name}.npy")
        meta = {"files": files, "facts": facts, "digest": digest_of(files, facts)}
        with (temporary / "meta.json").open("w", encoding="utf-8") as text:
            json.dump(meta, text)
            flush(text)
        put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(file: Any) -> None:
    """To the disk, so that a rename that survives a crash names whole files."""
    file.flush()
    os.fsync(file.fileno())


def put(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`; another writer's equal folder will do as well."""
    for _ in range(3):
        try:
            temporary.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if load(folder) is not None:
            return
        damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(damaged / "folder")
        shutil.rmtree(damaged, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Deletes what writers that were killed more than a day ago left behind."""
    for pattern in (".making-*", ".damaged-*"):
        for left in parent.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > DAY:
                    shutil.rmtree(left, ignore_errors=True)
