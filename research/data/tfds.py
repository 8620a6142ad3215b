"""Rows of prepared TensorFlow Datasets, read without TensorFlow (array_record files)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from research.errors import ConfigError, DataError


def rows(spec: str) -> Iterator[dict[str, str]]:
    """The rows of "NAME[/CONFIG]:SPLIT" (a split may be a slice, `train[:10%]`).

    Class labels become their names. Sets lie where `TFDS_DATA_DIR` says, as TFDS has it. Raises
    ConfigError for a spec that is none and DataError for a set that is not prepared.
    """
    found = re.fullmatch(r"([\w./-]+):([^:]*|[^\[]+\[[^\]]*\])", spec)
    if found is None or not found[2]:
        raise ConfigError(f"data: tfds:{spec} is not of the form tfds:NAME[/CONFIG]:SPLIT")
    source = open_source(found[1], found[2])
    features = source.dataset_info.features
    for example in source:
        yield {key: text(value, features[key]) for key, value in example.items() if plain(value)}


def open_source(name: str, split: str) -> Any:
    """The random-access source of a prepared split."""
    import tensorflow_datasets

    directory = os.environ.get("TFDS_DATA_DIR")
    try:
        return tensorflow_datasets.data_source(
            name, split=split, data_dir=directory, download=False
        )
    except ImportError as error:
        raise ConfigError(
            f"tfds:{name}: needs TensorFlow ({error}); install the extra: pip install graft-lab[tf]"
        ) from error
    except (AssertionError, LookupError, ValueError, OSError, RuntimeError) as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(
            f"tfds:{name}:{split}: not prepared as array_record in "
            f"{directory or 'the default directory of TFDS'}: {first}"
        ) from error


def plain(value: Any) -> bool:
    """Whether a value is a single text, number or class."""
    return isinstance(value, bytes | str | bool | int | float) or np.ndim(value) == 0


def text(value: Any, feature: Any) -> str:
    """A value as the text of a row. Raises DataError for bytes that are not UTF-8."""
    if hasattr(feature, "int2str") and int(value) >= 0:
        return str(feature.int2str(int(value)))
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"tfds: not UTF-8 at byte {error.start + 1} of a text") from error
    return str(value)
