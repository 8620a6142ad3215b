"""Checkpoints that are whole or absent: Orbax arrays under a manifest of SHA-256 sums.

    <directory>/<step>/                 Orbax's files, as nested dicts named by tree path
              /<step>/MANIFEST.json     sums of those files; path, shape, dtype of each leaf; meta
              /<step>.damaged           a step that did not verify, kept for people to look at
              /<step>.saving..., <step>.deleting     unfinished; removed when next opened

A folder gets its name `<step>` last, after its files and its manifest are on the disk: Orbax
neither checks arrays when it reads them nor notices that an asynchronous save failed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from research import manifest
from research.errors import ConfigError, StorageError
from research.files import storage, sync_folder
from research.manifest import DamagedError, best, steps

FILE_SIZE = 128 << 20  # of Orbax's data files: several, so that threads can share the hashing
PART_SIZE = 1 << 20  # of what several devices hold: to cut off less takes longer than to write


@dataclass(frozen=True)
class Restored:
    """A state that was read back, its step, and the meta that was saved with it."""

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpoints:
    """The writer's side of a folder of checkpoints; construct it under the run's lock.

    A save runs in the background, on a copy of the state that is taken before `save` returns, so
    that the state may be donated at once. What goes wrong there is raised, as `StorageError`, by
    the next `poll`, `save`, `wait` or `close`; earlier checkpoints stay. Kept are the `keep` newest
    steps and the newest that was saved as best. Every process of a multi-host run must make the
    same calls, on a shared disk.
    """

    def __init__(
        self, directory: str | Path, keep: int = 2, *, report: Callable[[str], None] = print
    ) -> None:
        if keep < 1:
            raise ConfigError(f"keep must be at least 1, not {keep}: a run resumes from it")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.report = report
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        with storage(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                manifest.remove_unfinished(self.directory)

    @property
    def best(self) -> int | None:
        """The newest step that was saved as best."""
        return self._agree(best(self.directory) if jax.process_index() == 0 else None)

    def save(
        self,
        step: int,
        state: Any,
        meta: dict[str, Any],
        *,
        best: bool = False,
        wait: bool = False,
    ) -> None:
        """Store `state`, a pytree of arrays, as `step`, with `meta`, which JSON can hold.

        A step that is stored already keeps its arrays, being a function of config and step; only
        its meta changes, and it may become the best. Raises `StorageError`, `ConfigError` where
        the step holds another tree, `TypeError` where a leaf is not an array.
        """
        self.wait()
        leaves = {path: manifest.array(path, leaf) for path, leaf in manifest.leaves(state).items()}
        tree = {path: manifest.signature(leaf) for path, leaf in leaves.items()}
        content = {"step": step, "best": best, "meta": manifest.encode(meta), "tree": tree}
        json.dumps(content, allow_nan=False)  # fails here rather than in the background
        if self._agree(self._update(step, content) if jax.process_index() == 0 else None) == step:
            return
        filled = {path: leaf for path, leaf in leaves.items() if leaf.size}
        target = self.directory / f"{step}.saving"
        with self._unfinished(step), _options():
            response = ocp.save_async(target, unflatten_dict(filled, sep="/"))
        self._pending = self._pool.submit(self._finish, step, target, response, content)
        if wait:
            self.wait()

    def poll(self) -> None:
        """Raise what a save that has ended ended with; do not wait for one that runs."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save that runs; raises `StorageError` where it failed."""
        if (pending := self._pending) is None:
            return
        try:
            pending.result()
        finally:
            if pending.done():
                self._pending = None

    def close(self) -> None:
        """`wait`, and end the background thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except StorageError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def restore(self, abstract_state: Any, latest: int | None = None) -> Restored | None:
        """The newest step, up to `latest`, that verifies, on the shardings of `abstract_state`.

        Leaves of `abstract_state` are `jax.ShapeDtypeStruct`; one without a sharding goes to the
        first device. A damaged step is reported, renamed and passed over. None where none is left.
        Raises `ConfigError`, listing the differences, where path, shape or dtype of a leaf differs.
        """
        self.wait()
        step = self._agree(self._newest_whole(latest) if jax.process_index() == 0 else None)
        if step is None:
            return None
        folder = self.directory / str(step)
        content = manifest.read(folder)
        wanted = manifest.leaves(abstract_state)
        manifest.compare(
            folder, content["tree"], {p: manifest.signature(leaf) for p, leaf in wanted.items()}
        )
        placed = {path: _placed(leaf) for path, leaf in wanted.items()}
        found = _read(folder, {path: leaf for path, leaf in placed.items() if leaf.size})
        leaves = [found[p] if p in found else _empty(leaf) for p, leaf in placed.items()]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return Restored(step, state, manifest.decode(content["meta"]))

    def _newest_whole(self, latest: int | None) -> int | None:
        stored = steps(self.directory)
        for step in reversed([s for s in stored if latest is None or s <= latest]):
            folder = self.directory / str(step)
            try:
                manifest.verify(folder)
            except DamagedError as damage:
                name = manifest.set_aside(folder).name
                self.report(f"{damage}; kept as {name}, going on from an older step")
            else:
                return step
        return None

    def _agree(self, step: int | None) -> int | None:
        if jax.process_count() == 1:
            return step
        chosen = multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step))
        return None if chosen < 0 else int(chosen)

    def _update(self, step: int, content: dict[str, Any]) -> int | None:
        """`step` where it is stored already, and then its meta and best mark brought up to date."""
        folder = self.directory / str(step)
        if not folder.exists():
            return None
        try:
            stored = manifest.read(folder)
        except DamagedError as damage:
            self.report(f"{damage}; kept as {manifest.set_aside(folder).name}, and saved anew")
            return None
        manifest.compare(folder, stored["tree"], content["tree"])
        content = content | {"best": content["best"] or stored["best"], "files": stored["files"]}
        if content != stored:
            manifest.rewrite(folder, content)
        return step

    def _finish(self, step: int, target: Path, response: Any, content: dict[str, Any]) -> None:
        """In the background: wait for Orbax, seal the folder, name it, drop what is old."""
        with self._unfinished(step):
            response.result()
            if jax.process_index() != 0:
                return
            manifest.write(target, content)
            target.rename(self.directory / str(step))
            sync_folder(self.directory)
        with storage(self.directory):
            self._retain()

    @contextlib.contextmanager
    def _unfinished(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # A full disk stays full for as long as the remains lie there.
            with contextlib.suppress(OSError):
                manifest.remove_unfinished(self.directory)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise StorageError(
                f"{self.directory / str(step)}: the checkpoint could not be written: {reason}"
            ) from error

    def _retain(self) -> None:
        marked = best(self.directory)
        for step in steps(self.directory)[: -self.keep]:
            if step != marked:
                going = self.directory / f"{step}.deleting"
                (self.directory / str(step)).rename(going)
                shutil.rmtree(going)


def load_tree(
    directory: str | Path, prefix: str = "params", step: int | None = None
) -> dict[str, Any]:
    """The arrays below `prefix`, as nested dicts of numpy arrays, of a step that verifies.

    Reads nothing else, writes nothing and needs no lock. `step` is by default the newest that
    verifies; `prefix` "" is the whole tree. Raises `ConfigError` where there is no such step or
    no such prefix, `StorageError` where the step is damaged, or every step is.
    """
    folder, tree = whole(Path(directory).absolute(), step)
    inside = [path for path in tree if not prefix or f"{path}/".startswith(f"{prefix}/")]
    if not inside:
        tops = sorted({path.partition("/")[0] for path in tree})
        raise ConfigError(f"{folder} has nothing below {prefix!r}; it has {', '.join(tops)}")
    # A view of a single number: shape and dtype at no memory.
    scalars = {path: np.empty((), jax.numpy.dtype(tree[path]["dtype"])) for path in inside}
    wanted = {p: np.broadcast_to(scalar, tree[p]["shape"]) for p, scalar in scalars.items()}
    found = _read(folder, {path: leaf for path, leaf in wanted.items() if leaf.size})
    nested = unflatten_dict({path: found.get(path, wanted[path]) for path in inside}, sep="/")
    for name in filter(None, prefix.split("/")):
        nested = nested[name]
    return nested


def whole(directory: Path, step: int | None) -> tuple[Path, dict[str, Any]]:
    """The folder of a step that verifies (None is the newest), and shape and dtype by path."""
    stored = steps(directory)
    if not stored or step not in (None, *stored):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ConfigError(f"{directory} holds {wanted}; its steps are {stored}")
    for candidate in reversed(stored if step is None else [step]):
        folder = directory / str(candidate)
        try:
            return folder, manifest.verify(folder)["tree"]
        except DamagedError as error:
            damage = error
    raise damage


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """What Orbax cannot store: an array without elements."""
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)


def _read(folder: Path, leaves: dict[str, Any]) -> dict[str, Any]:
    try:
        with _options():
            nested = ocp.load(folder, unflatten_dict(leaves, sep="/")) if leaves else {}
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder}: verified, yet Orbax cannot read it: {error}") from error
    return flatten_dict(nested, sep="/")


def _options() -> ocp.Context:
    """Uncompressed, in files of `FILE_SIZE`; a part of a tree may be read."""
    context = ocp.Context()
    # Trained float32 shrinks by 8 % and takes twice the processor time.
    context.array_options.saving.use_compression = False
    context.array_options.saving.ocdbt_target_data_file_size = FILE_SIZE
    context.array_options.saving.min_slice_bytes_for_replica_parallel = PART_SIZE
    # Otherwise a process that ends in mid-save without `close` waits five minutes for a folder.
    context.async_options.create_directories_asynchronously = False
    context.pytree_options.loading.partial_load = True
    return context
