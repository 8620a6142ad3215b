"""What a study is handed: a way to run configs under its own folder, each once, all on record."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research import config as configs
from research import runs
from research.config import Config
from research.differences import differences
from research.errors import ConfigError
from research.replicate import replicate
from research.study.page import Details, Page
from research.study.records import rises
from research.study.table import Cell, Table
from research.sweep import NotReplicatesError
from research.train import Result, run

IDENTITY = ("name", "seed", "data.shot_seed")
PLANNED = Page("Planned", "nothing was trained", [])


class Unknown(dict[str, float]):
    """The metrics of a run that was only planned: every one of them is not a number."""

    def __missing__(self, name: str) -> float:
        return math.nan


class Runner:
    """`runner(config)` trains in `path/config.name`, or returns what an earlier call made there.

    A run's name is that of its arm with `-seed` at the end. `results` are the runs of this call in
    their order; results.jsonl keeps one row a run. A `dry` runner trains nothing: its results have
    no metrics but NaN, so after its last run a study asks `dry`, and returns PLANNED.
    """

    def __init__(self, path: str | Path, *, progress: bool = True, dry: bool = False) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.progress, self.dry = progress, dry
        self.results: list[Result] = []

    def __call__(self, config: Config) -> Result:
        return self.all([config])[0]

    def all(self, configs: Sequence[Config]) -> list[Result]:
        """The results of configs in their order: trained as one program where they differ only in
        seeds and numbers, else one by one."""
        if self.dry:
            for config in configs:
                config.check()
            found = [Result(one, self.path / one.name, Unknown(), {}) for one in configs]
            self.results += found
            return found
        self.results += (found := self.trained(configs))
        rows = [
            {
                "name": one.config.name,
                "seed": one.config.seed,
                "metrics": one.metrics,
                "seconds": one.summary["seconds"],
                "fingerprints": one.summary["fingerprints"],
            }
            for one in self.results
        ]
        self.write("results.jsonl", rows)
        return found

    def trained(self, configs: Sequence[Config]) -> list[Result]:
        """The results of configs, of several by one program where that can be."""
        if len(configs) > 1:
            try:
                return replicate(configs, self.path, progress=self.progress)
            except NotReplicatesError:
                pass
        return [run(config, self.path, progress=self.progress) for config in configs]

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Rows as JSON lines in the study's folder; the path, for a config's data.

        What is there already and equal is left alone, so that it counts as unchanged.
        """
        path = self.path / name
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if not path.is_file() or path.read_bytes() != text:
            runs.write_atomic(path, text)
        return str(path)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase over all runs."""
        total: dict[str, float] = {}
        for result in self.results:
            for phase, value in result.summary["seconds"].items():
                total[phase] = round(total.get(phase, 0.0) + value, 1)
        return total

    def details(self) -> Details:
        """Every run, folded: its scores, its time, and how its config differs from the first's."""
        first = configs.describe(self.results[0].config) if self.results else {}
        rows = tuple(
            (
                one.config.name,
                one.config.seed,
                scores(one.metrics),
                one.summary["seconds"]["total"],
                changes(first, configs.describe(one.config)),
            )
            for one in self.results
        )
        columns = ("run", "seed", "scores", "seconds", "differs from the first in")
        return Details(f"All {len(rows)} runs", [Table("", columns, rows)])


def arm_of(config: Config) -> str:
    """The arm that a run's name tells: the name without the seed at its end."""
    return config.name.removesuffix(f"-{config.seed}")


def scores(metrics: Mapping[str, float], most: int = 3) -> str:
    """The first scores that are better when higher, or else all there are: "dev/f1 0.912"."""
    held = {name: value for name, value in metrics.items() if not name.startswith("train/")}
    best = [name for name in held if rises(name)] or list(held)
    return ", ".join(f"{name} {held[name]:.4g}" for name in best[:most])


def changes(first: Any, other: Any) -> Cell:
    """How a described config differs from another, but for what tells one run from the next."""
    found = [
        change
        for change in differences(first, other)
        if not change.startswith(tuple(f"{name}:" for name in IDENTITY))
    ]
    return "; ".join(found) or None


def knobs(study: Callable[..., Any], arguments: list[str], prog: str) -> dict[str, Any]:
    """The keyword arguments of `study` with typed overrides, such as ["--seeds", "3"]."""
    hints = typing.get_type_hints(study)
    found = []
    for parameter in list(inspect.signature(study).parameters.values())[1:]:
        if parameter.default is parameter.empty:
            raise ConfigError(f"study: knob {parameter.name} has no default")
        found.append(
            (parameter.name, hints[parameter.name], dataclasses.field(default=parameter.default))
        )
    kind = dataclasses.make_dataclass("Knobs", found, frozen=True)
    kind.__doc__ = inspect.getdoc(study)
    settings = configs.override(kind(), arguments, prog, switches=True)
    return {name: getattr(settings, name) for name, _, _ in found}
