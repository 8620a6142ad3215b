"""A Hugging Face directory: found, checked, and its trunk built without weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.data import tokenizer_files, vocabulary
from research.errors import ConfigError
from research.models.pretrained import (
    albert,
    bert,
    distilbert,
    electra,
    gpt2,
    llama,
    mistral,
    modernbert,
    qwen,
    roberta,
    xlnet,
)
from research.models.pretrained.family import Family, Settings

FAMILIES = (
    bert.FAMILY,
    roberta.FAMILY,
    roberta.XLM_FAMILY,
    distilbert.FAMILY,
    electra.FAMILY,
    albert.FAMILY,
    modernbert.FAMILY,
    xlnet.FAMILY,
    gpt2.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    qwen.QWEN2,
    qwen.QWEN3,
)
# What is fetched of a repository: never code, never pickles.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def resolve(source: str) -> Path:
    """The directory that `source` names: a path, or a hub id "owner/name" (with "@revision").

    A hub id is fetched once and then found in the local cache. Raises ConfigError where there is
    neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path}: has no config.json, so it is no Hugging Face directory")
        return path
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?", source):
        raise ConfigError(f"{source}: no such directory, nor a hub id such as owner/name")
    # Imported here: it costs half a second, and most runs need no network.
    import huggingface_hub

    name, _, revision = source.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(PATTERNS)
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{source}: no such directory, and it could not be fetched as a hub id ({reason})"
        ) from error
    return resolve(str(found))


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises ConfigError for a key given twice, NaN and all else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{path}: key {twice!r} is given twice")
        return values

    def refuse(constant: str) -> Any:
        raise ConfigError(f"{path}: {constant} is not JSON")

    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object, got a {type(value).__name__}")
    return value


def family_of(directory: Path) -> tuple[Family, Settings]:
    """The table for a directory and its config.json; ConfigError for a model_type without one."""
    path = directory / "config.json"
    config = Settings(path=path, values=read_json(path))
    return config.choice("model_type", {family.name: family for family in FAMILIES}, None), config


def trunk(directory: Path) -> Any:
    """The trunk that the config.json describes, without weights.

    Raises ConfigError for what it cannot compute, naming key and choices, and for a tokenizer with
    more tokens than the trunk has vectors.
    """
    family, config = family_of(directory)
    spec = family.to_spec(config)
    tokens = tokenizer_size(directory)
    if tokens is not None and tokens > spec.vocab_size:
        raise ConfigError(
            f"{directory}: the tokenizer makes ids up to {tokens - 1}, but config.json says "
            f"vocab_size {spec.vocab_size}"
        )
    return family.build(spec)


def labels(directory: Path) -> tuple[str, ...]:
    """Names of the classes of a classifier, in the order of its head; empty for another model."""
    names = read_json(directory / "config.json").get("id2label", {})
    order = [str(i) for i in range(len(names))] if isinstance(names, dict) else None
    if order is None or set(order) != set(names):
        raise ConfigError(f"{directory / 'config.json'}: id2label must name 0, 1, 2, ...")
    return tuple(str(names[i]) for i in order)


def fits(directory: Path, task: Any) -> bool:
    """Whether a directory's head answers what a task asks: it is of the class that the task is
    exported as, with the same loss, for the same labels in the same order."""
    family, config = family_of(directory)
    wanted = family.architecture(task)
    if wanted.name not in (config.values.get("architectures") or [wanted.name]):
        return False
    try:
        facts = wanted.facts(task)
    except ConfigError:
        return False
    if any(facts[key] != config.values.get(key, usual) for key, usual in wanted.decisive.items()):
        return False
    names = labels(directory)
    # What transformers takes it to be where it is not said.
    usual = "regression" if len(names) == 1 else "single_label_classification"
    if wanted.problem not in (None, config.values.get("problem_type") or usual):
        return False
    ours = getattr(task, "labels", None)
    return len(names) <= 1 if ours is None else names == ours


def tokenizer_size(directory: Path) -> int | None:
    """One more than the largest id that the tokenizer makes; None where there is no tokenizer."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        words = directory / "vocab.txt"
        if any((directory / name).is_file() for name in tokenizer_files.NAMES):
            return vocabulary.tokenizer_of(str(directory))[1].size
        return len(words.read_bytes().splitlines()) if words.is_file() else None
    return count_ids(read_json(path), path)


def count_ids(tokenizer: Mapping[str, Any], path: Path) -> int:
    """One more than the largest id in a tokenizer.json."""
    try:
        words = tokenizer["model"]["vocab"]
        ids = list(words.values()) if isinstance(words, dict) else list(range(len(words)))
        ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
        return max(ids, default=-1) + 1
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is not a tokenizer of the tokenizers library") from error
