"""Trains, is killed, goes on: run by test_train.py in a process of its own.

    python crash.py FOLDER MOMENT...

A MOMENT is the share of an unbroken run's time after which a child that trains is killed with
SIGKILL; the run is then resumed. JAX is imported once, before any backend exists, for all forks.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import workshop

from research import runs
from research.manifest import latest
from research.train import run


def child(folder: Path, workdir: Path) -> int:
    """Starts a process that trains there."""
    pid = os.fork()
    if pid == 0:
        try:
            run(workshop.config(folder, steps=40, eval_every=10, save_every=4), workdir)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def lines(workdir: Path) -> list[dict[str, object]]:
    """metrics.jsonl without the one thing that may differ: the time."""
    rows = runs.read_metrics(workdir / "tiny")
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def main() -> None:
    folder = Path(sys.argv[1])
    os.waitpid(child(folder, folder / "unbroken-warm"), 0)
    started = time.monotonic()
    os.waitpid(child(folder, folder / "unbroken"), 0)
    span = time.monotonic() - started
    expected = lines(folder / "unbroken")
    for number, share in enumerate(map(float, sys.argv[2:])):
        workdir = folder / f"killed{number}"
        pid = child(folder, workdir)
        time.sleep(share * span)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        saved = latest(workdir / "tiny" / "checkpoints")
        _, resumed = os.waitpid(child(folder, workdir), 0)
        same = resumed == 0 and lines(workdir) == expected
        how = "killed" if os.WIFSIGNALED(status) else "ended"
        print(f"{share} {how}, saved step {saved}: {'same' if same else 'different'}")


if __name__ == "__main__":
    main()
