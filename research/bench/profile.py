"""Where a step's time goes, by kind of operation, from a trace of a few steps."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from research import initialize, runs, sharding
from research.assemble import assemble
from research.config import Config
from research.study.page import Page
from research.study.table import Table

STEPS = 8
IDLE = "host, or waiting"
# What an instruction is: its name, then its opcode, in the text of a compiled program.
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
PRODUCTS = re.compile(r"gemm|matmul|cublas|onednn|dot")
# Operations that only hold others: the time is that of what is in them.
HOLDERS = ("while", "call", "conditional", "async-start", "async-done")
Span = tuple[float, float, str]


def kinds_of(text: str) -> dict[str, str]:
    """The kind of every instruction of a compiled program's text, by name.

    A fusion is a matrix product if it holds one. What JAX calls an operation tells the rest: what
    is outside the derivative is the optimizer's.
    """
    found: dict[str, str] = {}
    holds: set[str] = set()
    computation = ""
    for line in text.splitlines():
        if begins := COMPUTATION.match(line):
            computation = begins[1]
        elif matched := INSTRUCTION.match(line):
            name, opcode = matched.groups()
            called = re.search(r"calls=%?([\w.-]+)", line)
            target = re.search(r'custom_call_target="([^"]*)"', line)
            product = opcode == "dot" or bool(target and PRODUCTS.search(target[1]))
            product |= opcode == "fusion" and called is not None and called[1] in holds
            if product:
                holds.add(computation)
            source = re.search(r'op_name="([^"]*)"', line)
            found[name] = kind_of(opcode, source[1] if source else "", product=product)
    return found


def kind_of(opcode: str, source: str, *, product: bool) -> str:
    """The kind of an operation; `source` is the path of modules and primitives JAX gives it."""
    if opcode in HOLDERS:
        return ""
    backward = "transpose(" in source
    if "/attention/" in source and not re.search(r"/attention/(query|key|value|out|qkv)/", source):
        return "attention"
    if product:
        return "matrix products"
    if re.search(r"/embed(_\w+)?/|/backbone\.vectors/", source) and "norm" not in source:
        return "embedding gradient" if backward else "embedding"
    if opcode.startswith(("copy", "transpose")) or opcode in ("bitcast", "concatenate"):
        return "copies"
    if any(opcode.startswith(name) for name in ("all-", "reduce-scatter", "collective")):
        return "collectives"
    if "jvp(" not in source:
        return "optimizer" if source else "copies"
    return "norms, activations, dropout, loss"


def spans_of(path: Path, kinds: Mapping[str, str]) -> list[Span]:
    """(start, end, kind) in ns of every operation in a trace whose name is in `kinds`.

    On a CPU an operation that runs in several threads is traced when it is begun, and by an event
    "end: NAME" when it is done.
    """
    begun: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ended: dict[str, list[float]] = defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name.startswith("end: "):
                    ended[event.name.removeprefix("end: ")].append(event.start_ns)
                elif kinds.get(event.name) and any(key == "hlo_op" for key, _ in event.stats):
                    end = event.start_ns + event.duration_ns
                    begun[event.name].append((event.start_ns, end))
    spans = []
    for name, events in begun.items():
        events.sort()
        done = sorted(ended[name])
        for i, (start, end) in enumerate(events):
            after = bisect_right(done, start)
            following = events[i + 1][0] if i + 1 < len(events) else float("inf")
            if after < len(done) and done[after] <= following:
                end = max(end, done[after])
            spans.append((start, end, kinds[name]))
    return spans


def shares(spans: Iterable[Span]) -> dict[str, float]:
    """Seconds by kind, and those in which nothing ran: together from the first start to the last
    end. Operations that run at the same time share it."""
    edges = sorted(
        edge for start, end, kind in spans for edge in ((start, 1, kind), (end, -1, kind))
    )
    found: dict[str, float] = defaultdict(float)
    active: dict[str, int] = defaultdict(int)
    last = edges[0][0] if edges else 0.0
    for moment, change, kind in edges:
        running = sum(active.values())
        for name, count in active.items():
            found[name] += (moment - last) * count / max(running, 1) / 1e9
        found[IDLE] += 0 if running else (moment - last) / 1e9
        active[kind] += change
        last = moment
    return dict(found)


def profile(config: Config, folder: Path) -> Table:
    """Traces some steps of a resolved config into `folder`, and says where their time went."""
    mesh = config.mesh.build()
    key = jax.random.key(config.seed)
    with jax.set_mesh(mesh):
        batches = initialize.open_training(config, mesh)
        rows = sharding.abstract_rows(batches.batch(0), mesh)
        assembly = assemble(config, rows, mesh, batches.words)
        state: Any = assembly.begin()
        compiled = assembly.program.compiled(assembly.state, rows, key)
        # Every step is the first batch: one program, all of whose operations have their names.
        state = jax.block_until_ready(compiled(state, sharding.put(batches.batch(0), mesh), key))[0]
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(str(folder), profiler_options=options):
            started = time.monotonic()
            for _ in range(STEPS):
                state = compiled(state, sharding.put(batches.batch(0), mesh), key)[0]
            jax.block_until_ready(state)
            taken = time.monotonic() - started
    trace = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found = shares(spans_of(trace, kinds_of(compiled.as_text() or "")))
    # What lies before the first operation and after the last one is the host's.
    found[IDLE] = max(0.0, taken - sum(found.values()) + found.get(IDLE, 0.0))
    return table(found, STEPS)


def table(found: Mapping[str, float], steps: int) -> Table:
    """Milliseconds a step and shares, the largest first."""
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    rows = [(kind, 1e3 * seconds / steps, f"{seconds / total:.1%}") for kind, seconds in ordered]
    rows.append(("all", 1e3 * total / steps, "100%"))
    title = f"Where a step's time goes, over {steps} steps"
    return Table(title=title, columns=("", "ms a step", "share"), rows=tuple(rows))


def tell(title: str, config: Config, folder: Path) -> None:
    """Prints the table, and keeps it beside the trace."""
    page = Page(title, runs.environment()["cpu"]["model"], [profile(config, folder / "trace")])
    runs.write_atomic(folder / "profile.md", page.markdown().encode())
    print(f"{page.text()}\nkept: {folder}/profile.md, {folder}/trace (for TensorBoard or XProf)")
