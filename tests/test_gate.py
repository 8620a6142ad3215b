"""The gate before float8: runs begin where their losses are those of bfloat16, and nowhere else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import workshop

from research import gate, train
from research.config import build, describe
from research.errors import ConfigError
from research.regularize import Objective
from research.terms.consistency import RDrop


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    workshop.write_rows(path)
    return path


def eight(folder: Path, **changes):
    """The tiny run with products in eight bits."""
    config = workshop.config(folder, **changes)
    spec = dataclasses.replace(config.task.backbone.spec, dtype="float8")
    backbone = config.task.backbone.clone(spec=spec)
    return dataclasses.replace(config, task=config.task.clone(backbone=backbone))


def test_a_run_says_how_far_apart_they_are_and_trains_on(folder, tmp_path) -> None:
    result = train.run(eight(folder), tmp_path)
    log = (tmp_path / "tiny" / "log.txt").read_text("utf-8")
    assert "float8: over steps 7 to 12 the mean loss is" in log
    assert result.summary["steps"] == 12


def test_what_differs_is_refused_before_anything_is_trained(folder, tmp_path) -> None:
    with pytest.raises(ConfigError, match="float8_tolerance, 1e-09, apart; take dtype bfloat16"):
        train.run(eight(folder, float8_tolerance=1e-9), tmp_path)
    assert not (tmp_path / "tiny" / "result.json").exists()
    assert not list((tmp_path / "tiny" / "checkpoints").glob("*"))


def test_every_dtype_of_eight_bits_is_widened_and_nothing_else(folder) -> None:
    config = eight(folder)
    task = Objective(task=config.task, terms=RDrop())
    described = describe(dataclasses.replace(config, task=task))
    wider = build(gate.widened(described))
    assert wider.task.task.backbone.spec.dtype == "bfloat16"
    assert json.dumps(describe(wider)) == json.dumps(described).replace('"float8"', '"bfloat16"')
    plain = describe(workshop.config(folder))
    assert gate.widened(plain) == plain
