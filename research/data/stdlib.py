"""English that every Python carries: the docstrings of its standard library.

Parsed from the source files, never imported. `passages` is a corpus for language modelling; `areas`
is a task: of which area of the library is this docstring, its own names removed? Areas are split
by module, so that dev asks about modules that training never saw, in either of the two.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from research.errors import ConfigError, DataError

Row = dict[str, str]

# Modules of each area: those of training, those of dev.
AREAS: dict[str, tuple[str, str]] = {
    "concurrency": (
        "asyncio concurrent queue selectors sched _threading_local asyncore",
        "multiprocessing threading subprocess",
    ),
    "files": (
        "tarfile shutil tempfile glob gzip fileinput ntpath genericpath _pyio io filecmp mimetypes "
        "zipapp linecache stat",
        "zipfile pathlib bz2 lzma posixpath fnmatch",
    ),
    "gui": ("tkinter turtle", "idlelib curses turtledemo"),
    "language": (
        "importlib inspect dis typing tokenize types abc imp zipimport codeop code runpy "
        "dataclasses weakref pyclbr modulefinder _py_abc",
        "ast symtable enum functools contextlib pkgutil compileall py_compile copy copyreg",
    ),
    "mail": ("email smtplib poplib", "mailbox imaplib smtpd"),
    "network": (
        "http urllib ftplib nntplib xmlrpc ssl cgi asynchat",
        "socket socketserver ipaddress wsgiref telnetlib webbrowser",
    ),
    "numbers": ("_pydecimal random fractions colorsys bisect", "statistics numbers secrets heapq"),
    "testing": (
        "unittest pdb trace cProfile profile tracemalloc timeit",
        "doctest bdb traceback pstats cgitb",
    ),
    "text": (
        "xml json csv base64 quopri netrc xdrlib difflib re string locale html gettext pprint "
        "reprlib _markupbase",
        "configparser plistlib tomllib textwrap codecs stringprep shlex rlcompleter",
    ),
}
# Tests, tables of character sets, and grammars bring no English.
SKIPPED = {"test", "tests", "idle_test", "encodings", "lib2to3", "pydoc_data", "__phello__"}
TRAIN_ROWS, DEV_ROWS = 200, 60
FEWEST_WORDS = 8
WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Docstring:
    """A docstring, the dotted module it is in, and the names of what it documents."""

    module: str
    names: tuple[str, ...]
    text: str

    @property
    def top(self) -> str:
        """The top-level module."""
        return self.module.partition(".")[0]


def rows(name: str) -> list[Row]:
    """The rows of `stdlib:NAME`. Raises ConfigError for a name there is not."""
    if name == "passages":
        return passages()
    if name in ("areas-train", "areas-dev"):
        return areas(name.removeprefix("areas-"))
    raise ConfigError(
        f"data: stdlib:{name} is none of stdlib:passages, stdlib:areas-train, stdlib:areas-dev"
    )


def passages() -> list[Row]:
    """{"text", "module"}: every docstring and help topic but those of the areas' dev modules.

    What a dev module says is left out wherever else it is said, too.
    """
    held_out, found, seen = sentences_of_dev(), list[Row](), set[str]()
    dev = {module for _, modules in AREAS.values() for module in modules.split()}
    candidates = [(d.module, d.text) for d in docstrings() if d.top not in dev]
    for module, text in [*candidates, *topics()]:
        text = " ".join(s for s in sentences(clean(text)) if fold(s) not in held_out)
        if words(text) >= FEWEST_WORDS and text not in seen:
            seen.add(text)
            found.append({"text": text, "module": module})
    return found


def areas(split: str) -> list[Row]:
    """{"text", "label", "module"} of "train" or "dev": balanced, names removed, in a mixed order.

    At most 200 rows an area in training, 60 in dev, and no text in both. Raises DataError where
    this Python lacks the sources of an area.
    """
    side = {"train": 0, "dev": 1}[split]
    other = {row["text"] for row in areas("train")} if split == "dev" else set()
    found = []
    for area, modules in AREAS.items():
        mine = choose(area, modules[side].split(), other, (TRAIN_ROWS, DEV_ROWS)[side])
        if not mine:
            raise DataError(
                f"stdlib:areas-{split}:1: this Python has none of the modules of {area!r}: "
                f"{modules[side]}"
            )
        found += mine
    return sorted(found, key=order)


def choose(area: str, modules: list[str], taken: set[str], most: int) -> list[Row]:
    """Up to `most` rows of an area, taken from its modules in turn; adds their texts to `taken`."""
    by_module: dict[str, list[Row]] = {module: [] for module in modules}
    area_names = frozenset(" ".join(AREAS[area]).split())
    for docstring in docstrings():
        if docstring.top in by_module:
            text = remove(clean(docstring.text), docstring, area_names)
            if words(text) >= FEWEST_WORDS and text not in taken:
                taken.add(text)
                row = {"text": text, "label": area, "module": docstring.module}
                by_module[docstring.top].append(row)
    queues = [sorted(found, key=order) for found in by_module.values()]
    turns = [row for turn in zip_longest(*queues) for row in turn if row is not None]
    return turns[:most]


def order(row: Row) -> bytes:
    """A place in a mixed order that is the same everywhere."""
    return hashlib.sha256(f"{row['module']} {row['text']}".encode()).digest()


def remove(text: str, docstring: Docstring, area_names: frozenset[str]) -> str:
    """The text without the names of what it documents, its module, and all modules of its area.

    Names are told apart from words by their letters alone: `Thread` goes from a docstring of
    `Thread`, and so does the word "thread".
    """
    names = {name.lower() for name in (*docstring.module.split("."), *docstring.names)}
    names |= {name.lower() for name in area_names}
    # _pydecimal is decimal, in Python.
    names |= {bare for name in names for bare in (name.strip("_"), name.removeprefix("_py"))}
    kept = WORD.sub(lambda word: "" if word[0].lower().strip("_") in names else word[0], text)
    return " ".join(kept.split())


def clean(text: str) -> str:
    """One line of prose: without doctests, rules and the spaces of indentation."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [
        line for line in lines if not line.startswith((">>>", "... ")) and re.search(r"\w", line)
    ]
    return " ".join(" ".join(kept).split())


