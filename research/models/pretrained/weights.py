"""Weights from safetensors files or from another run, each placed straight on its devices."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from research.errors import ConfigError
from research.models.pretrained.directory import family_of
from research.models.pretrained.family import Source
from research.models.pretrained.tensors import Tensors

Tree = Mapping[str, Any]
Draw = Callable[[Sequence[str]], Mapping[str, jax.Array]]

# What a source may lack: everything outside the trunk, and BERT's pooler.
OUTSIDE_TRUNK = r"^(?!backbone/)|^backbone/pooler/"


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where every parameter came from and where every tensor went; each is named exactly once.

    `loaded`: parameter path -> the tensors it was made of. `fresh`: parameters drawn anew.
    `unused`: tensors with no place in this model; `ignored`: those that hold nothing of their own,
    such as a list of positions or a copy of the embedding.
    """

    loaded: Mapping[str, tuple[str, ...]]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} of {len(self.loaded) + len(self.fresh)} parameters loaded"]
        for words, names in (("drawn anew", self.fresh), ("not used", self.unused)):
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                parts.append(f"{words}: {', '.join(names[:8])}{more}")
        return "; ".join(parts)


def place(leaf: jax.ShapeDtypeStruct, read: Callable[[Any], np.ndarray]) -> jax.Array:
    """An array on the devices that `leaf.sharding` names, each piece read where it is needed."""
    if leaf.sharding is None:
        return jax.device_put(read((slice(None),) * len(leaf.shape)))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)


def load(
    directory: Path,
    abstract_params: Tree,
    *,
    fresh: Draw,
    allow: str = OUTSIDE_TRUNK,
    skip: str = "$^",
) -> tuple[dict[str, Any], Account]:
    """The parameters of `abstract_params` (ShapeDtypeStruct, with sharding or without) from a
    directory, and the account of it.

    `fresh` draws the parameters, by path, that the directory lacks; it may lack only paths that
    the regex `allow` finds. Paths that `skip` finds are drawn anew in any case: a head
    for other labels, say. Raises ConfigError naming parameter and tensor for shapes that differ.
    """
    family, config = family_of(directory)
    spec = family.to_spec(config)
    abstract = flatten_dict(abstract_params, sep="/")
    params: dict[str, Any] = {}
    loaded: dict[str, tuple[str, ...]] = {}
    with Tensors(directory) as tensors:
        names, ignored = family.canonical(tensors.files)
        for path, leaf in abstract.items():
            sources = [] if re.search(skip, path) else family.sources(path, leaf.shape)
            present = [s for s in sources if any(name in names for name in s.present)]
            source = present[0] if present else None
            if source is None:
                if not re.search(allow, path) and not re.search(skip, path):
                    wanted = sources[0].present[0] if sources else f"no tensor of {family.name}"
                    raise ConfigError(f"{directory}: lacks parameter {path} ({wanted})")
                continue
            params[path], loaded[path] = load_one(tensors, names, source, path, leaf)
            ignored += [names[n] for other in present[1:] for n in other.present if n in names]
    used = {name for group in loaded.values() for name in group}
    buffers = family.buffers + (family.tied if spec.tied else ())
    for today, name in names.items():
        if name not in used and any(re.search(pattern, today) for pattern in buffers):
            ignored.append(name)
    account = Account(
        loaded=loaded,
        fresh=tuple(path for path in abstract if path not in loaded),
        unused=tuple(n for n in sorted(tensors.files) if n not in used and n not in ignored),
        ignored=tuple(sorted(ignored)),
    )
    return complete(params, account, fresh), account


def complete(loaded: dict[str, jax.Array], account: Account, fresh: Draw) -> dict[str, Any]:
    """The tree of what was loaded and of what is drawn anew."""
    drawn = fresh(account.fresh) if account.fresh else {}
    return unflatten_dict(loaded | dict(drawn), sep="/")


def load_one(
    tensors: Tensors, names: Mapping[str, str], source: Source, path: str, leaf: Any
) -> tuple[jax.Array, tuple[str, ...]]:
    """One parameter, and the names in the file of the tensors that it was made of."""
    missing = [name for name in source.present if name not in names]
    if missing:
        raise ConfigError(f"{tensors.directory}: lacks tensor {missing[0]} of parameter {path}")
    here = dataclasses.replace(source, names=tuple(n and names[n] for n in source.names))
    for name in here.present:
        shape, expected = tensors.shape(name), source.shape(leaf.shape)
        flat = (shape[0], math.prod(shape[1:])) if source.heads and len(shape) == 3 else shape
        if flat != expected:
            hint = "; is config.json's vocab_size right?" if path == "backbone/embed/table" else ""
            raise ConfigError(
                f"{tensors.directory}: tensor {name} is {shape}, but parameter {path} needs "
                f"{expected}{hint}"
            )

    def read(index: Any) -> np.ndarray:
        return tensors.read_source(here, index, leaf.shape, leaf.dtype)

    return place(leaf, read), here.present


def transfer(
    source: Tree, abstract_params: Tree, *, fresh: Draw, allow: str = OUTSIDE_TRUNK
) -> tuple[dict[str, Any], Account]:
    """The trunk of another run, whose parameters `source` are arrays by the same paths; all else
    is drawn by `fresh`. Raises ConfigError naming a parameter of the trunk that is missing or
    differs in shape.
    """
    abstract = flatten_dict(abstract_params, sep="/")
    old = flatten_dict(source, sep="/")
    params: dict[str, Any] = {}
    loaded: dict[str, tuple[str, ...]] = {}
    for path, leaf in abstract.items():
        if not path.startswith("backbone/") or (path not in old and re.search(allow, path)):
            continue
        if path not in old:
            raise ConfigError(f"the run to start from lacks parameter {path}")
        value = np.asarray(old[path])
        if value.shape != leaf.shape:
            raise ConfigError(
                f"the run to start from has parameter {path} {value.shape}, but this one needs "
                f"{leaf.shape}"
            )
        cast = value.astype(leaf.dtype)
        params[path] = place(leaf, cast.__getitem__)
        loaded[path] = (path,)
    account = Account(
        loaded=loaded,
        fresh=tuple(path for path in abstract if path not in loaded),
        unused=tuple(sorted(old.keys() - loaded.keys())),
    )
    return complete(params, account, fresh), account
