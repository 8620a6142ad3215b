"""A trained model as a Hugging Face directory, which everyone else's tools load."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from research.data.vocabulary import Vocabulary, load_tokenizer
from research.errors import ConfigError, StorageError
from research.models.pretrained.directory import FAMILIES, read_json
from research.models.pretrained.family import Architecture, Family, Source, matching
from research.models.pretrained.weights import OUTSIDE_TRUNK

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
SIGNATURE = {"format": "pt", "exported_by": "graft"}


def save(
    directory: Path, task: Any, params: Mapping[str, Any], tokenizer: str | Path
) -> tuple[str, ...]:
    """Writes a directory that transformers loads: weights in float32, config and tokenizer.

    `tokenizer` is a directory, a tokenizer.json or vocab.txt, or a hub id. An export already there
    is replaced, at once and whole; another non-empty directory is refused. Returns the parameters
    outside the trunk that the class of transformers has no place for. Raises ConfigError where
    transformers would compute something else, and StorageError where a file cannot be written.
    """
    directory = Path(directory)
    refuse_foreign(directory)
    family = family_for(task.backbone.spec)
    architecture = family.architecture(task)
    facts = architecture.facts(task)
    tensors, dropped = to_tensors(family, architecture, params, task.backbone.spec)
    words, settings = to_tokenizer(family, task.backbone.spec, str(tokenizer))
    padding = words.token_to_id(settings.get("pad_token", ""))
    offset = getattr(task.backbone.spec, "position_offset", 0)
    if offset and padding != offset - 1:
        raise ConfigError(
            f"export: positions of {architecture.name} begin after the id of the padding, so that "
            f"it must be {offset - 1}, but {tokenizer} has {padding}"
        )
    config = {
        "architectures": [architecture.name],
        "model_type": family.name,
        "dtype": "float32",
        "pad_token_id": padding,
        **{
            f"{role}_id": words.token_to_id(settings.get(role, ""))
            for role in ("bos_token", "eos_token")
            if role in family.special_tokens
        },
        **family.to_config(task.backbone.spec),
        **({"problem_type": architecture.problem} if architecture.problem else {}),
        **facts,
    }
    write_directory(directory, config, words, settings, tensors)
    return dropped


def write_directory(
    directory: Path,
    config: Mapping[str, Any],
    words: Tokenizer,
    settings: Mapping[str, Any],
    tensors: dict[str, np.ndarray],
) -> None:
    """Writes an export beside its place and puts it there at once, or raises StorageError."""
    partial = directory.parent / f".{directory.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        write_json(partial / "config.json", config)
        words.save(str(partial / "tokenizer.json"))
        write_json(partial / "tokenizer_config.json", settings)
        weights = partial / "model.safetensors"
        save_file(tensors, weights, metadata=SIGNATURE)
        # save_file lets nobody else read what it writes, whatever the umask.
        weights.chmod((partial / "config.json").stat().st_mode)
        replace(directory, partial)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{directory}: the export could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_foreign(directory: Path) -> None:
    """Raises ConfigError for a path that holds something other than an export of ours."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory}: is a file; an export is a directory")
    names = {path.name for path in directory.iterdir()}
    if not names:
        return
    weights = directory / "model.safetensors"
    try:
        with safe_open(weights, framework="numpy") as file:
            ours = (file.metadata() or {}).get("exported_by") == SIGNATURE["exported_by"]
    except (OSError, SafetensorError):
        ours = False
    if not ours or names - set(FILES):
        raise ConfigError(f"{directory}: is not empty and not an export, so it is left alone")


def family_for(spec: Any) -> Family:
    """The first family that can express a trunk. Raises ConfigError saying what each cannot."""
    families = [family for family in FAMILIES if family.spec is type(spec)]
    if not families:
        raise ConfigError(f"export: no Hugging Face class computes a {type(spec).__name__} trunk")
    reasons = []
    for family in families:
        differences = family.differences(spec)
        if not differences:
            return family
        reasons.append(f"{family.name} has no {', '.join(differences)}")
    raise ConfigError(f"export: no Hugging Face class computes this trunk: {'; '.join(reasons)}")


