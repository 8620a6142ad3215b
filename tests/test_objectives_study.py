"""The study of objectives, shrunk to seconds: the same data, trunks of one size, both questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
import workshop

from experiments import objectives
from research import config as configs
from research.errors import ConfigError
from research.study.runner import Runner

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objectives")
    workshop.write_rows(path)
    rows = (path / "train.tsv").read_text().splitlines()[1:]
    (path / "text.txt").write_text("\n".join(row.split("\t")[0] for row in rows))
    return path


def test_objectives_are_learned_from_the_same_and_asked_twice(folder: Path) -> None:
    runner = Runner(folder / "study", progress=False)
    knobs: dict[str, Any] = {
        "data": str(folder / "text.txt"),
        "tokenizer": str(folder / "tokenizer.json"),
        "tasks": (f"sst2={folder / 'train.tsv'},{folder / 'dev.tsv'}",),
        "objectives": (objectives.PERMUTED, objectives.REPLACED),
        "seeds": 1,
        "steps": 2,
        "tune_steps": 2,
        "width": 16,
        "depth": 1,
        "length": 16,
    }
    study = configs.load(ROOT / "experiments" / "objectives.py", "study")
    said = study(runner, **knobs).text()
    for arm in (objectives.PERMUTED, objectives.REPLACED, objectives.NONE):
        assert arm in said
    assert "sst2, probe" in said and "sst2, fine-tuned" in said
    pretrained = [one for one in runner.results if "sst2" not in one.config.name]
    assert len(runner.results) == 5 and len(pretrained) == 2
    assert len({one.summary["tokens"] for one in pretrained}) == 1
    assert len({one.summary["fingerprints"]["data"] for one in pretrained}) == 1
    with pytest.raises(ConfigError, match="objectives: no 'guessing'"):
        study(runner, objectives=("guessing",))
    again = Runner(folder / "study", progress=False)
    assert study(again, **knobs).text().split("Cost")[0] == said.split("Cost")[0]


def test_trunks_are_of_equal_size() -> None:
    """To a hundredth at the sizes of the study, XLNet's, which is another kind, included."""
    texts = objectives.Texts(tokenizer="stdlib:4000", max_length=64)
    setting = objectives.Setting(texts, width=128, depth=2, steps=1, tune_steps=1)
    row = jax.numpy.ones((1, 8), "int32")
    batch = dict.fromkeys(("tokens", "segments", "positions", "types"), row)
    sizes = {}
    for objective in objectives.OBJECTIVES:
        trunk = setting.trunk(objective)
        shapes = jax.eval_shape(trunk.init, jax.random.key(0), batch)
        sizes[objective] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    masked = sizes.pop(objectives.MASKED)
    assert abs(sizes.pop(objectives.PERMUTED) / masked - 1) < 0.01
    assert set(sizes.values()) == {masked}


@pytest.mark.parametrize("task", ["areas=a,b", "sst2=a", "nothing=a,b", "conll2003=a,b"])
def test_tasks_that_cannot_be_asked_are_refused(task: str) -> None:
    with pytest.raises(ConfigError, match="tasks: "):
        objectives.labelled(task)
