"""Figures as inline SVG: text stays text, colours are CSS variables, equal input gives equal bytes.

The colours are those of Okabe & Ito (2008), told apart by readers with any colour vision; lines
differ in their dashes too. Each is written as var(--name, colour), so that a page can swap it for a
dark scheme and a file opened alone still shows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from research.study.statistics import Summary
from research.study.table import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0, ()),
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
)
INK, FAINT = "#1b1e23", "#c9ced6"
VARIABLES = {INK: "ink", FAINT: "rule"} | {color: f"c{i}" for i, color in enumerate(COLORS)}

STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "graft",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "grid.color": FAINT,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One line: `y` over `x`, [N] each, with a band from `low` to `high` where both are given.

    `faint`: drawn thin and pale without a place in the legend, in the colour of the next series.
    """

    label: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    low: npt.ArrayLike | None = None
    high: npt.ArrayLike | None = None
    faint: bool = False


def curves(
    title: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Lines with bands as SVG; gaps where a value is not finite. A lone point gets a marker."""
    with _figure(5.6, 3.3) as (figure, drawn):
        axes = figure.add_subplot()
        lines: dict[Line2D, str] = {}
        for line in series:
            x, y = np.asarray(line.x, np.float64), _finite(line.y)
            color, dashes = COLORS[len(lines) % len(COLORS)], DASHES[len(lines) // 2 % len(DASHES)]
            if line.faint:
                axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
                continue
            marker = "o" if np.isfinite(y).sum() <= 12 else ""
            (curve,) = axes.plot(x, y, color=color, linestyle=dashes, marker=marker, ms=4)
            lines[curve] = _literal(line.label)
            if line.low is not None and line.high is not None:
                band = (_finite(line.low), _finite(line.high))
                axes.fill_between(x, *band, color=color, alpha=0.2, linewidth=0)
        _scale(axes, log_x=log_x, log_y=log_y)
        _name(axes, title, xlabel, ylabel)
        if not any(np.isfinite(_finite(line.y)).any() for line in series):
            axes.text(0.5, 0.5, "no finite value", ha="center", transform=axes.transAxes)
        if len(lines) > 1:
            _legend(axes, lines)
    return drawn[0]


def bars(title: str, values: Mapping[str, Summary | float], *, ylabel: str) -> str:
    """One horizontal bar a name, its value beside it; a Summary's whisker is one sd each way.

    A value that is not finite gets no bar, but is named.
    """
    names = list(values)
    with _figure(6.4, 0.9 + 0.34 * max(1, len(names))) as (figure, drawn):
        axes = figure.add_subplot()
        summaries = [v if isinstance(v, Summary) else Summary.of([v]) for v in values.values()]
        middles = _finite([summary.mean for summary in summaries])
        spreads = np.nan_to_num(_finite([summary.sd for summary in summaries]))
        places = np.arange(len(names))
        axes.barh(places, np.nan_to_num(middles), height=0.62, color=COLORS[0], alpha=0.85)
        labels = [show(value) for value in values.values()]
        for place, label, middle, spread in zip(places, labels, middles, spreads):
            end = float(np.nan_to_num(middle + spread))
            if spread:
                ends = [middle - spread, end]
                axes.plot(ends, [place, place], color=INK, linewidth=1.4, marker="|", ms=7)
            beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points"}
            axes.annotate(label, (end, float(place)), va="center", fontsize=9, **beside)
        axes.set_yticks(places, [_literal(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        # Room for the longest label right of the longest bar, also in a reader's wider font.
        axes.margins(x=max(0.3, 0.028 * max(map(len, labels), default=0)))
        axes.grid(visible=False, axis="y")
        _name(axes, title, ylabel + (" (mean ± sd)" if spreads.any() else ""), "")
    return drawn[0]


def scatter(title: str, x: npt.ArrayLike, y: npt.ArrayLike, *, xlabel: str, ylabel: str) -> str:
    """Points (x, y), both [N] and of one scale, with the line on which they are equal."""
    across, up = _finite(x), _finite(y)
    with _figure(4.2, 4.0) as (figure, drawn):
        axes = figure.add_subplot()
        both = np.concatenate([across, up])
        both = both[np.isfinite(both)]
        ends = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
        axes.plot(ends, ends, color=FAINT, linewidth=1.2, zorder=1)
        axes.scatter(across, up, s=12, alpha=0.45, color=COLORS[0], linewidths=0)
        _name(axes, title, xlabel, ylabel)
    return drawn[0]


def confusion_matrix(
    matrix: npt.ArrayLike, labels: Sequence[str], *, title: str = "Confusion matrix"
) -> str:
    """Counts [C, C], rows = labels, columns = predictions, shaded by their share of the row.

    From 11 classes on a 0 is left blank, so that what is confused stands out among 77 as well.
    """
    counts = np.asarray(matrix)
    classes = len(labels)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = 0.62 if classes <= 6 else 0.4 if classes <= 20 else 0.21
    letters = max((len(label) for label in labels), default=0)
    margin = 1.0 + 0.075 * min(letters, 28)
    side = classes * cell + margin
    with _figure(side, side) as (figure, drawn):
        axes = figure.add_subplot()
        # Shade by opacity, not by a colour map: it suits a light and a dark page.
        color = np.array([int(COLORS[0][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        image = np.concatenate([np.broadcast_to(color, (*share.shape, 3)), share[..., None]], -1)
        axes.imshow(image, interpolation="none", aspect="equal")
        size = 10 if classes <= 6 else 9 if classes <= 20 else 7
        for row, column in np.argwhere((counts > 0) | (classes <= 10)):
            ink = "#ffffff" if share[row, column] > 0.55 else INK
            text = f"{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
        names = [_literal(_short(label, 28)) for label in labels]
        upright = classes <= 6 and letters <= 8
        axes.set_xticks(range(classes), names, rotation=0 if upright else 90)
        axes.set_yticks(range(classes), names)
        axes.tick_params(labelsize=9 if classes <= 20 else 8)
        axes.grid(visible=False)
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", linewidth=0.5)
        _name(axes, title, "predicted", "label")
    return drawn[0]


@contextlib.contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure of so many inches; what is drawn on it is in the list once the block ends."""
    import matplotlib as mpl  # takes a second, which a run without a page should not pay
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawn: list[str] = []
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Text stays text: the reader's fonts draw letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, drawn
        buffer = io.StringIO()
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=empty)
    drawn.append(_inline(buffer.getvalue()))


