"""XLNet: what transformers computes, stream by stream; nothing sees what it must not."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file
from small_trunks import KEY, random_params
from tiny_bert import assert_named_once
from tiny_xlnet import (
    TINY,
    WEIGHTS,
    assert_close,
    block_batch,
    classifier,
    exact,
    load,
    permuted,
    text_batch,
    tokenizer_file,
    write,
)

from research.errors import ConfigError
from research.models import layers, pretrained
from research.models.transformer import Spec, Transformer
from research.models.xlnet import XLNet, XLNetSpec, remember
from research.tasks.classify import Classify

V = 50
SPEC = XLNetSpec(vocab_size=V, width=16, depth=2, heads=4, hidden=24, dropout=0.3, dtype="float32")
TEXTS = layouts.examples([5, 3, 7, 1, 4], vocab_size=V)
PADDED = layouts.layout([[text] for text in TEXTS], 14, places=3)
PACKED = layouts.layout([[TEXTS[3], TEXTS[2], TEXTS[4]], [], [TEXTS[1], TEXTS[0]], [], []], 14)


@pytest.fixture
def tiny(tmp_path):
    return write(tmp_path / "tiny")


@pytest.mark.parametrize("scan", [False, True])
def test_classifier_equals_reference(tiny, scan):
    task, batch = classifier(tiny, scan=scan), text_batch()
    params, account = load(tiny, task)
    logits = task.apply({"params": params}, batch, method="logits")[:, 0]
    assert_close(logits, TINY["text/logits"])
    assert account.fresh == () and account.unused == ("lm_loss.bias",)
    assert_named_once(account, params, WEIGHTS)
    inputs = task.backbone.apply({"params": params["backbone"]}, batch, method="streams").inputs
    last = task.backbone.apply({"params": params["backbone"]}, batch)
    for ours, theirs in zip([*inputs, last], TINY["text/hidden"], strict=True):
        for i, vectors in layouts.cut(ours, batch).items():
            assert_close(vectors, theirs[i, -len(vectors) :])


@pytest.mark.parametrize("scan", [False, True])
def test_both_streams_equal_reference_with_memory(tiny, scan):
    task = permuted(tiny, scan=scan, remat=scan)
    params, account = load(tiny, task)
    assert account.fresh == ()
    trunk, weights = task.backbone, {"params": params["backbone"]}
    memory = None
    for number in range(2):
        batch, asked = block_batch(number)
        streams = trunk.apply(weights, batch, method="streams", memory=memory, **asked)
        memory = remember(memory, streams, 99)
        content = TINY[f"block{number}/content"]
        assert_close([*streams.inputs, streams.content], content)
        assert_close(streams.query, TINY[f"block{number}/query"][-1])
        words = task.apply({"params": params}, streams.query, method="logits")
        assert_close(words, TINY[f"block{number}/words"])
    assert memory.shape == (2, 2, 16, 16)


def test_memory_is_what_came_before_and_has_no_gradient(tiny):
    """Causal, a text in two blocks is the text; what is remembered is cut to its length."""
    trunk = exact(tiny, causal=True)
    weights = {"params": load(tiny, permuted(tiny))[0]["backbone"]}
    whole = layouts.layout([[layouts.Example(id=0, tokens=tuple(range(1, 11)))]], 10)
    halves = [
        layouts.layout([[layouts.Example(id=0, tokens=tuple(range(a, a + 5)))]], 5) for a in (1, 6)
    ]

    def second(weights):
        memory = remember(None, trunk.apply(weights, halves[0], method="streams"), 5)
        return trunk.apply(weights, halves[1], method="streams", memory=memory).content

    assert_close(second(weights), trunk.apply(weights, whole)[:, 5:])
    first = trunk.apply(weights, halves[0], method="streams")
    assert remember(None, first, 2).shape == (2, 1, 2, 16)
    grads = jax.grad(lambda w: second(w).sum())(weights)["params"]["embed"]["table"]
    assert not np.any(grads[1:6]) and np.all(np.any(grads[6:11] != 0, axis=1))


@pytest.mark.parametrize("make", [classifier, permuted])
@pytest.mark.parametrize("scan", [False, True])
def test_export_then_import_is_bit_exact(tiny, tmp_path, make, scan):
    words = tokenizer_file(tmp_path / "tokenizer.json", ["a", "lab"])
    task = make(tiny, scan=scan)
    params, _ = load(tiny, task)
    assert pretrained.save(tmp_path / "out", task, params, words) == ()
    assert exact(tmp_path / "out", scan=scan) == task.backbone
    again, account = load(tmp_path / "out", task)
    assert account.fresh == () and account.unused == ()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in stored.items():
        np.testing.assert_array_equal(tensor, WEIGHTS[name])
    heads = {"lm_loss.bias", *(k for k in WEIGHTS if not k.startswith("transformer."))}
    kept = {"lm_loss.bias"} if make is permuted else heads - {"lm_loss.bias"}
    assert stored.keys() == WEIGHTS.keys() - heads | kept
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["padding_side"] == "left" and "model_max_length" not in settings
    assert settings["cls_token"] == "<cls>"


def test_each_trunk_is_exported_by_its_own_family(tiny, tmp_path):
    words = tokenizer_file(tmp_path / "tokenizer.json", ["a"])
    task = classifier(tiny)
    params, _ = load(tiny, task)
    first = task.clone(pool="mean")
    with pytest.raises(ConfigError, match="pooled last token, but the task has pool='mean'"):
        pretrained.save(tmp_path / "out", first, params, words)
    with pytest.raises(ConfigError, match="<cls> is the last token of a text for XLNet"):
        load(tiny, task.clone(pool="first"))
    rotary = Classify(backbone=Transformer(Spec(vocab_size=40, positions="rotary")), pool="last")
    with pytest.raises(ConfigError, match="bert has no ") as told:
        pretrained.save(tmp_path / "out", rotary, params, words)
    assert "xlnet" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clamp_len": 64}, "clamp_len is 64"),
        ({"bi_data": True}, "bi_data is True"),
        ({"summary_type": "mean"}, "summary_type is 'mean'"),
        ({"d_head": 8}, "d_model 16 is not n_head 4 times d_head 8"),
        ({"n_head": 3}, "d_model 16 is not n_head 3 times"),
        ({"ff_activation": "tanh"}, "ff_activation is 'tanh'"),
    ],
)
def test_what_cannot_be_computed_is_named(tmp_path, change, message):
    directory = write(tmp_path / "a", **change)
    with pytest.raises(ConfigError, match=rf"config\.json: {message}"):
        pretrained.trunk(directory)


def test_heads_of_another_size_are_refused(tmp_path):
    name = "transformer.layer.0.rel_attn.q"
    directory = write(tmp_path / "a", WEIGHTS | {name: np.zeros((16, 4, 5), np.float32)})
    message = rf"{name} is \(16, 4, 5\), but .*attention/query/kernel needs \(16, 16\)"
    with pytest.raises(ConfigError, match=message):
        load(directory, classifier(directory))


def test_packed_equals_padded_with_dropout():
    """Both streams and the gradient of either, whatever shares the row."""
    trunk = XLNet(dataclasses.replace(SPEC, scan=True))
    params = random_params(trunk)

    def run(params, batch):
        order = layers.token_noise(KEY, batch)
        every = jnp.broadcast_to(jnp.arange(14, dtype=jnp.int32), batch["tokens"].shape)
        streams = trunk.apply(
            {"params": params},
            batch,
            visible=order[:, None, :] < order[:, :, None],
            targets=every,
            noise=layers.token_noise(jax.random.fold_in(KEY, 1), batch),
            method="streams",
        )
        real = (batch["segments"] > 0)[..., None]
        return jnp.where(real, jnp.concatenate(streams[:2], axis=-1), 0.0)

    @jax.jit
    def both(params, batch):
        weight = jnp.arange(1.0, 33.0)[None, None]
        grads = jax.grad(lambda p: (run(p, batch) ** 2 * weight).sum())(params)
        return run(params, batch), grads

    (padded, expected), (packed, got) = both(params, PADDED), both(params, PACKED)
    one, other = layouts.cut(padded, PADDED), layouts.cut(packed, PACKED)
    assert one.keys() == other.keys()
    for i in one:
        np.testing.assert_allclose(one[i], other[i], atol=1e-5, rtol=1e-5)
    for path, leaf in flatten_dict(expected, sep="/").items():
        other = flatten_dict(got, sep="/")[path]
        # Nothing here reads the pooler.
        np.testing.assert_allclose(leaf, other, atol=1e-5 * max(1.0, np.abs(leaf).max()), rtol=0)
        assert np.any(leaf != 0) or path.startswith("pooler/"), path


def test_streams_see_what_comes_before_and_only_content_sees_itself():
    trunk = XLNet(SPEC)
    params = random_params(trunk)
    T = 6
    row = layouts.layout([[layouts.Example(id=0, tokens=(5, 6, 7, 8, 9, 10))]], T)
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    visible = (order[None, :] < order[:, None])[None]
    targets = jnp.arange(T, dtype=jnp.int32)[None]

    # Each word here is another row of the table: its gradient tells who reads the token.
    @jax.jit
    @jax.jacrev
    def gradient(table):
        told = params | {"embed": {"table": table}}
        streams = trunk.apply(
            {"params": told}, row, visible=visible, targets=targets, method="streams"
        )
        return jnp.stack([streams.content[0], streams.query[0]])

    grads = gradient(params["embed"]["table"])[:, :, :, 5:11]  # [2, T, D, T, D]
    reads = np.abs(np.asarray(grads)).max(axis=(2, 4))
    before = np.asarray(order)[None, :] < np.asarray(order)[:, None]
    np.testing.assert_array_equal(reads[0] > 0, before | np.eye(T, dtype=bool))
    np.testing.assert_array_equal(reads[1] > 0, before)


def test_distance_is_between_positions_and_not_cells():
    """Cells in any order give the same vectors, as nothing but positions says where they stand."""
    trunk = XLNet(SPEC)
    params = random_params(trunk)
    row = layouts.layout([[TEXTS[2]]], 7)
    shuffle = np.array([4, 1, 6, 0, 2, 5, 3])
    cells = ("tokens", "positions", "types", "segments")
    mixed = row | {name: row[name][:, shuffle] for name in cells}
    one, other = (trunk.apply({"params": params}, batch) for batch in (row, mixed))
    np.testing.assert_allclose(one[:, shuffle], other, atol=1e-5, rtol=0)
    apart = row | {"positions": row["positions"][:, ::-1]}
    assert np.abs(trunk.apply({"params": params}, apart) - one).max() > 1e-2
