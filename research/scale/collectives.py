"""What chips say to each other in one step, read off the compiled program."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from research.scale.hlo import Computation, Instruction, Module, Shape

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """Arrays that go between the chips of groups of `group`, `times` a step; `shapes` are what each
    chip gives, and `source` is the line of the model that asked for it."""

    kind: str
    shapes: tuple[Shape, ...]
    group: int
    times: int
    source: str

    @property
    def wire(self) -> float:
        """Bytes that a chip sends a step, where the algorithm is a ring's (Thakur et al., 2005)."""
        given, group = sum(shape.bytes for shape in self.shapes), self.group
        share = {
            "all-gather": group - 1,
            "reduce-scatter": (group - 1) / group,
            "all-reduce": 2 * (group - 1) / group,
            "all-to-all": (group - 1) / group,
            "collective-permute": 1,
        }[self.kind]
        return given * share * self.times


def collectives(module: Module, devices: int) -> list[Collective]:
    """Those of a step, loops counted by their turns.

    An all-reduce of which every chip keeps its slice is a reduce-scatter: XLA makes it one on GPUs
    and TPUs, and has none on a CPU. What a TPU runs in pieces beside other work, some of them in
    loops, bears one channel: it is one, as often as the piece that runs the least.
    """
    found: dict[tuple[str, int], Collective] = {}
    for computation, times in module.walk():
        for one in computation.instructions.values():
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            name = channel[1] if channel else f"{computation.name} {one.name}"
            for number, made in enumerate(parts(module, computation, one, kind, devices, times)):
                before = found.get((name, number))
                if before is None or before.times > times:
                    found[name, number] = made
    return [one for one in found.values() if one.group > 1]


def parts(
    module: Module,
    computation: Computation,
    one: Instruction,
    kind: str,
    devices: int,
    times: int,
) -> Iterator[Collective]:
    """A collective, or of an all-reduce one for every array, for each has its fate."""
    named = re.search(r'op_name="([^"]*)"', one.attributes)
    source, group = named[1] if named else "", group_size(one.attributes, devices)
    if kind != "all-reduce":
        yield Collective(kind, tuple(computation.read(one)), group, times, source)
        return
    # A TPU's may be told of float32 and pass on bfloat16: what it makes is what it sends.
    for number, shape in enumerate(one.shapes):
        name = one.name
        if len(one.shapes) > 1:
            taken = [
                user.name
                for user in computation.users.get(name, [])
                if user.opcode == "get-tuple-element"
                and re.search(rf"\bindex={number}\b", user.attributes)
            ]
            name = taken[0] if len(taken) == 1 else ""
        kept = module.slices_of(computation, name) if name else None
        scatters = bool(kept) and all(math.isclose(one * group, shape.bytes) for one in kept or ())
        sort = "reduce-scatter" if scatters else "all-reduce"
        yield Collective(sort, (shape,), group, times, source)


def group_size(attributes: str, devices: int) -> int:
    """How many chips of `devices` take part in each group of a collective."""
    if "source_target_pairs=" in attributes:
        return devices
    if mesh := re.search(r"replica_groups=[@\w]*mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if tiles := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return int(tiles[1].split(",")[-1])
    if first := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(first[1].split(","))
    return devices


def by_kind(found: list[Collective]) -> dict[str, float]:
    """Bytes that a chip sends a step, of every kind."""
    return {kind: sum(one.wire for one in found if one.kind == kind) for kind in KINDS}
