"""Strategies in configs, audits and runs: said, refused, resumed, transferred, exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from flax.traverse_util import flatten_dict, unflatten_dict
from test_step import SPEC, batch_of

from research import config as configs
from research import initialize, train
from research.checkpoint import load_tree
from research.errors import ConfigError
from research.infer.loaded import load
from research.models.pretrained import peft
from research.models.recurrent import Recurrent, RecurrentSpec
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.step import init_state, make_step
from research.strategies import (
    IA3,
    Adapter,
    BitFit,
    DecayToInit,
    Frozen,
    Full,
    GradualUnfreeze,
    HeadOnly,
    LayerDecay,
    LoRA,
    Prefix,
    Prompt,
    ReinitTop,
)
from research.strategies.merge import merge
from research.tasks.classify import Classify

TASK = Classify(backbone=Transformer(SPEC), labels=("a", "b", "c"))
BILSTM = TASK.clone(backbone=Recurrent(RecurrentSpec(vocab_size=60, word_width=8, width=16)))
ROWS = batch_of([[9, 8, 7], [5, 12]])
LORA = LoRA(rank=2, dropout=0.1)


def abstract(task: Any, strategy: Any) -> Any:
    return initialize.abstract_params(task, ROWS, MeshSpec().build(jax.devices()[:1]), strategy)


def test_composed_strategies_are_written_read_and_overridden(tmp_path: Path) -> None:
    config = workshop.config(tmp_path, adapt=LoRA(rank=8) | LayerDecay(0.9) | Frozen(("embed",)))
    assert configs.build(configs.describe(config)) == config
    flags = ["--adapt.left.left.rank", "4", "--adapt.left.right.factor", "0.5"]
    changed = configs.override(config, [*flags, "--adapt.right.patterns", "a", "b"], "test")
    assert changed.adapt == LoRA(rank=4) | LayerDecay(0.5) | Frozen(("a", "b"))
    assert configs.fingerprint(changed) != configs.fingerprint(config)


@pytest.mark.parametrize(
    ("task", "strategy", "said"),
    [
        (TASK, Frozen(("nothing",)), "'nothing' matches no parameter"),
        (TASK, Frozen(("(",)), "no regular expression"),
        (TASK, LoRA(targets=("attention/", "feed")), "'feed' matches no kernel of the trunk"),
        (TASK, LoRA(rank=0), "rank is at least 1"),
        (TASK, Full() | Frozen((".",)), "no parameter learns"),
        (TASK, Full() | LoRA(), "contradict"),
        (TASK, LoRA() | LoRA(targets=("query",)), r"block_0/attention/query/lora_a twice"),
        (TASK, Prefix(2) | Prefix(3), "prefix_key twice"),
        (TASK, LayerDecay(0.9) | LayerDecay(0.5), "LayerDecay twice"),
        (TASK, LayerDecay(1.5), "factor"),
        (TASK, GradualUnfreeze((3, 2)), "ascending"),
        (TASK, GradualUnfreeze((1, 2, 3, 4)), "4 steps for 2 blocks"),
        (TASK, HeadOnly() | DecayToInit(), "needs parameters of the trunk that learn"),
        (BILSTM, Prefix(4), "attention"),
        (BILSTM, Adapter(), "Transformer blocks"),
        (BILSTM, IA3(), "needs a trunk with"),
        (BILSTM, Prompt(4), "Recurrent has no use for backbone/prompt"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(task: Any, strategy: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        abstract(task, strategy)


@pytest.mark.parametrize("scan", [False, True])
def test_layer_decay_is_its_formula(scan: bool) -> None:
    task = TASK.clone(backbone=Transformer(dataclasses.replace(SPEC, scan=scan)))
    rules = LayerDecay(0.5).rules(flatten_dict(abstract(task, LayerDecay(0.5)), sep="/"))
    expected = {"embed/table": 0.125, "embedding_norm/scale": 0.125, "pooler/kernel": 1.0}
    if scan:
        assert rules["backbone/blocks/mlp/up/kernel"].layers == (0.25, 0.5)
    else:
        expected |= {"block_0/mlp/up/kernel": 0.25, "block_1/attention/key/bias": 0.5}
    assert {path: rules[f"backbone/{path}"].multiplier for path in expected} == expected
    assert rules["head/kernel"].multiplier == 1.0


def test_lora_costs_two_thirds_of_full_fine_tuning() -> None:
    """Of three parts of a step's products, frozen kernels need two."""
    spec = Spec(vocab_size=500, width=384, depth=2, heads=12, hidden=1536, max_positions=64)
    task = Classify(backbone=Transformer(spec), labels=("a", "b"))
    rows = batch_of([[30]] * 8, tokens=32, places=1)

    def flops(strategy: Any) -> float:
        mesh = MeshSpec().build(jax.devices()[:1])
        params = initialize.abstract_params(task, rows, mesh, strategy)
        rules = strategy.rules(flatten_dict(params, sep="/"))
        tx = Optim().build(10, rules)
        state = jax.eval_shape(lambda params: init_state(params, tx, rules), params)
        program = make_step(task, Optim(), strategy, 10, 1)
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in rows.items()}
        jitted = jax.jit(program.function).lower(state, shapes, jax.random.key(0))
        return jitted.compile().cost_analysis()["flops"]

    share = flops(LoRA(rank=8)) / flops(Full())
    print(f"FLOPs of a step with LoRA: {share:.3f} of full fine-tuning's")
    assert share <= 0.72


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("strategies")
    workshop.write_rows(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> train.Result:
    return train.run(workshop.config(folder, adapt=LORA), folder / "whole")


def last(path: Path) -> dict[str, np.ndarray]:
    return flatten_dict(load_tree(path / "checkpoints", step=12), sep="/")


def test_a_run_with_lora_resumes_bit_for_bit_and_keeps_its_trunk(
    whole: train.Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = workshop.stopped_and_resumed(
        workshop.config(folder, adapt=LORA), folder / "stopped", 5, monkeypatch
    )
    expected = last(whole.path)
    for path, leaf in last(resumed.path).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    audit = json.loads((whole.path / "audit.json").read_text())
    rows = {row["path"]: row for row in audit["parameters"]}
    assert rows.keys() == expected.keys()
    query = rows["backbone/block_0/attention/query/lora_a"]
    assert (query["learns"], query["added"], query["since"]) == (True, True, 0)
    assert not rows["backbone/block_0/attention/query/kernel"]["learns"]
    assert audit["summary"]["added"] == sum(row["parameters"] for row in rows.values()
                                            if "lora_" in row["path"])  # fmt: skip


def test_a_run_with_lora_is_started_from_merged(whole: train.Result, folder: Path) -> None:
    merged = flatten_dict(merge(load(whole.path).params), sep="/")
    adapt = DecayToInit() | ReinitTop(1)
    config = workshop.config(folder, name="next", init_from=str(whole.path), adapt=adapt, seed=1)
    config = initialize.resolve(config)
    mesh = MeshSpec().build(jax.devices()[:1])
    batch = config.data.open("train", 8, steps=12).batch(0)
    shapes = initialize.abstract_params(config.task, batch, mesh, adapt)
    params = initialize.starting_params(config, shapes, batch, lambda line: None)
    flat = flatten_dict(jax.device_get(params), sep="/")
    for path in (p for p in merged if p.startswith("backbone/") and "/pooler/" not in p):
        fresh = "/block_0/" in path and path.endswith("kernel")
        assert np.array_equal(flat[path], merged[path]) != fresh, path
        np.testing.assert_array_equal(flat[f"{path}_start"], flat[path])


def test_peft_directories_go_out_and_come_back(tmp_path: Path) -> None:
    strategy = LoRA(rank=2, dropout=0.25, magnitude=True, targets=("attention/", "mlp/"))
    mesh = MeshSpec().build(jax.devices()[:1])
    config = configs.Config(name="x", task=TASK, data=None, adapt=strategy, steps=1)
    shapes = initialize.abstract_params(TASK, ROWS, mesh, strategy)
    params = jax.device_get(initialize.starting_params(config, shapes, ROWS, print))
    flat = flatten_dict(params, sep="/")
    bare = {path: leaf for path, leaf in flat.items() if "/lora_" not in path}
    rules = strategy.rules(flat)
    peft.save(tmp_path / "out", TASK, params, rules, "some/base")
    again, tree = peft.load(tmp_path / "out", TASK, tree_of(bare, zero="head/"))
    assert dataclasses.replace(again, targets=strategy.targets) == strategy
    assert again.rules(flatten_dict(tree, sep="/")) == rules
    jax.tree.map(np.testing.assert_array_equal, tree, params)
    with pytest.raises(ConfigError, match=r"block_0/attention/key/bias is neither"):
        mixed = (strategy | BitFit()).rules(flat)
        peft.save(tmp_path / "other", TASK, params, mixed, "some/base")
    narrow = TASK.clone(backbone=Transformer(dataclasses.replace(SPEC, depth=1)))
    few = {path: leaf for path, leaf in bare.items() if "block_1" not in path}
    with pytest.raises(ConfigError, match=r"no place for bert.encoder.layer.1"):
        peft.load(tmp_path / "out", narrow, tree_of(few))


def tree_of(flat: dict[str, Any], zero: str = "$^") -> Any:
    """The nested tree, with the leaves below `zero` set to zero."""
    return unflatten_dict(
        {p: np.zeros_like(x) if p.startswith(zero) else x for p, x in flat.items()}, sep="/"
    )
