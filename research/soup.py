"""Soups: the mean of the models of several runs that started from one point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from research import average, manifest, runs
from research import config as configs
from research.checkpoint import Checkpoints
from research.differences import differences
from research.errors import ConfigError
from research.results import keep_tokenizer


def soup(paths: Sequence[str | Path], target: str | Path) -> Path:
    """A directory with the mean of several runs' models (Wortsman et al., 2022), read as a run is.

    Each counts with its best checkpoint, or its newest. Raises ConfigError where there are fewer
    than two, where they differ in task, tokenizer or parameters, and where `target` exists.
    """
    sources, target = [Path(path) for path in paths], Path(target)
    if len(sources) < 2:
        raise ConfigError("soup: give at least two runs")
    if target.exists():
        raise ConfigError(f"{target}: exists already; choose another place for the soup")
    first = runs.read_config(sources[0])
    for path in sources[1:]:
        same_model(sources[0], path, first["config"], runs.read_config(path)["config"])
    total: dict[str, np.ndarray] = {}
    for path in sources:
        saved = path / "checkpoints"
        flat = flatten_dict(average.load(saved, manifest.best(saved)), sep="/")
        if total and jax.tree.map(np.shape, flat) != jax.tree.map(np.shape, total):
            raise ConfigError(f"{path}: has other parameters than {sources[0]}")
        for name, leaf in flat.items():
            total[name] = total.get(name, 0.0) + leaf.astype(np.float64) / len(sources)
    params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in total.items()}
    config = configs.build(first["config"] | {"name": target.name})
    with runs.RunDirectory.open(target) as directory:
        described = {"config": configs.describe(config), "fingerprint": configs.fingerprint(config)}
        directory.write_config(described | {"soup": [str(path) for path in sources]})
        keep_tokenizer(config, target)
        with Checkpoints(target / "checkpoints") as checkpoints:
            checkpoints.save(0, {"params": unflatten_dict(params, sep="/")}, {}, wait=True)
    return target


def same_model(first: Path, other: Path, ours: Any, theirs: Any) -> None:
    """Raises ConfigError where the parameters of two runs do not mean the same."""
    changes = differences(ours["task"], theirs["task"], "task")
    if changes:
        raise ConfigError(f"{first} and {other} are of different tasks ({'; '.join(changes[:3])})")
    tokenizers = [path / "tokenizer" / "tokenizer.json" for path in (first, other)]
    if all(map(Path.is_file, tokenizers)) and len({file.read_bytes() for file in tokenizers}) > 1:
        raise ConfigError(f"{first} and {other} have different tokenizers")
