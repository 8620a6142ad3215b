"""Decoders of Hugging Face: every layer equals what transformers computes, in both directions."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_decoders import (
    FAMILIES,
    STORIES,
    batch_of,
    load,
    logits,
    reference,
    task_of,
    weights,
    write,
)

from research import sharding
from research.errors import ConfigError
from research.models import layers, pretrained
from research.models.transformer import Block, Spec, Transformer
from research.sharding import MeshSpec
from research.tasks.classify import Classify

IDS, MASK = reference()["input/input_ids"], reference()["input/attention_mask"]
BATCH = batch_of(IDS, MASK)
CASES = [(name, False) for name in FAMILIES] + [("gpt2", True), ("qwen3", True)]


@pytest.mark.parametrize("name, scan", CASES)
def test_every_layer_equals_reference(tmp_path, name, scan):
    directory = write(tmp_path, name)
    task = task_of(directory, scan=scan)
    params, account = load(directory, task)
    assert account.fresh == account.unused == account.ignored == ()
    used = {tensor for names in account.loaded.values() for tensor in names}
    assert used == set(weights(name))
    real = MASK[..., None]
    found = logits(task, params, BATCH)
    np.testing.assert_allclose(
        found * real, reference()[f"{name}/output/logits"] * real, atol=1e-4, rtol=0
    )
    if not scan:
        expected = reference()[f"{name}/output/hidden"]
        np.testing.assert_allclose(
            hidden_states(task, params) * real, expected[1:] * real, atol=1e-4, rtol=0
        )


def hidden_states(task, params) -> np.ndarray:
    """The vectors after each block, the last after the final norm, [L, B, T, D]."""
    last, state = task.apply(
        {"params": params},
        BATCH,
        method=lambda s, b: s.backbone(b),
        capture_intermediates=lambda module, _: isinstance(module, Block),
        mutable=["intermediates"],
    )
    kept = state["intermediates"]["backbone"]
    blocks = [kept[f"block_{i}"]["__call__"][0][0][0] for i in range(task.backbone.spec.depth)]
    return np.stack([*blocks[:-1], last])


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_exact(tmp_path, name):
    directory = write(tmp_path / "in", name)
    task = task_of(directory)
    params, _ = load(directory, task)
    assert pretrained.save(tmp_path / "out", task, params, directory) == ()
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert set(again) == set(weights(name))
    for key, value in weights(name).items():
        np.testing.assert_array_equal(again[key], value, strict=True)
    old, new = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("in", "out"))
    assert {k: new[k] for k in ("bos_token_id", "eos_token_id", "model_type")} == {
        k: old[k] for k in ("bos_token_id", "eos_token_id", "model_type")
    }
    assert pretrained.trunk(tmp_path / "out").spec == pretrained.trunk(directory).spec
    loaded, _ = load(tmp_path / "out", task_of(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("scan", [False, True])
def test_parts_of_a_tensor_are_cut_for_every_device(tmp_path, scan):
    directory = write(tmp_path, "gpt2")
    task = task_of(directory, scan=scan)
    whole, _ = load(directory, task)
    mesh = MeshSpec(data=1, fsdp=2, tensor=4).build()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), whole)
    with jax.set_mesh(mesh):
        params, _ = pretrained.load(directory, sharding.shard(shapes, mesh), fresh=dict)
    name = "blocks" if scan else "block_1"
    kernel = params["backbone"][name]["attention"]["value"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    jax.tree.map(np.testing.assert_array_equal, params, whole)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_packed_equals_padded(tmp_path, name):
    """Loss, logits and gradients, with dropout on."""
    directory = write(tmp_path, name)
    task = task_of(directory, dropout=0.2, attention_dropout=0.1)
    params, _ = load(directory, task)
    texts = layouts.examples([9, 6, 3, 5], vocab_size=40)
    padded = layouts.layout([[text] for text in texts], 14, places=3)
    packed = layouts.layout([[texts[2], texts[0]], [texts[3], texts[1]], [], []], 14, places=3)

    @jax.jit
    def run(params, batch):
        def loss(params):
            rngs = {"noise": jax.random.key(3)}
            mean = task.apply({"params": params}, batch, train=True, rngs=rngs)["loss"]
            return mean.total / mean.count

        return jax.value_and_grad(loss)(params)

    (loss, gradient), (expected, wanted) = run(params, packed), run(params, padded)
    np.testing.assert_allclose(loss, expected, atol=1e-5, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), gradient, wanted)
    one, other = (layouts.cut(logits(task, params, b), b) for b in (packed, padded))
    for key, value in other.items():
        np.testing.assert_allclose(one[key], value, atol=1e-5, rtol=0)


def test_a_window_is_what_its_name_says():
    """Position i changes with the token at j just if 0 <= i - j <= window, exactly."""
    spec = Spec(
        vocab_size=20,
        width=8,
        depth=1,
        heads=2,
        hidden=8,
        causal=True,
        positions="rotary",
        window=2,
    )
    trunk = Transformer(dataclasses.replace(spec, dtype="float32", embed_norm=False))
    rows = [[text] for text in layouts.examples([6], vocab_size=10) * 7]
    batch = layouts.layout(rows, 6)
    batch["tokens"] = batch["tokens"].at[jnp.arange(6), jnp.arange(6)].add(10)
    params = jax.jit(trunk.init)(jax.random.key(0), batch)["params"]
    x = np.asarray(jax.jit(trunk.apply)({"params": params}, batch))
    reached = (x[:6] != x[6]).any(axis=-1).T
    distance = np.arange(6)[:, None] - np.arange(6)[None]
    np.testing.assert_array_equal(reached, (distance >= 0) & (distance <= 2))


def test_scaled_rotary_frequencies_keep_short_waves_and_slow_long_ones():
    frequencies = jnp.asarray([1.0, 2 * np.pi / 16, 2 * np.pi / 8, 1e-3])
    found = layers.slowed(frequencies, (4.0, 1.0, 4.0, 16))
    # Of 16 positions, 16 / (2 pi) = 2.5 turns, 1 turn, 2 turns and none.
    between = [1.0 * ((2.5465 - 1) / 3 + (4 - 2.5465) / 3 / 4), 2 * np.pi / 8 * (1 / 3 + 2 / 3 / 4)]
    expected = [between[0], 2 * np.pi / 16 / 4, between[1], 1e-3 / 4]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(layers.slowed(jnp.ones(1) * 9, (4.0, 1.0, 4.0, 16)), 9.0)


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not at hand")
def test_a_real_llama_says_what_llama2_c_says():
    """Greedy tokens and their log-probabilities, written down from another implementation."""
    expected = json.loads((STORIES / "expected.json").read_text())
    ids = np.asarray([expected["greedy_ids"]])
    task = task_of(STORIES)
    params, account = load(STORIES, task)
    assert account.fresh == account.unused == ()
    found = jax.nn.log_softmax(logits(task, params, batch_of(ids, np.ones_like(ids)))[0, :-1])
    np.testing.assert_array_equal(found.argmax(-1), ids[0, 1:])
    told = np.take_along_axis(np.asarray(found), ids[0, 1:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(told, expected["logprob_of_each_next_id"], atol=2e-5, rtol=0)
    assert -told.mean() == pytest.approx(expected["mean_nll"], abs=1e-6)


def test_older_files_say_rotary_positions_otherwise(tmp_path):
    new = pretrained.trunk(write(tmp_path / "new", "llama3")).spec
    scaling = {
        "type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    older = {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": scaling}
    assert pretrained.trunk(write(tmp_path / "old", "llama3", **older)).spec == new
    assert (new.rope_theta, new.rope_scaling) == (100.0, (4.0, 1.0, 4.0, 16))


BAD = [
    ("llama", {"model_type": "gpt5"}, "model_type is 'gpt5', supported: 'bert'"),
    ("llama", {"attention_bias": True}, "attention_bias is True, supported: False"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', supported"),
    ("llama", {"rope_parameters": [1]}, r"rope_parameters is \[1\], expected an object"),
    ("llama", {"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0, expected a positive integer"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True, supported: False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx is True"),
    ("gpt2", {"embd_pdrop": 0.2}, "embd_pdrop and resid_pdrop differ"),
]


@pytest.mark.parametrize("name, change, words", BAD)
def test_what_cannot_be_computed_is_named(tmp_path, name, change, words):
    with pytest.raises(ConfigError, match=rf"config.json: .*{words}"):
        pretrained.trunk(write(tmp_path, name, **change))


def test_a_fused_tensor_of_another_size_is_named(tmp_path):
    tensors = weights("gpt2")
    name = "transformer.h.0.attn.c_attn.weight"
    directory = write(tmp_path, "gpt2", tensors | {name: tensors[name][:, :32]})
    with pytest.raises(ConfigError, match=rf"{name} is \(16, 32\), but .* needs \(16, 48\)"):
        load(directory, task_of(directory))


def test_classifiers_are_exported_only_as_decoders_have_them(tmp_path):
    directory = write(tmp_path / "in", "llama")
    trunk = task_of(directory).backbone
    task = Classify(backbone=trunk, labels=("a", "b"), pool="last", pooler=False, head_bias=False)
    fresh = lambda paths: {path: np.ones((16, 2), np.float32) for path in paths}  # noqa: E731
    params, account = load(directory, task, fresh=fresh, allow="^head/kernel$")
    assert account.unused == ("lm_head.weight",)
    pretrained.save(tmp_path / "out", task, params, directory)
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {
        "score.weight",
        *weights("llama"),
    } - {"lm_head.weight"}
    assert pretrained.labels(tmp_path / "out") == ("a", "b")
    assert pretrained.fits(tmp_path / "out", task)
    for change in ({"pool": "mean"}, {"head_bias": True}, {"pooler": True}):
        with pytest.raises(ConfigError, match="head without bias on the last token"):
            pretrained.save(tmp_path / "no", task.clone(**change), params, directory)
