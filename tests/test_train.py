"""Runs from end to end: idempotent, resumed bit for bit, stopped with the promised codes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from flax.traverse_util import flatten_dict

from research import initialize, runs, train
from research.adapt import HeadOnly
from research.checkpoint import load_tree
from research.errors import ConfigError, LockedError, NonFiniteError, PreemptedError, StorageError
from research.evaluate import HeldOut
from research.infer.loaded import load
from research.optim import Optim
from research.replay import replay
from research.runs import RunDirectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    workshop.write_rows(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> train.Result:
    return train.run(workshop.config(folder), folder / "whole")


def told(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl but for the time, the one thing that differs between equal runs."""
    return [{k: v for k, v in row.items() if k != "time"} for row in runs.read_metrics(path)]


def test_a_run_learns_and_says_so(whole: train.Result) -> None:
    rows = told(whole.path)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert [row["step"] for row in rows if row["split"] == "train"] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if row["split"] == "dev"] == [6, 12]
    assert losses[-1] < losses[0]
    result = runs.read_result(whole.path)
    assert result is not None
    assert result["status"] == "done"
    assert result["examples"] == 12 * 8
    assert result["tokens"] == rows[-2]["tokens"]
    assert set(result["seconds"]) >= {
        "total",
        "train",
        "startup",
        "compile",
        "data",
        "eval",
        "save",
    }
    best = max(row["accuracy"] for row in rows if row["split"] == "dev")
    assert result["metrics"]["dev/accuracy"] == best
    assert np.asarray(result["details"]["dev"]["confusion"]).sum() == 12


