"""Figures are well-formed, refer to nothing outside, repeat to the byte, and say what they hold."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from research.study import plot
from research.study.plot import Series
from research.study.statistics import Summary

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """Text elements of an SVG that must parse as XML."""
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def draw_curves(**options) -> str:
    steps = np.arange(1, 60)
    series = [
        Series(label="train", x=steps, y=1 / steps, faint=True),
        Series(label="train <&>", x=steps, y=1 / steps, low=0.5 / steps, high=2 / steps),
        Series(label="_中文 $dev_1$", x=[10, 30, 50], y=[0.2, np.nan, np.inf]),
    ]
    return plot.curves("Loss $a$", series, xlabel="step", ylabel="loss_x", **options)


FIGURES = {
    "curves": draw_curves,
    "log": lambda: draw_curves(log_x=True, log_y=True),
    "bars": lambda: plot.bars("b", {"a": Summary.of([1, 2]), "$": 0.5}, ylabel="score"),
    "scatter": lambda: plot.scatter("s", [1, 2, np.nan], [1, 3, 0], xlabel="$x$", ylabel="y"),
    "confusion": lambda: plot.confusion_matrix([[5, 1], [0, 3]], ["no", "yes"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_one_element_that_needs_nothing_else(name):
    svg = FIGURES[name]()
    assert svg.startswith("<svg ") and svg.endswith("</svg>")
    outside = svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|url\((?!#)|<script|<!|<\?|<style", outside)
    for reference in re.findall(r'(?:url\(|href=")#([^)"]+)', svg):
        assert svg.count(f'id="{reference}"') == 1
    assert all(
        value.startswith(("#", "data:image/png")) for value in re.findall(r'href="(.*?)"', svg)
    )


@pytest.mark.parametrize("name", FIGURES)
def test_equal_input_gives_equal_bytes(name):
    assert FIGURES[name]() == FIGURES[name]()


def test_text_is_shown_letter_by_letter():
    found = texts(draw_curves())
    for text in ("Loss $a$", "step", "loss_x", "train <&>", "_中文 $dev_1$"):
        assert text in found
    assert "train" not in found  # a faint line is not in the legend


def test_colours_of_lines_and_text_can_be_swapped_by_the_page():
    svg = draw_curves()
    for color, name in plot.VARIABLES.items():
        assert svg.count(color) == svg.count(f"var(--{name}, {color})")
    assert "var(--ink, " in svg and "var(--c0, " in svg and "var(--c1, " in svg


def simulate(color: str, matrix: list[list[float]]) -> np.ndarray:
    """A colour as seen without one kind of cone (Viénot, Brettel & Mollon, 1999), linear RGB."""
    encoded = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    return np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)


def test_colours_differ_for_every_reader():
    views = {
        "all cones": np.eye(3).tolist(),
        "no red": [[0.112, 0.888, 0], [0.112, 0.888, 0], [0.004, -0.004, 1]],
        "no green": [[0.293, 0.707, 0], [0.293, 0.707, 0], [-0.021, 0.021, 1]],
    }
    for matrix in views.values():
        seen = [simulate(color, matrix) for color in plot.COLORS]
        for place, first in enumerate(seen):
            for second in seen[place + 1 :]:
                assert np.linalg.norm(first - second) > 0.1


def test_many_lines_have_a_style_each():
    series = [Series(label=f"run {i}", x=[1, 2], y=[i, i + 1]) for i in range(24)]
    styles = {
        (plot.COLORS[i % len(plot.COLORS)], plot.DASHES[i // 2 % len(plot.DASHES)])
        for i in range(24)
    }
    assert len(styles) == 24
    assert [t for t in texts(plot.curves("", series, xlabel="", ylabel="")) if "run" in t] == [
        line.label for line in series
    ]


@pytest.mark.parametrize("values", [[np.nan] * 3, [np.inf, -np.inf, np.nan], []])
def test_what_is_not_finite_is_said_not_drawn(values):
    for log in (False, True):
        series = [Series(label="a", x=range(len(values)), y=values)]
        found = texts(plot.curves("t", series, xlabel="x", ylabel="y", log_y=log))
        assert "no finite value" in found


def test_bars_say_their_values():
    values = {"full": Summary.of([0.8, 0.9]), "one": 0.25, "failed": float("nan")}
    found = [text.strip() for text in texts(plot.bars("Arms", values, ylabel="accuracy"))]
    for text in ("full", "0.850 ± 0.071 (2)", "0.2500", "nan", "accuracy (mean ± sd)"):
        assert text in found
    lonely = texts(plot.bars("Arms", {"one": 0.25}, ylabel="accuracy"))
    assert "accuracy" in lonely


@pytest.mark.parametrize("classes", [2, 7, 11, 21, 77])
def test_confusion_matrix_shows_every_count_and_label(classes):
    generator = np.random.default_rng(classes)
    matrix = np.diag(generator.integers(1000, 2000, classes))
    matrix[0, 1], matrix[classes - 1] = 501, 0
    labels = [f"class_{i}_" + "x" * (i % 40) for i in range(classes)]
    found = texts(plot.confusion_matrix(matrix, labels))
    counts = [f"{count:,}" for count in matrix[matrix > 0]]
    assert sorted(text for text in found if re.fullmatch(r"\d,\d+|\d{3}", text)) == sorted(counts)
    short = [label if len(label) <= 28 else label[:27] + "…" for label in labels]
    assert all(found.count(label) == 2 for label in short)
    assert ("0" in found) == (classes <= 10)


def test_nothing_is_left_behind_in_matplotlib():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_curves()
    assert dict(matplotlib.rcParams) == before
