"""A real, tiny BERT with the outputs that transformers computes, and directories made of it."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import layouts
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from research.models import pretrained
from research.models.transformer import Transformer
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM

REFERENCE = Path(__file__).parent / "reference"
TINY = load_file(REFERENCE / "tiny_bert.safetensors")
WEIGHTS = {k.removeprefix("weights/"): v for k, v in TINY.items() if k.startswith("weights/")}
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "id2label": {"0": "no", "1": "maybe", "2": "yes"},
}
WORDS = {"[PAD]": 0, "[CLS]": 1, "a": 2, "lab": 3}


def tokenizer_file(path: Path, *, last: str | None = None) -> Path:
    """A tokenizer.json that lower-cases, and truncates of its own; `last` is a token of id 60."""
    words = WORDS | ({last: 60} if last else {})
    tokenizer = Tokenizer(tokenizers.models.WordPiece(words, unk_token="a"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]"])
    tokenizer.enable_truncation(1)
    tokenizer.save(str(path))
    return path


def write(directory: Path, tensors: dict = WEIGHTS, **config) -> Path:
    """A directory in the format of Hugging Face."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def exact(model: Transformer, **changes) -> Transformer:
    """The same trunk in float32."""
    return Transformer(dataclasses.replace(model.spec, dtype="float32", **changes))


def classifier(directory: Path, **changes) -> Classify:
    trunk = exact(pretrained.trunk(directory), **changes)
    return Classify(backbone=trunk, labels=("no", "maybe", "yes"))


def masked(directory: Path, **changes) -> MaskedLM:
    return MaskedLM(
        backbone=exact(pretrained.trunk(directory), **changes), vocab_size=60, mask_id=3
    )


def batch_of(inputs: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch with one example a row from what a tokenizer of transformers returns."""
    ids, types, mask = (inputs[k] for k in ("input_ids", "token_type_ids", "attention_mask"))
    rows = [
        [
            layouts.Example(
                id=i, tokens=tuple(ids[i, :n].tolist()), types=tuple(types[i, :n].tolist())
            )
        ]
        for i, n in enumerate(mask.sum(axis=1))
    ]
    return layouts.layout(rows, ids.shape[1])


def inputs_of(reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix("input/"): v for k, v in reference.items() if k.startswith("input/")}


BATCH = batch_of(inputs_of(TINY))


@functools.cache
def shapes(task) -> dict:
    """Shapes of a task's parameters."""

    def initial(key):
        return task.init({"params": key, "noise": key}, BATCH, train=False)["params"]

    return jax.eval_shape(initial, jax.random.key(0))


def constant(tree, value: float = 0.5):
    """Draws initial values that are told apart from every weight of a file."""
    flat = flatten_dict(tree, sep="/")
    made = {path: np.full(leaf.shape, value, leaf.dtype) for path, leaf in flat.items()}
    return lambda paths: {path: made[path] for path in paths}


def load(directory: Path, task, **options):
    abstract = shapes(task)
    return pretrained.load(directory, abstract, fresh=constant(abstract), **options)


def assert_named_once(account: pretrained.Account, params, tensors) -> None:
    paths = list(account.loaded) + list(account.fresh)
    used = {name for names in account.loaded.values() for name in names}
    assert sorted(paths) == sorted(flatten_dict(params, sep="/"))
    groups = [*used, *account.unused, *account.ignored]
    assert sorted(groups) == sorted(tensors)
