"""Compiled programs and memory: what compiling took is given back, and those with large temporaries
have malloc map large blocks again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from research import programs
from research.programs import Program

# What is mapped and not of the heap, in MB, while a block of so many MB is held, and after it.
SCRIPT = """
import ctypes
from research.programs import map_large_blocks

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in NAMES]})
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p

def mapped(size):
    before = libc.mallinfo2().hblkhd
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size << 20)))
    held = libc.mallinfo2().hblkhd
    libc.free(block)
    return (held - before) >> 20, (libc.mallinfo2().hblkhd - before) >> 20

print(*mapped(64))
map_large_blocks()
print(*mapped(64), *mapped(16))
"""


# Resident MB with 200 blocks of one, without every second of them, and once these are given back.
HOLES = """
import ctypes
from pathlib import Path
from research.programs import give_back

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def resident():
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x]
    return int(line.split()[1]) >> 10

blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(1 << 20))) for _ in range(200)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
print(resident())
for block in blocks[::2]:
    libc.free(block)
print(resident())
give_back()
print(resident())
"""

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


@of_glibc
def test_what_is_free_between_what_is_held_is_given_back() -> None:
    run = subprocess.run(
        [sys.executable, "-c", HOLES],
        env=dict(os.environ) | {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"},
        capture_output=True,
        text=True,
        check=True,
    )
    whole, freed, given = map(int, run.stdout.split())
    assert freed > whole - 20 and given < whole - 80


@of_glibc
@pytest.mark.parametrize(("told", "before"), [("glibc.malloc.mmap_max=0", "0 0"), ("", "64 0")])
def test_large_blocks_are_mapped_and_others_stay_on_the_heap(told: str, before: str) -> None:
    """As `launch.py` starts a process, and in one that was told nothing."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=dict(os.environ) | {"GLIBC_TUNABLES": told},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == [before, "64 0 0 0"]


def test_only_a_program_with_large_temporaries_asks_for_it(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(programs, "map_large_blocks", lambda: asked.append(True))
    monkeypatch.setattr(programs, "LARGE_MB", 1.0)

    def power(state, batch, key):
        return (batch["x"] @ state["w"] @ state["w"]) @ state["w"]

    program = Program(power)
    for rows, times in ((4, 0), (4, 0), (4096, 1)):
        program({"w": jnp.eye(64)}, {"x": jnp.ones((rows, 64))}, jax.random.key(0))
        assert len(asked) == times
    assert program.flops() == 3 * 2 * 4096 * 64 * 64
