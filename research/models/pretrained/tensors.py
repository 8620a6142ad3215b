"""The tensors of safetensors files, read piece by piece so that none is in memory twice."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from research.errors import ConfigError, StorageError
from research.models.pretrained.directory import read_json
from research.models.pretrained.family import Source

Index = tuple[slice, ...]

FLOATS = ("F64", "F32", "F16", "BF16")


class Tensors:
    """The tensors of a directory's safetensors files, read piece by piece; a context manager.

    Raises ConfigError for a directory without them or an index that names files elsewhere, and
    StorageError for a damaged file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, Any] = {}  # by tensor
        self.stack = ExitStack()
        try:
            self.index()
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self) -> Tensors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()

    def index(self) -> None:
        """Opens the one file, or those that the index names."""
        single = self.directory / "model.safetensors"
        path = self.directory / "model.safetensors.index.json"
        if single.is_file():
            file = self.open(single)
            self.files = dict.fromkeys(file.keys(), file)
            return
        if not path.is_file():
            raise ConfigError(f"{self.directory}: has neither model.safetensors nor an index of it")
        places = read_json(path).get("weight_map")
        if not isinstance(places, dict):
            raise ConfigError(f"{path}: weight_map must be an object")
        opened: dict[str, tuple[Any, set[str]]] = {}
        for tensor, name in places.items():
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
                raise ConfigError(
                    f"{path}: {tensor} is said to be in {name!r}, which is not the name of a "
                    f"safetensors file in this directory"
                )
            if name not in opened:
                file = self.open(self.directory / name)
                opened[name] = file, set(file.keys())
            file, held = opened[name]
            if tensor not in held:
                raise ConfigError(f"{path}: {tensor} is said to be in {name}, but is not")
            self.files[tensor] = file

    def open(self, path: Path) -> Any:
        """One file, closed with the rest."""
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        try:
            return self.stack.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path}: cannot be read as safetensors: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of numbers. Raises ConfigError for another dtype, naming it."""
        piece = self.files[name].get_slice(name)
        if piece.get_dtype() not in FLOATS:
            raise ConfigError(
                f"{self.directory}: tensor {name} is {piece.get_dtype()}, supported: "
                f"{', '.join(FLOATS)}"
            )
        return tuple(piece.get_shape())

    def read(self, name: str, index: Index, source: Source) -> np.ndarray:
        """A piece of a tensor; `index` counts in what the source makes of it."""
        piece = self.files[name].get_slice(name)
        if source.transposed:
            index = index[::-1]
        if source.heads:
            rows, columns = index
            found = piece[rows]
            found = found.reshape(len(found), -1)[:, columns]
        else:
            found = piece[index]
        return found.T if source.transposed else found

    def read_source(
        self, source: Source, index: Index, shape: tuple[int, ...], dtype: np.dtype
    ) -> np.ndarray:
        """A piece of a parameter of a shape, C-contiguous. No more is in memory than it and one
        tensor's share of it."""
        spans = [range(size)[piece] for size, piece in zip(shape, index)]
        made = np.ones([len(span) for span in spans], dtype)
        inner = spans[1:] if source.stacked else spans
        starts = [span.start for span in inner]
        if inner:
            starts[-1] += source.part[0] * shape[-1]
        within = tuple(slice(start, start + len(s)) for start, s in zip(starts, inner))
        names = [source.names[i] for i in spans[0]] if source.stacked else source.names
        for place, name in zip(made if source.stacked else made[None], names):
            if name is not None:
                place[...] = self.read(name, within, source)
        return made
