"""Bengio's network and the LSTM from left to right, against loops in numpy; causality, packing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from research.models.feedforward import Feedforward, FeedforwardSpec
from research.models.layers import token_noise
from research.models.lstm import Lstm, LstmSpec
from research.tasks.causal import CausalLM

V = 30
WINDOW = Feedforward(
    FeedforwardSpec(vocab_size=V, embed_width=4, hidden=6, context=3, dropout=0.3, dtype="float32")
)
CHAIN = Lstm(LstmSpec(vocab_size=V, width=6, depth=2, dropout=0.3, dtype="float32"))
TRUNKS = pytest.mark.parametrize("trunk", [WINDOW, CHAIN], ids=["feedforward", "lstm"])
TEXTS = layouts.examples([5, 3, 7, 1, 4], vocab_size=V)
PADDED = layouts.layout([[text] for text in TEXTS], 14, places=3)
PACKED = layouts.layout([[TEXTS[3], TEXTS[2], TEXTS[4]], [], [TEXTS[1], TEXTS[0]], [], []], 14)


def random_params(module, *arguments, **settings):
    shapes = jax.eval_shape(
        lambda key: module.init({"params": key, "noise": key}, *arguments, **settings),
        jax.random.key(0),
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bengio(tokens, params):
    """Log-probabilities by the paper's formula: one example -> [T, V]."""
    table = params["embed"]["table"]
    U, W = np.split(params["unembed"]["table"], [6], axis=1)
    found = []
    for t in range(len(tokens)):
        x = [table[tokens[t - i]] if t >= i else np.zeros(4) for i in range(3)]
        x = np.concatenate(x)
        hidden = np.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        found.append(params["bias"] + U @ hidden + W @ x)
    return np.array(found)


def chain(tokens, params):
    """Two LSTMs and scores by the words' own vectors: one example -> [T, V]."""
    x = params["embed"]["table"][list(tokens)]
    for depth in range(2):
        block = params[f"block_{depth}"]
        output = cell = np.zeros(6)
        states = []
        for step in x:
            gates = step @ block["input"]["kernel"] + block["input"]["bias"]
            gates = gates + output @ block["hidden_kernel"][0]
            enter, forget, value, leave = np.split(gates, 4)
            cell = sigmoid(forget + 1) * cell + sigmoid(enter) * np.tanh(value)
            output = sigmoid(leave) * np.tanh(cell)
            states.append(output)
        x = np.array(states)
    return x @ params["embed"]["table"].T + params["bias"]


@pytest.mark.parametrize(
    ("trunk", "reference"), [(WINDOW, bengio), (CHAIN, chain)], ids=["feedforward", "lstm"]
)
def test_scores_equal_a_loop_over_each_example_alone(trunk, reference) -> None:
    task = CausalLM(backbone=trunk)
    params = random_params(task, PADDED, train=False)["backbone"]

    def scores(params, batch):
        return trunk.apply(
            {"params": params}, trunk.apply({"params": params}, batch), method="logits"
        )

    got = layouts.cut(jax.jit(scores)(params, PACKED), PACKED)
    for text in TEXTS:
        np.testing.assert_allclose(got[text.id], reference(text.tokens, params), atol=1e-5)


@TRUNKS
def test_packed_equals_padded_in_loss_and_gradient_with_dropout_on(trunk) -> None:
    task = CausalLM(backbone=trunk)
    params = random_params(task, PADDED, train=True)

    @jax.jit
    def run(params, batch):
        def loss(params):
            rngs = {"noise": jax.random.key(5)}
            return task.apply({"params": params}, batch, train=True, rngs=rngs)["loss"].value

        return jax.value_and_grad(loss)(params)

    (one, gradient), (other, expected) = run(params, PACKED), run(params, PADDED)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    wanted = flatten_dict(expected, sep="/")
    for path, leaf in flatten_dict(gradient, sep="/").items():
        np.testing.assert_allclose(leaf, wanted[path], atol=1e-5, err_msg=path)
        assert np.abs(leaf).max() > 0, path


@TRUNKS
def test_what_comes_later_or_lies_in_other_examples_is_never_felt(trunk) -> None:
    """Gradients by the vectors of later tokens and of neighbours are exactly zero."""
    free = dataclasses.replace(trunk.spec, vocab_size=5 * 14 + 1)
    trunk = trunk.clone(spec=free)
    # Every cell has a token of its own, so that gradients by the table are gradients by cells.
    batch = PACKED | {"tokens": jnp.arange(70, dtype=jnp.int32).reshape(5, 14)}
    params = random_params(trunk, batch)

    def seen(table, row, cell):
        held = params | {"embed": {"table": table}}
        return jnp.sum(trunk.apply({"params": held}, batch)[row, cell] ** 2)

    table = jnp.asarray(params["embed"]["table"])
    grad = jax.jit(jax.grad(seen), static_argnums=(1, 2))
    # Row 0 has the texts of 1, 7 and 4 tokens side by side.
    for cell, first in ((0, 0), (5, 1), (9, 8)):
        felt = np.abs(np.asarray(grad(table, 0, cell))).sum(-1) > 0
        reach = 3 if isinstance(trunk, Feedforward) else 14
        wanted = np.zeros(71, bool)
        wanted[max(first, cell + 1 - reach) : cell + 1] = True
        np.testing.assert_array_equal(felt, wanted)


@TRUNKS
def test_noise_changes_vectors_and_none_does_not(trunk) -> None:
    params = random_params(trunk, PADDED)
    run = jax.jit(trunk.apply)
    still = run({"params": params}, PADDED)
    noisy = run({"params": params}, PADDED, noise=token_noise(jax.random.key(1), PADDED))
    real = np.asarray(PADDED["segments"]) > 0
    assert (np.asarray(still) != np.asarray(noisy)).any(-1)[real].all()
    np.testing.assert_array_equal(still, run({"params": params}, PADDED))


def test_the_window_without_direct_connections_and_the_untied_chain() -> None:
    plain = Feedforward(dataclasses.replace(WINDOW.spec, direct=False))
    assert plain.spec.width == 6
    params = random_params(CausalLM(backbone=plain), PADDED, train=False)
    assert params["backbone"]["unembed"]["table"].shape == (V, 6)
    untied = Lstm(dataclasses.replace(CHAIN.spec, tied=False))
    params = random_params(CausalLM(backbone=untied), PADDED, train=False)
    assert set(params["backbone"]) == {"embed", "unembed", "bias", "block_0", "block_1"}
