"""Encoders other than BERT: what transformers computes of each, and what goes back to it."""

from __future__ import annotations

import functools
import json
import weakref
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_bert import REFERENCE, assert_named_once, batch_of, exact, inputs_of
from tokenizers import Tokenizer

from research import sharding
from research.errors import ConfigError, StorageError
from research.models import pretrained
from research.models.pretrained.tensors import Tensors
from research.tasks.answer import Answer
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM
from research.tasks.tag import Tag

FAMILIES = ("roberta", "distilbert", "electra", "albert", "modernbert")
LABELS = ("O", "B-x", "I-x")
QKV = "model.layers.1.attn.Wqkv.weight"


@functools.cache
def reference(family: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of a file, the weights among them, and the config.json."""
    file = REFERENCE / f"encoder_{family}.safetensors"
    arrays = load_file(file)
    with safe_open(file, framework="numpy") as opened:
        config = json.loads(opened.metadata()["config"])
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    return arrays, weights, config


def write(directory: Path, family: str, tensors: Any = None, **config: Any) -> Path:
    """A directory in the format of Hugging Face."""
    _, weights, settings = reference(family)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings | config))
    save_file(weights if tensors is None else tensors, directory / "model.safetensors")
    return directory


@functools.cache
def batch(family: str) -> dict[str, jax.Array]:
    inputs = inputs_of(reference(family)[0])
    blank = {"token_type_ids": np.zeros_like(inputs["input_ids"])}
    return batch_of(blank | inputs)


def classifier(directory: Path, **changes: Any) -> Classify:
    return Classify(backbone=exact(pretrained.trunk(directory), **changes), labels=LABELS)


def masked(directory: Path, **changes: Any) -> MaskedLM:
    trunk = exact(pretrained.trunk(directory), **changes)
    return MaskedLM(backbone=trunk, vocab_size=97, mask_id=4)


def everything(task: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The vectors under and above every block, and the logits of the task."""
    states = task.backbone.layers(batch)
    found = task.logits(states[-1] if isinstance(task, MaskedLM) else batch)
    return states, found


def shapes(task: Any, family: str) -> Any:
    """Shapes of a task's parameters."""
    method = (lambda task, b: task.emissions(b)) if isinstance(task, Tag) else everything

    rows = batch(family)

    def initial(key: jax.Array) -> Any:
        return task.init({"params": key}, rows, method=method)["params"]

    return jax.eval_shape(initial, jax.random.key(0))


def load(directory: Path, task: Any, family: str) -> tuple[Any, pretrained.Account]:
    """Parameters, of which none may be drawn, and the account."""
    return pretrained.load(directory, shapes(task, family), fresh={}.__getitem__)


def tokenizer_file(path: Path, padding: int, name: str | None = None) -> Path:
    """A tokenizer whose padding has the id given, and the name that goes with it."""
    words = {name or ("<pad>" if padding else "[PAD]"): padding, "a": 2, "b": 1 - padding}
    Tokenizer(tokenizers.models.WordPiece(words, unk_token="a")).save(str(path))
    return path


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_and_the_logits_equal_reference(tmp_path, family, scan):
    arrays, weights, _ = reference(family)
    task = classifier(write(tmp_path, family), scan=scan)
    params, account = load(tmp_path, task, family)
    assert_named_once(account, params, weights)
    run = jax.jit(lambda p, b: task.apply({"params": p}, b, method=everything))
    states, logits = run(params, batch(family))
    real = arrays["input/attention_mask"][..., None]
    expected = arrays["output/hidden"]
    np.testing.assert_allclose(np.asarray(states) * real, expected * real, atol=2e-5, rtol=0)
    np.testing.assert_allclose(logits[:, 0], arrays["output/logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_words_equal_reference(tmp_path, family):
    arrays, _, _ = reference(family)
    task = masked(write(tmp_path, family))
    params, _ = load(tmp_path, task, family)
    run = jax.jit(lambda p, b: task.apply({"params": p}, b, method=everything)[1])
    real = arrays["input/attention_mask"][..., None]
    got = np.asarray(run(params, batch(family)))
    np.testing.assert_allclose(got * real, arrays["output/words"] * real, atol=2e-5, rtol=0)


def test_xlm_roberta_is_computed_as_roberta(tmp_path):
    task = classifier(write(tmp_path / "a", "roberta"))
    other = classifier(write(tmp_path / "b", "roberta", model_type="xlm-roberta"))
    assert other == task and other.backbone.spec.max_positions == 22
    got, _ = load(tmp_path / "b", other, "roberta")
    jax.tree.map(np.testing.assert_array_equal, got, load(tmp_path / "a", task, "roberta")[0])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("make", [classifier, masked])
@pytest.mark.parametrize("family", FAMILIES)
def test_export_then_import_is_bit_exact(tmp_path, family, make, scan):
    """Under the tensors' own names, with their own bits; only what the class lacks is left out."""
    _, weights, config = reference(family)
    task = make(write(tmp_path / "in", family), scan=scan)
    params, _ = load(tmp_path / "in", task, family)
    out = tmp_path / "out"
    file = tokenizer_file(tmp_path / "tokenizer.json", config["pad_token_id"])
    assert pretrained.save(out, task, params, file) == ()
    assert make(out, scan=scan) == task and pretrained.fits(out, task)
    again, account = load(out, task, family)
    assert account.unused == ()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    written = load_file(out / "model.safetensors")
    for name, tensor in written.items():
        np.testing.assert_array_equal(
            tensor,
            weights[name.replace("decoder.bias", "bias")] if name not in weights else weights[name],
        )
    trunk = "model." if family == "modernbert" else f"{family}."
    lacking = {n for n in weights.keys() - written.keys() if n.startswith(trunk)}
    # A masked model of ALBERT's has no pooler.
    assert all("pooler" in name for name in lacking)


def test_several_files_of_bfloat16_equal_one_of_float32(tmp_path):
    _, weights, _ = reference("modernbert")
    stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
    rounded = {name: array.astype(np.float32) for name, array in stored.items()}
    task = classifier(write(tmp_path / "one", "modernbert", rounded))
    several = write(tmp_path / "several", "modernbert", {})
    (several / "model.safetensors").unlink()
    places = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(stored)}
    for file in set(places.values()):
        save_file({n: a for n, a in stored.items() if places[n] == file}, several / file)
    index = several / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    got, account = load(several, task, "modernbert")
    jax.tree.map(np.testing.assert_array_equal, got, load(tmp_path / "one", task, "modernbert")[0])
    assert_named_once(account, got, weights)


@pytest.mark.parametrize("scan", [False, True])
def test_tensors_are_read_once_and_one_at_a_time(tmp_path, monkeypatch, scan):
    """However large a checkpoint, the host holds one parameter and one tensor's share of it."""
    _, weights, _ = reference("modernbert")
    task = classifier(write(tmp_path, "modernbert"), scan=scan)
    read, seen = Tensors.read, []
    sizes: dict[str, int] = {}

    def watched(self, name, index, source):
        assert all(not alive for alive in seen), "a piece that was read before is still held"
        piece = read(self, name, index, source)
        sizes[name] = sizes.get(name, 0) + piece.nbytes
        seen.append(True)
        weakref.finalize(piece, seen.__setitem__, len(seen) - 1, False)
        return piece

    monkeypatch.setattr(Tensors, "read", watched)
    _, account = load(tmp_path, task, "modernbert")
    used = {name for names in account.loaded.values() for name in names}
    assert sizes == {name: weights[name].nbytes for name in used}


def test_parts_of_a_tensor_land_where_their_sharding_says(tmp_path, monkeypatch):
    task = classifier(write(tmp_path, "modernbert"), scan=True)
    expected, _ = load(tmp_path, task, "modernbert")
    mesh = jax.make_mesh(
        (1, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.devices()[:4]
    )
    abstract = sharding.shard(shapes(task, "modernbert"), mesh)
    read, largest = Tensors.read, []

    def watched(self, name, index, source):
        piece = read(self, name, index, source)
        largest.extend([piece.size] if "Wqkv" in name else [])
        return piece

    monkeypatch.setattr(Tensors, "read", watched)
    got, _ = pretrained.load(tmp_path, abstract, fresh={}.__getitem__)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert jax.tree.map(lambda x: x.sharding, got) == jax.tree.map(lambda x: x.sharding, abstract)
    assert set(largest) == {16 * 16 // 4}


def test_damage_is_refused(tmp_path):
    _, weights, _ = reference("modernbert")
    lacking = {name: array for name, array in weights.items() if name != QKV}
    for scan in (False, True):
        task = classifier(write(tmp_path / "a", "modernbert", lacking), scan=scan)
        with pytest.raises(ConfigError, match=f"lacks .*{QKV}"):
            load(tmp_path / "a", task, "modernbert")
        wrong = weights | {QKV: np.zeros((32, 16), np.float32)}
        task = classifier(write(tmp_path / "b", "modernbert", wrong), scan=scan)
        with pytest.raises(ConfigError, match=rf"{QKV} is \(32, 16\).*needs \(48, 16\)"):
            load(tmp_path / "b", task, "modernbert")
    file = write(tmp_path / "c", "modernbert") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        load(tmp_path / "c", task, "modernbert")


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("roberta", {"hidden_act": "relu"}, "hidden_act is 'relu', supported: 'gelu'"),
        ("roberta", {"max_position_embeddings": 2}, "of which pad_token_id leaves none"),
        ("distilbert", {"n_heads": 3}, "dim 16 is not a multiple of n_heads 3"),
        ("electra", {"summary_type": "mean"}, "summary_type is 'mean', supported: 'first'"),
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups is 2, supported: 1"),
        ("albert", {"inner_group_num": 2}, "inner_group_num is 2, supported: 1"),
        ("modernbert", {"layer_types": ["sliding_attention"] * 4}, "layer_types is"),
        ("modernbert", {"mlp_bias": True}, "mlp_bias is True, supported: False"),
        ("modernbert", {"rope_parameters": 3}, "rope_parameters is 3, expected an object"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type is 'yarn', supported: 'default'",
        ),
    ],
)
def test_config_that_cannot_be_computed_is_refused(tmp_path, family, change, named):
    directory = write(tmp_path, family, **change)
    with pytest.raises(ConfigError, match=named) as caught:
        pretrained.trunk(directory)
    assert str(directory / "config.json") in str(caught.value)


def test_older_keys_of_modernbert_mean_the_same(tmp_path):
    today = pretrained.trunk(write(tmp_path / "now", "modernbert"))
    older = {"layer_types": None, "rope_parameters": None, "global_attn_every_n_layers": 3}
    older |= {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    assert pretrained.trunk(write(tmp_path / "old", "modernbert", **older)) == today


def test_export_refuses_what_transformers_would_compute_otherwise(tmp_path):
    file = tokenizer_file(tmp_path / "tokenizer.json", 0)

    def refused(task, params, match):
        with pytest.raises(ConfigError, match=match):
            pretrained.save(tmp_path / "out", task, params, file)

    task = classifier(write(tmp_path / "r", "roberta"))
    tokenizer_file(file, 0, "<pad>")
    refused(task, load(tmp_path / "r", task, "roberta")[0], "it must be 1, but .* has 0")
    task = classifier(write(tmp_path / "m", "modernbert"))
    params, _ = load(tmp_path / "m", task, "modernbert")
    trunk = task.backbone
    for other in (Tag(backbone=trunk, labels=LABELS), Answer(backbone=trunk)):
        refused(
            other, params, "has a dense layer under its head, but the task has token_pooler=False"
        )
        assert not pretrained.fits(tmp_path / "m", other)
    flat = flatten_dict(params, sep="/")
    del flat["backbone/block_1/attention/key/kernel"]
    refused(task, unflatten_dict(flat, sep="/"), f"{QKV} is made of 3 parameters, but 2 are there")
    refused(task.clone(backbone=exact(trunk, first_norm=True)), params, "first_norm=True")
    bert = Classify(backbone=exact(trunk, norm_first=False), labels=LABELS)
    refused(bert, params, "no Hugging Face class computes this trunk")


def test_pooling_decides_whether_a_head_fits(tmp_path):
    directory = write(tmp_path, "modernbert", classifier_pooling="mean")
    task = classifier(directory)
    assert pretrained.fits(directory, task.clone(pool="mean"))
    assert not pretrained.fits(directory, task)
    assert not pretrained.fits(directory, task.clone(pool="last"))
