"""What is exported is what was trained, and nothing of anybody else's is overwritten."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny_bert import (
    WEIGHTS,
    classifier,
    exact,
    load,
    masked,
    tokenizer_file,
)
from tokenizers import Tokenizer

from research.errors import ConfigError
from research.models import pretrained


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("make", [classifier, masked])
def test_export_then_import_is_bit_exact(tiny, tmp_path, make, scan):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = make(tiny, scan=scan)
    params, _ = load(tiny, task)
    out = tmp_path / "exports" / "model"
    assert pretrained.save(out, task, params, tmp_path / "tokenizer.json") == ()
    assert exact(pretrained.trunk(out), scan=scan) == task.backbone
    again, account = load(out, task)
    assert account.fresh == () and account.unused == ()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    for name, tensor in load_file(out / "model.safetensors").items():
        source = "cls.predictions.bias" if name == "cls.predictions.decoder.bias" else name
        np.testing.assert_array_equal(tensor, WEIGHTS[source])


def test_export_holds_labels_and_tokenizer(tiny, tmp_path):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = classifier(tiny)
    params, _ = load(tiny, task)
    out = tmp_path / "out"
    pretrained.save(out, task, params, tmp_path / "tokenizer.json")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["label2id"] == {"no": 0, "maybe": 1, "yes": 2}
    assert pretrained.labels(out) == ("no", "maybe", "yes")
    exported = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert exported.truncation is None
    assert exported.encode("A LAB a").ids == [2, 3, 2]
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["do_lower_case"] is True and settings["model_max_length"] == 12
    # The table knows five special tokens; this tokenizer has two of them.
    assert {k: v for k, v in settings.items() if k.endswith("_token")} == {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
    }
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1 and {p.name for p in tmp_path.iterdir()} == {
        "tiny",
        "tokenizer.json",
        "out",
    }


def test_export_takes_any_form_of_the_tokenizer(tiny, tmp_path):
    """A directory, with the names of its special tokens beside it, and a bare vocabulary."""
    home = tmp_path / "home"
    home.mkdir()
    tokenizer_file(home / "tokenizer.json")
    beside = {"pad_token": {"content": "lab"}, "cls_token": "[CLS]", "sep_token": "absent"}
    (home / "tokenizer_config.json").write_text(json.dumps(beside))
    task = classifier(tiny)
    params, _ = load(tiny, task)
    out = tmp_path / "out"
    pretrained.save(out, task, params, str(home))
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["pad_token"] == "lab" and "sep_token" not in settings
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == 3
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, "a", "lab"]) + "\n")
    pretrained.save(out, task, params, tmp_path / "vocab.txt")
    exported = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert exported.encode("a lab").tokens == ["[CLS]", "a", "lab", "[SEP]"]


def test_export_replaces_only_exports(tiny, tmp_path):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = classifier(tiny)
    params, _ = load(tiny, task)
    file = tmp_path / "tokenizer.json"
    before = {path: path.read_bytes() for path in tiny.iterdir()}
    with pytest.raises(ConfigError, match="not an export"):
        pretrained.save(tiny, task, params, file)
    assert {path: path.read_bytes() for path in tiny.iterdir()} == before
    out = tmp_path / "out"
    pretrained.save(out, task, params, file)
    changed = jax.tree.map(lambda x: x + 1, params)
    pretrained.save(out, task, changed, file)
    jax.tree.map(np.testing.assert_array_equal, load(out, task)[0], changed)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an export"):
        pretrained.save(out, task, params, file)


def test_export_refuses_what_transformers_would_compute_otherwise(tiny, tmp_path):
    tokenizer_file(tmp_path / "tokenizer.json")
    task = classifier(tiny)
    params, _ = load(tiny, task)

    def save(task, params=params):
        pretrained.save(tmp_path / "out", task, params, tmp_path / "tokenizer.json")

    with pytest.raises(ConfigError, match="pool='mean'"):
        save(task.clone(pool="mean"))
    with pytest.raises(ConfigError, match="pooler=False"):
        save(task.clone(pooler=False))
    with pytest.raises(ConfigError, match=r"positions='rotary'.*norm_first=True"):
        save(task.clone(backbone=exact(task.backbone, positions="rotary", norm_first=True)))
    flat = flatten_dict(params, sep="/")
    flat["backbone/block_0/attention/query/lora_a"] = np.zeros((16, 2))
    with pytest.raises(ConfigError, match="query/lora_a"):
        save(task, unflatten_dict(flat, sep="/"))
    tokenizer_file(tmp_path / "tokenizer.json", last="new")
    with pytest.raises(ConfigError, match="ids up to 60, but the trunk has 60"):
        save(task)
    assert not (tmp_path / "out").exists()
