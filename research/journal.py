"""What a run tells while it goes, and what it must remember besides its state to go on exactly."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from research import hosts
from research.errors import ConfigError
from research.runs import RunDirectory
from research.study.records import number, rises


class Clock:
    """Seconds by phase; what no phase claims is the training itself."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to `name`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    @property
    def rest(self) -> float:
        """Seconds that no phase claimed."""
        return time.monotonic() - self.started - sum(self.seconds.values())

    def summary(self) -> dict[str, float]:
        """{"total": ..., "train": ..., phase: ...}, rounded to milliseconds."""
        total = time.monotonic() - self.started
        return {
            name: round(seconds, 3)
            for name, seconds in ({"total": total, "train": self.rest} | self.seconds).items()
        }


def process_age() -> float:
    """Seconds since this process was started, its imports included (Linux; elsewhere CPU time)."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.process_time()
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def blank() -> dict[str, Any]:
    """What a journal remembers before the first step."""
    return {
        "window": {},
        "examples": 0,
        "tokens": 0,
        "train": {},
        "last": None,
        "best": None,
        "since_best": 0,
        "nonfinite": 0,
        "evaluated": -1,
    }


class Journal:
    """metrics.jsonl, TensorBoard and a progress bar; sums, best score and counts between saves.

    A line is exact over the steps since the last: totals and counts are summed, then divided. All
    that decides what is written next is in `memory`, which is saved with every checkpoint.
    """

    def __init__(self, directory: RunDirectory, steps: int, *, show: bool) -> None:
        self.directory = directory
        self.memory = blank()
        first, folder = hosts.first(), str(Path(directory.path) / "tensorboard")
        self.writer = SummaryWriter(folder, flush_secs=30, write_to_disk=first)
        self.bar = tqdm(
            total=steps,
            disable=not (show and first),
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
            delay=0.01,  # nothing is drawn of a run that is refused before its first step
        )
        self.started = time.monotonic()
        self.glance = (self.started, 0)

    def recall(self, memory: dict[str, Any], step: int) -> None:
        """Goes on from a checkpoint, or from nothing at step -1: later lines are taken back."""
        self.memory = memory
        self.glance = (time.monotonic(), memory["tokens"])
        self.directory.truncate_metrics(step)
        self.bar.update(max(step, 0) - self.bar.n)

    def add(self, means: dict[str, Any], examples: int, tokens: int, padding: float) -> None:
        """The means (on the host) of one step, with what it trained on."""
        for name, mean in means.items():
            total = self.memory["window"].setdefault(name, [0.0, 0.0])
            total[0] += float(mean.total)
            total[1] += float(mean.count)
        self.memory["examples"] += examples
        self.memory["tokens"] += tokens
        skipped = float(means["skipped"].total) > 0
        self.memory["nonfinite"] = self.memory["nonfinite"] + 1 if skipped else 0
        self.bar.update(1)
        now = time.monotonic()
        if now - self.glance[0] > 0.5:
            speed = (self.memory["tokens"] - self.glance[1]) / (now - self.glance[0])
            loss = float(means["loss"].total) / max(float(means["loss"].count), 1e-9)
            self.bar.set_postfix_str(
                f"loss {loss:.3f}, {speed:,.0f} tokens/s, {padding:.0%} padding"
            )
            self.glance = (now, self.memory["tokens"])

    def line(self, step: int, rate: float) -> None:
        """Writes the means of the window that ends with `step`, and starts the next."""
        values = {
            name: total / count if count else float("nan")
            for name, (total, count) in self.memory["window"].items()
        }
        self.memory["window"] = {}
        counts = {name: self.memory[name] for name in ("examples", "tokens")}
        self.memory["train"] = values
        self.write(step, "train", values | {"learning_rate": rate} | counts)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line of metrics, wherever metrics go."""
        seconds = time.monotonic() - self.started
        self.directory.append_metrics(step, split, values, time=round(seconds, 3))
        for name, value in values.items():
            self.writer.add_scalar(f"{split}/{name}", value, step)

    def scored(
        self, step: int, metrics: dict[str, float], details: dict[str, Any], track: str | None
    ) -> bool:
        """Remembers an evaluation; whether it is the best so far by the metric `track`."""
        memory = self.memory
        memory["evaluated"] = step
        memory["last"] = {"step": step, "metrics": metrics, "details": details}
        if track is None:
            return False
        if track not in metrics:
            raise ConfigError(f"track: no metric {track!r}, there are {', '.join(sorted(metrics))}")
        sign = 1.0 if rises(track) else -1.0
        best = number(memory["best"]["metrics"][track]) if memory["best"] else math.nan
        # A correlation may not be defined at first: any number is better than none.
        defined = math.isnan(best) and not math.isnan(metrics[track])
        if memory["best"] and not defined and not sign * metrics[track] > sign * best:
            memory["since_best"] += 1
            return False
        memory["best"] = memory["last"]
        memory["since_best"] = 0
        return True

    def say(self, text: str) -> None:
        """One line above the bar and in log.txt."""
        self.directory.log(text)
        if not self.bar.disable:
            self.bar.write(text, file=sys.stderr)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.writer.close()
