"""Replicates: each is the run that it would be alone, whatever it shares with the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workshop

from research import runs, train
from research.config import Config
from research.optim import Optim
from research.replicate import replicate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    workshop.write_rows(path)
    return path


def variants(
    folder: Path, seeds: Sequence[int], rates: Sequence[float], **changes: Any
) -> list[Config]:
    """A tiny run with every seed and learning rate."""
    return [
        workshop.config(
            folder,
            name=f"seed{seed}-{rate}",
            seed=seed,
            optim=Optim(learning_rate=rate, warmup=2),
            **changes,
        )
        for seed in seeds
        for rate in rates
    ]


def told(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time"} for row in runs.read_metrics(path)]


def assert_same_lines(path: Path, other: Path) -> None:
    ours, theirs = told(path), told(other)
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs):
        assert one.pop("split") == two.pop("split")
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)


def test_seeds_and_rates_equal_runs_one_by_one(folder: Path) -> None:
    configs = variants(folder, (0, 1), (1e-2, 3e-3))
    together = replicate(configs, folder / "together")
    for config, result in zip(configs, together):
        alone = train.run(config, folder / "alone")
        assert result.config == alone.config
        assert_same_lines(result.path, alone.path)
        assert result.metrics == pytest.approx(alone.metrics, rel=1e-5, abs=1e-5)
        assert result.summary["examples"] == alone.summary["examples"]
        assert result.summary["fingerprints"] == alone.summary["fingerprints"]
