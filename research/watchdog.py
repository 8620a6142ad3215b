"""A run that no longer moves ends itself: a hung collective or file system holds no machine."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from research.errors import HangError


class Watchdog:
    """Within the `with` block, ends the process where `beat` is not called for `seconds`.

    A thread that hangs cannot raise, so the process exits with HangError's code after `report` has
    had one sentence and `stacks` the place where every thread stood. What was saved stays saved,
    and the kernel drops the run's lock.
    """

    def __init__(self, seconds: float, stacks: Path, report: Callable[[str], None]) -> None:
        self.seconds, self.stacks, self.report = seconds, stacks, report
        self.last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Says that the run moves."""
        self.last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            idle = time.monotonic() - self.last
            if idle > self.seconds:
                with self.stacks.open("w", encoding="utf-8") as file:
                    faulthandler.dump_traceback(file)
                sentence = f"no progress for {idle:.0f} s; where each thread stood: {self.stacks}"
                self.report(sentence)
                print(f"graft: {sentence}", file=sys.stderr, flush=True)
                os._exit(HangError.exit_code)

    def __enter__(self) -> Self:
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
