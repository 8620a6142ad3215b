"""Gradual unfreezing when dev stalls: what waits stays, each stall thaws one block more, in one
program, and a run that was stopped anywhere goes on bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workshop
from flax.traverse_util import flatten_dict, unflatten_dict
from test_strategies import SCANNED, TWO, bare, states

from research import runs, train
from research.checkpoint import load_tree
from research.errors import ConfigError, PreemptedError
from research.evaluate import HeldOut, Scores
from research.infer.loaded import load
from research.models.transformer import Transformer
from research.replicate import replicate
from research.strategies import Full, GradualUnfreeze
from research.strategies.blocks import levels_of
from research.strategies.merge import merge

STALL = Full() | GradualUnfreeze(patience=1)


@pytest.mark.parametrize("thawed", [0, 1, 2, 3])
def test_each_thaw_lets_one_level_more_learn(thawed: int) -> None:
    rules = STALL.rules(bare_and(TWO, thawed))
    for path in bare_and(TWO, thawed):
        if path != "thawed":
            assert rules[path].stage == max(3 - levels_of(path, 2)[0], 0), path
    before = bare_and(TWO, thawed)
    found = states(TWO, STALL, unflatten_dict(before, sep="/"), 1)[0][0]
    after = flatten_dict(found.params, sep="/")
    moved = {levels_of(p, 2)[0] for p, x in after.items() if not np.array_equal(x, before[p])}
    assert moved == set(range(3 - thawed, 4))


def bare_and(task: Any, thawed: int) -> dict[str, np.ndarray]:
    """Parameters by path, with so many thaws."""
    return flatten_dict(bare(task), sep="/") | {"thawed": np.float32(thawed)}


def test_a_scanned_stack_thaws_layer_by_layer() -> None:
    before = bare_and(SCANNED, 1)
    found = states(SCANNED, STALL, unflatten_dict(before, sep="/"), 1)[0][0]
    path = "backbone/blocks/mlp/up/kernel"
    now = flatten_dict(found.params, sep="/")[path]
    assert [not np.array_equal(now[i], before[path][i]) for i in (0, 1)] == [False, True]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told(HeldOut):
    """An evaluator whose score is a function of how often it was asked by a run of 12 steps: it
    rises once, and from then on it falls at every second evaluation."""

    scores: tuple[float, ...] = (0.1, 0.2, 0.2, 0.2, 0.3, 0.3)

    def __call__(self, model: Any) -> Scores:
        found = super().__call__(model)
        step = ASKED.setdefault("step", 0)
        return Scores(found.numbers | {"accuracy": self.scores[step // 2 - 1]}, found.details)


ASKED: dict[str, int] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thaw")
    workshop.write_rows(path)
    return path


@pytest.fixture
def tells(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = train.Loop.evaluate

    def evaluate(self: train.Loop) -> bool:
        ASKED["step"] = self.step
        return usual(self)

    monkeypatch.setattr(train.Loop, "evaluate", evaluate)


def config(folder: Path, **changes: Any) -> Any:
    plain = workshop.config(folder)
    spec = dataclasses.replace(plain.task.backbone.spec, depth=2)
    changes = {"adapt": STALL, "evals": (Told(batch_size=5),)} | changes
    task = plain.task.clone(backbone=Transformer(spec))
    return workshop.config(folder, task=task, eval_every=2, save_every=1, keep=12, **changes)


def thawed(path: Path, step: int) -> float:
    return float(load_tree(path / "checkpoints", "", step)["params"]["thawed"])


def test_a_run_thaws_as_its_scores_stall_and_resumes_bit_for_bit(
    folder: Path, tells: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.run(config(folder), folder / "whole")
    # Evaluations after steps 2 to 12: better, better, worse, worse, better, worse.
    assert [thawed(whole.path, step) for step in range(1, 13)] == [0] * 5 + [1, 1] + [2] * 4 + [3]
    result = json.loads((whole.path / "result.json").read_text())
    assert result["compiled"] == 1, "a thaw is no new program"
    first, last = (flatten_dict(load_tree(whole.path / "checkpoints", "params", s), sep="/")
                   for s in (6, 7))  # fmt: skip
    moved = {levels_of(p, 2)[0] for p, x in last.items() if not np.array_equal(x, first[p])}
    assert moved == {2, 3}
    # Stopped in the middle of the evaluation that thaws: its step is stored before it is scored.
    usual = Told.__call__

    def stopping(self: Told, model: Any) -> Scores:
        if ASKED["step"] == 6 and not (folder / "stopped.once").exists():
            (folder / "stopped.once").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, model)

    monkeypatch.setattr(Told, "__call__", stopping)
    for _ in range(2):
        with pytest.raises(PreemptedError):
            train.run(config(folder), folder / "cut")
        monkeypatch.setattr(Told, "__call__", usual)
        advance = train.Loop.advance

        def stop_at_once(self: train.Loop, batch: Any, advance: Any = advance) -> Any:
            if self.step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return advance(self, batch)

        monkeypatch.setattr(train.Loop, "advance", stop_at_once)
    monkeypatch.setattr(train.Loop, "advance", advance)
    resumed = train.run(config(folder), folder / "cut")
    ended, again = (flatten_dict(load_tree(r.path / "checkpoints", "", 12), sep="/")
                    for r in (whole, resumed))  # fmt: skip
    for path, leaf in ended.items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
    told = [[{k: v for k, v in row.items() if k != "time"} for row in runs.read_metrics(r.path)]
            for r in (whole, resumed)]  # fmt: skip
    assert told[0] == told[1]
    assert "thawed" not in merge(load(whole.path).params)


def test_what_cannot_be_meant_is_refused(folder: Path, tmp_path: Path) -> None:
    for changes in ({"track": None}, {"evals": ()}):
        with pytest.raises(ConfigError, match=r"patience=1.* needs evals, and track"):
            config(folder, **changes).check()
    leaves = flatten_dict(bare(TWO), sep="/")
    for strategy in (GradualUnfreeze((1, 2), patience=1), GradualUnfreeze(patience=0)):
        with pytest.raises(ConfigError, match="patience is at least 1, and excludes at"):
            strategy.rules(leaves)
    with pytest.raises(ConfigError, match="or else set patience"):
        GradualUnfreeze().rules(leaves)
    pair = [config(folder, name=name, seed=seed) for seed, name in enumerate("ab")]
    with pytest.raises(ConfigError, match="replicates share their state"):
        replicate(pair, tmp_path)
