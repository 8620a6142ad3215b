"""Tiny decoders of every family with the outputs that transformers computes, as directories."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import layouts
import numpy as np
import tokenizers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from research.models import pretrained
from research.models.transformer import Transformer
from research.tasks.causal import CausalLM

FILE = Path(__file__).parent / "reference" / "tiny_decoders.safetensors"
STORIES = Path(__file__).parents[3] / "shared" / "ckpt" / "stories260K"
FAMILIES = ("gpt2", "llama", "llama3", "mistral", "qwen2", "qwen3")
V = 40


@functools.cache
def reference() -> dict[str, np.ndarray]:
    return load_file(FILE)


def weights(name: str) -> dict[str, np.ndarray]:
    start = f"{name}/weights/"
    return {k.removeprefix(start): v for k, v in reference().items() if k.startswith(start)}


def write(directory: Path, name: str, tensors: dict | None = None, **config: Any) -> Path:
    """A directory in the format of Hugging Face, with a tokenizer of whole words w3 to w39."""
    directory.mkdir(parents=True, exist_ok=True)
    with safe_open(FILE, framework="numpy") as file:
        settings = json.loads(file.metadata()[name])
    (directory / "config.json").write_text(json.dumps(settings | config))
    tensors = weights(name) if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, V)}
    tokenizer = Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def batch_of(ids: np.ndarray, mask: np.ndarray) -> dict[str, jax.Array]:
    """A batch with one example a row, padded on the right."""
    rows = [
        [layouts.Example(id=i, tokens=tuple(ids[i, :n].tolist()))]
        for i, n in enumerate(mask.sum(axis=1))
    ]
    return layouts.layout(rows, ids.shape[1])


def task_of(directory: Path, **changes: Any) -> CausalLM:
    spec = dataclasses.replace(pretrained.trunk(directory).spec, dtype="float32", **changes)
    return CausalLM(backbone=Transformer(spec))


def load(directory: Path, task: Any, **options: Any):
    batch = batch_of(reference()["input/input_ids"], reference()["input/attention_mask"])

    def initial(key):
        return task.init({"params": key, "noise": key}, batch, train=False)["params"]

    abstract = jax.eval_shape(initial, jax.random.key(0))
    options = {"fresh": lambda paths: {}, "allow": "$^"} | options
    return pretrained.load(directory, abstract, **options)


@functools.partial(jax.jit, static_argnames="task")
def logits(task: CausalLM, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """[B, T, V]."""
    method = lambda s, b: s.backbone.logits(s.backbone(b))  # noqa: E731
    return task.apply({"params": params}, batch, method=method)
