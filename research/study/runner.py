"""What a study is handed: a way to run configs under its own folder, each once, all on record."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research import config as configs
from research import runs
from research.config import Config
from research.errors import ConfigError
from research.replicate import replicate
from research.sweep import NotReplicatesError
from research.train import Result, run


class Runner:
    """`runner(config)` trains in `path/config.name`, or returns what an earlier call made there.

    `results` are the runs of this call in their order; results.jsonl keeps one row a run.
    """

    def __init__(self, path: str | Path, *, progress: bool = True) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.progress = progress
        self.results: list[Result] = []

    def __call__(self, config: Config) -> Result:
        return self.keep([run(config, self.path, progress=self.progress)])[0]

    def all(self, configs: Sequence[Config]) -> list[Result]:
        """The results of configs in their order: trained as one program where they differ only in
        seeds and numbers, else one by one."""
        try:
            return self.keep(replicate(configs, self.path, progress=self.progress))
        except NotReplicatesError:
            return [self(config) for config in configs]

    def keep(self, results: list[Result]) -> list[Result]:
        """Puts results on record."""
        self.results += results
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
        text = "".join(json.dumps(row) + "\n" for row in rows)
        runs.write_atomic(self.path / "results.jsonl", text.encode())
        return results

    def seconds(self) -> dict[str, float]:
        """Seconds by phase over all runs."""
        total: dict[str, float] = {}
        for result in self.results:
            for phase, value in result.summary["seconds"].items():
                total[phase] = round(total.get(phase, 0.0) + value, 1)
        return total


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
