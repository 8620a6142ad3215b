"""Replicates: each is the run that it would be alone, whatever it shares with the others."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop

from research import runs, train
from research.checkpoint import load_tree
from research.config import Config
from research.errors import ConfigError, NonFiniteError, PreemptedError
from research.infer.loaded import load
from research.optim import Optim
from research.replicate import Group, replicate
from research.strategies import LayerDecay, LoRA
from research.study.runner import Runner
from research.sweep import Grid, NotReplicatesError, expand


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
    for config, result in zip(configs[1:3], together[1:3]):
        alone = train.run(config, folder / "alone")
        assert result.config == alone.config
        assert_same_lines(result.path, alone.path)
        assert result.metrics == pytest.approx(alone.metrics, rel=1e-5, abs=1e-5)
        assert result.summary["examples"] == alone.summary["examples"]
        assert result.summary["fingerprints"] == alone.summary["fingerprints"]


def test_stopped_they_go_on_bit_for_bit_and_losses_of_others_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three diverges: it fails as it would alone, and leaves the others as they are."""
    configs = variants(folder, (0,), (1e-2, 3e-3, 1e30))
    configs = [
        dataclasses.replace(c, optim=dataclasses.replace(c.optim, clip=9.0)) for c in configs
    ]
    with pytest.raises(NonFiniteError, match=r"seed0-1e\+30"):
        replicate(configs, folder / "whole")
    before = [told(folder / "whole" / config.name) for config in configs]

    def advance(self: Group, batches: Any) -> Any:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches)

    original = Group.advance
    with monkeypatch.context() as patch:
        patch.setattr(Group, "advance", advance)
        with pytest.raises(PreemptedError, match="saved at step 4"):
            replicate(configs, folder / "stopped")
    # As after a crash between two saves: what another lacks is not gone on from.
    shutil.rmtree(folder / "stopped" / configs[0].name / "checkpoints" / "4")
    with pytest.raises(NonFiniteError):
        replicate(configs, folder / "stopped")
    assert [told(folder / "stopped" / config.name) for config in configs] == before
    folders = [folder / name / configs[1].name for name in ("stopped", "whole")]
    last = [load_tree(path / "checkpoints", step=12) for path in folders]
    jax.tree.map(np.testing.assert_array_equal, *last)
    assert load(folders[0]).model().params.keys() == {"backbone", "head"}
    assert [one.path for one in replicate(configs[:2], folder / "whole")] == [
        folder / "whole" / config.name for config in configs[:2]
    ]
    assert_same_lines(folders[0], train.run(configs[1], folder / "others").path)


def test_a_frozen_trunk_is_held_once_and_strategies_numbers_are_swept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[Group] = []
    original = Group.prepare

    def prepare(self: Group) -> None:
        groups.append(self)
        original(self)

    monkeypatch.setattr(Group, "prepare", prepare)
    base = workshop.config(folder, steps=3, data_seed=5, log_every=1, eval_every=3)
    source = train.run(dataclasses.replace(base, name="source"), folder).path
    base = dataclasses.replace(base, init_from=str(source), batch_size=9)
    strategies = [LoRA(rank=2, alpha=alpha) | LayerDecay(0.5) for alpha in (2.0, 32.0)]
    configs = [
        dataclasses.replace(base, name=f"lora{seed}-{i}", seed=seed, adapt=adapt)
        for i, adapt in enumerate(strategies)
        for seed in (0, 1)
    ]
    results = replicate(configs, folder / "frozen")
    alone = train.run(configs[3], folder / "frozen-alone")
    assert_same_lines(results[3].path, alone.path)
    assert groups[0].grid.sizes == (1, 2, 2)
    shared, own = groups[0].state["shared"], groups[0].state["own"].params
    assert shared["backbone/embed/table"].shape == (80, 16)
    assert all(path.startswith(("head/", "backbone/pooler/")) or "lora_" in path for path in own)
    assert own["head/kernel"].shape == (4, 16, 2)
    (compiled,) = groups[0].program.executables.values()
    # Memory of one device, over which the state is spread or copied.
    spread = groups[0].mesh.shape["replicate"]
    size = sum(x.nbytes for x in shared.values()) + sum(
        x.nbytes // spread for x in jax.tree.leaves(groups[0].state["own"])
    )
    rest = groups[0].batches[0].batch(0)
    bound = size + sum(x.nbytes for x in rest.values()) + 4096
    assert size <= compiled.memory_analysis().argument_size_in_bytes <= bound


def test_what_cannot_share_a_program_is_refused_by_name_and_run_alone(folder: Path) -> None:
    one = workshop.config(folder, steps=4, name="one", eval_every=4)
    half = dataclasses.replace(one, optim=Optim(warmup=0.5))
    late = dataclasses.replace(half, name="two", optim=Optim(warmup=0.25))
    with pytest.raises(NotReplicatesError, match=r"optim.warmup decides"):
        replicate([half, late], folder / "static")
    for other, said in (
        (dataclasses.replace(one, name="two", batch_size=4), "batch_size"),
        (one, "two are called 'one'"),
    ):
        with pytest.raises(NotReplicatesError, match=said):
            replicate([one, other], folder / "refused")
    runner = Runner(folder / "runner", progress=False)
    other = dataclasses.replace(one, name="two", batch_size=4)
    assert [result.config.name for result in runner.all([one, other])] == ["one", "two"]
    assert len((folder / "runner" / "results.jsonl").read_text().splitlines()) == 2


def test_a_command_line_expands_to_a_grid(folder: Path) -> None:
    one = workshop.config(folder)
    made = expand(one, (3, 4), ["optim.learning-rate=1e-5,3e-5", "optim.weight-decay=0.5"])
    assert [config.seed for config in made] == [3, 3, 4, 4]
    assert made[1].name == "tiny-seed3-learning-rate=3e-5-weight-decay=0.5"
    assert [config.optim.learning_rate for config in made] == [1e-5, 3e-5] * 2
    assert Grid.of(made).sizes == (2, 1, 2)
    assert Grid.of(made[:3]).sizes == (3, 1, 1)
    with pytest.raises(ConfigError, match=r"did you mean --optim\.learning-rate"):
        expand(one, (), ["optim.learnin-rate=1"])
