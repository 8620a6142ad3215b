"""Directories that are split, damaged, hostile or of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_bert import (
    WEIGHTS,
    assert_named_once,
    classifier,
    load,
    tokenizer_file,
    write,
)

from research.errors import ConfigError, StorageError
from research.models import pretrained


def split(directory: Path, names: list[str]) -> Path:
    """The tiny model over several files with an index."""
    write(directory)
    (directory / "model.safetensors").unlink()
    places = {tensor: names[i % len(names)] for i, tensor in enumerate(WEIGHTS)}
    for name in set(names):
        if (directory / name).parent == directory:
            held = {k: v for k, v in WEIGHTS.items() if places[k] == name}
            save_file(held, directory / name)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


def test_several_files_equal_one(tiny, tmp_path):
    several = split(tmp_path / "s", ["model-1-of-2.safetensors", "model-2-of-2.safetensors"])
    task = classifier(tiny)
    got, account = load(several, task)
    jax.tree.map(np.testing.assert_array_equal, got, load(tiny, task)[0])
    assert_named_once(account, got, WEIGHTS)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/tmp/outside.safetensors",
        "sub/../../outside.safetensors",
        "..\\outside.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "model.bin",
        "model\x00.safetensors",
        "model.safetensors\n",
        7,
        None,
    ],
)
def test_hostile_index_is_refused(tmp_path, name):
    save_file(WEIGHTS, tmp_path / "outside.safetensors")
    directory = split(tmp_path / "s", ["model-1.safetensors"])
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(WEIGHTS, name)}))
    with pytest.raises(ConfigError, match="is not the name of a safetensors file"):
        load(directory, classifier(directory))


def test_index_that_lies_is_refused(tmp_path):
    directory = split(tmp_path / "s", ["model-1.safetensors"])
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"bert.other": "model-1.safetensors"}}))
    with pytest.raises(ConfigError, match=r"bert\.other is said to be in model-1\.safetensors"):
        load(directory, classifier(directory))
    index.write_text(json.dumps({"weight_map": {"bert.other": "model-2.safetensors"}}))
    with pytest.raises(ConfigError, match=r"model-2\.safetensors: no such file"):
        load(directory, classifier(directory))


def test_damaged_file_is_a_storage_error(tiny):
    file = tiny / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        load(tiny, classifier(tiny))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "t5"}, "model_type is 't5', supported: 'bert'"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish', supported: 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type.*'absolute'"),
        ({"is_decoder": True}, "is_decoder is True, supported: False"),
        ({"hidden_size": 18}, "hidden_size 18 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        ({"vocab_size": None}, "vocab_size is None"),
    ],
)
def test_config_that_cannot_be_computed_is_refused(tmp_path, change, named):
    directory = write(tmp_path / "a", **change)
    with pytest.raises(ConfigError, match=named) as caught:
        pretrained.trunk(directory)
    assert str(directory / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"model_type": "bert", "model_type": "t5"}', "'model_type' is given twice"),
        ('{"layer_norm_eps": NaN}', "NaN is not JSON"),
        ("[]", "expected an object"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
    ],
)
def test_config_that_is_no_json_object_is_refused(tiny, text, named):
    (tiny / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=named):
        pretrained.trunk(tiny)


def test_tokenizer_with_more_ids_than_vectors_is_refused(tiny):
    tokenizer_file(tiny / "tokenizer.json")
    assert pretrained.trunk(tiny).spec.vocab_size == 60
    tokenizer_file(tiny / "tokenizer.json", last="new")
    with pytest.raises(ConfigError, match=r"ids up to 60, but config\.json says vocab_size 60"):
        pretrained.trunk(tiny)


def test_resolve_finds_directories_and_explains_the_rest(tiny, tmp_path, monkeypatch):
    assert pretrained.resolve(str(tiny)) == tiny
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        pretrained.resolve(str(tmp_path))
    with pytest.raises(ConfigError, match="no such directory, nor a hub id"):
        pretrained.resolve(str(tmp_path / "absent"))
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, [p for p in allow_patterns if "bin" in p or "py" in p]))
        if name == "owner/gone":
            raise ConnectionError("no\nnetwork")
        return str(tiny)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert pretrained.resolve("owner/model@v1") == tiny
    assert asked == [("owner/model", "v1", [])]
    with pytest.raises(ConfigError, match=r"owner/gone: no such directory.*\(no network\)"):
        pretrained.resolve("owner/gone")
