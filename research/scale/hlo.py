"""A compiled program's text, read: computations, their instructions, and how often each runs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
CALLS = re.compile(r"(?:calls|body|condition|to_apply|branch_computations|called_computations)=")
NAMES = re.compile(r"%([\w.\-]+)")
# A layout's S(1) says that a value is kept on the chip itself, where no bandwidth is spent.
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclass(frozen=True)
class Shape:
    """One array: its type, its dimensions, and whether it lies in the chip's large memory."""

    kind: str
    dimensions: tuple[int, ...]
    hbm: bool = True

    @property
    def bytes(self) -> float:
        """Of all its elements; types narrower than a byte count as they are."""
        width = BYTES.get(self.kind)
        if width is None:
            bits = re.search(r"\d+", self.kind)
            return math.prod(self.dimensions) * (int(bits[0]) if bits else 0) / 8
        return float(math.prod(self.dimensions) * width)


@dataclass(frozen=True)
class Instruction:
    """One line: what it is called, makes, does, reads, and says besides."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The computations that it runs."""
        found: list[str] = []
        for match in CALLS.finditer(self.attributes):
            rest = self.attributes[match.end() :]
            text = rest[: rest.index("}")] if rest.startswith("{") else rest.split(",")[0]
            found += NAMES.findall(text)
        return tuple(found)


class Computation:
    """Instructions in order, by name, with the users of each."""

    def __init__(self, name: str, instructions: list[Instruction]) -> None:
        self.name = name
        self.instructions = {one.name: one for one in instructions}
        self.users: dict[str, list[Instruction]] = {}
        for one in instructions:
            for operand in dict.fromkeys(one.operands):
                self.users.setdefault(operand, []).append(one)

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(one for one in self.instructions.values() if one.root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its arguments, by number."""
        found = (one for one in self.instructions.values() if one.opcode == "parameter")
        return {int(one.attributes): one for one in found}

    def read(self, instruction: Instruction) -> list[Shape]:
        """The arrays that an instruction reads."""
        made = (self.instructions[name] for name in instruction.operands)
        return [shape for one in made for shape in one.shapes]

    def steps(self, counter: Instruction) -> int:
        """What one turn of a loop, whose body this is, adds to the counter that its condition
        reads; 1 where that cannot be told."""
        place = re.search(r"index=(\d+)", counter.attributes)
        if place is None or self.root.opcode != "tuple":
            return 1
        added, one = 0, self.instructions[self.root.operands[int(place[1])]]
        while one.opcode in ("add", "copy"):
            terms = [self.instructions[name] for name in one.operands]
            known = [int(term.attributes) for term in terms if term.opcode == "constant"]
            others = [term for term in terms if term.opcode != "constant"]
            if len(others) != 1:
                return 1
            added, one = added + sum(known), others[0]
        return added or 1


class Module:
    """A whole program. Raises ValueError for a text that is none."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.head = text.split("\n", 1)[0]
        for name, lines, is_entry in split(text):
            self.computations[name] = Computation(name, [instruction(line) for line in lines])
            self.entry = name if is_entry else self.entry
        if not self.entry:
            raise ValueError("not the text of a compiled program")

    def walk(self) -> Iterator[tuple[Computation, int]]:
        """Every computation and how often a call from outside runs it; one that is called from
        several places comes several times."""
        waiting = [(self.entry, 1)]
        while waiting:
            name, times = waiting.pop()
            computation = self.computations[name]
            yield computation, times
            for one in computation.instructions.values():
                turns = self.trips(one) if one.opcode == "while" else 1
                waiting += [(called, times * turns) for called in one.called]

    def trips(self, loop: Instruction) -> int:
        """How often a loop turns: as the compiler says, or as its condition does, `i < n`, where
        `i` starts at zero and each turn adds a constant."""
        if said := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(said[1])
        condition, body = (self.named(loop, part) for part in ("condition", "body"))
        if condition is None or body is None or condition.root.opcode != "compare":
            return 1
        compared = [condition.instructions[name] for name in condition.root.operands]
        bounds = [int(one.attributes) for one in compared if one.opcode == "constant"]
        counters = [one for one in compared if one.opcode != "constant"]
        if len(bounds) != 1 or len(counters) != 1:
            return 1
        return math.ceil(bounds[0] / max(1, body.steps(counters[0])))

    def named(self, loop: Instruction, part: str) -> Computation | None:
        """The condition or the body of a loop."""
        found = re.search(rf"{part}=%([\w.\-]+)", loop.attributes)
        return self.computations[found[1]] if found else None

    def slices_of(self, computation: Computation, name: str) -> list[float] | None:
        """Bytes of each slice where slices are all that is read of a value; None where more is."""
        users, sizes = computation.users.get(name, []), list[float]()
        if not users or computation.instructions[name].root:
            return None
        for user in users:
            if user.opcode in ("dynamic-slice", "slice") and user.operands[0] == name:
                found: list[float] | None = [sum(shape.bytes for shape in user.shapes)]
            elif user.opcode in ("bitcast", "copy", "convert", "reshape", "transpose"):
                found = self.slices_of(computation, user.name)
            elif user.opcode in ("fusion", "call") and user.called:
                found = self.slices_within(user, name)
            else:
                found = None
            if found is None:
                return None
            sizes += found
        return sizes

    def slices_within(self, user: Instruction, name: str) -> list[float] | None:
        """The same of an operand of a fusion or a call."""
        inner, sizes = self.computations[user.called[0]], list[float]()
        for number, operand in enumerate(user.operands):
            if operand == name:
                found = self.slices_of(inner, inner.parameters[number].name)
                if found is None:
                    return None
                sizes += found
        return sizes


def split(text: str) -> Iterator[tuple[str, list[str], bool]]:
    """(name, lines, is it the entry) of every computation."""
    name, lines, entry = "", list[str](), False
    for line in text.splitlines()[1:]:
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            found = NAMES.search(line)
            name, lines, entry = found[1] if found else "", [], line.startswith("ENTRY")
        elif line == "}" and name:
            yield name, lines, entry
            name = ""
        elif name and " = " in line:
            lines.append(line)


def instruction(line: str) -> Instruction:
    """`  ROOT %name = f32[2,3]{1,0} opcode(%a, %b), attribute=...` as an Instruction.

    Of a parameter and a constant, what is in parentheses is all of `attributes`.
    """
    left, rest = line.split(" = ", 1)
    made, rest = balanced(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = balanced("(" + rest)
    plain = opcode in ("parameter", "constant")
    return Instruction(
        name=left.strip().removeprefix("ROOT ").lstrip("%"),
        shapes=shapes(made),
        opcode=opcode,
        operands=() if plain else tuple(NAMES.findall(inside)),
        attributes=inside[1:-1] if plain else attributes,
        root=left.strip().startswith("ROOT"),
    )


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, of a tuple all of them."""
    return tuple(
        Shape(kind, tuple(int(d) for d in dims.split(",") if d), "S(1)" not in (layout or ""))
        for kind, dims, layout in SHAPE.findall(text)
    )


def balanced(text: str) -> tuple[str, str]:
    """What starts with "(" up to where that is closed, and the rest."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"not closed: {text[:80]}")
