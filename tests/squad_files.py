"""A small SQuAD 2.0 for tests: articles about who owns what, one word an answer or none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from research.data.wordpiece import train_wordpiece

PEOPLE = ["Anna", "Boris", "Clara", "Dmitri", "Edda", "Frank"]
THINGS = ["apple", "iron", "zinc", "pear", "copper", "plum"]
COLOURS = ["red", "green", "blue"]


def paragraph(article: int, number: int) -> dict[str, Any]:
    """Three facts and four questions, of which one has no answer."""
    generator = random.Random(f"{article} {number}")
    people, things = generator.sample(PEOPLE, 4), generator.sample(THINGS, 3)
    facts = [
        f"{person} has the {generator.choice(COLOURS)} {thing}."
        for person, thing in zip(people, things)
    ]
    context = " ".join(facts)
    asked = []
    for place, person in enumerate(people):
        name = f"q{article}-{number}-{place}"
        question: dict[str, Any] = {"question": f"What does {person} have?", "id": name}
        if place < 3:
            thing = things[place]
            question["answers"] = [{"text": thing, "answer_start": context.index(thing)}]
            question["is_impossible"] = False
        else:
            question["answers"], question["is_impossible"] = [], True
        asked.append(question)
    return {"context": context, "qas": asked}


def squad(articles: int = 5, paragraphs: int = 3, version: str = "v2.0") -> dict[str, Any]:
    """The whole file; of version v1.1 without the questions that have no answer."""
    data = []
    for a in range(articles):
        made = [paragraph(a, p) for p in range(paragraphs)]
        if version == "v1.1":
            for one in made:
                one["qas"] = [
                    {k: v for k, v in q.items() if k != "is_impossible"}
                    for q in one["qas"]
                    if q["answers"]
                ]
        data.append({"title": f"Article {a}", "paragraphs": made})
    return {"version": version, "data": data}


def write(path: Path, value: Any) -> str:
    """JSON in a file."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def tokenizer(folder: Path) -> str:
    """A WordPiece tokenizer of the words above."""
    words = [one["context"] + " What does have?" for one in (paragraph(0, n) for n in range(9))]
    return str(train_wordpiece(words, 120, folder / "tokenizer.json"))
