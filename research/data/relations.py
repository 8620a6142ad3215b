"""FewRel's files (Han et al., 2018): sentences by the relation they tell, both entities marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from research.data.formats import Row
from research.data.json_rows import LARGEST_JSON
from research.data.sources import DAMAGE, DECOMPRESS, match
from research.errors import DataError

MARKS = {"h": "*", "t": "#"}


def read_relations(source: str) -> list[Row]:
    """{"text", "label"} of every instance, in the order of the file: of the object {relation:
    [{"tokens": [...], "h": [name, id, [[places]]], "t": ...}]}, .json, plain or compressed.

    The first mention of the head stands between asterisks and that of the tail between number
    signs, which every tokenizer knows (Zhou & Chen, 2022). Raises DataError "file:relation
    number: reason".
    """
    path = match(source)[0]
    try:
        with path.open("rb") as file:
            raw = DECOMPRESS.get(path.suffix, lambda plain: plain)(file).read(LARGEST_JSON)
        found = json.loads(raw)
    except DAMAGE as error:
        raise DataError(f"{source}:1: cannot be read: {error}") from None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{source}:1: expected an object of relations")
    return [
        {"text": marked(path, f"{label} {number}", one), "label": label}
        for label, instances in found.items()
        for number, one in enumerate(instances, 1)
    ]


def marked(path: Path, where: str, instance: Any) -> str:
    """The tokens of an instance with marks around its entities."""
    try:
        tokens = [str(token) for token in instance["tokens"]]
        before = [""] * (len(tokens) + 1)
        for side, mark in MARKS.items():
            places = [int(place) for place in instance[side][2][0]]
            first, last = min(places), max(places)
            if not 0 <= first <= last < len(tokens):
                raise ValueError(f"{side!r} is outside the tokens")
            # An entity may begin where the other ends: the closing mark comes first.
            before[last + 1] = f"{mark} {before[last + 1]}"
            before[first] = f"{before[first]}{mark} "
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}:{where}: {reason}") from None
    return " ".join(f"{mark}{token}" for mark, token in zip(before, [*tokens, ""])).strip()
