"""What a step reads from a chip's memory and writes to it, estimated from the compiled program."""

from __future__ import annotations

from research.scale.hlo import Computation, Instruction, Module

# These make names for what is there, or are counted by what is within them.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call", "iota"}
FREE |= {"conditional", "partition-id", "after-all", "opt-barrier"}


def traffic(module: Module) -> float:
    """Bytes a chip's memory moves in a step: what every kernel reads and makes, loops by their
    turns; of what is sliced or updated in place the slice alone. Caches make it less."""
    inner = {
        called
        for computation in module.computations.values()
        for one in computation.instructions.values()
        if one.opcode not in ("while", "call", "conditional")
        for called in one.called
    }
    total = 0.0
    for computation, times in module.walk():
        if computation.name not in inner:
            for one in computation.instructions.values():
                if one.opcode not in FREE:
                    total += times * moved(module, computation, one)
    return total


def moved(module: Module, computation: Computation, one: Instruction) -> float:
    """What one kernel reads and writes."""
    update = updated(module, computation, one)
    if update is not None:
        return 2 * update
    total = sum(shape.bytes for shape in one.shapes if shape.hbm)
    for name in dict.fromkeys(one.operands):
        made = computation.instructions[name]
        slices = module.slices_within(one, name) if one.opcode == "fusion" else None
        whole = sum(shape.bytes for shape in made.shapes if shape.hbm)
        total += whole if slices is None else min(whole, sum(slices))
    return total


def updated(module: Module, computation: Computation, one: Instruction) -> float | None:
    """Bytes that a kernel puts into an array that stays; None where it makes its own."""
    if one.opcode == "fusion" and one.called:
        computation = module.computations[one.called[0]]
        one = computation.root
    if one.opcode != "dynamic-update-slice":
        return None
    return sum(shape.bytes for shape in computation.instructions[one.operands[1]].shapes)
