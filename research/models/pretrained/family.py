"""What a family's table is made of: rules from a parameter's path to the tensor of another library.

The same rules are read in both directions, so that what is imported can be exported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn

from research.errors import ConfigError
from research.models.transformer import Spec, Transformer

# How a stack under `scan` and an unrolled one name the same block.
SCANNED, UNROLLED = "backbone/blocks/", "backbone/block_{i}/"
# Fields of a Spec that change how it is computed, and not what.
EXECUTION = ("scan", "remat", "dtype")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of a config.json; every complaint names the file and the key."""

    path: Path
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer. Raises ConfigError for anything else, as the other readers do."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.path}: {key} is {value!r}, expected a positive integer")
        return value

    def split(self, width: str, heads: str) -> tuple[int, int]:
        """A width and the number of heads that share it evenly."""
        whole, parts = self.integer(width), self.integer(heads)
        if whole % parts:
            raise ConfigError(f"{self.path}: {width} {whole} is not a multiple of {heads} {parts}")
        return whole, parts

    def part(self, key: str) -> Settings:
        """The object under a key, empty where there is none."""
        value = self.values.get(key) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.path}: {key} is {value!r}, expected an object")
        return Settings(path=self.path, values=value)

    def optional(self, key: str, default: int | None = None) -> int | None:
        """A positive integer, or None where the key is null, or absent without a default."""
        return None if self.values.get(key, default) is None else self.integer(key, default)

    def number(self, key: str, default: float) -> float:
        """A number that is not negative."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ConfigError(f"{self.path}: {key} is {value!r}, expected a number from 0 up")
        return float(value)

    def choice(self, key: str, choices: Mapping[Any, Any], default: Any) -> Any:
        """What `choices` holds for the value."""
        value = self.values.get(key, default)
        for name, meaning in choices.items():
            if type(name) is type(value) and name == value:
                return meaning
        supported = ", ".join(repr(name) for name in choices)
        raise ConfigError(f"{self.path}: {key} is {value!r}, supported: {supported}")


@dataclass(frozen=True)
class Rule:
    """One parameter path and the tensor of the same numbers; `{i}` is the block in both.

    A `transposed` matrix is [in, out] with us and [out, in] with them. Of a tensor that holds
    several parameters side by side along our last axis, this one is `part` (which, of how many).
    Of `heads` the last two axes are one with us, [D, H K], and [D, H, K] with them, before it is
    transposed. Blocks below `first` have no such tensor: theirs, under `scan`, are ones that
    nothing reads. Where several rules name one parameter, it is read from the first tensor that is
    there, and written to all.
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    first: int = 0
    heads: bool = False


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: one tensor, or one a block for a `stacked` parameter, with None
    for a block that has none."""

    names: tuple[str | None, ...]
    transposed: bool = False
    stacked: bool = False
    part: tuple[int, int] = (0, 1)
    heads: bool = False

    @property
    def present(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(name for name in self.names if name is not None)

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """That of a tensor in their file for a parameter's, [out, in] where it is transposed."""
        block = ours[1:] if self.stacked else ours
        whole = (*block[:-1], block[-1] * self.part[1]) if block else block
        return whole[::-1] if self.transposed else whole


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A class of the other library that computes what a task of ours computes.

    `facts` gives its keys of config.json, and raises ConfigError for a task that it cannot express;
    without `prefixed` its tensors are named without the family's prefix. `problem` is the
    problem_type of a class that has several losses. `decisive` are keys of `facts`, with what
    transformers takes them to be where they are not said, that decide what a head means.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    facts: Callable[[Any], dict[str, Any]] = lambda task: {}
    prefixed: bool = True
    problem: str | None = None
    decisive: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A table: how one `model_type` of Hugging Face maps to a trunk of ours and to its parameters.

    `spec` is the type that `to_spec` gives, and `build` makes the trunk of it. `rules` are those of
    the trunk. `renames`: older names, regex to today's. `buffers`: regexes of tensors that hold
    nothing learned; `tied`: of copies of the embedding where the two are tied. `tasks`: by name of
    a task's class; a task without one is exported as `trunk`. `tokenizer`: what an exported
    tokenizer_config.json says besides.
    """

    name: str
    prefix: str
    rules: tuple[Rule, ...]
    to_spec: Callable[[Settings], Any]
    to_config: Callable[[Any], dict[str, Any]]
    trunk: Architecture
    spec: type = Spec
    build: Callable[[Any], nn.Module] = Transformer
    tasks: Mapping[str, Architecture] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    buffers: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)

    def architecture(self, task: Any) -> Architecture:
        """The class that a task, or the nearest of its base classes, is exported as."""
        for kind in type(task).__mro__:
            if kind.__name__ in self.tasks:
                return self.tasks[kind.__name__]
        return self.trunk

    def sources(self, path: str, shape: tuple[int, ...]) -> list[Source]:
        """Every place that a parameter may come from, the trunk's first; empty for none."""
        # Several tasks may have the same head.
        heads = dict.fromkeys(rule for task in self.tasks.values() for rule in task.rules)
        return matching((*self.rules, *heads), path, shape)

    def canonical(self, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """A file's tensor names by today's full names, and those that repeat another one."""
        names = sorted(names)
        bare = not any(name.startswith(self.prefix) for name in names)
        current: dict[str, str] = {}
        repeated = []
        for name in names:
            full = today = self.prefix + name if bare else name
            for old, new in self.renames:
                today = re.sub(old, new, today)
            # A file may hold a tensor under an older name and under today's.
            if today in current and today != full:
                repeated.append(name)
                continue
            if today in current:
                repeated.append(current[today])
            current[today] = name
        return current, repeated

    def differences(self, spec: Any) -> list[str]:
        """Fields of `spec` that this family has no way to express: ["positions='rotary'", ...]."""
        config = Settings(path=Path("config.json"), values=self.to_config(spec))
        try:
            back = self.to_spec(config)
        except ConfigError as error:
            return [str(error)]
        wanted, given = settled(spec), settled(back)
        return [
            f"{item.name}={getattr(spec, item.name)!r}"
            for item in dataclasses.fields(spec)
            if item.name not in EXECUTION
            and getattr(wanted, item.name) != getattr(given, item.name)
        ]


def settled(spec: Any) -> Any:
    """The same with the fields filled that follow from others where they are None."""
    if not isinstance(spec, Spec):
        return spec
    return dataclasses.replace(
        spec,
        kv_heads=spec.kv_heads or spec.heads,
        head_width=spec.head_width or spec.width // spec.heads,
        qkv_bias=spec.bias if spec.qkv_bias is None else spec.qkv_bias,
    )


def matching(rules: Iterable[Rule], path: str, shape: tuple[int, ...]) -> list[Source]:
    """What the rules say of one parameter, in their order."""
    found = (source_of(rule, path, shape) for rule in rules)
    return [source for source in found if source is not None]


def source_of(rule: Rule, path: str, shape: tuple[int, ...]) -> Source | None:
    """The tensors that `rule` names for a parameter, None where it is not about this one."""
    if path.startswith(SCANNED):
        if path.replace(SCANNED, UNROLLED, 1) != rule.ours:
            return None
        names = tuple(
            rule.theirs.replace("{i}", str(i)) if i >= rule.first else None for i in range(shape[0])
        )
        return Source(names, rule.transposed, True, rule.part, rule.heads)
    match = re.fullmatch(re.escape(rule.ours).replace(r"\{i\}", r"(\d+)"), path)
    if match is None:
        return None
    block = match[1] if match.groups() else ""
    names = (rule.theirs.replace("{i}", block),)
    return Source(names, rule.transposed, False, rule.part, rule.heads)


def dense(
    ours: str, theirs: str, *, transposed: bool = True, part: tuple[int, int] = (0, 1)
) -> tuple[Rule, ...]:
    """A dense layer: kernel and bias, where there is one."""
    kernel = Rule(f"{ours}/kernel", f"{theirs}.weight", transposed, part)
    return kernel, Rule(f"{ours}/bias", f"{theirs}.bias", part=part)


def norm(ours: str, theirs: str, *, first: int = 0) -> tuple[Rule, ...]:
    """A norm: scale and bias, where there is one."""
    scale = Rule(f"{ours}/scale", f"{theirs}.weight", first=first)
    return scale, Rule(f"{ours}/bias", f"{theirs}.bias", first=first)
