"""Ours and its rivals in turn, each in a process of its own: medians, ranges and ratios."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research import initialize
from research.bench import machine, profile, tables
from research.bench.embedding import EMBEDDING, Encoding
from research.bench.ours import ROOT, Figures, call
from research.bench.pretraining import PRETRAINING, Pretraining
from research.bench.workloads import WORKLOADS, Workload
from research.command.arguments import Parser
from research.config import Config, load_config
from research.errors import ConfigError
from research.models.products import product_dtype

RIVALS = Path(__file__).parent / "rivals"
EVERY: dict[str, Workload | Pretraining | Encoding] = {**WORKLOADS, **PRETRAINING, **EMBEDDING}
# The rival's settings: as it comes; the best found for the platform; these and torch.compile.
SETTINGS = {"default": (), "steelman": ("--steelman",), "compiled": ("--steelman", "--compiled")}
# Evaluations of a run that is to reach a score.
EVALUATIONS = 10
# The config of a workload, scored once, after the last step, and without thresholds tuned on dev;
# the means of training are those of all steps.
CONFIG = """
import dataclasses
from research.config import load
from research.evaluate import HeldOut

def config():
    evals = (HeldOut(split="dev"),) if {scored} else ()
    never = {{"eval_every": {every}, "save_every": 10**9, "log_every": 10**9}}
    return dataclasses.replace(load({file!r})(), evals=evals, track=None, **never)
"""


@dataclasses.dataclass(frozen=True)
class Bench:
    """One workload with its settings, in a folder of its own; `target` is a score to reach, `cold`
    does without warm starts."""

    workload: Workload | Pretraining | Encoding
    config: Config
    overrides: tuple[str, ...]
    rival_python: str
    folder: Path
    target: float | None = None
    cold: bool = False

    @functools.cached_property
    def lengths(self) -> Any:
        """Tokens of each example that is trained on or encoded."""
        return self.workload.lengths(self.config)

    @property
    def reach(self) -> float:
        """How many tokens a token attends to, on average over tokens."""
        return float((self.lengths.astype(float) ** 2).sum() / self.lengths.sum())

    def ours(self, seed: int) -> Figures:
        """A process with empty caches, and the same once more with those it filled."""
        return self.starts(lambda start: self.workload.ours(self, seed, start)) | {
            "library": "jax",
            "dtype": product_dtype(self.config.task.backbone.spec.dtype).name,
        }

    def theirs(self, seed: int, settings: str = "default") -> Figures:
        """The rival on the same rows, with settings of SETTINGS."""
        command = [self.rival_python, str(RIVALS / self.workload.rival)]
        command += [*self.workload.arguments(self.config, self.folder, seed), *SETTINGS[settings]]
        if self.target is not None:
            command += ["--evaluate-every", str(evaluate_every(self.config))]
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / f"inductor{seed}")}

        def once(start: str) -> Figures:
            output, total = call(command, {"HF_HUB_OFFLINE": "1", **caches})
            found = json.loads(output.splitlines()[-1])
            outputs, seen = found.pop("outputs"), found.pop("evaluations", [])
            grade = functools.partial(self.workload.grade, folder=self.folder)
            found |= {"score": grade(outputs), "total_seconds": total, "library": "torch"}
            if self.target is not None:
                reached = [s for s, told in seen if grade(told) >= self.target]
                found["target_seconds"] = reached[0] if reached else None
            return found

        return self.starts(once)

    def starts(self, once: Callable[[str], Figures]) -> Figures:
        """The figures of a cold start, with those of a warm one that depend on it."""
        found = once("cold")
        if self.cold:
            return found
        again = once("warm")
        for name in ("first_step_seconds", "total_seconds", "target_seconds"):
            if name in found:
                found[f"warm_{name}"] = again[name]
        return found

    @functools.cache  # noqa: B019
    def products(self, library: str, dtype: str, seed: int) -> float:
        """GFLOP/s of a library at the workload's own shapes, measured once a round."""
        spec = self.config.task.backbone.spec
        tokens = max(1, round(self.config.batch_size * self.lengths.mean()))
        shape = (tokens, spec.width, spec.hidden)
        if library == "jax":
            return machine.products(*shape, dtype)
        script = [self.rival_python, str(RIVALS / "torch_products.py"), *map(str, shape), dtype]
        return float(json.loads(call(script, {})[0].splitlines()[-1])["gflops"])


