"""Chips a plan can be made for: what they hold, multiply and pass on."""

from __future__ import annotations

from dataclasses import dataclass

from research.errors import ConfigError

GB, TB, TERA = 1e9, 1e12, 1e12
GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peaks of one chip, in bytes and seconds.

    `flops`: products in bfloat16; `hbm`: memory; `bandwidth`: that of the memory; `links`: what it
    can send to all its neighbours together. `libtpu` is the name of a slice there, and `dimensions`
    how many axes its slices have.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    links: float
    libtpu: str = ""
    dimensions: int = 2


# cloud.google.com/tpu/docs, the page of each version ("System architecture", as of 2025): peak
# compute, HBM capacity and bandwidth, and ICI bandwidth in both directions, of which half is sent.
# The CPU's row makes the arithmetic of tests: it is no machine.
CHIPS = {
    "v4": Chip("v4", 275 * TERA, 32 * GIB, 1.2 * TB, 150 * GB, "v4", 3),
    "v5e": Chip("v5e", 197 * TERA, 16 * GIB, 0.82 * TB, 200 * GB, "v5e"),
    "v5p": Chip("v5p", 459 * TERA, 95 * GIB, 2.765 * TB, 600 * GB, "v5p", 3),
    "v6e": Chip("v6e", 918 * TERA, 32 * GIB, 1.64 * TB, 400 * GB, "v6e"),
    "cpu": Chip("cpu", 0.1 * TERA, 4 * GIB, 20 * GB, 5 * GB),
}


def parse(topology: str) -> tuple[Chip, int]:
    """ "v5e-256" as a chip and how many of them. Raises ConfigError for anything else.

    The number is of chips, also of v4 and v5p, whose own names count two cores a chip.
    """
    name, _, count = topology.partition("-")
    if name not in CHIPS or not count.isdigit() or int(count) < 1:
        raise ConfigError(
            f"--topology {topology}: expected a chip and how many, such as v5e-256; there are "
            f"{', '.join(CHIPS)}"
        )
    return CHIPS[name], int(count)