def to_tensors(
    family: Family, architecture: Architecture, params: Mapping[str, Any], spec: Any
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Tensors by name, and the parameters that have none.

    Raises ConfigError for a parameter of the trunk without a tensor: one that a strategy added and
    that has not been merged.
    """
    parts: dict[str, dict[Source, np.ndarray]] = {}
    dropped = []
    for path, leaf in flatten_dict(params, sep="/").items():
        # A class may have a parameter of the trunk among its own: RoBERTa's pooler, in a head.
        found = matching(architecture.rules, path, leaf.shape) or matching(
            family.rules, path, leaf.shape
        )
        if not found:
            if not re.search(OUTSIDE_TRUNK, path):
                raise ConfigError(f"export: {architecture.name} has no place for parameter {path}")
            dropped.append(path)
            continue
        value = np.asarray(leaf, dtype=np.float32)
        for source in found:
            for name, piece in zip(source.names, value if source.stacked else [value]):
                if name is not None:
                    bare = name if architecture.prefixed else name.removeprefix(family.prefix)
                    parts.setdefault(bare, {})[source] = piece
    return {name: joined(name, held, spec) for name, held in parts.items()}, tuple(dropped)


def joined(name: str, parts: Mapping[Source, np.ndarray], spec: Any) -> np.ndarray:
    """One tensor of the parameters that it holds side by side, C-contiguous."""
    order = sorted(parts, key=lambda source: source.part)
    count = order[0].part[1]
    if [source.part for source in order] != [(i, count) for i in range(count)]:
        raise ConfigError(
            f"export: {name} is made of {count} parameters, but {len(order)} are there"
        )
    whole = [parts[source] for source in order]
    ours = whole[0] if count == 1 else np.concatenate(whole, axis=-1)
    theirs = ours.T if order[0].transposed else ours
    if order[0].heads:
        theirs = theirs.reshape(len(theirs), spec.heads, -1)
    return np.ascontiguousarray(theirs)


def to_tokenizer(family: Family, spec: Any, source: str) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer without truncation and padding of its own, and tokenizer_config.json.

    Names of special tokens are those beside the tokenizer, or else the family's, and of beginnings
    and ends those that the tokenizer has. Raises ConfigError
    for more tokens than the trunk has vectors.
    """
    tokenizer = load_tokenizer(source)
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if size > spec.vocab_size:
        raise ConfigError(
            f"export: the tokenizer {source} makes ids up to {size - 1}, but the trunk has "
            f"{spec.vocab_size} token vectors"
        )
    path = Path(source).expanduser()
    beside = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
    known = read_json(beside) if beside.is_file() else {}
    special = {}
    for role, usual in family.special_tokens.items():
        token = known.get(role) or usual
        content = token["content"] if isinstance(token, dict) else token
        if tokenizer.token_to_id(content) is not None:
            special[role] = content
    vocabulary = Vocabulary.of(tokenizer)
    for role, number in (("bos_token", vocabulary.bos), ("eos_token", vocabulary.eos)):
        if role in family.special_tokens and role not in special and number is not None:
            special[role] = tokenizer.id_to_token(number)
    # Without these names transformers leaves out the types, and pairs of texts run together.
    types = ["token_type_ids"] if spec.token_types else []
    settings: dict[str, Any] = {
        # Reads tokenizer.json as it is; BERT's own class would build another from the vocabulary.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", *types, "attention_mask"],
        **({"model_max_length": spec.max_positions} if spec.max_positions else {}),
        **special,
        **family.tokenizer,
    }
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    if "lowercase" in normalizer:
        settings["do_lower_case"] = normalizer["lowercase"]
    return tokenizer, settings


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace(directory: Path, partial: Path) -> None:
    """Puts a finished directory in the place of an older one.

    A crash in between leaves the older one whole, beside it under a hidden name.
    """
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    old = partial.with_suffix(".old")
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
