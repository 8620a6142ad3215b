"""What the verbs of the command line share: a strict parser, and files that open or say why not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from research.errors import ConfigError, StorageError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ConfigErrors, and whose options are never abbreviated."""

    def __init__(self, verb: str, **settings: Any) -> None:
        super().__init__(prog=f"launch.py {verb}", allow_abbrev=False, **settings)

    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}")


def parse_file(verb: str, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """FILE, --workdir, and of train --seeds, --sweep and how its processes meet; the rest is for
    the file's own fields, its --help too."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"launch.py {verb}: give a FILE first")
    parser = Parser(verb, add_help=False)
    parser.add_argument("file")
    parser.add_argument("--workdir", default="runs")
    if verb == "train":
        parser.add_argument("--seeds", type=numbers, default=())
        parser.add_argument("--sweep", action="append", default=[])
        parser.add_argument("--coordinator")
        parser.add_argument("--processes", type=int)
        parser.add_argument("--process", type=int)
    return parser.parse_known_args(arguments)


def numbers(text: str) -> tuple[int, ...]:
    """ "0,1,2" as (0, 1, 2)."""
    return tuple(int(number) for number in text.split(","))


def open_or_say(path: str, mode: str) -> Any:
    """An open file; raises ConfigError or StorageError with the reason where it cannot be."""
    try:
        return Path(path).open(mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        kind = ConfigError if "r" in mode else StorageError
        raise kind(f"{path}: {error.strerror}") from None
