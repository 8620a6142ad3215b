"""A table of numbers with their spread, for a terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup, escape

from research.errors import ConfigError
from research.study.statistics import Summary

NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?%?", re.ASCII)
Cell = str | int | float | Summary | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under column names, with a title above.

    A cell is text, a number (4 digits), a Summary (mean ± sd (n)), or None (a dash). The best
    number of each column named in `highest` or `lowest` is bold, ties too, unless all are equal.
    Raises ConfigError for a row of another width and for a column that is not there.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    highest: tuple[str, ...] = ()
    lowest: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(tuple(row) for row in self.rows))
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ConfigError(
                    f"Table {self.title!r}, row {number}: {len(row)} cells, expected"
                    f" {len(self.columns)} ({', '.join(self.columns)})."
                )
        for name in (*self.highest, *self.lowest):
            if name not in self.columns:
                raise ConfigError(
                    f"Table {self.title!r} has no column {name!r}, only {', '.join(self.columns)}."
                )

    def to_text(self, widest: int = 64) -> str:
        """Aligned by display width, numbers to the right; the best is marked with a star.

        A cell of more than `widest` letters is cut and ends in an ellipsis.
        """

        def clean(text: str) -> str:
            line = _plain(text)
            return line if len(line) <= widest else line[: widest - 1] + "…"

        grid = self._render(clean, "{}*".format, "{} ".format)
        widths = [max(map(_width, column)) for column in zip(self._head(_plain), *grid)]
        lines = [self._line(row, widths) for row in (self._head(_plain), *grid)]
        rule = "─" * (sum(widths) + 2 * len(widths) - 2)
        title = [_plain(self.title)] if self.title else []
        return "\n".join([*title, lines[0], rule, *lines[1:]]) + "\n"

    def to_markdown(self) -> str:
        """A GitHub-flavoured table under its title in bold."""
        grid = self._render(escape_markdown, "**{}**".format)
        marks = ["---:" if numeric else ":---" for numeric in self._numeric()]
        title = f"**{escape_markdown(self.title)}**\n\n" if self.title else ""
        rows = (self._head(escape_markdown), marks, *grid)
        return title + "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def to_latex(self) -> str:
        """A table environment that needs the package booktabs."""
        grid = self._render(escape_latex, "\\textbf{{{}}}".format)
        align = "".join("r" if numeric else "l" for numeric in self._numeric())
        head, *body = (f"{' & '.join(row)} \\\\" for row in (self._head(escape_latex), *grid))
        title = [f"\\caption{{{escape_latex(self.title)}}}"] if self.title else []
        lines = ["\\begin{table}", "\\centering", *title, f"\\begin{{tabular}}{{{align}}}"]
        lines += ["\\toprule", head, "\\midrule", *body, "\\bottomrule"]
        return "\n".join([*lines, "\\end{tabular}", "\\end{table}"]) + "\n"

    def to_html(self) -> Markup:
        """A table element; cells of numeric columns have the class `number`."""
        grid = self._render(lambda text: str(escape(text)), "<strong>{}</strong>".format)
        kinds = [' class="number"' if numeric else "" for numeric in self._numeric()]
        heads = "".join(
            f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(kinds, self.columns)
        )
        rows = "\n".join(
            "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row)) + "</tr>"
            for row in grid
        )
        title = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        head = f"<thead><tr>{heads}</tr></thead>"
        return Markup(f"<table>{title}\n{head}\n<tbody>\n{rows}\n</tbody></table>\n")

    def _head(self, clean: Callable[[str], str]) -> list[str]:
        return [clean(name) for name in self.columns]

    def _numeric(self) -> list[bool]:
        """Columns without text, but not without numbers; "81.1%" is one."""
        columns = list(zip(*self.rows)) or [()] * len(self.columns)
        return [
            not any(isinstance(cell, str) and not NUMBER.fullmatch(cell) for cell in column)
            and any(cell is not None for cell in column)
            for column in columns
        ]

    def _render(
        self,
        clean: Callable[[str], str],
        strong: Callable[[str], str],
        weak: Callable[[str], str] = "{}".format,
    ) -> list[list[str]]:
        """Every cell escaped; in the columns asked for the best one `strong`, others `weak`."""
        best = {}
        for names, choose in ((self.highest, max), (self.lowest, min)):
            for name in names:
                at = self.columns.index(name)
                found = [rank for row in self.rows if not math.isnan(rank := _rank(row[at]))]
                if len(set(found)) > 1:
                    best[at] = choose(found)

        def render(at: int, cell: Cell) -> str:
            text = clean(show(cell))
            if at not in best:
                return text
            return strong(text) if _rank(cell) == best[at] else weak(text)

        return [[render(at, cell) for at, cell in enumerate(row)] for row in self.rows]

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        """Cells padded to the widths of their columns."""
        cells = []
        for text, width, numeric in zip(row, widths, self._numeric()):
            space = " " * (width - _width(text))
            cells.append(space + text if numeric else text + space)
        return "  ".join(cells).rstrip()


def show(cell: Cell) -> str:
    """A cell as plain text: 0.8731, 1.2e-05, 12,345, "0.873 ± 0.012 (5)", – for None."""
    if cell is None:
        return "–"
    if isinstance(cell, Summary):
        return _show_summary(cell)
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if isinstance(cell, int | np.integer):
        return f"{int(cell):,}"
    return _show_float(float(cell)) if isinstance(cell, float | np.floating) else str(cell)


def _show_float(value: float) -> str:
    """Four digits with their trailing zeros, so that a column lines up: 0.5000, 12.34, 3e-05."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    decimals = max(0, 4 - max(0, math.floor(math.log10(abs(value))) + 1))
    return f"{value:,.{decimals}f}"


def _show_summary(cell: Summary) -> str:
    """Two digits of the standard deviation decide how many of the mean are worth printing."""
    if not math.isfinite(cell.sd) or not math.isfinite(cell.mean) or cell.sd == 0:
        spread = "" if cell.n == 1 else f" ± {cell.sd:g}"
        return f"{_show_float(cell.mean)}{spread} ({cell.n})"
    decimals = max(0, 1 - math.floor(math.log10(cell.sd)))
    if decimals > 6 or abs(cell.mean) >= 1e6:
        return f"{cell.mean:.4g} ± {cell.sd:.1e} ({cell.n})"
    return f"{cell.mean:,.{decimals}f} ± {cell.sd:,.{decimals}f} ({cell.n})"


def _rank(cell: Cell) -> float:
    """What a cell is compared by; NaN for what is not a number."""
    if isinstance(cell, Summary):
        return cell.mean
    return math.nan if cell is None or isinstance(cell, str) else float(cell)


def _plain(text: str) -> str:
    """One line without control characters, which would move a terminal's cursor."""
    spaced = " ".join(text.split())
    return "".join(letter for letter in spaced if unicodedata.category(letter) not in ("Cc", "Cf"))


def _width(text: str) -> int:
    """Columns of a terminal: 2 for an East Asian wide letter, 0 for a combining one."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def escape_markdown(text: str) -> str:
    """Text that GitHub's Markdown shows as it is, inside a table cell as well."""
    marked = re.sub(r"([\\`*\[\]<>|~&$])", r"\\\1", _plain(text))
    # Inside a word an underscore is literal, and learning\_rate is harder to read and to search.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", marked)


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "-": "-{}",  # two in a row would become a dash
    "[": "{[}",  # after \\ a bracket or a star is an argument
    "*": "{*}",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def escape_latex(text: str) -> str:
    """Text that LaTeX typesets as it is."""
    return "".join(LATEX.get(letter, letter) for letter in _plain(text))