def test_a_done_run_is_returned_and_not_repeated(
    whole: train.Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (whole.path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(train.Loop, "run", lambda self: pytest.fail("trained again"))
    again = train.run(workshop.config(folder), folder / "whole")
    assert again.metrics == whole.metrics
    assert (whole.path / "metrics.jsonl").read_bytes() == before


def test_a_directory_of_another_config_is_refused_with_the_difference(
    whole: train.Result, folder: Path
) -> None:
    other = workshop.config(folder, optim=Optim(learning_rate=0.5, warmup=2))
    with pytest.raises(ConfigError, match=r"optim.learning_rate: 0.01 -> 0.5"):
        train.run(other, folder / "whole")


def test_two_runs_of_one_config_are_equal(whole: train.Result, folder: Path) -> None:
    again = train.run(workshop.config(folder), folder / "again")
    assert told(again.path) == told(whole.path)
    other = train.run(workshop.config(folder, seed=1), folder / "other")
    assert told(other.path) != told(whole.path)


def test_a_run_that_differs_in_seed_alone_traces_nothing(
    whole: train.Result, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(*_: Any) -> Any:
        raise AssertionError("parameters are initialised by what was compiled for another seed")

    monkeypatch.setattr(initialize, "initialize", traced)
    other = train.run(workshop.config(folder, seed=1), tmp_path)
    assert told(other.path)[0]["loss"] != told(whole.path)[0]["loss"]


@pytest.mark.parametrize("step", [1, 5, 6, 11])
def test_stopped_anywhere_it_saves_and_goes_on_bit_for_bit(
    whole: train.Result, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, cut = workshop.config(folder), folder / f"stopped{step}"
    resumed = workshop.stopped_and_resumed(config, cut, step, monkeypatch)
    assert told(resumed.path) == told(whole.path)
    last = [load_tree(path / "checkpoints", step=12) for path in (resumed.path, whole.path)]
    jax.tree.map(np.testing.assert_array_equal, *last)


def test_killed_at_random_moments_it_goes_on_bit_for_bit(folder: Path) -> None:
    # The count is kept low for the time it takes; the README names the run with many.
    count = int(os.environ.get("GRAFT_KILLS", "4"))
    moments = np.random.default_rng(count).uniform(0.3, 1.0, count)
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "crash.py"), str(folder), *map(str, moments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    verdicts = [line.rpartition(": ")[2] for line in done.stdout.splitlines()]
    assert verdicts == ["same"] * count, done.stdout + done.stderr


def test_five_steps_that_are_not_finite_end_the_run_with_a_bundle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workshop.config(
        folder, name="nan", optim=Optim(learning_rate=1e30, warmup=0, clip=None), steps=40
    )
    with pytest.raises(NonFiniteError, match="replay") as caught:
        train.run(config, folder / "nan")
    assert caught.value.exit_code == 3
    means = replay(folder / "nan" / "nan")
    assert means["skipped"] == 1.0
    assert not np.isfinite(means["loss"])
    # Elsewhere there are other devices: three, which the rows cannot be spread over.
    few = jax.devices()[:3]
    monkeypatch.setattr(jax, "devices", lambda: few)
    np.testing.assert_equal(replay(folder / "nan" / "nan"), means)


def test_resuming_on_changed_rows_is_refused(folder: Path, tmp_path: Path) -> None:
    workshop.write_rows(tmp_path)
    stop = workshop.config(tmp_path, steps=4)

    class Stopped(train.Loop):
        def finish(self) -> dict[str, Any]:
            self.checkpoints.close()
            raise PreemptedError("before the result")

    real, train.Loop = train.Loop, Stopped  # type: ignore[misc]
    try:
        with pytest.raises(PreemptedError):
            train.run(stop, tmp_path)
    finally:
        train.Loop = real  # type: ignore[misc]
    rows = (tmp_path / "train.tsv").read_text().splitlines()
    (tmp_path / "train.tsv").write_text("\n".join([rows[0], *rows[2:], rows[1]]) + "\n")
    with pytest.raises(ConfigError, match="training data changed"):
        train.run(stop, tmp_path)


def test_a_second_trainer_is_refused(whole: train.Result, folder: Path) -> None:
    with RunDirectory.open(folder / "busy" / "tiny"), pytest.raises(LockedError):
        train.run(workshop.config(folder), folder / "busy")


def test_a_trunk_transfers_and_a_frozen_one_stays(whole: train.Result, folder: Path) -> None:
    source = flatten_dict(load_tree(whole.path / "checkpoints", step=12), sep="/")
    config = workshop.config(
        folder, name="grafted", init_from=str(whole.path), adapt=HeadOnly(), steps=3
    )
    result = train.run(config, folder)
    grafted = flatten_dict(load_tree(result.path / "checkpoints"), sep="/")
    best = flatten_dict(load(whole.path).params, sep="/")
    for path, leaf in grafted.items():
        frozen = path.startswith("backbone/") and "pooler" not in path
        assert np.array_equal(leaf, best[path]) == frozen, path
    assert source.keys() == grafted.keys()


def test_a_trunk_of_another_shape_is_refused(whole: train.Result, folder: Path) -> None:
    config = workshop.config(folder, name="misfit", init_from=str(whole.path))
    spec = dataclasses.replace(config.task.backbone.spec, width=24, heads=2)
    config = dataclasses.replace(
        config, task=config.task.clone(backbone=config.task.backbone.clone(spec=spec))
    )
    with pytest.raises(ConfigError, match=r"backbone/.*(16|24)"):
        train.run(config, folder)


def test_early_stopping_ends_after_patience(folder: Path) -> None:
    config = workshop.config(
        folder,
        name="patient",
        optim=Optim(learning_rate=0.0, warmup=0),
        eval_every=2,
        patience=2,
    )
    result = train.run(config, folder)
    assert result.summary["steps"] == 6
    assert result.summary["checkpoint"] == "checkpoints/2"


def test_evaluation_counts_each_example_once_whatever_the_batch(
    whole: train.Result, folder: Path
) -> None:
    model = load(whole.path).model()
    scores = [HeldOut(batch_size=n)(model).numbers for n in (1, 5, 12, 64)]
    for other in scores[1:]:
        assert other.keys() == scores[0].keys()
        for name, value in scores[0].items():
            assert other[name] == pytest.approx(value, abs=1e-6), name


def test_a_full_disk_is_a_storage_error_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *arguments: Any, **options: Any) -> None:
        raise StorageError("metrics.jsonl: No space left on device")

    config = workshop.config(folder, name="full")
    monkeypatch.setattr(RunDirectory, "append_metrics", full)
    with pytest.raises(StorageError, match="No space left"):
        train.run(config, folder)
    monkeypatch.undo()
    done = train.run(config, folder)
    assert done.summary["status"] == "done"
    assert json.loads((done.path / "result.json").read_text())["steps"] == 12
