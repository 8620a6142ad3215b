"""The BiLSTM against a loop in numpy, one example at a time; packed equals padded."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from research.errors import ConfigError
from research.models.layers import token_noise
from research.models.recurrent import Recurrent, RecurrentSpec

SPEC = RecurrentSpec(
    vocab_size=50,
    word_width=6,
    filters=4,
    character_width=3,
    width=8,
    depth=2,
    dropout=0.3,
    dtype="float32",
)
TEXTS = layouts.examples([5, 3, 7, 1, 4], vocab_size=50)
ROWS = [[TEXTS[3], TEXTS[2], TEXTS[4]], [], [TEXTS[1], TEXTS[0]], [], []]


def spelled(batch):
    """The same characters for the same word wherever it lies; some words have none."""
    letters = np.random.default_rng(1).integers(1, 257, (50, 5))
    letters[::3, 2:] = 0
    letters[::7] = 0
    return batch | {"characters": jnp.asarray(letters[batch["tokens"]], jnp.int32)}


PADDED = spelled(layouts.layout([[text] for text in TEXTS], 14, places=3))
PACKED = spelled(layouts.layout(ROWS, 14))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, params, direction: int):
    """One direction, one example: [T, D] -> [T, hidden]."""
    hidden = SPEC.width // 2
    part = slice(4 * hidden * direction, 4 * hidden * (direction + 1))
    kernel, bias = params["input"]["kernel"][:, part], params["input"]["bias"][part]
    output = cell = np.zeros(hidden)
    found = []
    for step in x[:: -1 if direction else 1]:
        gates = step @ kernel + bias + output @ params["hidden_kernel"][direction]
        enter, forget, value, leave = np.split(gates, 4)
        cell = sigmoid(forget + 1) * cell + sigmoid(enter) * np.tanh(value)
        output = sigmoid(leave) * np.tanh(cell)
        found.append(output)
    return np.array(found[:: -1 if direction else 1])


def filters(letters, params):
    """A word's spelling: the strongest match of each filter."""
    letters = letters[letters > 0]
    if not len(letters):
        return np.zeros(SPEC.filters)
    x = np.pad(params["letters"]["table"][letters], ((1, 1), (0, 0)))
    windows = [np.concatenate(x[i : i + 3]) for i in range(len(letters))]
    kernel, bias = params["filters"]["kernel"], params["filters"]["bias"]
    return np.max([window @ kernel + bias for window in windows], axis=0)


def test_the_trunk_equals_a_loop_over_words_of_each_example_alone() -> None:
    trunk = Recurrent(SPEC)
    params = random_params_of(trunk)
    got = layouts.cut(jax.jit(trunk.apply)({"params": params}, PACKED), PACKED)
    letters = layouts.cut(PACKED["characters"], PACKED)
    for text in TEXTS:
        x = np.array([params["embed"]["table"][token] for token in text.tokens])
        more = [filters(word, params["characters"]) for word in letters[text.id]]
        x = np.concatenate([x, more], axis=-1)
        for depth in range(SPEC.depth):
            block = params[f"block_{depth}"]
            x = np.concatenate([lstm(x, block, 0), lstm(x, block, 1)], axis=-1)
        np.testing.assert_allclose(got[text.id], x, atol=1e-5)


def random_params_of(trunk):
    shapes = jax.eval_shape(lambda key: trunk.init(key, PADDED), jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)


def test_packed_equals_padded_in_value_and_gradient_with_dropout_on() -> None:
    trunk = Recurrent(SPEC)
    params = random_params_of(trunk)
    # What is read off each example must not depend on where it lies: a weight a token.
    table = jnp.asarray(np.random.default_rng(3).normal(size=(50, SPEC.width)), jnp.float32)

    def total(params, batch):
        noise = token_noise(jax.random.key(5), batch)
        x = trunk.apply({"params": params}, batch, noise=noise)
        return jnp.sum(x * table[batch["tokens"]] * (batch["segments"] > 0)[..., None]), x

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (one, x), gradient = run(params, PACKED)
    (other, y), expected = run(params, PADDED)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    apart, together = layouts.cut(y, PADDED), layouts.cut(x, PACKED)
    for text in TEXTS:
        np.testing.assert_allclose(together[text.id], apart[text.id], atol=1e-5)
    for path, leaf in flatten_dict(gradient, sep="/").items():
        wanted = flatten_dict(expected, sep="/")[path]
        np.testing.assert_allclose(leaf, wanted, atol=1e-5, err_msg=path)


def test_no_example_feels_its_neighbours() -> None:
    """The gradient of one example's vectors by the others' words is exactly zero."""
    trunk = Recurrent(dataclasses.replace(SPEC, filters=0))
    shapes = jax.eval_shape(lambda key: trunk.init(key, PACKED), jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)

    def middle(x):
        held = trunk.bind({"params": params})
        segments = PACKED["segments"]
        begins = PACKED["positions"] == 0
        ends = jnp.pad(segments, ((0, 0), (0, 1)), constant_values=-1)[:, 1:] != segments
        for block in held.blocks:
            x = block(x, begins, ends)
        return jnp.sum(jnp.where(segments[..., None] == 2, x, 0.0))

    x = jnp.asarray(rng.normal(size=(5, 14, SPEC.word_width)), jnp.float32)
    felt = np.asarray(jax.grad(middle)(x))
    own = np.asarray(PACKED["segments"]) == 2
    assert not felt[~own].any()
    assert felt[own].all()


def test_a_trunk_with_filters_needs_characters() -> None:
    plain = {name: x for name, x in PADDED.items() if name != "characters"}
    with pytest.raises(ConfigError, match=r"data\.characters"):
        Recurrent(SPEC).init(jax.random.key(0), plain)
    with pytest.raises(ConfigError, match="must be even"):
        Recurrent(dataclasses.replace(SPEC, width=7)).init(jax.random.key(0), PADDED)
