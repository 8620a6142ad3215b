"""A run directory: one writer, files that are whole or absent, metrics that survive a crash.

    <run>/config.json      the resolved config
         /metrics.jsonl    {"step", "split", "time", name: value, ...}, one object a line
         /result.json      written once, at the end
         /log.txt          lines for people, each with its time (UTC)
         /lock             process and host of the writer, whose death releases it

JSON is strict: a number that is not finite is written as the string "nan", "inf" or "-inf", and
read back as a float wherever it is a metric.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from research import __version__
from research.errors import ConfigError, StorageError
from research.files import (
    append,
    dump,
    locked,
    parse_object,
    read_object,
    storage,
    write_atomic,
    write_json,
)

NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
RESERVED = ("step", "split", "time")


class RunDirectory:
    """The writer's side of a run: hold it open for as long as the run writes.

    Every method raises `StorageError`, naming the file and the reason, where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path) -> Iterator[Self]:
        """Make the directory where it is missing and hold its lock.

        Raises `LockedError`, at once and naming the process, where another writer holds it. The
        kernel drops the lock with its process, however that dies.
        """
        path = Path(path)
        with storage(path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path / "lock"):
            yield cls(path)

    @property
    def config(self) -> dict[str, Any] | None:
        """The resolved config, or None in a new run."""
        return read_object(self.path / "config.json")

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json, atomically."""
        write_json(self.path / "config.json", config)

    def append_metrics(self, step: int, split: str, values: dict[str, float], time: float) -> None:
        """Add one line to metrics.jsonl and hand it to the kernel; `time` is in seconds.

        Append the lines of a step before its checkpoint is saved: then a resumed run's file is
        the uninterrupted run's. Raises `ValueError` where a value has a reserved name.
        """
        for name in RESERVED:
            if name in values:
                raise ValueError(f"a metric cannot be called {name!r}")
        numbers = {name: float(value) for name, value in values.items()}
        line = dump({"step": step, "split": split, "time": time, **numbers})
        append(self.path / "metrics.jsonl", line)

    def truncate_metrics(self, step: int) -> None:
        """Drop, atomically, every line of a step later than `step`, and a torn last line."""
        file = self.path / "metrics.jsonl"
        lines = _metric_lines(file)
        kept = [line for line, row in lines if row["step"] <= step]
        text = b"".join(line + b"\n" for line in kept)
        with storage(file):
            changed = file.exists() and file.read_bytes() != text
        if changed:
            write_atomic(file, text)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        return [row for _, row in _metric_lines(self.path / "metrics.jsonl")]

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, atomically."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """What the run ended with, or None where it has not ended."""
        return _result(self.path)

    def log(self, text: str) -> None:
        """Append `text` to log.txt under the present time."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        append(self.path / "log.txt", f"{stamp} {text}\n".encode())


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of any run, without its lock; `ConfigError` where `path` is not a run."""
    config = read_object(Path(path) / "config.json")
    if config is None:
        raise ConfigError(f"{path} is not a run: config.json is missing")
    return config


def read_result(path: str | Path) -> dict[str, Any] | None:
    """result.json of any run, without its lock, None before its end; `ConfigError` as above."""
    read_config(path)
    return _result(Path(path))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """metrics.jsonl of any run, without its lock, also while it grows; `ConfigError` as above."""
    read_config(path)
    return [row for _, row in _metric_lines(Path(path) / "metrics.jsonl")]


class StopSignal:
    """Within the `with` block SIGTERM and SIGINT ask for a stop; loops poll `requested`.

    A second SIGINT raises `KeyboardInterrupt`. Outside the main thread, where Python allows no
    handler, nothing is installed and `requested` stays False.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: installed from outside Python, which signal.signal cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt


def environment() -> dict[str, Any]:
    """What the figures of a run depend on beside its config: versions and hardware."""
    import flax
    import jax
    import jaxlib
    import numpy
    import optax

    from research.models.products import product_dtype

    versions = {m.__name__: m.__version__ for m in (jax, jaxlib, flax, optax, numpy)}
    devices = jax.devices()
    kind, products = devices[0].device_kind, product_dtype("auto").name
    return {
        "versions": {"python": platform.python_version(), "graft": __version__, **versions},
        "device": {"kind": kind, "count": len(devices), "products": products},
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count()},
    }


def code_fingerprint(root: str | Path = Path(__file__).parent) -> str:
    """SHA-256 over the names and bytes of every .py file under `root` (by default, research/)."""
    root = Path(root)
    total = hashlib.sha256()
    for file in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
        name = file.relative_to(root).as_posix().encode()
        # Each part is hashed alone, so that text cannot move from one file to the next unseen.
        total.update(hashlib.sha256(name).digest() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def peak_memory_mb() -> float:
    """The most host memory this process has held, in MB (10^6 bytes)."""
    # Linux: ru_maxrss is inherited from the process that started this one, VmHWM is not.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere: getrusage(2).
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _metrics(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: NON_FINITE.get(value, value)
        if isinstance(value, str) and name not in RESERVED
        else value
        for name, value in values.items()
    }


def _metric_lines(file: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each whole line with what it says; a last line cut short by a crash is left out."""
    with storage(file):
        # Only b"\n" ends a line: str.splitlines would cut a name at U+2028.
        lines = file.read_bytes().split(b"\n") if file.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append((line, _metrics(_metric_row(line))))
        except ValueError as error:
            if number < len(lines):
                raise StorageError(f"{file}:{number}: not a line of metrics: {error}") from error
    return rows


def _metric_row(line: bytes) -> dict[str, Any]:
    row = parse_object(line)
    if type(row.get("step")) is not int:
        raise ValueError("its step is missing")
    return row


def _result(path: Path) -> dict[str, Any] | None:
    result = read_object(path / "result.json")
    if result is not None and isinstance(result.get("metrics"), dict):
        result["metrics"] = _metrics(result["metrics"])
    return result


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
