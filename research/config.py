"""A run as a value: what is learned, from what, how, and for how long.

A config file is Python with a function `config() -> Config` that calls real constructors. This
module loads the file, applies typed overrides from the command line, turns a config into JSON and
back, and fills what the config leaves to its inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import io
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import tyro

from research.alternatives import choose
from research.errors import ConfigError
from research.evaluate import Evaluator
from research.optim import Optim
from research.sharding import MeshSpec
from research.spikes import Spikes
from research.strategies import Full, Strategy


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    `steps`, or `epochs` of the training data. `batch_size` counts examples a step, over all
    devices. `init_from`: a run directory, a Hugging Face directory or its id. `track` names the
    metric whose best checkpoint is kept (a loss or a perplexity is best when smallest); after
    `patience` evaluations without a better one the run stops. `eval_every` and `save_every` are
    steps; left out, evaluation is once an epoch and at the end, and saving goes with it.
    `data_seed` decides the order of the examples, None for `seed`, which decides all else. A run
    without progress for `hang_after` seconds ends itself with exit code 5. `spikes` takes back
    steps whose loss jumps (`--spikes spikes --spikes.sigma 5`). A run with products in eight bits
    (`--task.backbone.spec.dtype float8`) is refused where its first losses differ by more than
    `float8_tolerance` of those in bfloat16.
    """

    name: str
    task: nn.Module
    data: Any
    optim: Optim = Optim()
    adapt: Strategy = Full()
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    microbatches: int = 1
    evals: tuple[Evaluator, ...] = ()
    eval_every: int | None = None
    save_every: int | None = None
    log_every: int = 10
    keep: int = 2
    track: str | None = None
    patience: int | None = None
    spikes: Spikes | None = None
    init_from: str | None = None
    mesh: MeshSpec = MeshSpec()
    seed: int = 0
    data_seed: int | None = None
    hang_after: float = 3600.0
    float8_tolerance: float = 0.02

    def check(self) -> None:
        """Raises ConfigError for values that cannot go together."""
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError("config: give either steps or epochs, and not both")
        positive = ("batch_size", "microbatches", "log_every", "keep", "eval_every", "save_every")
        for name in (*positive, "steps", "epochs", "patience", "hang_after", "float8_tolerance"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"config: {name} is {value}, but must be positive")
        if not re.fullmatch(r"[\w.+=-]+(/[\w.+=-]+)*", self.name) or ".." in self.name:
            raise ConfigError(
                f"config: name {self.name!r} must be letters, digits, . + = - or _, with / between"
            )
        if self.patience is not None and self.track is None:
            raise ConfigError("config: patience needs track, the metric to watch")
        if self.adapt.watches and not (self.track and self.evals):
            raise ConfigError(f"config: {self.adapt} needs evals, and track, the metric to watch")
        if self.spikes is not None:
            self.spikes.check()


def load_module(file: str | Path) -> ModuleType:
    """Runs a Python file as the module that its path below the working directory names."""
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        relative = path.resolve().relative_to(Path.cwd())
        name = ".".join(relative.with_suffix("").parts)
    except ValueError:
        name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {error.msg}") from error
    return module


def load(file: str | Path, function: str = "config") -> Callable[..., Any]:
    """The function `config` (or `study`) of a file."""
    found = getattr(load_module(file), function, None)
    if not callable(found):
        raise ConfigError(f"{file}: has no function {function}()")
    return found


def load_config(file: str | Path, overrides: list[str], prog: str = "train FILE") -> Config:
    """The config of a file with typed overrides such as ["--optim.learning-rate", "3e-5"].

    One of `--steps` and `--epochs` takes the place of the other.
    """
    config = load(file)()
    if not isinstance(config, Config):
        raise ConfigError(f"{file}: config() returned {type(config).__name__}, not a Config")
    lengths = {flag.split("=")[0] for flag in overrides} & {"--steps", "--epochs"}
    if len(lengths) == 1:
        config = dataclasses.replace(config, steps=None, epochs=None)
    return override(config, overrides, prog)


