"""Several processes that are one run: how they meet, who writes, what all must agree upon."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.errors import ConfigError, GraftError, HangError, StorageError
from research.runs import RunDirectory, StopSignal

# A process that was not heard of for so many seconds is dead, and all others end.
SILENCE = 20


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[None]:
    """Within the block this process is one of several, where it was started as one of several.

    It is `process` of `processes`, which meet at the address `coordinator` of the first; what is
    None is read from GRAFT_COORDINATOR, GRAFT_PROCESSES and GRAFT_PROCESS. With none of them JAX
    asks the launcher (see `launched`). All but the first print nothing. Raises ConfigError for
    values that cannot go together. To be entered before JAX has met its devices.
    """
    coordinator = coordinator or os.environ.get("GRAFT_COORDINATOR")
    processes = number("GRAFT_PROCESSES", processes)
    process = number("GRAFT_PROCESS", process)
    told = {coordinator, processes, process} != {None}
    if processes == 1 or not (told or launched()):
        yield
        return
    meet(coordinator, processes, process)
    with contextlib.ExitStack() as stack:
        if not first():
            silent = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(silent))
        yield


def number(variable: str, given: int | None) -> int | None:
    """`given`, or the number that an environment variable holds."""
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    if not text.isdecimal():
        raise ConfigError(f"{variable} is {text!r}, but must be a number")
    return int(text)


def launched() -> bool:
    """Whether a launcher that JAX knows started this process as one of several: srun, Open MPI,
    an indexed job of Kubernetes, or a slice of Cloud TPUs, of which one host is a slice too."""
    known = os.environ.get
    several = (
        int(known(f"{name}", "1")) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    # JAX sets the first where it finds the chips, the second where it does not.
    tpu = known("TPU_ML_PLATFORM") == "JAX" and known("TPU_SKIP_MDS_QUERY") is None
    pod = "," in known("TPU_PROCESS_ADDRESSES", known("TPU_WORKER_HOSTNAMES", ""))
    job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    return any(several) or tpu or pod or job


def meet(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Starts JAX's service in the first process and connects all others to it."""
    known = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in known.items() if value is None]
    if 0 < len(missing) < 3:
        raise ConfigError(
            f"hosts: {' and '.join(missing)} must be given too: --coordinator HOST:PORT, "
            "--processes N and --process I go together"
        )
    if coordinator is not None and not re.fullmatch(r"\S+:\d+", coordinator):
        raise ConfigError(f"hosts: --coordinator {coordinator} is not HOST:PORT")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ConfigError(f"hosts: --process {process} is not one of 0 to {processes - 1}")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if coordinator else None,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"hosts: the processes do not meet: {error}") from None


def alone() -> bool:
    """Whether this process is the whole run."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def first() -> bool:
    """Whether this process is the one that writes."""
    return alone() or jax.process_index() == 0


def own(file: Path) -> Path:
    """A file that each process has for itself: stacks.txt, stacks-1.txt, ..."""
    return file if first() else file.with_stem(f"{file.stem}-{jax.process_index()}")


def add_up(values: np.ndarray) -> Any:
    """The sum over all processes of arrays of one shape; it is not waited for."""
    if alone():
        return values
    mesh, total = adding()
    where = NamedSharding(mesh, PartitionSpec("process"))
    with jax.set_mesh(mesh):
        return total(jax.make_array_from_process_local_data(where, values[None]))


def whole(array: jax.Array) -> np.ndarray:
    """All of an array, wherever its pieces lie; every process must ask."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    found: np.ndarray = multihost_utils.process_allgather(array, tiled=True)
    return found


