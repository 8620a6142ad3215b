"""The training step's budgets on eight devices: what is sent, what is held, what is given back."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import pytest
from flax.traverse_util import flatten_dict

from research.config import Config
from research.data.texts import Texts
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.scale import plan
from research.scale.collectives import KINDS, Collective, by_kind, collectives
from research.scale.hlo import Module
from research.scale.minimum import minimum
from research.sharding import MeshSpec
from research.tasks.causal import CausalLM
from research.tasks.lm import MaskedLM

WIDTH, TOKENS = 64, 32
SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "width": WIDTH,
    "depth": 2,
    "heads": 8,
    "hidden": 256,
    "max_positions": TOKENS,
}
LLAMA: dict[str, Any] = {
    "causal": True,
    "positions": "rotary",
    "norm": "rms",
    "norm_first": True,
    "embed_norm": False,
    "activation": "silu",
    "gated": True,
    "bias": False,
    "tied": False,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "scan": True,
    "remat": True,
}
TASKS = {
    "masked": MaskedLM(backbone=Transformer(Spec(**SIZES, tied=False)), special_ids=(0,)),
    "causal": CausalLM(backbone=Transformer(Spec(**(SIZES | {"depth": 3} | LLAMA)))),
}
TIED = MaskedLM(backbone=Transformer(Spec(**SIZES)), special_ids=(0,))
MESHES = {
    "data": MeshSpec(data=8),
    "fsdp": MeshSpec(data=1, fsdp=8),
    "fsdp of two": MeshSpec(data=4, fsdp=2),
    "tensor": MeshSpec(data=1, tensor=8),
}
# A step of few tokens on chips that keep rows apart, of many where activations are what is sent.
ROWS = {"data": 8, "fsdp": 8, "fsdp of two": 8, "tensor": 64}

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: tests/conftest.py simulates them"
)


@functools.cache
def step(task: str, mode: str) -> plan.Step:
    config = Config(
        name="budgets",
        task=TIED if task == "tied" else TASKS[task],
        data=Texts(train="none.txt", label=None, max_length=TOKENS, layout="padded"),
        optim=Optim(learning_rate=1e-3),
        steps=10,
        batch_size=ROWS[mode],
        mesh=MESHES[mode],
    )
    return plan.compile_step(config, jax.devices()[:8])


@functools.cache
def sent(task: str, mode: str) -> list[Collective]:
    return collectives(Module(step(task, mode).compiled.as_text()), 8)


@pytest.mark.parametrize("mode", MESHES)
@pytest.mark.parametrize("task", TASKS)
def test_a_step_sends_the_least_that_its_mode_needs(task: str, mode: str) -> None:
    least = minimum(plan.work_of(step(task, mode)), step(task, mode).mesh)
    found = by_kind(sent(task, mode))
    total = sum(least.values())
    assert 0.95 * total <= sum(found.values()) <= 1.05 * total
    for kind in KINDS:
        assert abs(found[kind] - least[kind]) <= 0.05 * total, kind


def test_a_table_that_is_read_and_scored_against_is_summed_twice() -> None:
    """What is above the minimum: XLA adds the two sums of a tied table, not their parts."""
    least = minimum(plan.work_of(step("tied", "data")), step("tied", "data").mesh)
    more = sum(by_kind(sent("tied", "data")).values()) - sum(least.values())
    assert more == pytest.approx(2 * 7 / 8 * 4 * 256 * WIDTH, rel=0.01)


@pytest.mark.parametrize("mode", MESHES)
@pytest.mark.parametrize("task", TASKS)
def test_nobody_gathers_activations(task: str, mode: str) -> None:
    tokens = math.prod(step(task, mode).rows["tokens"].shape)
    for one in sent(task, mode):
        if one.kind == "all-gather" and one.shapes[0].kind == "f32":
            whole = math.prod(one.shapes[0].dimensions) * one.group
            # A shard of a parameter, or of numbers of which a token has one a shard.
            assert whole < tokens * WIDTH or whole in parameter_sizes(task, mode), one


def parameter_sizes(task: str, mode: str) -> set[int]:
    leaves = flatten_dict(step(task, mode).state.params).values()
    return {math.prod(leaf.shape[-2:]) for leaf in leaves}


@pytest.mark.parametrize("mode", MESHES)
def test_the_whole_state_is_changed_in_place(mode: str) -> None:
    made = step("causal", mode)
    held = plan.memory(made)
    assert held["aliased"] == held["parameters"] + held["optimizer"]


def test_parameters_and_optimizer_fall_with_the_devices() -> None:
    whole = plan.memory(step("causal", "data"))
    for mode, devices in (("fsdp", 8), ("fsdp of two", 2)):
        share = plan.memory(step("causal", mode))
        for name in ("parameters", "optimizer"):
            # Norms are held by all.
            assert share[name] == pytest.approx(whole[name] / devices, rel=0.02)
