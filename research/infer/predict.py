"""Predictions for new rows: lines in, JSON lines out, in the same order."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import evaluate, files, sharding
from research.data.json_rows import complaint
from research.errors import ConfigError, DataError
from research.infer.loaded import Loaded
from research.models.spec import check_tables

CHUNK = 4096


def rows_of(lines: Iterable[bytes], name: str) -> Iterator[Any]:
    """Each line as a row: a JSON object, or else a text.

    Raises DataError "name:line: reason" for a line that is neither or that is empty.
    """
    for number, raw in enumerate(lines, 1):
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}:{number}: not UTF-8 at byte {error.start}") from None
        if not line.strip():
            raise DataError(f"{name}:{number}: the line is empty; a line is a text or a JSON row")
        if not line.lstrip().startswith("{"):
            yield line
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{number}: broken JSON: {complaint(error)}") from None


def predict(
    loaded: Loaded, lines: Iterable[bytes], *, name: str = "-", batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """What the task says of every line, in their order."""
    model = loaded.model()
    rows = rows_of(lines, name)
    multiple = sharding.row_shards(model.mesh)
    first = 1
    with jax.set_mesh(model.mesh):
        while chunk := list(islice(rows, CHUNK)):
            batches = loaded.config.data.encode_rows(
                chunk, batch_size, multiple=multiple, where=(name, first)
            )
            check_tables(getattr(model.task, "backbone", None), batches.examples.encoded)
            _, outputs = evaluate.forward(model, batches, means=False)
            yield from model.task.decode(outputs, batches.examples)
            first += len(chunk)


def write_vectors(path: Path, predictions: Iterable[dict[str, Any]]) -> None:
    """The vectors of predictions as a .npy file, float32 [rows, D], whole or not at all.

    Raises ConfigError for a prediction without exactly one vector.
    """
    rows = []
    for prediction in predictions:
        if "vector" not in prediction:
            held = ", ".join(prediction) or "nothing"
            raise ConfigError(f"{path}: a .npy file holds vectors, but a prediction holds {held}")
        rows.append(np.asarray(prediction["vector"], np.float32))
    buffer = io.BytesIO()
    np.save(buffer, np.stack(rows) if rows else np.zeros((0, 0), np.float32), allow_pickle=False)
    files.write_atomic(path, buffer.getvalue())
