"""The verbs that make runs: train, study, reproduce, show, replay, bench."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from research.command.arguments import Parser, parse_file

if TYPE_CHECKING:
    from research.train import Result


def train(arguments: list[str]) -> None:
    """Audit, run, page, result; of every seed and swept number, trained as one program."""
    from research import hosts, initialize
    from research.config import load_config
    from research.replicate import replicate
    from research.study.report import audit_page
    from research.sweep import expand
    from research.train import run

    options, overrides = parse_file("train", arguments)
    with hosts.joined(options.coordinator, options.processes, options.process):
        with hosts.in_turn():
            config = load_config(options.file, overrides, f"launch.py train {options.file}")
            page = audit_page(initialize.examine(config))
        print(page.text(), flush=True)
        if options.seeds or options.sweep:
            configs = expand(config, options.seeds, options.sweep)
            found = replicate(configs, options.workdir, progress=True)
        else:
            found = [run(config, options.workdir, progress=True)]
        hosts.agreed(lambda: tell(found))


def tell(found: list[Result]) -> None:
    """Writes the pages of finished runs and prints what came out."""
    from research import results
    from research.study.report import run_page, write_page

    print()
    for result in found:
        write_page(run_page(result.path), result.path)
        said = results.sentence(result.summary)
        print(f"{result.path}: {said}\npage: {result.path}/report.html")


def study(arguments: list[str]) -> None:
    """Hands `run` to the file's study, writes its page and prints it; or prints its plan."""
    from research.config import load
    from research.study.plan import plan
    from research.study.report import write_page
    from research.study.runner import Runner, knobs

    options, overrides = parse_file("study", arguments)
    dry = "--dry-run" in overrides
    function = load(options.file, "study")
    given = [argument for argument in overrides if argument != "--dry-run"]
    settings = knobs(function, given, f"launch.py study {options.file} [--dry-run]")
    runner = Runner(Path(options.workdir) / Path(options.file).stem, dry=dry)
    page = function(runner, **settings)
    if dry:
        print(plan(runner).text())
        return
    write_page(dataclasses.replace(page, blocks=[*page.blocks, runner.details()]), runner.path)
    print(f"{page.text()}\n\npage: {runner.path}/report.html")


def reproduce(arguments: list[str]) -> None:
    """Trains one run of a study anew, and tells whether it gives the same."""
    from research.errors import GraftError
    from research.study.reproduce import reproduce as reproduced

    parser = Parser("reproduce")
    parser.add_argument("report", help="a study's folder, or its report.html")
    parser.add_argument("row", help="a run's name, or the number of its line in results.jsonl")
    options = parser.parse_args(arguments)
    found = reproduced(options.report, options.row)
    print(found.table().to_text())
    if found.changed:
        print(f"not the same as then: {', '.join(found.changed)}")
    if not found.agrees:
        raise GraftError(f"{found.name}: a score neither equals what was told nor falls in its arm")


def show(arguments: list[str]) -> None:
    """Prints the audit."""
    from research import initialize
    from research.config import load_config
    from research.study.report import audit_page

    options, overrides = parse_file("show", arguments)
    config = load_config(options.file, overrides, f"launch.py show {options.file}")
    print(audit_page(initialize.examine(config)).text())


def replay(arguments: list[str]) -> None:
    """Takes the step again that a run could not take, and prints its means."""
    from research.replay import replay as replayed

    parser = Parser("replay")
    parser.add_argument("run")
    print(json.dumps(replayed(parser.parse_args(arguments).run)))


def bench(arguments: list[str]) -> None:
    """Runs a workload of ours and of its rival in turn, and prints ratios."""
    from research.bench import main as run_bench

    run_bench(arguments)
