"""Time and memory as rows, tokens, classes, layers and simulated devices grow tenfold."""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from research import runs
from research.bench.ours import ROOT, call
from research.command.arguments import Parser
from research.errors import ConfigError
from research.study import plot
from research.study.page import Beside, Block, Figure, Heading, Page, Text
from research.study.report import write_page
from research.study.table import Table

Point = dict[str, float]
# Values of each axis; the largest number of rows is an option.
AXES = {
    "rows": (1_000, 10_000, 100_000),
    "tokens": (16, 160, 1600),
    "classes": (2, 20, 200, 2000),
    "layers": (1, 10),
    "devices": (1, 10),
}
SAID = {
    "rows": "Rows of about 16 tokens, read, checked, labelled, tokenised and planned: from nothing "
    "(cold), and with the tokens in the cache (warm). Memory that is mapped from files goes when "
    "others need it; what is held does not.",
    "tokens": "Tokens a row: a training step of 40 texts, two layers, 64 wide, and its compiling.",
    "classes": "Classes, in the same step.",
    "layers": "Layers, in the same step.",
    "devices": "Simulated devices, over which the 40 texts of the same step are spread: the share "
    "of each in one machine's processors shrinks as they grow in number, so that time says what "
    "cutting a step up costs.",
}
# The texts of a step: as many as the most devices can share.
TEXTS, STEPS = 40, 3
WORDS = "a film of great heart and no plot that moves its cast to tears or to sleep in an hour"
LABELS = ("seconds", "memory, MB")


def main(arguments: list[str]) -> None:
    """`bench growth`: a page of figures; every point is measured in a process of its own."""
    parser = Parser("bench growth")
    parser.add_argument("--rows", type=int, default=max(AXES["rows"]), help="the most rows")
    parser.add_argument("--only", choices=AXES, action="append")
    parser.add_argument("--to", default="runs/bench-growth", help="the folder of the page")
    options = parser.parse_args(arguments)
    if options.rows < AXES["rows"][0]:
        raise ConfigError(f"bench growth: --rows is {options.rows}, expected {AXES['rows'][0]} up")
    axes = {axis: values for axis, values in AXES.items() if axis in (options.only or AXES)}
    if "rows" in axes:
        tens = (1000 * 10**power for power in range(10))
        axes["rows"] = (*(rows for rows in tens if rows < options.rows), options.rows)
    blocks: list[Block] = []
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for axis, values in axes.items():
            found[axis] = {value: measure(axis, value, Path(folder)) for value in values}
            blocks += section(axis, found[axis])
    facts = runs.environment()
    where = f"{facts['cpu']['model']}, {facts['cpu']['cores']} cores"
    page = Page("Growth", f"{where}, {time.strftime('%Y-%m-%d', time.gmtime())}", blocks)
    write_page(page, Path(options.to))
    kept = json.dumps({**facts, "points": found}, indent=1)
    runs.write_atomic(Path(options.to) / "growth.json", kept.encode())
    print(f"{page.text()}\npage: {options.to}/report.html")


def measure(axis: str, value: int, folder: Path) -> Point:
    """The figures of one point, of the process that measures it; rows are opened twice."""
    environment = {"GRAFT_CACHE": str(folder / "cache")}
    if axis == "devices":
        count = f"--xla_force_host_platform_device_count={value}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    command = [sys.executable, str(ROOT / "launch.py"), "bench", "point"]
    command += [axis, str(value), str(folder)]
    if axis != "rows":
        return one(command, environment)
    write_rows(folder / f"{value}.tsv", value, 12)
    cold, warm = one(command, environment), one(command, environment)
    starts = {"cold": cold, "warm": warm}
    return {f"{name}, {start}": starts[start][name] for name in cold for start in starts}


def one(command: list[str], environment: dict[str, str]) -> Point:
    """What a process says in its last line."""
    said: Point = json.loads(call(command, environment)[0].splitlines()[-1])
    print(" ".join(command[-3:-1]), said, file=sys.stderr, flush=True)
    return said


def write_rows(path: Path, count: int, words: int, classes: int = 2) -> None:
    """`count` rows of `words` words and a number, each class in turn."""
    generator, known = random.Random(0), WORDS.split()
    with path.open("w", encoding="utf-8") as file:
        file.write("text\tlabel\n")
        for i in range(count):
            file.write(f"{' '.join(generator.choices(known, k=words))} {i}\t{i % classes}\n")


