"""What a run left behind, read from its directory alone."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from research.errors import ConfigError, StorageError

Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
NOT_FINITE = {None: math.nan, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A run read back: `history[split][name]` is (steps [N], values [N]), in order of steps.

    `config` is the described config, {} values where a file is not there yet: a run that is still
    going, or that died, has no result.
    """

    path: Path
    config: dict[str, Any]
    history: dict[str, dict[str, Curve]]
    result: dict[str, Any]
    audit: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.result.get("name") or self.config.get("name") or self.path.name)

    @property
    def metrics(self) -> dict[str, float]:
        """The result's metrics, or the last logged ones of an unfinished run: {"dev/loss": ...}."""
        if "metrics" in self.result:
            return {name: number(value) for name, value in self.result["metrics"].items()}
        return {
            f"{split}/{name}": float(values[-1])
            for split, curves in self.history.items()
            for name, (_, values) in curves.items()
        }

    def scores(self) -> list[str]:
        """Names of the evaluated metrics, the tracked one first, losses last."""
        track = self.config.get("track")
        names = [name for name in self.metrics if not name.startswith("train/")]
        return sorted(names, key=lambda name: (name != track, not rises(name)))


def rises(metric: str) -> bool:
    """Whether more of it is better."""
    falling = ("loss", "perplexity", "nll", "error", "brier", "bits_per_byte")
    return not metric.rsplit("/", 1)[-1].endswith(falling)


def read(path: str | Path) -> Record:
    """A run directory's record.

    Raises ConfigError where `path` holds no config.json, StorageError for a file that is not JSON.
    """
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} has no config.json; expected the directory of a run.")
    described = _object(directory / "config.json")
    return Record(
        path=directory,
        config=described.get("config", described),
        history=read_history(directory / "metrics.jsonl"),
        result=_object(directory / "result.json"),
        audit=_object(directory / "audit.json"),
    )


def read_history(file: Path) -> dict[str, dict[str, Curve]]:
    """metrics.jsonl by split and name; the last line for a step wins, a torn last line is left out.

    Raises StorageError naming file and line for any other line that is not a JSON object.
    """
    if not file.is_file():
        return {}
    lines = _bytes(file).split(b"\n")
    points: dict[str, dict[str, dict[int, float]]] = {}
    for count, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step, split = int(row["step"]), str(row["split"])
        except (ValueError, KeyError, TypeError) as error:
            if count == len(lines):
                continue  # the writer was killed inside this line
            raise StorageError(
                f"{file}:{count}: expected a JSON object with step and split ({error})."
            ) from error
        for name, value in row.items():
            if name not in ("step", "split", "time") and _numeric(value):
                points.setdefault(split, {}).setdefault(name, {})[step] = number(value)
    return {
        split: {name: _curve(values) for name, values in names.items()}
        for split, names in points.items()
    }


def number(value: Any) -> float:
    """A logged value as a float; null, "nan", "inf" and "-inf" stand for what JSON cannot say."""
    key = value.lower() if isinstance(value, str) else value
    return NOT_FINITE[key] if key in NOT_FINITE else float(value)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key: {"optim": {"rate": 1}} -> {"optim.rate": 1}; lists of scalars stay."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def _numeric(value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() not in NOT_FINITE):
        return False
    return value is None or isinstance(value, int | float | str)


def _curve(points: dict[int, float]) -> Curve:
    steps = sorted(points)
    values = [points[step] for step in steps]
    return np.asarray(steps, np.float64), np.asarray(values, np.float64)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}.") from error


def _object(file: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file; a list becomes {"parameters": list}."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(_bytes(file))
    except ValueError as error:
        raise StorageError(f"{file} is not JSON: {error}.") from error
    if isinstance(found, list):
        return {"parameters": found}
    if not isinstance(found, dict):
        raise StorageError(f"{file} holds {type(found).__name__}; expected a JSON object.")
    return found
