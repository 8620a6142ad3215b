"""A small tagging for tests: sentences of invented names whose types their words give away."""

from __future__ import annotations

import json
import random
from pathlib import Path

from research.data import tags
from research.data.wordpiece import train_wordpiece

NAMES = {"LOC": ["Aster", "Borealis", "New Quay"], "PER": ["Ada Quill", "Bo", "Cy Van Dorn"]}
FILLER = ["the", "ship", "left", "met", "near", "at", ",", "."]
INTENTS = {"LOC": "place", "PER": "person"}


def sentence(generator: random.Random) -> tuple[list[str], list[str], str]:
    """Words, BIO tags and an intent, the type of the first name."""
    words: list[str] = []
    found: list[tags.Entity] = []
    for _ in range(generator.randint(1, 3)):
        words += generator.choices(FILLER, k=generator.randint(0, 3))
        kind = generator.choice(sorted(NAMES))
        name = generator.choice(NAMES[kind]).split()
        found.append((kind, len(words), len(words) + len(name)))
        words += name
    return words, tags.to_tags(found, len(words), "BIO"), INTENTS[found[0][0]]


def columns(rows: list[tuple[list[str], list[str], str]]) -> str:
    """CoNLL with three columns."""
    blocks = ("".join(f"{w} X {t}\n" for w, t in zip(words, given)) for words, given, _ in rows)
    return "-DOCSTART- X O\n\n" + "\n".join(blocks)


def write_tagged(folder: Path) -> Path:
    """train and dev as .conll and .jsonl, as seq.in with seq.out and label, and a tokenizer."""
    generator = random.Random(0)
    drawn = [sentence(generator) for _ in range(80)]
    for split, rows in (("train", drawn[:64]), ("dev", drawn[64:])):
        (folder / f"{split}.conll").write_text(columns(rows))
        lines = [json.dumps({"tokens": w, "tags": t, "intent": i}) for w, t, i in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        (folder / split).mkdir(exist_ok=True)
        for name, kind in (("seq.in", 0), ("seq.out", 1)):
            (folder / split / name).write_text("".join(f"{' '.join(r[kind])}\n" for r in rows))
        (folder / split / "label").write_text("".join(f"{row[2]}\n" for row in rows))
    train_wordpiece([" ".join(row[0]) for row in drawn], 90, folder / "tokenizer.json")
    return folder