def _inline(svg: str) -> str:
    """The svg element alone: no prolog, no links, no ids that nothing refers to, page colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns:xlink="[^"]*"| version="1.1"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    inherited = "font-family: system-ui, sans-serif; stroke-linejoin: round"
    svg = svg.replace("<svg ", f'<svg style="{inherited}" ', 1)
    for color, name in VARIABLES.items():
        svg = re.sub(rf"(?<=[:\s]){color}\b", f"var(--{name}, {color})", svg)
    return re.sub(r'<path d="[^"]*" style="fill: none; opacity: 0"/>\s*', "", svg).strip()


def _finite(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    numbers = np.asarray(values, np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _literal(text: str) -> str:
    """Text of which matplotlib reads nothing as mathematics."""
    return text.replace("$", r"\$")


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _scale(axes: Axes, *, log_x: bool, log_y: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if log_x:
        axes.set_xscale("log", nonpositive="mask")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if log_y:
        axes.set_yscale("log", nonpositive="mask")


def _name(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(_literal(title))
    axes.set_xlabel(_literal(xlabel))
    axes.set_ylabel(_literal(ylabel))


def _legend(axes: Axes, lines: Mapping[Line2D, str]) -> None:
    """Inside for a few lines, below for many."""
    place: dict[str, Any] = {"loc": "best"}
    if len(lines) > 4:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 3}
    axes.legend(list(lines), list(lines.values()), **place)
