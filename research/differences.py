"""What differs between two described configs, in the words of someone who would write them."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import flax.linen as nn

from research import config as configs
from research.errors import ConfigError

# Values of a list that are written out; of a longer one, their number.
SHOWN = 6


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """["optim.learning_rate: 1e-05 -> 3e-05", ...]; a field that holds another class of settings
    is one of them, as "adapt: Full() -> LoRA(rank=4)"."""
    if alike(old, new):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += differences(old.get(name), new.get(name), f"{prefix}.{name}".lstrip("."))
        return found
    if old == new:
        return []
    told = brief(old), brief(new)
    # Long lists, and classes of one name, are told apart by all that there is of them.
    was, now = told if told[0] != told[1] else (repr(old), repr(new))
    return [f"{prefix}: {was} -> {now}"]


def alike(old: Any, new: Any) -> bool:
    """Whether two described values have the same fields."""
    both = isinstance(old, dict) and isinstance(new, dict)
    return both and old.get("type") == new.get("type")


def brief(value: Any) -> str:
    """A described value as code: its class and what is not as that has it by itself."""
    if isinstance(value, list):
        parts = ", ".join(brief(inner) for inner in value)
        return f"[{parts}]" if len(value) <= SHOWN else f"[{len(value)} values]"
    if not isinstance(value, dict):
        return repr(value)
    usual = defaults(value.get("type"))
    given = [
        f"{name}={brief(inner)}"
        for name, inner in value.items()
        if name != "type" and (name not in usual or usual[name] != inner)
    ]
    return f"{value.get('type', '').rpartition(':')[2]}({', '.join(given)})"


def defaults(kind: str | None) -> dict[str, Any]:
    """Described defaults by field of the class "module:Class"; none of one that is no more, or that
    a file would have to be run for."""
    module = (kind or "").partition(":")[0]
    if kind is None or not (module in sys.modules or module.startswith("research.")):
        return {}
    try:
        found = configs.find_type(kind)
    except (ConfigError, ImportError):
        return {}
    usual = {}
    for field in dataclasses.fields(found):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        # Linen gives its modules a parent and a name, which no config tells.
        own = issubclass(found, nn.Module) and field.name in ("parent", "name")
        if value is not dataclasses.MISSING and not own:
            usual[field.name] = configs.describe(value)
    return usual
