"""Every strategy: what it promises to move moves, what it does not is left bit for bit, the start
is the trunk where that is promised, and neither packing nor a mesh changes anything."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from test_step import PADDED, SPEC, batch_of

from research import initialize, sharding
from research.adapt import ADDED, CONSTANT
from research.models.transformer import Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.step import abstract_state, init_state, make_step, train_step
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
)
from research.strategies.merge import merge, unmerged
from research.tasks.classify import Classify

OPTIM = Optim(learning_rate=1e-2, warmup=0, weight_decay=0.1)
LABELS = ("a", "b", "c")
TWO = Classify(backbone=Transformer(SPEC), labels=LABELS)
ONE = TWO.clone(backbone=Transformer(dataclasses.replace(SPEC, depth=1)))
SCANNED = TWO.clone(backbone=Transformer(dataclasses.replace(SPEC, scan=True)))
# The same examples in rows of their own and side by side, in one shape: one program for both.
PACKED = batch_of([[9, 8, 7], [5, 12], [20], [3, 3, 3, 15], *[[]] * 6])
HEAD = r"^head/|^backbone/pooler/"
ALL_LINEAR = ("attention/", "mlp/")
# The trunk, the strategy, and the paths that it promises to move.
STRATEGIES: dict[str, tuple[Any, Any, str]] = {
    "full": (ONE, Full(), "."),
    "head": (ONE, HeadOnly(), HEAD),
    "frozen": (TWO, Frozen(("embed", "block_0/")), r"^(?!.*(embed|block_0/))"),
    "unfreeze": (TWO, GradualUnfreeze((1, 2)), rf"{HEAD}|block_1/"),
    "bitfit": (ONE, BitFit(), f"{HEAD}|bias$"),
    "lora": (ONE, LoRA(rank=2), f"{HEAD}|(query|value)/lora_[ab]$"),
    "rslora": (
        ONE,
        LoRA(rank=2, dropout=0.3, stabilized=True, targets=ALL_LINEAR),
        f"{HEAD}|lora_[ab]$",
    ),
    "dora": (ONE, LoRA(rank=2, magnitude=True), f"{HEAD}|lora_([ab]|magnitude)$"),
    "houlsby": (ONE, Adapter(bottleneck=4), f"{HEAD}|_adapter/"),
    "pfeiffer": (ONE, Adapter(bottleneck=4, placement="pfeiffer"), f"{HEAD}|mlp_adapter/"),
    "ia3": (ONE, IA3(), f"{HEAD}|ia3_(in|out)$"),
    "prefix": (ONE, Prefix(3), f"{HEAD}|prefix_(key|value)$"),
    "prompt": (ONE, Prompt(3), f"{HEAD}|prompt$"),
    "to-start": (ONE, DecayToInit(0.1), r"^(?!.*_start$)"),
    "mixed": (
        TWO,
        LoRA(rank=2) | BitFit() | LayerDecay(0.5) | Frozen(("attention_norm/bias",)),
        rf"{HEAD}|lora_[ab]$|^(?!.*attention_norm/).*bias$",
    ),
}
LOW_RANK = LoRA(rank=2, dropout=0.3, magnitude=True, targets=ALL_LINEAR)
ALL = LOW_RANK | IA3() | Adapter(bottleneck=4) | Prefix(3) | Prompt(2) | LayerDecay(0.5)


@functools.cache
def bare(task: Any) -> Any:
    """The parameters of a task, on the host, with every leaf far from zero."""
    return shaken(initialize.initialize(task, PACKED, jax.random.key(0)))


@functools.cache
def start(task: Any, strategy: Any) -> Any:
    """The same with what the strategy adds."""
    leaves = flatten_dict(bare(task), sep="/")
    added = jax.device_get(jax.jit(strategy.growth)(leaves, jax.random.key(1)))
    return unflatten_dict(leaves | added, sep="/")


def shaken(params: Any) -> Any:
    """The same tree with noise on every leaf that may learn."""
    rng = np.random.default_rng(0)
    return unflatten_dict(
        {
            path: np.asarray(leaf)
            if CONSTANT.search(path)
            else np.asarray(leaf + rng.normal(0, 0.1, leaf.shape), np.float32)
            for path, leaf in sorted(flatten_dict(params, sep="/").items())
        },
        sep="/",
    )


@functools.cache
def compiled_logits(task: Any) -> Any:
    return jax.jit(lambda params, batch: task.apply({"params": params}, batch, method="logits"))


def logits(task: Any, params: Any) -> np.ndarray:
    found = np.asarray(compiled_logits(task)(params, PACKED))
    return found[PACKED["ids"] >= 0]


def states(task: Any, strategy: Any, params: Any, steps: int) -> tuple[list[Any], list[float]]:
    """What the first steps make of the parameters, and their losses."""
    rules = strategy.rules(flatten_dict(params, sep="/"))
    tx = OPTIM.build(10, rules)
    state = jax.device_put(init_state(params, tx, rules))
    step = jax.jit(lambda state: train_step(task, tx, rules, state, PACKED, jax.random.key(7)))
    found, losses = [], []
    for _ in range(steps):
        state, means = step(state)
        found.append(state)
        losses.append(float(means["loss"].value))
    return jax.device_get(found), losses


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_promised_moves_and_all_else_stays_bit_for_bit(name: str) -> None:
    task, strategy, promised = STRATEGIES[name]
    before = flatten_dict(start(task, strategy), sep="/")
    found, losses = states(task, strategy, start(task, strategy), 10)
    two = flatten_dict(found[1].params, sep="/")
    moved = {path for path, leaf in two.items() if not np.array_equal(leaf, before[path])}
    assert moved == {path for path in before if re.search(promised, path)}
    assert losses[-1] < losses[0]
    learning = {path for path, rule in strategy.rules(before).items() if rule.learns}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(found[-1].opt_state))
    assert size == 4 + 2 * sum(before[path].nbytes for path in learning)


@pytest.mark.parametrize("strategy", [ALL, DecayToInit(0.1) | GradualUnfreeze((1, 2, 3))])
def test_a_scanned_stack_trains_as_its_blocks_do(strategy: Any) -> None:
    blocks = flatten_dict(start(TWO, strategy), sep="/")
    stacked = {p: x for p, x in blocks.items() if "/block_" not in p}
    for path in (p for p in blocks if "/block_0/" in p):
        both = [blocks[path.replace("block_0", f"block_{i}")] for i in range(SPEC.depth)]
        stacked[path.replace("block_0", "blocks")] = np.stack(both)
    assert stacked.keys() == flatten_dict(start(SCANNED, strategy), sep="/").keys()
    shapes = {p: x.shape for p, x in flatten_dict(start(SCANNED, strategy), sep="/").items()}
    assert shapes == {path: leaf.shape for path, leaf in stacked.items()}
    _, one = states(TWO, strategy, unflatten_dict(blocks, sep="/"), 5)
    _, other = states(SCANNED, strategy, unflatten_dict(stacked, sep="/"), 5)
    np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize("task", [TWO, SCANNED], ids=["blocks", "scanned"])
@pytest.mark.parametrize("strategy", [LoRA(rank=2), LOW_RANK | IA3(), Adapter(bottleneck=4)])
def test_the_function_starts_as_the_trunk_is(strategy: Any, task: Any) -> None:
    found = logits(task, start(task, strategy))
    np.testing.assert_allclose(found, logits(task, bare(task)), atol=1e-6)


@pytest.mark.parametrize("task", [TWO, SCANNED], ids=["blocks", "scanned"])
@pytest.mark.parametrize("strategy", [LoRA(rank=2), LOW_RANK | IA3()])
def test_merged_is_the_same_function_without_added_leaves(strategy: Any, task: Any) -> None:
    params = shaken(start(task, strategy))
    assert np.abs(logits(task, params) - logits(task, bare(task))).max() > 1e-2
    merged = merge(params)
    assert unmerged(merged) == ()
    assert jax.tree.structure(merged) == jax.tree.structure(bare(task))
    np.testing.assert_allclose(logits(task, merged), logits(task, params), atol=1e-5)


@pytest.mark.parametrize(
    "strategy", [ALL, LoRA(rank=2, dropout=0.3), Prefix(3), Prompt(3), Adapter(bottleneck=4)]
)
def test_packed_equals_padded_with_dropout_on(strategy: Any) -> None:
    params = shaken(start(ONE, strategy))

    @jax.jit
    def gradients(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            rngs = {"noise": jax.random.key(3)}
            return ONE.apply({"params": params}, batch, train=True, rngs=rngs)["loss"].value

        return jax.value_and_grad(loss)(params)

    packed, padded = gradients(params, PACKED), gradients(params, PADDED)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed, padded)
    found = flatten_dict(packed[1], sep="/")
    small = [p for p in found if ADDED.search(p) and not CONSTANT.search(p)]
    assert all(np.abs(found[path]).max() > 0 for path in small), "each added leaf is read"


@functools.cache
def curve(data: int, fsdp: int, tensor: int) -> list[float]:
    strategy = ALL | DecayToInit(0.1) | BitFit()
    spec = MeshSpec(data=data, fsdp=fsdp, tensor=tensor)
    mesh = spec.build(jax.devices()[: data * fsdp * tensor])
    rows = batch_of([[9, 8, 7], [5, 12], [20], [3, 3, 3, 15], [4], [6, 6], [11], [2, 2]])
    with jax.set_mesh(mesh):
        params = initialize.abstract_params(ONE, rows, mesh, strategy)
        _, create = abstract_state(OPTIM, strategy, 10, params, mesh)
        state = create(
            jax.tree.map(
                lambda leaf, like: jax.device_put(leaf, like.sharding),
                start(ONE, strategy),
                params,
            )
        )
        losses, program = [], make_step(ONE, OPTIM, strategy, 10, 1)
        for _ in range(3):
            state, means = program(state, sharding.put(rows, mesh), jax.random.key(7))
            losses.append(float(means["loss"].value))
    return losses


@pytest.mark.parametrize("axes", [(2, 1, 1), (1, 4, 1), (2, 2, 2)])
def test_meshes_do_not_change_the_losses(axes: tuple[int, int, int]) -> None:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py simulates them")
    np.testing.assert_allclose(curve(*axes), curve(1, 1, 1), atol=1e-5)
