"""Fine-tuning a classifier from a Hugging Face directory, beside Hugging Face's own Trainer."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from research import runs
from research.data.texts import Texts
from research.errors import ConfigError
from research.study.table import Table

LAUNCH = Path(__file__).parents[2] / "launch.py"
RIVAL = Path(__file__).parent / "rivals" / "transformers_classify.py"
UNITS = {
    "examples_per_second": "examples/s",
    "tokens_per_second": "real tokens/s",
    "first_step_seconds": "first step, s",
    "total_seconds": "everything, s",
    "peak_memory_mb": "peak MB",
    "accuracy": "dev accuracy",
}


def main(arguments: list[str]) -> None:
    """`bench sst2 --train FILES --dev FILE --init-from DIR`: a table, and a JSON file with --to."""
    parser = argparse.ArgumentParser(prog="launch.py bench", allow_abbrev=False)
    parser.add_argument("workload", choices=["sst2"])
    parser.add_argument("--train", required=True, help="rows with the columns sentence and label")
    parser.add_argument("--dev", required=True)
    parser.add_argument("--init-from", required=True, help="a BERT directory")
    parser.add_argument("--limit", type=int, default=8192, help="training rows")
    parser.add_argument("--rounds", type=int, default=3, help="seeds, one a round")
    parser.add_argument("--steelman", action="store_true", help="also the rival's best settings")
    parser.add_argument("--rival-python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--to", help="where to keep all numbers as JSON")
    options = parser.parse_args(arguments)
    sides = {"Graft": ours, "Trainer, default": theirs}
    if options.steelman:
        sides["Trainer, steelman"] = steelman
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(options, Path(folder))
        for seed in range(options.rounds):
            for name, side in sides.items():
                found[name].append(side(options, seed, Path(folder)))
                print(f"round {seed + 1}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(table(found).to_text())
    if options.to:
        kept = {"command": arguments, "runs": found, **runs.environment()}
        Path(options.to).write_text(json.dumps(kept, indent=1) + "\n")


def table(found: dict[str, list[dict[str, float]]]) -> Table:
    """Medians and ranges a side, and the ratio of ours to each rival's, round by round."""
    rows = []
    for name, unit in UNITS.items():
        row = [unit]
        mine = [one[name] for one in found["Graft"]]
        for side, results in found.items():
            values = [one[name] for one in results]
            row.append(f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})")
            if side != "Graft":
                ratios = [a / b for a, b in zip(mine, values)]
                row.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(tuple(row))
    columns = [""]
    for side in found:
        columns += [side] if side == "Graft" else [side, "Graft / it"]
    title = "Median (range) over rounds; Graft and its rivals in turn on one machine"
    return Table(title=title, columns=tuple(columns), rows=tuple(rows))


def write_rows(options: argparse.Namespace, folder: Path) -> None:
    """The rows of both sides, with integer labels, for the rival; its order is ours by seed."""
    data = texts(options)
    classes: Any = data.facts()["labels"]
    labels = {label: number for number, label in enumerate(classes)}
    for seed in range(options.rounds):
        stream = data.open("train", 32, steps=-(-options.limit // 32), seed=seed)
        order = [int(i) for step in range(stream.steps) for i in ids_of(stream.batch(step))]
        write_split(data, "train", order[: options.limit], labels, folder / f"train{seed}.jsonl")
    dev = data.open("dev", 128)
    write_split(data, "dev", range(dev.rows), labels, folder / "dev.jsonl")


def ids_of(batch: dict[str, Any]) -> list[int]:
    """The examples of a batch, in ascending order within it."""
    return sorted(int(i) for i in batch["ids"].ravel() if i >= 0)


def write_split(data: Texts, split: str, order: Any, labels: dict[str, int], path: Path) -> None:
    """JSON lines of the rows `order` names."""
    with path.open("w", encoding="utf-8") as file:
        for example in order:
            row = data.text_of(split, example)
            line = {"text": row[data.text], "label": labels[row["label"]]}
            file.write(json.dumps(line) + "\n")


def texts(options: argparse.Namespace) -> Texts:
    """The data of configs/sst2.py on the files given."""
    return Texts(
        train=options.train,
        dev=options.dev,
        text="sentence",
        tokenizer=options.init_from,
        limit=options.limit,
    )


def call(command: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """Standard output of a command and its seconds, start to end.

    Raises ConfigError with the end of what it complained of.
    """
    started = time.monotonic()
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        complaint = " ".join(done.stderr.strip().splitlines()[-3:])
        raise ConfigError(f"bench: {' '.join(command[:3])} failed: {complaint}")
    return done.stdout, time.monotonic() - started


def ours(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """`launch.py train configs/sst2.py` in a process with empty caches."""
    environment = {"GRAFT_CACHE": str(folder / f"cache{seed}")}
    command = [sys.executable, str(LAUNCH), "train", str(LAUNCH.parent / "configs" / "sst2.py")]
    command += ["--workdir", str(folder), "--name", f"ours{seed}", "--seed", str(seed)]
    command += ["--data.train", options.train, "--data.dev", options.dev]
    command += ["--data.limit", str(options.limit), "--init-from", options.init_from]
    _, total = call(command, environment)
    result = runs.read_result(folder / f"ours{seed}") or {}
    seconds = result["seconds"]
    return {
        "examples_per_second": result["examples"] / (seconds["train"] + seconds["wait"]),
        "tokens_per_second": result["tokens"] / (seconds["train"] + seconds["wait"]),
        "first_step_seconds": result["first_step_seconds"],
        "total_seconds": total,
        "peak_memory_mb": result["peak_memory_mb"],
        "accuracy": result["metrics"]["dev/accuracy"],
    }


def theirs(options: argparse.Namespace, seed: int, folder: Path, *more: str) -> dict[str, float]:
    """Hugging Face Trainer with its default settings."""
    rows = [str(folder / f"train{seed}.jsonl"), str(folder / "dev.jsonl")]
    command = [options.rival_python, str(RIVAL), options.init_from, *rows, "--seed", str(seed)]
    output, total = call([*command, *more], {"HF_HUB_OFFLINE": "1"})
    return json.loads(output.splitlines()[-1]) | {"total_seconds": total}


def steelman(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """Hugging Face Trainer with the best settings found for a CPU."""
    return theirs(options, seed, folder, "--steelman")