def override(config: Any, arguments: list[str], prog: str, *, switches: bool = False) -> Any:
    """Any nest of dataclasses with some fields replaced; the types are those of the fields.

    With `switches` a bool is set by --small and --no-small instead of --small True. A field that
    may hold one of several classes takes a class's name first (`--optim.rule lion`).

    Raises ConfigError naming the nearest flag for an unknown one, and SystemExit for --help.
    """
    config, arguments = choose(config, arguments)
    flags = {f"--{name.replace('_', '-')}": name for name, _ in leaves(config)}
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        known = flag in flags or flag in ("--help", "-h") or re.match(r"--.*\.no-|--no-", flag)
        if argument.startswith("--") and not known:
            near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists all"
            raise ConfigError(f"unknown override {argument.split('=')[0]}{hint}")
    complaint, off = io.StringIO(), tyro.conf.FlagConversionOff
    plain = mirror(config)
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                type(plain),
                default=plain,
                args=arguments,
                prog=prog,
                config=(tyro.conf.AvoidSubcommands, *(() if switches else (off,))),
            )
            return reflect(config, parsed)
    except SystemExit as end:
        if not end.code:
            raise
        words = re.sub(r"[─│╭╮╰╯]+|\x1b\[[\d;]*m", " ", complaint.getvalue())
        sentence = " ".join(words.split()).split("For full helptext")[0].strip()
        raise ConfigError(f"overrides: {sentence}") from None


def mirror(value: Any) -> Any:
    """A plain dataclass with the fields of `value`: what the command line is parsed into.

    A field's own type says too little where it is a protocol or a Module; its value tells all.
    """
    hints = typing.get_type_hints(type(value))
    specs: list[tuple[str, Any, Any]] = []
    for name, inner in fields(value):
        nested = is_nested(inner)
        default = mirror(inner) if nested else inner
        kind = type(default) if nested else hints[name]
        specs.append((name, kind, dataclasses.field(default=default)))
    made = dataclasses.make_dataclass(type(value).__name__, specs, frozen=True)
    made.__doc__ = type(value).__doc__
    return made()


def reflect(value: Any, parsed: Any) -> Any:
    """`value` with the fields that its mirror was given."""
    changes = {
        name: reflect(inner, getattr(parsed, name)) if is_nested(inner) else getattr(parsed, name)
        for name, inner in fields(value)
    }
    if isinstance(value, nn.Module):
        return value.clone(**changes)
    return dataclasses.replace(value, **changes)


def is_nested(value: Any) -> bool:
    """Whether a value is a dataclass with fields of its own."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of every field of a dataclass, without linen's own `parent` and `name`."""
    linen = isinstance(value, nn.Module)
    for field in dataclasses.fields(value):
        if not (linen and field.name in ("parent", "name")):
            yield field.name, getattr(value, field.name)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf as ("optim.learning_rate", value)."""
    for name, inner in fields(value):
        if is_nested(inner):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def describe(value: Any) -> Any:
    """JSON values from which `build` makes an equal object."""
    if is_nested(value):
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"type": kind} | {name: describe(inner) for name, inner in fields(value)}
    if isinstance(value, tuple | list):
        return [describe(inner) for inner in value]
    if isinstance(value, dict):
        return {str(name): describe(inner) for name, inner in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"config: {value!r} of type {type(value).__name__} cannot be written as JSON")


def build(value: Any) -> Any:
    """The object that `describe` wrote down; only dataclasses are ever constructed."""
    if isinstance(value, list):
        return tuple(build(inner) for inner in value)
    if not isinstance(value, dict):
        return value
    if "type" not in value:
        return {name: build(inner) for name, inner in value.items()}
    kind = find_type(value["type"])
    given = {name: build(inner) for name, inner in value.items() if name != "type"}
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(f"{value['type']}: {error}; was it written by another version?") from None


def find_type(name: str) -> type:
    """The dataclass "module:Class": a module of Graft's, or a file below the working directory."""
    module_name, _, class_name = name.partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module_name):
        raise ConfigError(f"config: {name!r} does not name a class")
    if module_name.split(".")[0] == "research":
        module = importlib.import_module(module_name)
    else:
        module = sys.modules.get(module_name) or load_module(
            Path(*module_name.split(".")).with_suffix(".py")
        )
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"config: {name} is not a class of settings or a task")
    return found


def fingerprint(value: Any) -> str:
    """16 hex digits that change whenever any field does."""
    text = json.dumps(describe(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
