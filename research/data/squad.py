"""SQuAD's JSON: articles of paragraphs of questions, flattened into one row a question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from research.data.formats import Bad, Parsed, Row, half_pair
from research.errors import DataError

COLUMNS = ("id", "title", "paragraph", "question", "context", "answers", "impossible")


def questions(name: str, text: str, value: Any, need: tuple[str, ...]) -> Parsed:
    """(line, row) of each question in a decoded file of SQuAD 1.1 or 2.0 (Rajpurkar et al., 2018).

    A row holds the texts of `COLUMNS`: `paragraph` is its number in the article, from 1; `answers`
    the JSON of [[start, text], ...]; `impossible` "true", "false", or "" where it is not said.
    What has not the shape of its kind is one bad row, be it an article or a question.
    """
    if isinstance(value, Bad):
        raise DataError(f"{name}:1: {value.reason}")
    articles = value.get("data")
    if not isinstance(articles, list):
        raise DataError(
            f"{name}:1: expected a list of objects, or SQuAD's object with the list 'data'"
        )
    if unknown := [column for column in need if column not in COLUMNS]:
        raise DataError(f"{name}:1: no column {unknown[0]!r} among {', '.join(COLUMNS)} of SQuAD")
    line, position = 1, 0
    for found in flatten(articles):
        if not isinstance(found, Bad):
            # Ids stand in the file in the order of the rows; one that is spelled with escapes is
            # not found and leaves the line where it was.
            at = text.find(json.dumps(found["id"], ensure_ascii=False), position)
            if at >= 0:
                line, position = line + text.count("\n", position, at), at
            found = {column: found[column] for column in need or COLUMNS}
        yield line, found


def flatten(articles: list[Any]) -> Iterator[Row | Bad]:
    """The questions of all articles."""
    for number, article in enumerate(articles, 1):
        title = article.get("title", "") if isinstance(article, dict) else ""
        title = title if isinstance(title, str) and title else str(number)
        where = f"article {title!r}"
        paragraphs = listed(article, "paragraphs", where)
        if isinstance(paragraphs, Bad):
            yield paragraphs
            continue
        for place, paragraph in enumerate(paragraphs, 1):
            yield from of_paragraph(paragraph, title, place, f"{where}, paragraph {place}")


def of_paragraph(paragraph: Any, title: str, place: int, where: str) -> Iterator[Row | Bad]:
    """The questions of one paragraph."""
    asked = listed(paragraph, "qas", where)
    if isinstance(asked, Bad):
        yield asked
        return
    context = texts_of(paragraph, ("context",), where)
    if isinstance(context, Bad):
        yield context
        return
    shared = {"title": title, "paragraph": str(place), **context}
    for number, question in enumerate(asked, 1):
        spot = f"{where}, question {number}"
        own = texts_of(question, ("id", "question"), spot)
        if isinstance(own, Bad):
            yield own
            continue
        answers = answers_in(question, f"{where}, question {own['id']!r}")
        if isinstance(answers, Bad):
            yield answers
            continue
        impossible = question.get("is_impossible")
        said = json.dumps(impossible) if isinstance(impossible, bool) else ""
        yield {**shared, **own, "answers": json.dumps(answers), "impossible": said}


def listed(value: Any, key: str, where: str) -> list[Any] | Bad:
    """The list under a key of an object."""
    if isinstance(value, Bad):
        return Bad(f"{where}: {value.reason}")
    if not isinstance(value, dict):
        return Bad(f"{where}: not a JSON object")
    found = value.get(key)
    return found if isinstance(found, list) else Bad(f"{where}: no list {key!r}")


def texts_of(value: Any, keys: tuple[str, ...], where: str) -> Row | Bad:
    """The texts under keys of an object, none of them blank."""
    if isinstance(value, Bad):
        return Bad(f"{where}: {value.reason}")
    if not isinstance(value, dict):
        return Bad(f"{where}: not a JSON object")
    for key in keys:
        found = value.get(key)
        if not isinstance(found, str):
            return Bad(
                f"{where}: {key!r} is not a text" if key in value else f"{where}: no {key!r}"
            )
        if not found.strip():
            return Bad(f"{where}: {key!r} is empty")
        if half_pair(found):
            return Bad(f"{where}: {key!r} holds half a surrogate pair")
    return {key: value[key] for key in keys}


def answers_in(question: dict[str, Any], where: str) -> list[tuple[int, str]] | Bad:
    """(start, text) of each answer of a question."""
    found = listed(question, "answers", where)
    if isinstance(found, Bad):
        return found
    answers = []
    for answer in found:
        given = texts_of(answer, ("text",), f"{where}, an answer")
        if isinstance(given, Bad):
            return given
        start = str(answer.get("answer_start"))
        if not re.fullmatch(r"[0-9]{1,12}", start):
            return Bad(f"{where}: 'answer_start' of {given['text'][:40]!r} is not a place")
        answers.append((int(start), given["text"]))
    return answers


def answers_of(row: Row) -> tuple[tuple[int, str], ...]:
    """(first character, text) of each answer of a row; none where it cannot be answered."""
    return tuple((start, text) for start, text in json.loads(row["answers"]))


def fault(row: Row) -> str | None:
    """What is wrong between the answers and the context of a row, with its place in the file."""
    answers = answers_of(row)
    where = f"article {row['title']!r}, paragraph {row['paragraph']}, question {row['id']!r}"
    if row["impossible"] == "true" and answers:
        return f"{where}: is_impossible is true, but it has answers"
    if row["impossible"] == "false" and not answers:
        return f"{where}: is_impossible is false, but it has no answers"
    for start, text in answers:
        there = row["context"][start : start + len(text)]
        if there != text:
            return (
                f"{where}: the answer {text[:40]!r} is not at character {start} of its context, "
                f"which has {there[:40]!r} there"
            )
    return None
