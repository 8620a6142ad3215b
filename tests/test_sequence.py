"""Rows spread over devices: the loss curves of whole rows, and only keys and values gathered."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from test_step import MASKED, OPTIM, SPEC, batch_of, start
from workshop import loss_curve

from research import initialize, sharding
from research.errors import ConfigError
from research.models.recurrent import Recurrent, RecurrentSpec
from research.models.transformer import Transformer
from research.models.xlnet import XLNet, XLNetSpec
from research.sharding import MeshSpec
from research.step import abstract_state, make_step
from research.strategies import Full
from research.tasks.causal import CausalLM
from research.tasks.classify import Classify

LLAMA = dataclasses.replace(
    SPEC,
    heads=4,
    kv_heads=2,
    causal=True,
    positions="rotary",
    token_types=0,
    norm="rms",
    norm_first=True,
    embed_norm=False,
    activation="silu",
    gated=True,
    bias=False,
    window=7,
    global_every=2,
)
TASKS = {
    "classify": Classify(backbone=Transformer(SPEC), labels=("a", "b", "c")),
    "masked": MASKED,
    "causal": CausalLM(backbone=Transformer(LLAMA)),
}
# Of 24 tokens, so that borders of shards at 6, 12 and 18 lie within examples and between them.
BATCH = batch_of([[9, 8, 7], [5, 12], [20], [3, 3, 3, 15], [4], [6, 6], [11], [2, 2]])

needs_devices = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: tests/conftest.py simulates them"
)


@functools.cache
def curve(name: str, spec: MeshSpec, devices: int) -> list[float]:
    task = TASKS[name]
    return loss_curve(task, OPTIM, BATCH, start(task), spec, devices, steps=3)


@needs_devices
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("classify", (1, 1, 4, 1)),
        ("masked", (1, 1, 4, 1)),
        ("masked", (2, 1, 2, 2)),
        ("causal", (1, 1, 4, 1)),
        ("causal", (1, 2, 2, 2)),
    ],
)
def test_rows_in_parts_do_not_change_the_loss_curve(
    name: str, axes: tuple[int, int, int, int]
) -> None:
    data, fsdp, sequence, tensor = axes
    spec = MeshSpec(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)
    one = curve(name, MeshSpec(), 1)
    np.testing.assert_allclose(curve(name, spec, int(np.prod(axes))), one, atol=1e-5)
    assert len(set(one)) == 3


def compiled(task: nn.Module, spec: MeshSpec, devices: int) -> str:
    """The partitioned program of a training step."""
    mesh = spec.build(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        batch = sharding.abstract_rows(BATCH, mesh)
        params = initialize.abstract_params(task, batch, mesh)
        state, _ = abstract_state(OPTIM, Full(), 10, params, mesh)
        program = make_step(task, OPTIM, Full(), 10, 1)
        text: str = program.compiled(state, batch, jax.random.key(0)).as_text()
    return text


@needs_devices
@pytest.mark.parametrize("name", list(TASKS))
def test_of_activations_only_keys_and_values_are_gathered(name: str) -> None:
    """Of arrays of floats: parameters are whole on every device of this mesh. The last block of a
    classifier asks for one token an example, and gathers nothing for it."""
    text = compiled(TASKS[name], MeshSpec(sequence=4), 4)
    spec = TASKS[name].backbone.spec
    groups = spec.kv_heads or spec.heads
    keys = f"f32[{','.join(map(str, (*BATCH['tokens'].shape, groups, spec.width // spec.heads)))}]"
    found = re.findall(r"= \(?(f32\S*\])\S* (all-gather|all-to-all|collective-permute)", text)
    blocks = spec.depth - (name == "classify")
    assert found == [(keys, "all-gather")] * (2 * blocks)


def test_a_row_that_cannot_be_cut_is_refused() -> None:
    mesh = MeshSpec(data=1, sequence=5).build(jax.devices()[:5])
    with pytest.raises(ConfigError, match=r"mesh\.sequence is 5, which does not divide rows of 24"):
        sharding.put(BATCH, mesh)


@needs_devices
def test_arrays_of_examples_stay_whole_and_those_of_tokens_do_not() -> None:
    batch = batch_of([[1] * 4, [2, 2]], tokens=4, places=4)
    put = sharding.put(batch, MeshSpec(data=2, sequence=4).build(jax.devices()[:8]))
    parts = {name: x.addressable_shards[0].data.shape for name, x in put.items()}
    assert {name for name, shape in parts.items() if shape == (1, 1)} == {
        "tokens",
        "positions",
        "segments",
        "types",
    }
    for name, x in put.items():
        np.testing.assert_array_equal(x, batch[name])


@pytest.mark.parametrize(
    "trunk",
    [
        Recurrent(RecurrentSpec(vocab_size=60)),
        XLNet(XLNetSpec(vocab_size=60, width=16, heads=2, depth=1, hidden=32)),
    ],
    ids=["recurrent", "xlnet"],
)
def test_a_trunk_that_needs_whole_rows_says_so(trunk: Any) -> None:
    mesh = MeshSpec(data=1, sequence=2).build(jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match="needs whole rows"):
        jax.eval_shape(trunk.init, jax.random.key(0), sharding.put(BATCH, mesh))
