"""Permutations: their order, spans, and that only predicted positions are asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from research import initialize
from research.errors import ConfigError
from research.models.transformer import Spec, Transformer
from research.models.xlnet import XLNet, XLNetSpec
from research.sharding import MeshSpec, shard
from research.tasks.permutation import PermutationLM

sys.path.append(str(Path(__file__).parents[1] / "models"))
import layouts

V, K = 60, 3
SPECIAL = (1, 2)
SPEC = XLNetSpec(vocab_size=V, width=16, depth=1, heads=2, hidden=24, dropout=0.2, dtype="float32")
TASK = PermutationLM(backbone=XLNet(SPEC), share=K, special_ids=SPECIAL)


def texts(*lengths: int) -> list[layouts.Example]:
    """Texts that end in two special tokens, and hold no others."""
    found = []
    for number, length in enumerate(lengths):
        tokens = (*(3 + (7 * number + 5 * i) % (V - 3) for i in range(length - 2)), *SPECIAL)
        found.append(layouts.Example(id=100 + number, tokens=tokens))
    return found


TEXTS = texts(14, 9, 11, 4, 17)
PADDED = layouts.layout([[text] for text in TEXTS], 24, places=2)
PACKED = layouts.layout(
    [[TEXTS[0], TEXTS[1]], [TEXTS[2], TEXTS[3]], [TEXTS[4]], [], []], 24, places=2
)


def order(task: PermutationLM, batch: dict[str, Any], seed: int) -> dict[int, np.ndarray]:
    found = task.apply({"params": PARAMS}, batch, jax.random.key(seed), method="order")
    return layouts.cut(found, batch)


PARAMS = {"bias": np.zeros(V, np.float32)}


@pytest.mark.parametrize("spans", [None, 2])
def test_an_order_is_of_the_example_and_the_step(spans: int | None) -> None:
    task = TASK.clone(spans=spans)
    one, other, later = order(task, PADDED, 0), order(task, PACKED, 0), order(task, PADDED, 1)
    for i, ranks in one.items():
        np.testing.assert_array_equal(ranks, other[i])
        told = np.sort(ranks[ranks > 0])
        np.testing.assert_array_equal(told, 1 + np.arange(len(told)))
        assert not np.any(ranks[-2:])
    assert any(np.any(one[i] != later[i]) for i in one)


def test_one_of_k_tokens_is_predicted_each_as_often_as_another() -> None:
    batch = layouts.layout([[text] for text in texts(*[14] * 400)], 14)
    (ranks,) = [np.stack(list(order(TASK, batch, 0).values()))]
    chosen = ranks[:, :12] > 0
    np.testing.assert_array_equal(chosen.sum(axis=1), 12 // K)
    bound = 5 * (400 * (1 / K) * (1 - 1 / K)) ** 0.5
    np.testing.assert_allclose(chosen.sum(axis=0), 400 / K, atol=bound)
    # And each as often first as last.
    first = (ranks[:, :12] == 1).sum(axis=0) - (ranks[:, :12] == 4).sum(axis=0)
    assert np.abs(first).max() < 5 * (400 / 6) ** 0.5


def test_spans_are_stretches_of_one_length_one_a_window() -> None:
    batch = layouts.layout([[text] for text in texts(*[35] * 60)], 35)
    lengths = set()
    for ranks in order(TASK.clone(spans=4, special_ids=()), batch, 0).values():
        inside = np.flatnonzero(ranks)
        length = next(n for n in (4, 3, 2, 1) if len(inside) == 35 // (K * n) * n)
        windows = inside.reshape(-1, length)
        steps = np.broadcast_to(np.arange(length), windows.shape)
        np.testing.assert_array_equal(windows - windows[:, :1], steps)
        numbers = np.broadcast_to(np.arange(len(windows))[:, None], windows.shape)
        np.testing.assert_array_equal(windows // (K * length), numbers)
        lengths.add(length)
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("spans", [None, 3])
def test_every_predicted_token_is_asked_for_once(spans: int | None) -> None:
    task = TASK.clone(spans=spans)
    for batch in (PADDED, PACKED):
        for seed in range(5):
            key = jax.random.key(seed)
            ranks = task.apply({"params": PARAMS}, batch, key, method="order")
            _, targets, weights = task.apply({"params": PARAMS}, batch, key, method="asked")
            for row, places, weight in zip(ranks, targets, weights):
                assert sorted(places[weight > 0].tolist()) == np.flatnonzero(row).tolist()


def start() -> Any:
    key = jax.random.key(1)
    params = initialize.initialize(TASK, PADDED, key)
    # The head's bias is 0 at first, and so would be half of what is compared.
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)


@jax.jit
def gradients(params: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    def loss(params: Any) -> tuple[jax.Array, Any]:
        means = TASK.apply({"params": params}, batch, train=True, rngs={"noise": jax.random.key(3)})
        return means["loss"].value, means

    return jax.grad(loss, has_aux=True)(params)


def test_packed_equals_padded_with_dropout_on() -> None:
    params = start()
    (one, expected), (other, means) = gradients(params, PADDED), gradients(params, PACKED)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), one, other)
    assert expected["loss"].count == means["loss"].count == 4 + 2 + 3 + 0 + 5
    np.testing.assert_allclose(means["loss"].total, expected["loss"].total, rtol=1e-5)
    np.testing.assert_allclose(means["accuracy"].total, expected["accuracy"].total)


def test_a_mesh_does_not_change_loss_or_gradient() -> None:
    params = start()
    batch = {name: np.concatenate([x, x])[:8] for name, x in PADDED.items()}
    one, expected = gradients(params, batch)
    mesh = MeshSpec(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])
    with jax.set_mesh(mesh):
        wanted = shard(jax.eval_shape(lambda: params), mesh)
        placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, wanted)
        other, means = gradients(placed, batch)
    np.testing.assert_allclose(means["loss"].total, expected["loss"].total, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), one, other)


def test_perplexity_is_said_to_be_of_permutations() -> None:
    numbers, details = TASK.score({"loss": 2.0, "accuracy": 0.5}, {}, None)
    assert numbers == {
        "loss": 2.0,
        "accuracy": 0.5,
        "permutation_perplexity": pytest.approx(np.exp(2.0)),
    }
    assert details == {}


def test_what_makes_no_sense_is_refused() -> None:
    plain = PermutationLM(backbone=Transformer(Spec(vocab_size=V)))
    for task, message in (
        (plain, "must be an XLNet"),
        (TASK.clone(share=1), r"task\.share must be 2 or more"),
        (TASK.clone(spans=0), r"task\.spans positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            order(task, PADDED, 0)
