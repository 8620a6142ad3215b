"""Averages of parameters: the recursion, what is evaluated, resuming, and soups."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import workshop
from flax.traverse_util import flatten_dict

from research import average, runs, train
from research.adapt import HeadOnly
from research.checkpoint import load_tree
from research.errors import ConfigError
from research.evaluate import HeldOut
from research.infer.loaded import load
from research.optim import Optim
from research.soup import soup

sys.path.insert(0, str(Path(__file__).parents[1]))
import launch

EMA = Optim(learning_rate=1e-2, warmup=2, ema=0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    workshop.write_rows(path)
    return path


@pytest.fixture(scope="module")
def averaged(folder: Path) -> train.Result:
    config = workshop.config(folder, name="ema", optim=EMA, save_every=1, keep=12)
    return train.run(config, folder)


def flat(path: Path, prefix: str, step: int) -> dict[str, np.ndarray]:
    return flatten_dict(load_tree(path / "checkpoints", prefix, step), sep="/")


def test_the_average_forgets_where_it_started_and_skips_what_is_not_finite() -> None:
    rng, decay = np.random.default_rng(0), 0.9
    points = [{"kernel": rng.normal(size=3)} for _ in range(7)]
    held = average.start({"kernel": jnp.asarray(points[0]["kernel"])})
    taken: list[np.ndarray] = []
    for number, point in enumerate(points[1:]):
        finite = number != 2
        held = average.follow(held, {"kernel": jnp.asarray(point["kernel"])}, decay, finite)
        taken += [point["kernel"]] if finite else []
    weights = decay ** np.arange(len(taken))[::-1]
    np.testing.assert_allclose(
        held.params["kernel"], np.average(taken, axis=0, weights=weights), rtol=1e-5
    )
    assert int(held.count) == len(taken)


def test_a_run_averages_its_parameters_after_each_step(averaged: train.Result) -> None:
    found, total, weight = flat(averaged.path, "ema/params", 12), None, 0.0
    for step in range(1, 13):
        params = flat(averaged.path, "params", step)
        total = {p: 0.7 * (total[p] if total else 0.0) + params[p] for p in params}
        weight = 0.7 * weight + 1.0
    assert total is not None
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, total[path] / weight, rtol=1e-5, atol=1e-7)


def test_the_average_is_what_is_evaluated_and_loaded(averaged: train.Result) -> None:
    loaded = load(averaged.path)
    step = int(averaged.summary["checkpoint"].rpartition("/")[2])
    jax.tree.map(
        np.testing.assert_array_equal,
        flatten_dict(loaded.params, sep="/"),
        flat(averaged.path, "ema/params", step),
    )
    numbers = HeldOut(batch_size=5)(loaded.model()).numbers
    assert numbers["loss"] == pytest.approx(averaged.metrics["dev/loss"], rel=1e-6)
    raw = dataclasses.replace(loaded, params=load_tree(averaged.path / "checkpoints", step=step))
    assert HeldOut(batch_size=5)(raw.model()).numbers["loss"] != numbers["loss"]


def test_an_average_changes_neither_the_steps_nor_what_a_run_without_one_keeps(
    averaged: train.Result, folder: Path
) -> None:
    plain = train.run(workshop.config(folder, save_every=12), folder / "plain")
    assert set(load_tree(plain.path / "checkpoints", "")) == {"step", "params", "opt_state"}
    with_average, without = (flat(r.path, "params", 12) for r in (averaged, plain))
    for path, leaf in without.items():
        # A bias of keys has no gradient but rounding, which Adam makes steps of.
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(with_average[path], leaf, rtol=1e-5, atol=1e-7)


def test_only_what_learns_is_averaged_and_resuming_is_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workshop.config(folder, optim=EMA, adapt=HeadOnly(), steps=8, eval_every=4)
    unbroken = train.run(config, folder / "unbroken")
    assert {path.split("/")[0] for path in flat(unbroken.path, "ema/params", 8)} == {
        "head",
        "backbone",
    }
    assert not [p for p in flat(unbroken.path, "ema/params", 8) if "block" in p]

    resumed = workshop.stopped_and_resumed(config, folder / "stopped", 5, monkeypatch)
    last = [load_tree(r.path / "checkpoints", "", 8) for r in (unbroken, resumed)]
    jax.tree.map(np.testing.assert_array_equal, *last)


def test_a_soup_is_the_mean_and_is_read_as_a_run(
    averaged: train.Result, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train.run(workshop.config(folder, name="other", seed=1), folder)
    paths = [str(averaged.path), str(other.path)]
    target = folder / "soup"
    assert launch.main(["soup", *paths, "--to", str(target)]) == 0
    parts = [flatten_dict(load(path).params, sep="/") for path in paths]
    for path, leaf in flatten_dict(load(target).params, sep="/").items():
        np.testing.assert_allclose(leaf, (parts[0][path] + parts[1][path]) / 2, atol=1e-7)
    capsys.readouterr()
    assert launch.main(["evaluate", str(target)]) == 0
    assert "dev/accuracy" in capsys.readouterr().out
    assert runs.read_config(target)["soup"] == paths
    with pytest.raises(ConfigError, match="exists already"):
        soup(paths, target)


def test_runs_of_different_tasks_or_tokenizers_are_not_mixed(
    averaged: train.Result, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        soup([averaged.path], tmp_path / "soup")
    config = workshop.config(folder, name="smooth", steps=3)
    config = dataclasses.replace(config, task=config.task.clone(label_smoothing=0.1))
    other = train.run(config, tmp_path)
    with pytest.raises(ConfigError, match=r"different tasks \(task.label_smoothing: 0.0 -> 0.1\)"):
        soup([averaged.path, other.path], tmp_path / "soup")
    runs_of_one_task = [averaged.path, tmp_path / "copy"]
    shutil.copytree(*runs_of_one_task)
    tokenizer = tmp_path / "copy" / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(ConfigError, match="different tokenizers"):
        soup(runs_of_one_task, tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
