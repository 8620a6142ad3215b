"""The watchdog: a run that hangs ends with exit code 5 and says where; one that moves is let be."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from research.watchdog import Watchdog

HANGS = """
import sys, time
from pathlib import Path
from research.watchdog import Watchdog

def stuck_here():
    time.sleep(60)

folder = Path(sys.argv[1])
with Watchdog(0.4, folder / "stacks.txt", (folder / "log.txt").write_text):
    stuck_here()
"""


def test_a_hang_ends_the_process_and_says_where(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("graft: no progress for")
    assert "stuck_here" in (tmp_path / "stacks.txt").read_text()
    assert (tmp_path / "log.txt").read_text() in done.stderr


def test_what_moves_is_let_be(tmp_path: Path) -> None:
    with Watchdog(0.5, tmp_path / "stacks.txt", print) as watchdog:
        for _ in range(8):
            time.sleep(0.1)
            watchdog.beat()
    assert not (tmp_path / "stacks.txt").exists()
