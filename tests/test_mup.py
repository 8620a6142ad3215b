"""Width transfer: the coordinate check of Yang et al. (2022, appendix D), and what it rests on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from research import initialize
from research.adapt import Full, Strategy
from research.config import Config
from research.errors import ConfigError
from research.models.transformer import Spec, Transformer
from research.mup import Mup
from research.optim import Optim
from research.sharding import MeshSpec, abstract_rows
from research.step import init_state, train_step
from research.tasks.lm import MaskedLM

MUP, FULL = Mup(base_width=64), Full()


def batch() -> dict[str, np.ndarray]:
    """Eight rows of one example of 16 tokens."""
    rng = np.random.default_rng(0)
    ones = np.ones((8, 1), np.int32)
    return {
        "tokens": rng.integers(5, 60, (8, 16)).astype(np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
        "segments": np.ones((8, 16), np.int32),
        "types": np.zeros((8, 16), np.int32),
        "ids": np.arange(8, dtype=np.int32)[:, None],
        "starts": 0 * ones,
        "lengths": 16 * ones,
        "labels": 0 * ones,
        "weights": np.ones((8, 1), np.float32),
    }


def task(width: int) -> MaskedLM:
    spec = Spec(
        vocab_size=60,
        width=width,
        depth=1,
        heads=width // 16,
        hidden=2 * width,
        max_positions=16,
        norm_first=True,
        dropout=0.0,
        attention_dropout=0.0,
    )
    return MaskedLM(backbone=Transformer(spec), vocab_size=60, mask_id=4, special_ids=(0, 1))


@functools.cache
def sizes(width: int, adapt: Strategy, steps: int = 4) -> dict[str, float]:
    """Root mean squares of the MLP's output and of the logits: at the start, and of their change
    over `steps` steps of AdamW."""
    model, rows = task(width), batch()
    optim = Optim(learning_rate=1e-2, schedule="constant", warmup=0, weight_decay=0.0, clip=None)
    config = Config(name="mup", task=model, data=None, optim=optim, adapt=adapt, steps=steps)
    mesh = MeshSpec().build(jax.devices()[:1])
    with jax.set_mesh(mesh):
        shapes = abstract_rows(rows, mesh)
        abstract = initialize.abstract_params(model, shapes, mesh)
        params = initialize.starting_params(config, abstract, shapes, print)
        rules = adapt.rules(flatten_dict(params, sep="/"))
        tx = optim.build(steps, rules)
        state = init_state(params, tx, rules)
        step = jax.jit(lambda state, key: train_step(model, tx, rules, state, rows, key)[0])

        @jax.jit
        def look(params: Any) -> dict[str, jax.Array]:
            x, seen = model.backbone.apply(
                {"params": params["backbone"]}, rows, capture_intermediates=True, mutable=True
            )
            mlp = seen["intermediates"]["block_0"]["mlp"]["__call__"][0]
            logits = model.backbone.apply(
                {"params": params["backbone"]}, x, method=lambda trunk, x: trunk.logits(x)
            )
            return {"mlp": mlp, "logits": logits}

        first = look(state.params)
        for _ in range(steps):
            state = step(state, jax.random.key(1))
        last = look(state.params)
    found = {f"{name} at first": value for name, value in first.items()}
    found |= {f"{name} moved": last[name] - first[name] for name in first}
    return {name: float(np.sqrt(np.mean(np.square(value)))) for name, value in found.items()}


@pytest.mark.parametrize("name", ["mlp at first", "logits at first", "mlp moved", "logits moved"])
def test_coordinates_do_not_grow_with_width(name: str) -> None:
    assert sizes(512, MUP)[name] < 1.3 * sizes(64, MUP)[name]


@pytest.mark.parametrize("name", ["mlp moved", "logits moved"])
def test_without_it_they_do(name: str) -> None:
    assert sizes(512, FULL)[name] > 2.0 * sizes(64, FULL)[name]


def test_at_the_base_width_it_is_full() -> None:
    assert sizes(64, MUP) == sizes(64, FULL)


def test_multipliers_follow_the_width_of_the_trunk() -> None:
    shapes = jax.eval_shape(
        lambda: initialize.initialize(task(256), batch(), jax.random.key(0))  # type: ignore[arg-type]
    )
    flat = flatten_dict(shapes, sep="/")
    rules = MUP.rules(flat)
    assert rules.keys() == flat.keys()
    assert rules["backbone/block_0/mlp/down/kernel"].multiplier == 0.25
    assert rules["backbone/block_0/mlp/down/kernel"].initial == 1.0
    assert rules["backbone/embed/table"].initial == 0.5
    assert rules["backbone/final_norm/scale"] == FULL.rules(flat)["backbone/final_norm/scale"]
    with pytest.raises(ConfigError, match="a trunk with attention"):
        MUP.rules({"head/kernel": np.zeros((4, 2))})