def evaluate_every(config: Config) -> int:
    """Steps between the evaluations of a run that is to reach a score."""
    return math.ceil((config.steps or 1) / EVALUATIONS)


def main(arguments: list[str]) -> None:
    """`bench WORKLOAD [OVERRIDES]`: a table. Fine-tuning needs --init-from DIR, --data.train and
    --data.dev; embed needs --init-from DIR and --data.train."""
    parser = Parser("bench")
    parser.add_argument("workload", choices=sorted(EVERY))
    parser.add_argument("--rounds", type=int, default=3, help="seeds, one a round")
    parser.add_argument("--rivals", default="default", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--rival-python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--target", type=float, help="a score on dev: how long until it is reached")
    parser.add_argument("--cold", action="store_true", help="no warm starts: half the time")
    parser.add_argument("--strict", action="store_true", help="refuse a busy machine")
    parser.add_argument("--profile", action="store_true", help="no rival: what our step spends")
    parser.add_argument("--to", help="the folder for what is found")
    options, given = parser.parse_known_args(arguments)
    rivals = options.rivals.split(",")
    for name in rivals:
        if name not in SETTINGS:
            raise ConfigError(f"bench: no rival {name!r}; there are {', '.join(SETTINGS)}")
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(options, given, Path(folder))
        target = Path(options.to or f"runs/bench-{options.workload}")
        if options.profile:
            profile.tell(f"bench {options.workload} --profile", bench.config, target)
            return
        against = bench.workload.against
        sides: dict[str, Callable[[int], Figures]] = {"Graft": bench.ours}
        for name in rivals:
            sides[f"{against}, {name}"] = functools.partial(bench.theirs, settings=name)
        found, loads = rounds(bench, sides, options.rounds, strict=options.strict)
    facts = tables.circumstances(found, loads, arguments)
    page = tables.page(f"bench {options.workload}", bench.workload.metric, found, facts)
    print(page.text())
    tables.keep(target, page, found, facts)
    print(f"kept: {target}/bench.md, bench.json")


def prepare(options: Any, given: list[str], folder: Path) -> Bench:
    """The workload with its config, resolved. Raises ConfigError for a target it cannot have."""
    workload = EVERY[options.workload]
    scored = workload.metric.startswith("dev/")
    if options.target is not None and not scored:
        raise ConfigError(f"bench: {options.workload} has no score on dev for --target to reach")
    file = str(ROOT / "configs" / f"{workload.config}.py")
    overrides, label = (*workload.same, *given), f"launch.py bench {options.workload}"

    def write(every: int) -> Config:
        text = CONFIG.format(file=file, scored=scored, every=every)
        (folder / "config.py").write_text(text, encoding="utf-8")
        return load_config(folder / "config.py", list(overrides), label)

    config = initialize.resolve(write(10**9))
    if options.target is not None:
        write(evaluate_every(config))
    return Bench(
        workload,
        config,
        overrides,
        options.rival_python,
        folder,
        target=options.target,
        cold=options.cold,
    )


def rounds(
    bench: Bench, sides: dict[str, Callable[[int], Figures]], count: int, *, strict: bool
) -> tuple[dict[str, list[Figures]], list[float | None]]:
    """The figures of each side, round by round, and what others took of the machine before each.

    Raises ConfigError where `strict` and they took more than a little.
    """
    found: dict[str, list[Figures]] = {side: [] for side in sides}
    loads: list[float | None] = []
    flops = 0.0
    for seed in range(count):
        loads.append(machine.others())
        if (loads[-1] or 0) > machine.BUSY:
            said = f"others use {loads[-1]:.0%} of the processors before round {seed + 1}"
            if strict:
                raise ConfigError(f"bench: {said}")
            print(f"bench: {said}: its figures are doubtful", file=sys.stderr, flush=True)
        bench.workload.write(bench.config, bench.folder, seed)
        for side, measure in sides.items():
            one = measure(seed)
            flops = one.pop("flops_per_token", flops)
            one["products_gflops"] = bench.products(one["library"], one["dtype"], seed)
            one["products_share"] = one["tokens_per_second"] * flops / one["products_gflops"] / 1e9
            found[side].append(one)
            print(f"round {seed + 1}, {side}: {one}", file=sys.stderr, flush=True)
    return found, loads
