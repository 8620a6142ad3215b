"""A page keeps what it is given, in HTML, Markdown and text, and lets nothing in or out."""

import html.parser
import re

import pytest

from research.study import plot
from research.study.page import Beside, Code, Details, Facts, Figure, Heading, Page, Text
from research.study.table import Table

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "<script>alert('x')</script> & \"q\" {{ 7 * 7 }} </details></style>"


class Outline(html.parser.HTMLParser):
    """Checks that tags nest; keeps visible text, tags, and attributes."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def outline(page: Page) -> Outline:
    found = Outline()
    found.feed(page.html())
    found.close()
    assert not found.open
    return found


def everything(text: str) -> Page:
    svg = plot.bars("b", {"a": 1.0}, ylabel="y")
    table = Table(text, ("c", text), [(text, 1)])
    figures = [Figure(svg, text), Figure(svg, "second"), Figure(svg, "third", wide=True)]
    blocks = [Heading(text), Text(f"{text}\n\nsecond"), table, *figures, Code(text)]
    blocks += [Facts({text: text, "n": 12345}), Beside([table, figures[0]])]
    return Page(text, text, [*blocks, Details(text, [*blocks, Details("inner", [Text(text)])])])


def test_hostile_text_stays_text_everywhere():
    found = outline(everything(HOSTILE))
    assert "script" not in found.tags
    assert found.text.count(HOSTILE) == everything("MARK").html().count("MARK") - len(
        [value for _, value in outline(everything("MARK")).attributes if value == "MARK"]
    )
    assert "49" not in found.text


def test_a_page_fetches_nothing_and_runs_nothing():
    page = everything("x")
    found = outline(page)
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "action"):
            assert value.startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)", page.html())
    assert "prefers-color-scheme: dark" in page.html()


def test_contents_link_to_more_than_four_headings():
    def page(count):
        return Page("t", "", [Heading(f"Part {i}: x/y") for i in range(count)])

    assert "nav" not in outline(page(4)).tags
    found = outline(page(5))
    links = [value[1:] for name, value in found.attributes if name == "href"]
    anchors = [value for name, value in found.attributes if name == "id"]
    assert links == anchors and len(set(anchors)) == 5


def test_narrow_figures_share_a_row_and_folds_keep_their_state():
    svg = plot.bars("b", {"a": 1.0}, ylabel="y")
    figures = [Figure(svg, "one"), Figure(svg, "two"), Figure(svg, "three", wide=True)]
    page = Page("t", "", [*figures, Details("d", [Text("in")], unfolded=True), Details("e", [])])
    found = outline(page)
    assert found.attributes.count(("class", "figures")) == 1
    assert found.attributes.count(("class", "wide")) == 1
    assert found.attributes.count(("open", None)) == 1


def test_every_block_is_in_the_text_and_the_markdown():
    for shown in (everything("MARK").text(), everything("MARK").markdown()):
        assert shown.count("MARK") >= 20
        for part in ("second", "third", "12,345", "inner"):
            assert part in shown


def test_markdown_renders_hostile_text_as_it_is():
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    for text in (HOSTILE.split(" {{")[0], "# no heading", "- no list", "1. no list", "==", "a *b*"):
        blocks = [Text(text), Heading(text), Code(f"{text}\n```\nfence"), Facts({"k": text})]
        found = Outline()
        found.feed(parser.render(Page(text, text, blocks).markdown()))
        assert found.text.count(text) == 6
        assert not {"script", "ul", "ol", "em"} & set(found.tags)
        assert found.tags.count("h1") == found.tags.count("h2") == 1