@functools.cache
def adding() -> tuple[Mesh, Any]:
    """A mesh with an axis of processes, and the program that adds along it."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    grid = np.array(devices).reshape(jax.process_count(), -1)
    mesh = Mesh(grid, ("process", "device"), axis_types=(AxisType.Auto,) * 2)
    whole = NamedSharding(mesh, PartitionSpec())
    return mesh, jax.jit(lambda x: x.sum(0), out_shardings=whole)


def gathered(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order."""
    if alone():
        return [value]
    text = np.frombuffer(json.dumps(value, default=float).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    # Powers of two, so that few sizes are ever compiled.
    room = 1 << int(sizes.max() - 1).bit_length()
    rows = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def agreed(act: Callable[[], Any]) -> Any:
    """What `act` gives the first process, a JSON value; only there it is called.

    The GraftError that it raises there is raised in every process.
    """
    if alone():
        return act()
    value, error = None, None
    if first():
        try:
            value = act()
        except GraftError as raised:
            error = raised
    raise_together(error)
    return gathered(value)[0]


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """The block runs in the first process, then in the others: these find what it left in a cache.

    A GraftError of one is raised in all. In the block they cannot compute anything together.
    """
    if alone():
        yield
        return
    error = None
    if not first():
        raise_together(None)
    try:
        yield
    except GraftError as raised:
        error = raised
    raise_together(error)
    if first():
        raise_together(None)


def raise_together(error: GraftError | None) -> None:
    """Raises in every process what any of them comes here with."""
    told = gathered(None if error is None else [error.exit_code, str(error)])
    if error is not None:
        raise error
    for code, text in filter(None, told):
        raise {kind.exit_code: kind for kind in GraftError.__subclasses__()}[code](text)


class AgreedStop:
    """A StopSignal that all processes hear at the same place, whichever of them it was sent to.

    Each asks at the same places of its program. What any was told by then, all hear when they ask
    next: nobody waits for an answer that is not there yet.
    """

    def __init__(self, signal: StopSignal) -> None:
        self.signal = signal
        self.asked: Any = None
        self.heard = False

    @property
    def requested(self) -> bool:
        """Whether to stop here."""
        if alone():
            return self.signal.requested
        before, self.asked = self.asked, add_up(np.array([self.signal.requested], np.int32))
        if before is not None:
            self.heard |= bool(np.asarray(before)[0])
        return self.heard


class Onlooker(RunDirectory):
    """A run directory that another process writes."""

    def write_config(self, config: dict[str, Any]) -> None:
        """Left to the first process, as is all else."""

    def append_metrics(self, step: int, split: str, values: dict[str, float], time: float) -> None:
        """Nothing."""

    def truncate_metrics(self, step: int) -> None:
        """Nothing."""

    def write_result(self, result: dict[str, Any]) -> None:
        """Nothing."""

    def log(self, text: str) -> None:
        """Nothing."""


@contextlib.contextmanager
def open_run(path: Path) -> Iterator[RunDirectory]:
    """`RunDirectory.open` in the first process, whose errors all raise; Onlookers in the others."""
    with contextlib.ExitStack() as stack:
        found: list[RunDirectory] = [] if first() else [Onlooker(path)]
        agreed(lambda: found.append(stack.enter_context(RunDirectory.open(path))))
        yield found[0]


@contextlib.contextmanager
def bound(report: Callable[[str], None]) -> Iterator[None]:
    """Ends this process where the block fails in it alone: the others would be waited for, and wait
    themselves for what does not come.

    Exit codes are those of the errors; HangError's where another process is gone, which shows in
    a computation that fails.
    """
    try:
        yield
    except Exception as error:
        # All but a disk that refuses comes to every process at the same step.
        if alone() or (isinstance(error, GraftError) and not isinstance(error, StorageError)):
            raise
        leave(report, error)


def leave(report: Callable[[str], None], error: Exception) -> NoReturn:
    """Says why, and exits without waiting for anybody."""
    code, sentence = getattr(error, "exit_code", 1), " ".join(str(error).split())
    # What the runtime refuses is a ValueError too, and begins with its status.
    if isinstance(error, jax.errors.JaxRuntimeError) or re.match(r"[A-Z_]{6,}: ", sentence):
        code, sentence = (
            HangError.exit_code,
            f"the others, or the way to them, fail: {sentence[:200]}",
        )
    elif not isinstance(error, GraftError):
        traceback.print_exception(error)
    sentence = f"process {jax.process_index()}: {sentence}"
    with contextlib.suppress(StorageError):
        report(sentence)
    print(f"graft: {sentence}", file=sys.stderr, flush=True)
    os._exit(code)
