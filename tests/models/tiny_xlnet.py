"""A real, tiny XLNet with the outputs that transformers computes, and directories made of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from tiny_bert import REFERENCE, constant

from research.models import pretrained
from research.models.xlnet import XLNet
from research.tasks.classify import Classify
from research.tasks.permutation import PermutationLM

TINY = load_file(REFERENCE / "tiny_xlnet.safetensors")
WEIGHTS = {k.removeprefix("weights/"): v for k, v in TINY.items() if k.startswith("weights/")}
CONFIG = {
    "architectures": ["XLNetForSequenceClassification"],
    "model_type": "xlnet",
    "vocab_size": 40,
    "d_model": 16,
    "n_layer": 2,
    "n_head": 4,
    "d_inner": 24,
    "id2label": {"0": "no", "1": "maybe", "2": "yes"},
}


def write(directory: Path, tensors: dict = WEIGHTS, **config) -> Path:
    """A directory in the format of Hugging Face."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def tokenizer_file(path: Path, words: list[str]) -> Path:
    """A tokenizer.json of whole words that puts <sep> <cls> after a text, as XLNet's does."""
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"]
    ids = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=[("<sep>", 4), ("<cls>", 3)],
    )
    tokenizer.save(str(path))
    return path


def exact(directory: Path, **changes) -> XLNet:
    """The trunk of a directory in float32."""
    spec = pretrained.trunk(directory).spec
    return XLNet(dataclasses.replace(spec, dtype="float32", **changes))


def classifier(directory: Path, **changes) -> Classify:
    return Classify(
        backbone=exact(directory, **changes), labels=("no", "maybe", "yes"), pool="last"
    )


def permuted(directory: Path, **changes) -> PermutationLM:
    return PermutationLM(backbone=exact(directory, **changes))


def text_batch() -> dict[str, jax.Array]:
    """The reference's texts, which are padded on the left, as rows of ours."""
    ids, types, mask = (
        TINY[f"text/{k}"] for k in ("input_ids", "token_type_ids", "attention_mask")
    )
    rows = [
        [
            layouts.Example(
                id=i,
                tokens=tuple(ids[i, mask[i] > 0].tolist()),
                types=tuple(types[i, mask[i] > 0].tolist()),
            )
        ]
        for i in range(len(ids))
    ]
    return layouts.layout(rows, ids.shape[1])


def block_batch(number: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The reference's rows of a block of text, and what `streams` is asked of them."""
    block = {k.partition("/")[2]: v for k, v in TINY.items() if k.startswith(f"block{number}/")}
    ids, types = block["input_ids"], block["token_type_ids"]
    rows = [
        [layouts.Example(id=i, tokens=tuple(ids[i].tolist()), types=tuple(types[i].tolist()))]
        for i in range(len(ids))
    ]
    asked = {
        "visible": jnp.asarray(block["perm_mask"] == 0),
        "targets": jnp.asarray(block["targets"], jnp.int32),
    }
    return layouts.layout(rows, ids.shape[1]), asked


def load(directory: Path, task):
    """Parameters and account; what the directory lacks is 0.5."""

    def initial(key):
        return task.init({"params": key, "noise": key}, text_batch(), train=False)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    return pretrained.load(directory, abstract, fresh=constant(abstract))


def paths(params) -> set[str]:
    return set(flatten_dict(params, sep="/"))


def assert_close(got, expected) -> None:
    np.testing.assert_allclose(np.asarray(got), expected, atol=2e-5, rtol=0)
