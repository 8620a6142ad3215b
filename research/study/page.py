"""A page of text, numbers and figures, said three ways: HTML, Markdown, terminal."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from research.study.table import Cell, Table, escape_markdown, show


@dataclasses.dataclass(frozen=True)
class Heading:
    """A section starts here; more than four of them give the page a table of contents."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, with an empty line between two."""

    text: str

    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]


@dataclasses.dataclass(frozen=True)
class Figure:
    """An svg element from `research.study.plot`, trusted as it is, and what it shows.

    `wide` gives it a row of its own and full size on a click; others share a row where they fit.
    """

    svg: str
    caption: str
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Code:
    """Text shown letter by letter."""

    text: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values; `prominent` ones are what the reader came for."""

    values: Mapping[str, Cell]
    prominent: bool = False


@dataclasses.dataclass(frozen=True)
class Beside:
    """Blocks next to each other where the window allows, else in order."""

    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks folded behind a line, unless `unfolded`."""

    summary: str
    blocks: Sequence[Block]
    unfolded: bool = False


Block = Heading | Text | Table | Figure | Code | Facts | Beside | Details


@dataclasses.dataclass(frozen=True)
class Page:
    """A title, a line under it, and blocks in order."""

    title: str
    subtitle: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """One self-contained document: no script, nothing fetched, light and dark."""
        headings = [block.text for block in self.blocks if isinstance(block, Heading)]
        return _template().render(
            title=self.title,
            subtitle=self.subtitle,
            blocks=self.blocks,
            contents=headings if len(headings) > 4 else [],
        )

    def markdown(self) -> str:
        """GitHub-flavoured; a figure is its caption."""
        head = [f"# {escape_markdown(self.title)}"]
        if self.subtitle:
            head.append(_paragraph(self.subtitle))
        return "\n\n".join([*head, *(_markdown(block) for block in self.blocks)]) + "\n"

    def text(self) -> str:
        """For a terminal; a figure is its caption."""
        head = [f"{self.title}\n{'=' * len(self.title)}"]
        if self.subtitle:
            head.append(self.subtitle)
        return "\n\n".join([*head, *(_text(block) for block in self.blocks)]) + "\n"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"runs": _alike, "show": show, "trusted": Markup, "anchor": _anchor}
    source = resources.files("research.study").joinpath("page.html.j2").read_text("utf-8")
    return environment.from_string(source)


def _alike(blocks: Sequence[Block]) -> Iterator[tuple[str, list[Any]]]:
    """Blocks by kind in order; narrow figures that follow each other come as one group."""

    def kind(block: Block) -> str:
        return "Figures" if isinstance(block, Figure) and not block.wide else type(block).__name__

    for name, group in itertools.groupby(blocks, kind):
        if name == "Figures":
            yield name, list(group)
        else:
            yield from ((name, [block]) for block in group)


def _anchor(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def _paragraph(text: str) -> str:
    """Escaped text that does not start a list or a heading."""
    return re.sub(r"^(#|[-+=](?=\s|$|-|=)|\d+(?=[.)]))", _guard, escape_markdown(text))


def _guard(match: re.Match[str]) -> str:
    start = match[0]
    return f"{start}\\" if start.isdigit() else f"\\{start}"


def _fence(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"


def _table_of(facts: Facts) -> Table:
    rows = tuple((name, show(value)) for name, value in facts.values.items())
    return Table(title="", columns=("", "value"), rows=rows)


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"## {escape_markdown(block.text)}"
        case Text():
            return "\n\n".join(_paragraph(part) for part in block.paragraphs())
        case Table():
            return block.to_markdown().rstrip()
        case Figure():
            return f"*Figure: {escape_markdown(block.caption)}*"
        case Code():
            return _fence(block.text)
        case Facts():
            return _table_of(block).to_markdown().rstrip()
        case Beside():
            return "\n\n".join(_markdown(part) for part in block.blocks)
        case Details():
            inner = "\n\n".join(_markdown(part) for part in block.blocks)
            state = " open" if block.unfolded else ""
            head = f"<details{state}><summary>{escape(block.summary)}</summary>"
            return f"{head}\n\n{inner}\n\n</details>"


def _text(block: Block) -> str:
    match block:
        case Heading():
            return f"{block.text}\n{'-' * len(block.text)}"
        case Text():
            return "\n\n".join(block.paragraphs())
        case Table():
            return block.to_text().rstrip()
        case Figure():
            return f"[figure: {block.caption}]"
        case Code():
            return block.text.rstrip()
        case Facts():
            width = max((len(name) for name in block.values), default=0)
            return "\n".join(
                f"{name:<{width}}  {show(value)}" for name, value in block.values.items()
            )
        case Beside():
            return "\n\n".join(_text(part) for part in block.blocks)
        case Details():
            return "\n\n".join([f"{block.summary}:", *(_text(part) for part in block.blocks)])
