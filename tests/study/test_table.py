"""Cells come back out of every format as they went in; columns line up; the best is marked."""

import html.parser
import math
import re
import unicodedata

import pytest

from research.errors import ConfigError
from research.study.statistics import Summary
from research.study.table import Table, escape_latex, escape_markdown, show

HOSTILE = [
    "plain",
    "<b>bold</b> & <script>alert(1)</script>",
    "a|b||c",
    "back\\slash \\| \\\\",
    "*star* _under_ learning_rate __x__ `code` [link](x) ~~s~~",
    "100% $x^2$ #1 {brace} ~tilde",
    "\"quoted\" 'single'",
    "&amp; &lt;",
    "中文 é ß",
    "[opt] *",
    "--dash--- -",
]


class Cells(html.parser.HTMLParser):
    """Text of every td, as a browser would show it."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.cells, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and not data.isspace():
            self.cells[-1] += data


def test_html_shows_each_cell_as_it_is():
    page = Cells()
    page.feed(Table("<t>", ("a<b",), [(cell,) for cell in HOSTILE]).to_html())
    assert page.cells == HOSTILE
    assert set(page.tags) == {"table", "caption", "thead", "tr", "th", "tbody", "td"}


def test_markdown_shows_each_cell_as_it_is():
    """Read back by the rules of GitHub's Markdown: split at bare pipes, then unescape."""
    text = Table("t*", ("c|d",), [(cell,) for cell in HOSTILE]).to_markdown()
    title, blank, *lines = text.splitlines()
    assert (title, blank) == (r"**t\***", "")
    assert lines[:2] == [r"| c\|d |", "| :--- |"]
    for line, cell in zip(lines[2:], HOSTILE, strict=True):
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 2
        inner = line[2:-2]
        assert not re.search(r"(?<!\\)(?:\\\\)*[*`\[\]<>~&$]", inner)
        assert re.sub(r"\\([\\`*\[\]<>|~&$_])", r"\1", inner) == cell


def test_markdown_renders_as_it_is():
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    page = Cells()
    page.feed(parser.render(Table("", ("c",), [(cell,) for cell in HOSTILE]).to_markdown()))
    assert page.cells == HOSTILE
    assert not {"strong", "em", "code", "a", "script"} & set(page.tags)


def test_markdown_leaves_an_underscore_inside_a_word():
    assert escape_markdown("learning_rate _x_ a_ _") == r"learning_rate \_x\_ a\_ \_"


def unlatex(text: str) -> str:
    """What LaTeX prints, by its own rules for the commands and characters used."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^"}
    names |= {"textless": "<", "textgreater": ">", "textbar": "|"}
    assert not re.search(r"(?<!\\)[%#&_^~]", text), "a bare special character"
    assert "---" not in text and not re.search(r"(?<!-)-(?=-)(?!-(?!-))", text)
    text = re.sub(r"\\(text\w+)\{\}", lambda m: {"\\": "\0"}.get(n := names[m[1]], n), text)
    text = re.sub(r"\{([\[*])\}", r"\1", text).replace("-{}", "-")
    return re.sub(r"\\([&%$#_{}])", r"\1", text).replace("\0", "\\")


@pytest.mark.parametrize("cell", HOSTILE)
def test_latex_prints_each_cell_as_it_is(cell):
    assert unlatex(escape_latex(cell)) == cell


def test_latex_is_balanced_and_ends_each_row():
    text = Table("50%", ("a_b", "n"), [("[x]", 1.5), ("*", 2.5)], highest=("n",)).to_latex()
    assert text.count(r"\begin") == text.count(r"\end") == 2
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"\caption{50\%}" in text and r"\begin{tabular}{lr}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert body == [r"{[}x] & 1.500 \\", r"{*} & \textbf{2.500} \\"]


def width(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def test_text_lines_up_by_display_width():
    rows = [("中文", 1.0, 5), ("a long name", 12.5, 12345), ("b", None, 7)]
    text = Table("", ("name", "value", "n"), rows).to_text()
    head, rule, *lines = text.splitlines()
    assert {width(line) for line in (head, rule, *lines)} == {len(rule)}
    assert all(line.endswith(n) for line, n in zip(lines, ("     5", "12,345", "     7")))


def test_text_holds_neither_line_breaks_nor_control_characters_and_is_cut():
    text = Table("t", ("a",), [("x\n\x1b[31my\u202e\tz",), ("w" * 99,)]).to_text(widest=20)
    assert text.splitlines()[3:] == ["x [31my z", "w" * 19 + "…"]


def test_best_value_of_a_column_is_marked_with_ties_and_without_nan():
    rows = [("a", 0.5, 3), ("b", 0.9, 1), ("c", math.nan, 1), ("d", 0.9, None), ("e", "-", 2)]
    table = Table("", ("arm", "up", "down"), rows, highest=("up",), lowest=("down",))
    marked = re.findall(r"\*\*(.*?)\*\*", table.to_markdown())
    assert marked == ["0.9000", "1", "1", "0.9000"]
    assert table.to_html().count("<strong>") == 4
    assert table.to_text().count("*") == 4


def test_best_summary_is_that_of_the_best_mean():
    low, high = Summary.of([0.1, 0.2]), Summary.of([0.3, 0.2])
    table = Table("", ("arm", "score"), [("a", low), ("b", high)], highest=("score",))
    assert f"**{show(high)}**" in table.to_markdown()
    assert f"**{show(low)}**" not in table.to_markdown()


def test_nothing_is_best_where_all_are_equal():
    table = Table("", ("n",), [(1,), (1,)], highest=("n",))
    assert "**" not in table.to_markdown()


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.5, "0.5000"),
        (0.87314, "0.8731"),
        (12.345, "12.35"),
        (9.99999, "10.000"),
        (12345.6, "12,346"),
        (3e-5, "3e-05"),
        (-2.5e8, "-2.5e+08"),
        (0.0, "0"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (1234567, "1,234,567"),
        (True, "yes"),
        (None, "–"),
        ("text", "text"),
        (Summary(mean=0.87342, sd=0.0123, n=5, low=0, high=1), "0.873 ± 0.012 (5)"),
        (Summary(mean=1234.4, sd=56.0, n=3, low=0, high=1), "1,234 ± 56 (3)"),
        (Summary(mean=0.5, sd=0.0, n=3, low=0, high=1), "0.5000 ± 0 (3)"),
        (Summary(mean=0.5, sd=1e-9, n=3, low=0, high=1), "0.5 ± 1.0e-09 (3)"),
        (Summary(mean=math.nan, sd=math.nan, n=3, low=0, high=1), "nan ± nan (3)"),
        (Summary.of([0.25]), "0.2500 (1)"),
    ],
)
def test_cells_as_text(cell, text):
    assert show(cell) == text


def test_a_table_does_not_change_and_refuses_what_does_not_fit():
    rows = [["a", 1]]
    table = Table("t", ["x", "y"], rows)
    rows[0].append(2)
    assert table.rows == (("a", 1),) and hash(table)
    with pytest.raises(ConfigError, match="row 1: 1 cells, expected 2"):
        Table("t", ("x", "y"), [("a", 1), ("b",)])
    with pytest.raises(ConfigError, match="no column 'z'"):
        Table("t", ("x", "y"), [], highest=("z",))


def test_an_empty_table_is_its_head():
    table = Table("", ("x", "y"), [])
    assert table.to_markdown() == "| x | y |\n| :--- | :--- |\n"
    assert table.to_text().splitlines()[0] == "x  y"
    assert "<tbody>" in table.to_html() and r"\midrule" in table.to_latex()
