"""What lies beside the arrays of a checkpoint: sums of its files, paths and shapes of its leaves.

A step exists where `<directory>/<step>/MANIFEST.json` does; `verify` says if it can be trusted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from research.errors import ConfigError, StorageError
from research.files import parse_object, storage, sync_folder, write_atomic

NAME = "MANIFEST.json"
LISTED = 5  # differences of a kind that an error names


class DamagedError(StorageError):
    """A checkpoint's files are not those that were written."""


def steps(directory: str | Path) -> list[int]:
    """The steps that have a folder under `directory`, rising."""
    directory = Path(directory)
    with storage(directory):
        names = [folder.name for folder in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def latest(directory: str | Path) -> int | None:
    """The newest step with a manifest; its other files are verified only when read."""
    return next(iter(_newest(directory)), None)


def best(directory: str | Path) -> int | None:
    """The newest step with a manifest that was saved as best."""
    marked = (step for step, content in _newest(directory).items() if content["best"])
    return next(marked, None)


def write(folder: Path, content: dict[str, Any]) -> None:
    """Describe every file under `folder`, each and all names on the disk first, then `content`."""
    names = _files(folder)
    for name in names:
        _sync(folder / name)
    for inner in {(folder / name).parent for name in names} | {folder}:
        sync_folder(inner)
    with ThreadPoolExecutor() as pool:
        files = dict(zip(names, pool.map(lambda name: _measure(folder / name), names)))
    rewrite(folder, content | {"files": files})


def rewrite(folder: Path, content: dict[str, Any]) -> None:
    """Put `content`, which names the files' sums already, in the place of the manifest."""
    write_atomic(folder / NAME, _seal(content))


def read(folder: Path) -> dict[str, Any]:
    """What the manifest says; raises `DamagedError` where a byte of it changed."""
    data = _read(folder / NAME)
    try:
        content = parse_object(data)["content"]
        intact = _seal(content) == data
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise DamagedError(f"{folder / NAME}: damaged, its checksum does not match")
    return content


def verify(folder: Path) -> dict[str, Any]:
    """What the manifest says, every file of the checkpoint being as it was written.

    Raises `DamagedError` naming the first file that is missing or differs, `StorageError` where
    the disk cannot say (no permission, too many open files).
    """
    content = read(folder)
    files = content["files"]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _measure(folder / name), files)
        for (name, written), present in zip(files.items(), found):
            if present["size"] != written["size"]:
                raise DamagedError(
                    f"{folder / name}: damaged, {present['size']} bytes of {written['size']}"
                )
            if present != written:
                raise DamagedError(f"{folder / name}: damaged, its checksum does not match")
    return content


def set_aside(folder: Path) -> Path:
    """Rename a damaged step, so that it is kept and never read; returns its new path."""
    aside, count = folder.with_name(f"{folder.name}.damaged"), 1
    while aside.exists():
        count += 1
        aside = folder.with_name(f"{folder.name}.damaged{count}")
    with storage(folder):
        folder.rename(aside)
    return aside


def remove_unfinished(directory: Path) -> None:
    """Remove what saves and deletions that were cut short have left."""
    for folder in directory.iterdir():
        if re.fullmatch(r"\d+\.(saving.*|deleting)", folder.name):
            shutil.rmtree(folder)


def leaves(tree: Any) -> dict[str, Any]:
    """Each leaf under its path, such as opt_state/0/mu/head/kernel."""
    flat = jax.tree.leaves_with_path(tree)
    found = {keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    # Orbax joins the names of a path by "." in its files.
    if len({path.replace("/", ".") for path in found}) < len(flat):
        raise TypeError("two leaves of the state have the same path, '/' and '.' being alike")
    return found


def array(path: str, leaf: Any) -> Any:
    """The leaf, as an array; raises `TypeError` for anything but numbers (typed keys too)."""
    typed_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    if typed_key or not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"{path} cannot be saved: it is no array of numbers, but {leaf!r}")
    return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def signature(leaf: Any) -> dict[str, Any]:
    """Shape and dtype, as the manifest has them."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def compare(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a `ConfigError` that lists how the tree of a checkpoint differs from the wanted one."""
    there, here = _described(stored), _described(wanted)
    both = there.keys() & here.keys()
    groups = {
        "not in the checkpoint": [f"{p} {here[p]}" for p in sorted(here.keys() - both)],
        "only in the checkpoint": [f"{p} {there[p]}" for p in sorted(there.keys() - both)],
        "different": [
            f"{p} {there[p]} in the checkpoint, {here[p]} expected"
            for p in sorted(both)
            if there[p] != here[p]
        ],
    }
    lines = []
    for title, found in groups.items():
        more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
        if found:
            lines.append(f"\n  {title}: {'; '.join(found[:LISTED])}{more}")
    if lines:
        raise ConfigError(f"{folder} holds the state of another model or optimizer{''.join(lines)}")


def _described(tree: dict[str, Any]) -> dict[str, str]:
    return {p: f"{leaf['dtype']}{leaf['shape']}" for p, leaf in tree.items()}


def encode(value: Any) -> Any:
    """The same in strict JSON; a number that is not finite becomes {"float": "nan"}."""
    if isinstance(value, dict):
        return {name: encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    return value


def decode(value: Any) -> Any:
    """The inverse of `encode` (a tuple comes back as a list)."""
    if isinstance(value, dict):
        if list(value) == ["float"]:
            return float(value["float"])
        return {name: decode(item) for name, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value


def _newest(directory: str | Path) -> dict[int, dict[str, Any]]:
    found = {}
    for step in reversed(steps(directory)):
        try:
            found[step] = read(Path(directory) / str(step))
        except DamagedError:
            continue  # `restore` reports it and sets it aside
    return found


def _seal(content: dict[str, Any]) -> bytes:
    """One text for one content, so that no changed byte can go unseen, not even a blank."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    sealed = {"content": content, "sha256": digest}
    return json.dumps(sealed, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _files(folder: Path) -> list[str]:
    found: Iterable[Path] = folder.rglob("*")
    return sorted(file.relative_to(folder).as_posix() for file in found if file.is_file())


def _measure(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return {"size": stream.tell(), "sha256": digest}
    except OSError as error:
        raise _unreadable(file, error) from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> StorageError:
    gone = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
    kind = DamagedError if error.errno in gone else StorageError
    return kind(f"{file}: {'missing' if error.errno == errno.ENOENT else error.strerror}")


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
