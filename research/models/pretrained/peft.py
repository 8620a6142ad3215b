"""LoRA and DoRA as the peft library keeps them: adapter_config.json and its tensors."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from research.adapt import ADDED, TRUNK, Rule
from research.errors import ConfigError, StorageError
from research.models.pretrained.directory import read_json
from research.models.pretrained.export import family_for, replace, write_json
from research.models.pretrained.family import Family, matching
from research.strategies.lora import LoRA

PREFIX = "base_model.model."
FILES = ("adapter_config.json", "adapter_model.safetensors")
TASKS = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS",
         "QuestionAnswering": "QUESTION_ANS", "CausalLM": "CAUSAL_LM"}  # fmt: skip


def save(
    directory: str | Path,
    task: Any,
    params: Mapping[str, Any],
    rules: Mapping[str, Rule],
    base: str,
) -> None:
    """Writes what a run with LoRA learned, for peft to put on the model `base`: the low-rank terms,
    and the head as modules_to_save.

    Raises ConfigError where more than that was learned (`rules` say what) or added, and where the
    terms differ in rank or scale; StorageError where a file cannot be written.
    """
    directory = Path(directory)
    if directory.exists() and {path.name for path in directory.iterdir()} - set(FILES):
        raise ConfigError(f"{directory}: holds other files than an export's, so it is left alone")
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    family = family_for(task.backbone.spec)
    architecture = family.architecture(task)
    tensors: dict[str, np.ndarray] = {}
    saved: list[str] = []
    places = [p.removesuffix("lora_a") for p in flat if p.endswith("/lora_a")]
    if not places:
        raise ConfigError("export --to peft: this run has no LoRA")
    check(flat, rules)
    targets = []
    for place in places:
        names = modules(family, flat, f"{place}kernel")
        targets += names
        tensors |= terms(flat, place, names)
    for path in (p for p, rule in rules.items() if rule.learns and not ADDED.search(p)):
        for source in matching((*family.rules, *architecture.rules), path, flat[path].shape)[:1]:
            (name,) = source.present[:1]
            tensors[name] = flat[path].T if source.transposed else flat[path]
            saved.append(name.rpartition(".")[0])
    settings = {
        "peft_type": "LORA",
        "task_type": next((t for n, t in TASKS.items() if n in architecture.name), None),
        "base_model_name_or_path": base,
        "target_modules": [bare(name, family, architecture) for name in targets],
        "modules_to_save": sorted({bare(name, family, architecture) for name in saved}),
        "bias": "none",
        "inference_mode": True,
        **shared(flat, places),
    }
    named = {
        PREFIX + bare(name, family, architecture): np.ascontiguousarray(tensor, np.float32)
        for name, tensor in tensors.items()
    }
    partial = directory.parent / f".{directory.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        write_json(partial / FILES[0], settings)
        save_file(named, partial / FILES[1], metadata={"format": "pt"})
        replace(directory, partial)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{directory}: the export could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check(flat: Mapping[str, np.ndarray], rules: Mapping[str, Rule]) -> None:
    """Raises ConfigError for what learned or was added in the trunk beside low-rank terms."""
    for path in flat:
        low_rank = "/lora_" in path
        if (ADDED.search(path) or (TRUNK.match(path) and rules[path].learns)) and not low_rank:
            raise ConfigError(
                f"export --to peft: it keeps low-rank terms and heads, but {path} is neither"
            )


def bare(name: str, family: Family, architecture: Any) -> str:
    """The name of a module or tensor in the class that is exported."""
    return name if architecture.prefixed else name.removeprefix(family.prefix)


def modules(family: Family, flat: Mapping[str, Any], path: str) -> list[str]:
    """The modules of the other library that a kernel is the weight of; one a layer of a stack."""
    sources = family.sources(path, flat[path].shape)
    if not sources or not sources[0].transposed:
        raise ConfigError(f"peft: {family.name} has no linear module for parameter {path}")
    return [name.removesuffix(".weight") for name in sources[0].present]


def terms(flat: Mapping[str, np.ndarray], place: str, names: list[str]) -> dict[str, np.ndarray]:
    """The tensors of one kernel's low-rank term, of each of its layers."""
    found: dict[str, np.ndarray] = {}
    stacked = flat[f"{place}kernel"].ndim > 2
    for i, name in enumerate(names):
        here = {
            leaf: flat[f"{place}lora_{leaf}"][i] if stacked else flat[f"{place}lora_{leaf}"]
            for leaf in ("a", "b", "magnitude")
            if f"{place}lora_{leaf}" in flat
        }
        found |= {f"{name}.lora_A.weight": here["a"].T, f"{name}.lora_B.weight": here["b"].T}
        if "magnitude" in here:
            found[f"{name}.lora_magnitude_vector"] = here["magnitude"]
    return found


