"""Which class a setting holds, chosen on the command line by the class's name."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeGuard

from research.errors import ConfigError


def choose(config: Any, arguments: list[str]) -> tuple[Any, list[str]]:
    """`config` with each `--path.of.field CLASS` done, and the arguments that are left.

    A field whose type lists several dataclasses, or has `kinds`, takes any of them, at its
    defaults; one that may be None takes none. Class names are read in any case. Raises ConfigError
    for an unknown one.
    """
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, word = argument.partition("=")
        path = flag.removeprefix("--").replace("-", "_").split(".")
        kinds = classes(config, path) if flag.startswith("--") else {}
        if not kinds:
            rest.append(argument)
            continue
        chosen = word if equals else next(remaining, "")
        if chosen.lower() not in kinds:
            raise ConfigError(f"{flag}: no {chosen!r}, there are {', '.join(sorted(kinds))}")
        config = replaced(config, path, kinds[chosen.lower()]())
    return config, rest


def classes(value: Any, path: list[str]) -> dict[str, Any]:
    """The classes that the field at `path` may hold, by lower-case name; none for other fields."""
    for name in path[:-1]:
        value = getattr(value, name, None)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    hint = typing.get_type_hints(type(value)).get(path[-1])
    options = typing.get_args(hint) or getattr(hint, "kinds", tuple)()
    found = {kind.__name__.lower(): kind for kind in options if is_class(kind)}
    return found | ({"none": lambda: None} if found and type(None) in options else {})


def is_class(kind: Any) -> TypeGuard[type]:
    """Whether something is a dataclass, and not one of its objects."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def replaced(value: Any, path: list[str], leaf: Any) -> Any:
    """`value` with `leaf` in the field at `path`."""
    name, *inner = path
    changed = replaced(getattr(value, name), inner, leaf) if inner else leaf
    if hasattr(value, "clone"):
        return value.clone(**{name: changed})
    return dataclasses.replace(value, **{name: changed})