def words(text: str) -> int:
    """How many of a text's pieces between spaces hold a letter."""
    return sum(WORD.search(piece) is not None for piece in text.split())


def sentences(text: str) -> list[str]:
    """Where a text may be cut without cutting a statement."""
    return re.split(r"(?<=[.:;!?])\s+", text)


def fold(sentence: str) -> str:
    """The words alone, for comparison."""
    return " ".join(WORD.findall(sentence.lower()))


@functools.cache
def sentences_of_dev() -> frozenset[str]:
    """Every statement of the dev modules that is long enough to be told from a phrase."""
    dev = {module for _, modules in AREAS.values() for module in modules.split()}
    folded = (
        fold(sentence)
        for docstring in docstrings()
        if docstring.top in dev
        for sentence in sentences(clean(docstring.text))
    )
    return frozenset(sentence for sentence in folded if len(sentence.split()) >= 4)


def topics() -> list[tuple[str, str]]:
    """The language reference as `help()` shows it: (module, text)."""
    path = library() / "pydoc_data" / "topics.py"
    if not path.is_file():
        return []
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            found = ast.literal_eval(statement.value)
            return [(f"topics.{name}", text) for name, text in sorted(found.items())]
    return []


def library() -> Path:
    """Where this Python keeps its standard library's sources."""
    return Path(sysconfig.get_paths()["stdlib"])


def files(root: Path) -> list[Path]:
    """The library's own sources, by name; what is installed beside them is not looked at."""
    found: list[Path] = []
    for name in sorted(sys.stdlib_module_names - SKIPPED):
        single, package = root / f"{name}.py", root / name
        found += [single] if single.is_file() else sorted(package.rglob("*.py"))
    return [path for path in found if not SKIPPED & set(path.relative_to(root).parts)]


@functools.cache
def docstrings() -> tuple[Docstring, ...]:
    """Every docstring of the standard library, by file and line."""
    root, found = library(), list[Docstring]()
    for path in files(root):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            # Some distributions ship files that are wrong on purpose.
            continue
        found += walk(tree, module, ())
    if not found:
        raise DataError(f"{root}:1: this Python has no sources of its standard library")
    return tuple(found)


def walk(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    module: str,
    names: tuple[str, ...],
) -> Iterator[Docstring]:
    """The docstrings of a module, class or function and of all inside it."""
    text = ast.get_docstring(node)
    if text:
        yield Docstring(module, names, text)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk(child, module, (*names, child.name))
