"""Update rules against references of their own in numpy, and under `Optim.build`'s contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import workshop
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import smoke
from research import sharding, train
from research.adapt import Full, Rule
from research.config import override
from research.optim import Optim
from research.optimizers import Adafactor, AdamW, Lamb, Lion, Muon, UpdateRule
from research.sharding import MeshSpec
from research.step import abstract_state

DECAY, RATE = 0.5, 0.1
SHAPES = {
    "backbone/blocks/mlp/up/kernel": (2, 6, 4),
    "backbone/blocks/mlp/up/bias": (2, 4),
    "backbone/block_0/mlp/down/kernel": (4, 6),
    "backbone/pooler/kernel": (5, 5),
    "backbone/embed/table": (7, 3),
    "head/kernel": (3, 2),
    "head/bias": (2,),
}
RULES = {path: Rule(decays=not path.endswith("bias")) for path in SHAPES} | {
    "backbone/block_0/mlp/down/kernel": Rule(multiplier=0.25)
}
FIVE: tuple[UpdateRule, ...] = (AdamW(), Lamb(), Lion(), Muon(), Adafactor())
Arrays = dict[str, np.ndarray]


def names(rule: UpdateRule) -> str:
    return type(rule).__name__


def layers(path: str, array: np.ndarray) -> list[np.ndarray]:
    """The arrays that a rule sees: each layer of a stack by itself."""
    return list(array) if "/blocks/" in path else [array]


def adam(history: list[np.ndarray], beta1: float, beta2: float, epsilon: float) -> np.ndarray:
    """Adam's direction after all these gradients, from its sums written out."""
    steps = len(history)
    first = sum((1 - beta1) * beta1 ** (steps - 1 - i) * g for i, g in enumerate(history))
    second = sum((1 - beta2) * beta2 ** (steps - 1 - i) * g**2 for i, g in enumerate(history))
    return (first / (1 - beta1**steps)) / (np.sqrt(second / (1 - beta2**steps)) + epsilon)


def lamb(path: str, history: list[np.ndarray], w: np.ndarray, decay: float) -> np.ndarray:
    direction = adam(history, 0.9, 0.999, 1e-6) + decay * w
    if not decay:
        return direction
    return direction * np.linalg.norm(w) / np.linalg.norm(direction)


def lion(path: str, history: list[np.ndarray], w: np.ndarray, decay: float) -> np.ndarray:
    momentum = np.zeros_like(w)
    for g in history[:-1]:
        momentum = 0.99 * momentum + 0.01 * g
    return np.sign(0.9 * momentum + 0.1 * history[-1]) + decay * w


def muon(path: str, history: list[np.ndarray], w: np.ndarray, decay: float) -> np.ndarray:
    if "block" not in path or path.endswith("bias"):
        return adam(history, 0.9, 0.999, 1e-8) + decay * w
    steps = len(history)
    momentum = sum(0.05 * 0.95 ** (steps - 1 - i) * g for i, g in enumerate(history))
    x = 0.95 * momentum / (1 - 0.95 ** (steps + 1)) + 0.05 * history[-1] / (1 - 0.95**steps)
    # The quintic acts on singular values alone, so that an SVD says what the iterations give.
    left, values, right = np.linalg.svd(x / np.linalg.norm(x), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return 0.2 * np.sqrt(max(w.shape)) * (left * values) @ right + decay * w


def adafactor(path: str, history: list[np.ndarray], w: np.ndarray, decay: float) -> np.ndarray:
    second: Any = 0.0
    for step, g in enumerate(history, 1):
        keep = 1 - step**-0.8
        second = keep * second + (1 - keep) * (g**2 + 1e-30)
    if w.ndim == 2 and min(w.shape) >= 3:
        rows, columns = second.mean(axis=1, keepdims=True), second.mean(axis=0, keepdims=True)
        second = rows * columns / second.mean()
    direction = history[-1] / np.sqrt(second)
    direction = direction / max(1.0, np.sqrt(np.mean(direction**2)))
    return direction * max(1e-3, np.sqrt(np.mean(w**2))) + decay * w


def textbook_adamw(path: str, history: list[np.ndarray], w: np.ndarray, decay: float) -> np.ndarray:
    return adam(history, 0.9, 0.999, 1e-8) + decay * w


REFERENCES: list[tuple[UpdateRule, Callable[..., np.ndarray]]] = [
    (AdamW(), textbook_adamw),
    (Lamb(), lamb),
    (Lion(), lion),
    (Muon(), muon),
    (Adafactor(smallest=3), adafactor),
]


def optim(rule: UpdateRule, **changes: Any) -> Optim:
    made = Optim(
        rule=rule, learning_rate=RATE, schedule="constant", warmup=0, weight_decay=DECAY, clip=None
    )
    return dataclasses.replace(made, **changes)


def draw(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape) for path, shape in SHAPES.items()}


def device(arrays: Arrays) -> dict[str, jax.Array]:
    return {path: jnp.asarray(array, jnp.float32) for path, array in arrays.items()}


