"""The verb that asks what a run would take on other machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from research.command.arguments import Parser
from research.files import storage
from research.scale.chips import Chip, parse


def parser() -> Parser:
    """Of `plan`; what it does not know is for the file's own fields, --help too."""
    made = Parser("plan", add_help=False)
    made.add_argument("file")
    made.add_argument("--topology", required=True, help="a chip and how many: v5e-256, cpu-8")
    made.add_argument("--to", help="a file for the numbers, as JSON")
    return made


def simulated(arguments: list[str]) -> int | None:
    """How many devices JAX is to make of the CPU for a plan, None for what it does of itself."""
    chip, count = parse(parser().parse_known_args(arguments)[0].topology)
    return None if chip.libtpu else count


def plan(arguments: list[str]) -> None:
    """Compiles the training step of a file for a slice, and prints what it takes."""
    from research.config import load_config
    from research.scale.plan import plan as planned

    options, overrides = parser().parse_known_args(arguments)
    chip, count = parse(options.topology)
    config = load_config(options.file, overrides, f"launch.py plan {options.file}")
    found = planned(config, chip, count)
    print(told(found, chip))
    if options.to is not None:
        with storage(Path(options.to)):
            Path(options.to).write_text(json.dumps(found, indent=1) + "\n")


def told(found: dict[str, Any], chip: Chip) -> str:
    """A plan for people."""
    from research.study.table import Table

    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    held, times = found["memory"], found["seconds"]
    gib = {name: f"{held[name] / 2**30:.3f}" for name in ("parameters", "optimizer", "temporaries")}
    fits = "fits" if held["fits"] else "DOES NOT FIT"
    sent = [
        (kind, f"{one['bytes'] / 1e6:.3f}", f"{one['minimum'] / 1e6:.3f}")
        for kind, one in found["collectives"].items()
    ]
    grown = [
        (int(one["chips"]), f"{one['seconds'] * 1e3:.3f}", f"{one['efficiency']:.1%}")
        for one in found["growth"]
    ]
    lines = [
        f"{found['name']} on {found['topology']} ({mesh}): {found['parameters']:,} parameters, "
        f"{found['rows']} rows, {found['tokens']:,} tokens a step",
        f"a chip's memory, GiB: parameters {gib['parameters']}, optimizer {gib['optimizer']}, "
        f"temporaries {gib['temporaries']}, in all {held['total'] / 2**30:.3f} of "
        f"{chip.hbm / 2**30:.0f}: {fits}",
        f"operations a step: {found['flops']:.4g} in products, recomputed ones included",
        "",
        Table(
            "Sent by each chip a step, MB", ("kind", "program", "minimum"), tuple(sent)
        ).to_text(),
        f"predicted, ms: compute {times['compute'] * 1e3:.3f}, memory {times['memory'] * 1e3:.3f}, "
        f"links {times['links'] * 1e3:.3f}; a step {times['overlapped'] * 1e3:.3f} to "
        f"{times['serial'] * 1e3:.3f}, bound by {times['bound']}",
        "",
        Table(
            "Predicted weak scaling, nothing overlapped",
            ("chips", "ms a step", "efficiency"),
            tuple(grown),
        ).to_text(),
        f"compiled in {found['compile_seconds']:.1f} s",
    ]
    return "\n".join(lines)
