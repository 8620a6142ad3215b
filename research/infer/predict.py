"""Predictions for new texts: lines in, JSON lines out, in the same order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np

from research import evaluate, sharding
from research.errors import DataError
from research.infer.loaded import Loaded

CHUNK = 4096


def rows_of(lines: Iterable[bytes], data: Any, name: str) -> Iterator[dict[str, str]]:
    """Each line as a row: a JSON object with the data's text columns, or else a text.

    Raises DataError "name:line: reason" for a line that is neither or that is empty.
    """
    wanted = [column for column in (data.text, data.pair) if column is not None]
    for number, raw in enumerate(lines, 1):
        where = f"{name}:{number}"
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 at byte {error.start}") from None
        row: Any = {data.text: line}
        if line.lstrip().startswith("{"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: broken JSON: {error.msg}") from None
        for column in wanted:
            value = row.get(column)
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{where}: needs a text {column!r}; a line is a text or a JSON row")
        yield {column: row[column] for column in wanted}


def predict(
    loaded: Loaded, lines: Iterable[bytes], *, name: str = "-", batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """What the task says of every line, in their order."""
    model = loaded.model()
    rows = rows_of(lines, loaded.config.data, name)
    multiple = sharding.row_shards(model.mesh)
    with jax.set_mesh(model.mesh):
        while chunk := list(islice(rows, CHUNK)):
            batches = loaded.config.data.encode_texts(chunk, batch_size, multiple=multiple)
            _, outputs = evaluate.forward(model, batches, means=False)
            for index in range(len(chunk)):
                one = {key: np.asarray(values[index]) for key, values in outputs.items()}
                yield model.task.decode(one)
