"""Strict JSON: objects a line or in a list, or SQuAD's tree of questions, as rows of texts."""

from __future__ import annotations

import json
import re
from typing import IO, Any

from research.data import squad
from research.data.formats import Bad, Layout, Parsed, Row, decode, half_pair, lines_of
from research.errors import DataError

LARGEST_JSON = 256 * 2**20
SPACE = re.compile(r"[ \t\n\r]*")


def parse_jsonl(name: str, file: IO[bytes], layout: Layout) -> Parsed:
    """One JSON object a line."""
    for number, line in lines_of(name, file):
        if isinstance(line, Bad):
            yield number, line
            continue
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            yield number, Bad(f"broken JSON: {complaint(error)}")
            continue
        yield number, json_row(named(value, layout.columns), layout.need, layout.lists)


def parse_json(name: str, file: IO[bytes], layout: Layout) -> Parsed:
    """A list of JSON objects, or one object in the format of SQuAD, whose questions are the rows.

    With `layout.inside` it is the list under that key of one object. What is broken between two
    objects of the list, or anywhere in the one, ends the reading.
    """
    raw = file.read(LARGEST_JSON + 1)
    if len(raw) > LARGEST_JSON:
        raise DataError(f"{name}:1: over {LARGEST_JSON >> 20} MiB; write one object a line, .jsonl")
    text = decode(raw.removeprefix(b"\xef\xbb\xbf"))
    if isinstance(text, Bad):
        raise DataError(f"{name}:1: {text.reason.replace('of the line', 'of the file')}")
    if not text.strip():
        return
    line, counted, position = 1, 0, skip_space(text, 0)
    if layout.inside:
        position = find_part(name, text, position, layout.inside)
        line, counted = 1 + text.count("\n", 0, position), position
    elif text.startswith("{", position):
        yield from squad.questions(name, text, whole(name, text), layout.need)
        return
    expect(name, text, position, "[", "a list of objects", line)
    position = skip_space(text, position + 1)
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{line}: broken JSON: {complaint(error)}") from None
        yield line, json_row(named(value, layout.columns), layout.need, layout.lists)
        position = skip_space(text, end)
        if text.startswith(",", position):
            position = skip_space(text, position + 1)
            if text.startswith("]", position):
                raise DataError(f"{name}:{line}: broken JSON: a comma before the closing bracket")
        else:
            expect(name, text, position, "]", "a comma or the closing bracket", line)
    if (rest := text[position + 1 :].strip()) and not layout.inside:
        raise DataError(f"{name}:{line}: broken JSON: {rest[:20]!r} after the list")


def find_part(name: str, text: str, position: int, key: str) -> int:
    """Where the value of `key` begins in the object that begins at `position`."""
    expect(name, text, position, "{", f"an object with {key!r}", 1)
    position, keys = skip_space(text, position + 1), []
    while text.startswith('"', position):
        line = 1 + text.count("\n", 0, position)
        try:
            found, end = DECODER.raw_decode(text, position)
            expect(name, text, end := skip_space(text, end), ":", "a colon", line)
            position = skip_space(text, end + 1)
            if found == key:
                return position
            end = DECODER.raw_decode(text, position)[1]
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{line}: broken JSON: {complaint(error)}") from None
        keys.append(found)
        position = skip_space(text, end)
        position = skip_space(text, position + text.startswith(",", position))
    raise DataError(f"{name}:1: no key {key!r} among {', '.join(keys)[:200]}")


def named(value: Any, columns: tuple[str, ...]) -> Any:
    """A list as the object that `columns` make of it; anything else as it is."""
    if not isinstance(value, list) or not columns:
        return value
    if len(value) != len(columns):
        return Bad(f"{len(value)} columns, expected {len(columns)}")
    return dict(zip(columns, value))


def whole(name: str, text: str) -> Any:
    """The one value that a text holds."""
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}: broken JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}:1: broken JSON: {complaint(error)}") from None


def skip_space(text: str, position: int) -> int:
    """The first place at or after `position` that is not JSON's white space."""
    found = SPACE.match(text, position)
    return found.end() if found else position


def expect(name: str, text: str, position: int, sign: str, what: str, line: int) -> None:
    """Raises DataError unless `sign` is there."""
    if not text.startswith(sign, position):
        raise DataError(
            f"{name}:{line}: broken JSON: expected {what}, found {text[position : position + 20]!r}"
        )


def complaint(error: Exception) -> str:
    """What json says is wrong."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Bad:
    """An object whose keys are distinct and whose values are all usable."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        return Bad(f"the key {twice!r} occurs twice in an object")
    return next((value for value in found.values() if isinstance(value, Bad)), found)


# Numbers stay as they are written. A constant is NaN or an infinity, which JSON does not have.
DECODER = json.JSONDecoder(
    object_pairs_hook=unique,
    parse_int=str,
    parse_float=str,
    parse_constant=lambda constant: Bad(f"{constant} is not JSON"),
)


def json_row(value: Any, need: tuple[str, ...], lists: tuple[str, ...] = ()) -> Row | Bad:
    """The texts, numbers and truth values of a JSON object; of the columns in `lists` also lists of
    texts, as JSON."""
    if isinstance(value, Bad):
        return value
    if not isinstance(value, dict):
        return Bad("not a JSON object")
    row: Row = {}
    for key, inner in value.items():
        if isinstance(inner, list) and (reason := bad_inside(inner)):
            return reason
        if need and key not in need:
            continue
        if isinstance(inner, bool):
            row[key] = "true" if inner else "false"
        elif isinstance(inner, str):
            if half_pair(inner):
                return Bad(f"{key!r} holds half a surrogate pair")
            row[key] = inner
        elif key in lists and isinstance(inner, list) and all(isinstance(x, str) for x in inner):
            if any(map(half_pair, inner)):
                return Bad(f"{key!r} holds half a surrogate pair")
            row[key] = json.dumps(inner, ensure_ascii=False)
        elif key in need:
            return Bad(f"{key!r} is {json_type(inner)}, not a text or a number")
    missing = [column for column in need if column not in row]
    return Bad(f"no column {missing[0]!r}") if missing else row


def bad_inside(values: list[Any]) -> Bad | None:
    """The first Bad in nested lists."""
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, Bad):
            return value
        if isinstance(value, list):
            stack += value
    return None


def json_type(value: Any) -> str:
    """What JSON calls a value that is no text."""
    if value is None:
        return "null"
    return "a list" if isinstance(value, list) else "an object"