def point(arguments: list[str]) -> None:
    """`bench point AXIS VALUE FOLDER`: prints the figures of this process."""
    axis, value, folder = arguments[0], int(arguments[1]), Path(arguments[2])
    figures = opened(folder, value) if axis == "rows" else stepped(axis, value, folder)
    figures["peak memory"] = runs.peak_memory_mb()
    status = Path("/proc/self/status")
    if axis == "rows" and status.exists():
        held = re.search(r"^RssAnon:\s*(\d+)", status.read_text(), re.M)
        figures["held memory"] = int(held[1]) * 1024 / 1e6 if held else 0.0
    print(json.dumps(figures))


def tokenizer(folder: Path) -> str:
    """A tokenizer of the words and of all numbers."""
    from research.data.wordpiece import train_wordpiece

    path = folder / "tokenizer.json"
    if not path.is_file():
        train_wordpiece([WORDS] * 1000 + [str(i) for i in range(1000)], 400, path)
    return str(path)


def opened(folder: Path, rows: int) -> Point:
    """Seconds until the first batch of a run over rows that a file holds."""
    from research.data.texts import Texts

    data = Texts(train=str(folder / f"{rows}.tsv"), tokenizer=tokenizer(folder), max_length=64)
    started = time.monotonic()
    batches = data.open("train", 32, steps=rows // 32)
    data.facts()
    batches.batch(0)
    return {"opening": time.monotonic() - started}


def stepped(axis: str, value: int, folder: Path) -> Point:
    """Seconds of a training step, the fastest of a few, and of compiling it."""
    import jax

    from research import initialize, sharding
    from research.assemble import assemble
    from research.config import Config
    from research.data.texts import Texts
    from research.models.transformer import Spec, Transformer
    from research.tasks.classify import Classify

    size = {"tokens": 16, "classes": 2, "layers": 2, "devices": 1} | {axis: value}
    file, words = folder / f"{axis}{value}.tsv", max(2, size["tokens"] - 8)
    write_rows(file, max(TEXTS, size["classes"]), words, size["classes"])
    vocabulary = tokenizer(folder)
    spec = Spec(
        vocab_size=400, width=64, depth=size["layers"], hidden=256, max_positions=size["tokens"]
    )
    config = initialize.resolve(
        Config(
            name="point",
            task=Classify(backbone=Transformer(spec)),
            data=Texts(train=str(file), tokenizer=vocabulary, max_length=size["tokens"]),
            steps=STEPS + 1,
            batch_size=TEXTS,
        )
    )
    mesh, key = config.mesh.build(), jax.random.key(0)
    with jax.set_mesh(mesh):
        batch = initialize.open_training(config, mesh).batch(0)
        rows = sharding.abstract_rows(batch, mesh)
        assembly = assemble(config, rows, mesh)
        state: Any = assembly.begin()
        compiled, taken = assembly.program.compiled(assembly.state, rows, key), []
        for _ in range(STEPS + 1):
            started = time.monotonic()
            state = jax.block_until_ready(compiled(state, sharding.put(batch, mesh), key)[0])
            taken.append(time.monotonic() - started)
    return {"a step": min(taken), "compiling": assembly.program.seconds}


def section(axis: str, found: dict[int, Point]) -> list[Block]:
    """What an axis is, its two figures, and the table."""
    names, values = list(next(iter(found.values()))), list(found)
    figures = []
    for label in LABELS:
        chosen = [name for name in names if ("memory" in name) == (label != "seconds")]
        series = [
            plot.Series(label=name, x=values, y=[one[name] for one in found.values()])
            for name in chosen
        ]
        svg = plot.curves(
            f"{label} by {axis}", series, xlabel=axis, ylabel=label, log_x=True, log_y=True
        )
        caption = f"{label[0].upper()}{label[1:]} as {axis} grow, both scales by tens."
        figures.append(Figure(svg, caption))
    rows = tuple((value, *(one[name] for name in names)) for value, one in found.items())
    table = Table(title=f"By {axis}: seconds, and MB", columns=(axis, *names), rows=rows)
    return [Heading(axis.capitalize()), Text(SAID[axis]), Beside(figures), table]