@pytest.mark.parametrize(("rule", "reference"), REFERENCES, ids=lambda value: "")
def test_five_steps_equal_numpy_with_mask_and_multiplier_and_layers(
    rule: UpdateRule, reference: Callable[..., np.ndarray]
) -> None:
    tx = optim(rule).build(10, RULES | {"frozen/kernel": Rule(learns=False)})
    params = draw(0)
    learned = device(params)
    state = tx.init(learned)
    update = jax.jit(tx.update)
    history: list[Arrays] = []
    for step in range(1, 6):
        history.append(draw(step))
        sums = device({path: 4.0 * g for path, g in history[-1].items()})
        updates, state = update(sums, state, learned, count=4.0)
        learned = optax.apply_updates(learned, updates)
        for path, w in params.items():
            past = [layers(path, grads[path]) for grads in history]
            decay = DECAY if RULES[path].decays else 0.0
            moves = [
                reference(path, [grads[i] for grads in past], part, decay)
                for i, part in enumerate(layers(path, w))
            ]
            move = np.stack(moves) if "/blocks/" in path else moves[0]
            params[path] = w - RATE * RULES[path].multiplier * move
    for path, value in params.items():
        np.testing.assert_allclose(learned[path], value, rtol=2e-4, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("rule", FIVE, ids=names)
def test_a_step_that_is_not_finite_changes_nothing(rule: UpdateRule) -> None:
    tx = optim(rule, clip=1.0).build(10, RULES)
    params = device(draw(0))
    update = jax.jit(tx.update)
    _, state = update(device(draw(1)), tx.init(params), params)
    bad = device(draw(2)) | {"head/bias": jnp.array([jnp.nan, jnp.inf])}
    updates, after = update(bad, state, params, finite=jnp.asarray(False))
    assert all(not leaf.any() for leaf in updates.values())
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("rule", FIVE[1:], ids=names)
def test_only_the_direction_of_a_clipped_gradient_matters(rule: UpdateRule) -> None:
    tx = optim(rule, clip=0.5).build(10, RULES)
    params, grads, update = device(draw(0)), draw(1), jax.jit(tx.update)
    small, large = (
        update(device({path: s * g for path, g in grads.items()}), tx.init(params), params)[0]
        for s in (10.0, 1000.0)
    )
    for path in SHAPES:
        np.testing.assert_allclose(small[path], large[path], rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("rule", FIVE, ids=names)
def test_state_is_sharded_by_the_table_and_meshes_change_nothing(rule: UpdateRule) -> None:
    shapes = {path: tuple(2 * size for size in shape) for path, shape in SHAPES.items()}
    rng = np.random.default_rng(0)
    params, *history = (
        {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
        for _ in range(3)
    )
    settings = optim(Adafactor(smallest=8) if isinstance(rule, Adafactor) else rule, ema=0.5)

    def outcome(spec: MeshSpec, devices: int) -> tuple[Any, Any]:
        mesh = spec.build(jax.devices()[:devices])
        tree = unflatten_dict(params, sep="/")
        with jax.set_mesh(mesh):
            abstract = sharding.shard(jax.eval_shape(lambda: tree), mesh)
            layout, create = abstract_state(settings, Full(), 10, abstract, mesh)
            places = flatten_dict(jax.tree.map(lambda x: x.sharding, abstract), sep="/")
            placed = {path: jax.device_put(x, places[path]) for path, x in params.items()}
            state = create(unflatten_dict(placed, sep="/")).opt_state
            update = jax.jit(settings.build(10, Full().rules(params)).update)
            for grads in history:
                placed = {path: jax.device_put(x, places[path]) for path, x in grads.items()}
                updates, state = update(placed, state, params)
        return jax.device_get(updates), layout

    one, _ = outcome(MeshSpec(), 1)
    many, layout = outcome(MeshSpec(data=2, fsdp=2, tensor=2), 8)
    for path, value in one.items():
        np.testing.assert_allclose(many[path], value, rtol=1e-4, atol=1e-5, err_msg=path)
    leaves = jax.tree.leaves_with_path(layout.opt_state) + jax.tree.leaves_with_path(layout.ema)
    split = [sharding.path_name(path) for path, x in leaves if not x.sharding.is_fully_replicated]
    ours = [path for path in split if path.endswith("backbone/blocks/mlp/up/kernel")]
    assert ours if isinstance(rule, Adafactor) else len(ours) > 1


@pytest.mark.parametrize("rule", ["lamb", "lion", "muon", "adafactor"])
def test_the_smoke_run_trains_by_every_rule(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.write_rows(tmp_path)
    rate = {"lamb": "0.02", "lion": "0.003", "muon": "0.01", "adafactor": "0.05"}[rule]
    arguments = ["--optim.rule", rule, "--optim.learning-rate", rate, "--optim.warmup", "2"]
    arguments += ["--data.train", str(tmp_path / "train.tsv"), "--data.dev"]
    arguments += [str(tmp_path / "dev.tsv"), "--data.text", "sentence", "--data.tokenizer"]
    arguments += [str(tmp_path / "tokenizer.json"), "--epochs", "4", "--data.shapes", "1"]
    arguments += ["--task.backbone.spec.width", "16", "--task.backbone.spec.hidden", "32"]
    arguments += ["--task.backbone.spec.vocab-size", "80", "--task.backbone.spec.depth", "1"]
    config = override(smoke.config(), arguments, "train")
    assert type(config.optim.rule).__name__.lower() == rule
    result = train.run(config, tmp_path)
    assert result.metrics["dev/accuracy"] > 0.6