def shared(flat: Mapping[str, np.ndarray], places: list[str]) -> dict[str, Any]:
    """The settings that peft has once for all low-rank terms. s is told as alpha / rank."""
    kinds = {
        (
            flat[f"{place}lora_a"].shape[-1],
            float(np.max(flat[f"{place}lora_scale"])),
            float(np.max(flat.get(f"{place}lora_dropout", np.zeros(())))),
            f"{place}lora_magnitude" in flat,
        )
        for place in places
    }
    if len(kinds) > 1:
        raise ConfigError(f"export --to peft: low-rank terms of {len(kinds)} kinds in one run")
    rank, scale, dropout, magnitude = kinds.pop()
    return {
        "r": rank,
        "lora_alpha": round(scale * rank, 6),
        "lora_dropout": round(dropout, 6),
        "use_rslora": False,
        "use_dora": magnitude,
        "fan_in_fan_out": False,
    }


def load(
    directory: str | Path, task: Any, params: Mapping[str, Any]
) -> tuple[LoRA, dict[str, Any]]:
    """The strategy and the tree of a directory of peft's, on `params` without added leaves.

    What the directory saved whole (heads) takes the place of what `params` has. Raises ConfigError
    for another method than LoRA, and for a tensor that has no place or another shape here.
    """
    directory = Path(directory)
    settings = read_json(directory / FILES[0])
    for key, plain in (("peft_type", "LORA"), ("rank_pattern", {}), ("alpha_pattern", {}),
                       ("bias", "none"), ("fan_in_fan_out", False)):  # fmt: skip
        if settings.get(key, plain) not in (plain, None):
            raise ConfigError(f"{directory / FILES[0]}: {key} is {settings[key]!r}, not {plain!r}")
    try:
        raw = load_file(directory / FILES[1])
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{directory / FILES[1]}: {error}") from error
    family = family_for(task.backbone.spec)
    today, _ = family.canonical(name.removeprefix(PREFIX) for name in raw)
    left = {name: raw[PREFIX + old] for name, old in today.items()}
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    targets: list[str] = []
    added: dict[str, np.ndarray] = {}
    for path, leaf in flat.items():
        for source in family.sources(path, leaf.shape):
            if set(source.present) <= left.keys():
                whole = [left.pop(name) for name in source.present]
                pieces = [piece.T if source.transposed else piece for piece in whole]
                flat[path] = fitting(np.stack(pieces) if source.stacked else pieces[0], leaf, path)
            bases = [name.removesuffix(".weight") for name in source.present]
            if path.endswith("kernel") and f"{bases[0]}.lora_A.weight" in left:
                targets.append(f"^{re.escape(path)}$")
                place = path.removesuffix("kernel")
                added |= read_terms(left, bases, place, stacked=source.stacked)
    if left or not targets:
        raise ConfigError(f"{directory}: no place for {min(left) if left else 'any tensor'}")
    strategy = LoRA(
        rank=settings["r"],
        alpha=float(settings["lora_alpha"]),
        dropout=float(settings.get("lora_dropout", 0.0)),
        targets=tuple(targets),
        stabilized=bool(settings.get("use_rslora")),
        magnitude=bool(settings.get("use_dora")),
    )
    for place in [path.removesuffix("lora_a") for path in added if path.endswith("lora_a")]:
        stack = flat[f"{place}kernel"].shape[:-2]
        added[f"{place}lora_scale"] = np.full(stack, strategy.scale(), np.float32)
        if strategy.dropout:
            added[f"{place}lora_dropout"] = np.full(stack, strategy.dropout, np.float32)
        width, features = flat[f"{place}kernel"].shape[-2:]
        fitting(added[f"{place}lora_a"], np.empty((*stack, width, strategy.rank)), place)
        fitting(added[f"{place}lora_b"], np.empty((*stack, strategy.rank, features)), place)
    return strategy, unflatten_dict(flat | added, sep="/")


def fitting(found: np.ndarray, wanted: np.ndarray, path: str) -> np.ndarray:
    """`found`, which must have the shape of `wanted`."""
    if found.shape != wanted.shape:
        raise ConfigError(f"peft: {path} is {found.shape} there, but {wanted.shape} here")
    return found


def read_terms(
    left: dict[str, np.ndarray], bases: list[str], place: str, *, stacked: bool
) -> dict[str, np.ndarray]:
    """The low-rank term of one kernel, taken out of `left`. Raises ConfigError where it is torn."""
    found = {}
    ours = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    for leaf, theirs in ours.items():
        if leaf == "magnitude" and f"{bases[0]}.{theirs}" not in left:
            continue
        if missing := [base for base in bases if f"{base}.{theirs}" not in left]:
            raise ConfigError(f"peft: lacks tensor {missing[0]}.{theirs}")
        pieces = [left.pop(f"{base}.{theirs}").T for base in bases]
        found[f"{place}lora_{leaf}"] = np.stack(pieces) if stacked else pieces[0]
    return found
