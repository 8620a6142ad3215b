"""Trains in several processes of this machine: run by test_hosts.py in a process of its own.

    python together.py FOLDER SCENARIO...

All is imported once, before any backend exists, for all forks. Each scenario prints a JSON line:
{"name", "codes", "apart", "told"}, exit codes and what each process printed, and the seconds
between the first end and the last.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import jax
import workshop

import launch
from research import train
from research.data.batches import Batches
from research.errors import StorageError
from research.study import report  # noqa: F401  (slow, and all forks need it)

CONFIG = """
from pathlib import Path
import workshop

def config():
    return workshop.config(Path({folder!r}), steps=24, eval_every=12, save_every=4)
"""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def end_at(step: int, how: int | Exception) -> None:
    """This process gets a signal, or raises an exception, when it has dispatched `step`."""
    taken = train.Loop.taken

    def taken_then(self: Any, *arguments: Any) -> bool:
        due = taken(self, *arguments)
        if self.step == step and isinstance(how, Exception):
            raise how
        if self.step == step:
            # To this thread: another one may get to it steps later.
            signal.raise_signal(how)  # type: ignore[arg-type]
        return due

    train.Loop.taken = taken_then  # type: ignore[method-assign]


def note_ids(file: Path) -> None:
    """Keeps the row ids of every batch that this process makes."""
    batch = Batches.batch

    def noted(self: Batches, step: int) -> Any:
        made = batch(self, step)
        if self.shuffled:
            ids = made["ids"][made["ids"] >= 0].tolist()
            with file.open("a") as lines:
                print(json.dumps([step, ids]), file=lines)
        return made

    Batches.batch = noted  # type: ignore[method-assign]


def child(told: Path, ends: Any, arguments: list[str], devices: int) -> int:
    """Forks a process that runs `launch.py`; what it prints goes to the file `told`."""
    pid = os.fork()
    if pid:
        return pid
    with told.open("wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
        os.dup2(file.fileno(), sys.stdout.fileno())
    jax.config.update("jax_num_cpu_devices", devices)
    note_ids(told.with_suffix(f"{told.suffix}.ids"))
    if ends is not None:
        end_at(*ends)
    sys.exit(launch.main(arguments))


def scenario(
    folder: Path,
    name: str,
    processes: int,
    *,
    workdir: str = "",
    ends: tuple[int, int, int | Exception] | None = None,
    more: tuple[str, ...] = (),
    odd: tuple[str, ...] = (),
) -> None:
    """Runs `processes` of two devices in all; `ends` is (process, step, how), `more` are arguments
    of all and `odd` of the last."""
    port, pids = free_port(), []
    for process in range(processes):
        arguments = ["train", str(folder / "tiny.py"), *more]
        arguments += ["--workdir", str(folder / (workdir or name))]
        arguments += ["--processes", str(processes), "--process", str(process)]
        arguments += ["--coordinator", f"localhost:{port}"]
        arguments += odd if process == processes - 1 else ()
        if name == "replayed":
            arguments = ["replay", str(folder / "infinite" / "tiny")]
        end = ends[1:] if ends is not None and ends[0] == process else None
        pids.append(child(folder / f"{name}.{process}", end, arguments, 2 // processes))
    ended, codes = [], {}
    for _ in pids:
        pid, status = os.wait()
        ended.append(time.monotonic())
        codes[pid] = os.waitstatus_to_exitcode(status)
    row = {
        "name": name,
        "codes": [codes[pid] for pid in pids],
        "apart": ended[-1] - ended[0],
        "told": [(folder / f"{name}.{process}").read_text() for process in range(processes)],
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "tiny.py").write_text(CONFIG.format(folder=str(folder)))
    workshop.write_rows(folder)
    absent, full = str(folder / "absent.tsv"), StorageError("the disk is full")
    cut = {"workdir": "cut", "more": ("--mesh.fsdp", "2")}
    known: dict[str, dict[str, Any]] = {
        "one": {"processes": 1},
        "two": {"processes": 2},
        # One run, that goes on where it was cut off; its parameters lie in pieces on both.
        "stopped": {"processes": 2, **cut, "ends": (1, 3, signal.SIGTERM)},
        "first_dies": {"processes": 2, **cut, "ends": (0, 9, signal.SIGKILL)},
        "last_dies": {"processes": 2, **cut, "ends": (1, 11, signal.SIGKILL)},
        "one_goes_on": {"processes": 1, **cut},
        "other_seed": {"processes": 2, "odd": ("--seed", "1")},
        "no_data": {"processes": 2, "odd": ("--data.train", absent)},
        "full": {"processes": 2, "ends": (1, 3, full)},
        "infinite": {"processes": 2, "more": ("--optim.learning-rate", "1e38")},
        "replayed": {"processes": 1},
    }
    for name in sys.argv[2:]:
        scenario(folder, name, **known[name])


if __name__ == "__main__":
    main()
