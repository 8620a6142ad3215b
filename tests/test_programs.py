"""Compiled programs: those with large temporaries have malloc map large blocks again."""

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

# What is mapped and not of the heap, in MB, while a block of 64 MB is held, and after it.
SCRIPT = """
import ctypes
from research.programs import map_large_blocks

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in NAMES]})
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p

def mapped():
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**26)))
    held = libc.mallinfo2().hblkhd >> 20
    libc.free(block)
    return held, libc.mallinfo2().hblkhd >> 20

print(*mapped())
map_large_blocks()
print(*mapped())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_large_blocks_leave_the_heap_again() -> None:
    kept = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_max=0:glibc.malloc.mmap_threshold={2**25}"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=dict(os.environ) | kept,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == ["0 0", "64 0"]


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
