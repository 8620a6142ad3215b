"""Loss spikes: found, taken back, passed over; and the run stays a function of its config."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import workshop

from research import runs, train
from research.checkpoint import load_tree
from research.config import Config, override
from research.errors import ConfigError
from research.spikes import Others, SpikeError, Spikes
from research.tasks.classify import Classify

BATCH, STEPS = 4, 12  # one epoch of the workshop's 48 rows
WATCH = Spikes(window=3, sigma=4.0, patience=2)


class Poisoned(Classify):
    """A classification whose loss is a hundredfold where a batch holds the example `bad`."""

    bad: int = -1

    def __call__(self, batch: Any, *, train: bool) -> Any:
        means = super().__call__(batch, train=train)
        factor = jnp.where(jnp.any(batch["ids"] == self.bad), 100.0, 1.0) if train else 1.0
        loss = means["loss"]
        return means | {"loss": dataclasses.replace(loss, total=loss.total * factor)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    workshop.write_rows(path)
    return path


def poisoned(folder: Path, step: int, **changes: Any) -> Config:
    """A run in which the batch of one step is poisoned."""
    config = workshop.config(
        folder, batch_size=BATCH, steps=STEPS, save_every=3, eval_every=6, spikes=WATCH
    )
    config = dataclasses.replace(config, **changes)
    batches = config.data.open("train", BATCH, steps=STEPS, seed=config.seed)
    bad = int(batches.examples_of(step)[0])
    task = Poisoned(backbone=config.task.backbone, labels=("fruit", "metal"), bad=bad)
    return dataclasses.replace(config, task=task)


def told(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time"} for row in runs.read_metrics(path)]


@pytest.fixture(scope="module")
def whole(folder: Path) -> train.Result:
    return train.run(poisoned(folder, 7), folder / "whole")


def test_a_spike_is_taken_back_and_its_batches_are_passed_over(
    whole: train.Result, folder: Path
) -> None:
    (spike,) = whole.summary["spikes"]["rewound"]
    assert (spike["step"], spike["from"]) == (7, 6)
    assert spike["loss"] > spike["bound"]
    assert whole.summary["spikes"]["endured"] == []
    losses = [row["loss"] for row in told(whole.path) if row["split"] == "train"]
    assert len(losses) == STEPS // 3
    assert max(losses) < 3.0
    assert whole.summary["steps"] == STEPS
    assert "going back" in (whole.path / "log.txt").read_text()
    # It is the run that never met those batches.
    steps = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 0, 1]
    clean = dataclasses.replace(poisoned(folder, 7, spikes=None), name="clean")

    class Chosen(Others):
        def batch(self, step: int) -> Any:
            return self.batches.batch(steps[step])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Others", Chosen)
        other = train.run(clean, folder)
    last = [load_tree(result.path / "checkpoints", step=STEPS) for result in (whole, other)]
    jax.tree.map(np.testing.assert_array_equal, *last)
    assert told(other.path) == told(whole.path)


@pytest.mark.parametrize(("time", "step"), [(1, 8), (2, 6), (2, 8), (1, 10)])
def test_killed_before_or_after_a_rewind_it_goes_on_bit_for_bit(
    whole: train.Result, folder: Path, time: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It dies when it comes to `step` for this time; that step 7 spiked is seen once 8 is under way.
    seen: list[int] = []

    def advance(self: train.Loop, batch: Any) -> Any:
        seen.append(self.step)
        if seen.count(step) == time:
            raise KeyboardInterrupt
        return original(self, batch)

    original = train.Loop.advance
    monkeypatch.setattr(train.Loop, "advance", advance)
    workdir = folder / f"killed{time}-{step}"
    with pytest.raises(KeyboardInterrupt):
        train.run(poisoned(folder, 7), workdir)
    monkeypatch.undo()
    resumed = train.run(poisoned(folder, 7), workdir)
    assert told(resumed.path) == told(whole.path)
    assert resumed.summary["spikes"] == whole.summary["spikes"]
    last = [load_tree(result.path / "checkpoints", "", STEPS) for result in (resumed, whole)]
    jax.tree.map(np.testing.assert_array_equal, *last)


def test_before_the_first_checkpoint_it_starts_again(folder: Path) -> None:
    config = poisoned(folder, 4, save_every=STEPS, eval_every=STEPS, name="early")
    result = train.run(config, folder)
    (spike,) = result.summary["spikes"]["rewound"]
    assert (spike["step"], spike["from"]) == (4, 0)
    assert result.summary["examples"] == BATCH * STEPS


def test_without_patience_a_spike_is_trained_through_and_told(folder: Path) -> None:
    spikes = dataclasses.replace(WATCH, patience=0)
    result = train.run(poisoned(folder, 7, spikes=spikes, name="endured"), folder)
    assert result.summary["spikes"]["rewound"] == []
    assert [spike["step"] for spike in result.summary["spikes"]["endured"]] == [7]


def test_only_a_full_window_finds_a_spike_and_its_bound_is_mean_plus_sigma() -> None:
    memory: dict[str, Any] = {}
    losses = [3.0, 1.0, 2.0, 2.0, 1.5]
    for step, loss in enumerate(losses):
        Spikes(window=4, sigma=3.0).watch(memory, loss, step, 100)
    last = np.asarray(losses[-4:])
    bound = last.mean() + 3.0 * last.std()
    Spikes(window=4, sigma=3.0).watch(copy.deepcopy(memory), bound * 0.999, 5, 100)
    with pytest.raises(SpikeError) as caught:
        Spikes(window=4, sigma=3.0).watch(memory, bound * 1.001, 5, 100)
    assert caught.value.found["bound"] == pytest.approx(bound)


def test_batches_passed_over_never_come_again() -> None:
    class Numbers:
        def batch(self, step: int) -> int:
            return step

    spikes = [{"from": 2, "step": 4}, {"from": 2, "step": 2}, {"from": 8, "step": 9}]
    others = Others(Numbers(), {"spikes": {"rewound": spikes}}, 10)
    taken = [others.batch(step) for step in range(10)]
    # 2 3 4, then 5 are passed over; of 0 1 6 7 8 9, steps 8 and 9 would come to 6 and 7 again.
    assert taken == [0, 1, 8, 9, 0, 1, 8, 9, 0, 1]


def test_the_command_line_asks_for_it(folder: Path) -> None:
    config = workshop.config(folder)
    changed = override(config, ["--spikes", "spikes", "--spikes.sigma", "5"], "train")
    assert changed.spikes == Spikes(sigma=5.0)
    assert override(changed, ["--spikes", "None"], "train").spikes is None
    with pytest.raises(ConfigError, match="window >= 2"):
        override(config, ["--spikes=spikes", "--spikes.window", "1"], "train").check()
    with pytest.raises(ConfigError, match="no 'lyon', there are adafactor, adamw, lamb"):
        override(config, ["--optim.rule", "lyon"], "train")
