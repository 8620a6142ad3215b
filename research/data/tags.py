"""Schemes that write entities as one tag a word: IOB1, BIO and IOBES, read, checked and converted.

A tag is O, or a mark, a hyphen and the entity's type: B-PER. An entity is (type, first word, word
after the last). BIO marks every entity's first word B and the others I (IOB2: Tjong Kim Sang &
Veenstra, 1999); IOB1 writes B only where the entity before ends at once and is of the same type
(Ramshaw & Marcus, 1995); IOBES also marks last words E and entities of one word S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Scheme = Literal["BIO", "IOB1", "IOBES"]
Entity = tuple[str, int, int]

OUTSIDE = "O"
MARKS: dict[Scheme, str] = {"BIO": "BI", "IOB1": "BI", "IOBES": "BIES"}
# Marks after which an entity is still open, and marks that go on with an open one.
OPEN, INNER = "BI", "IE"


def split(tag: str) -> tuple[str, str]:
    """Mark and type: "B-PER" -> ("B", "PER"), "O" -> ("O", "")."""
    mark, _, kind = tag.partition("-")
    return mark, kind


def fault(tag: str, scheme: Scheme) -> str | None:
    """What is wrong with a tag by itself."""
    mark, kind = split(tag)
    if tag == OUTSIDE or (mark and mark in MARKS[scheme] and kind):
        return None
    marks = ", ".join(f"{mark}-TYPE" for mark in MARKS[scheme])
    return f"tag {tag!r} is none of {scheme}, which has O, {marks}"


def follows(before: str, tag: str, scheme: Scheme) -> bool:
    """Whether `tag` may come after `before`; O stands for the edges of a sentence as well."""
    if scheme == "IOB1":
        return True
    (mark, kind), (last, earlier) = split(tag), split(before)
    inside = scheme == "BIO" or last in OPEN
    goes_on = last in ("B", "I") and earlier == kind and inside
    if scheme == "BIO":
        return mark != "I" or goes_on
    return goes_on if mark in INNER else last not in OPEN


def breach(tags: Sequence[str], scheme: Scheme) -> tuple[int, str] | None:
    """The first word whose tag is not written as the scheme says, and why; None where all are."""
    before = OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        if place < len(tags) and (reason := fault(tag, scheme)):
            return place, reason
        if not follows(before, tag, scheme):
            if place == len(tags):
                return place - 1, f"tag {before!r} is the sentence's last, which breaks {scheme}"
            after = f"after {before!r}" if place else "at the sentence's start"
            hint = "; data.scheme IOB1 reads this" if scheme == "BIO" else ""
            return place, f"tag {tag!r} {after} breaks {scheme}{hint}"
        before = tag
    return None


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of tags of any scheme, well formed or not, as conlleval reads them.

    An inner mark without an open entity of its type begins one.
    """
    found: list[Entity] = []
    start, (last, open_kind) = 0, split(OUTSIDE)
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, kind = split(tag)
        if mark in INNER and last in OPEN and kind == open_kind:
            last = mark
            continue
        if last != OUTSIDE:
            found.append((open_kind, start, place))
        start, last, open_kind = place, mark, kind
    return found


def strict_entities(tags: Sequence[str], scheme: Scheme) -> list[Entity]:
    """The entities that are written exactly as BIO or IOBES says; what is not is none."""
    exact = [to_tags([entity], len(tags), scheme) for entity in entities(tags)]
    return [
        (kind, start, end)
        for (kind, start, end), ideal in zip(entities(tags), exact)
        if list(tags[start:end]) == ideal[start:end]
    ]


def to_tags(found: Sequence[Entity], words: int, scheme: Scheme) -> list[str]:
    """Entities in the order of their words, none overlapping, as one tag a word: BIO or IOBES."""
    tags = [OUTSIDE] * words
    for kind, start, end in found:
        tags[start:end] = [f"I-{kind}"] * (end - start)
        tags[start] = f"B-{kind}"
        if scheme == "IOBES":
            tags[end - 1] = f"{'S' if end - start == 1 else 'E'}-{kind}"
    return tags


def convert(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The same entities in BIO or IOBES."""
    return to_tags(entities(tags), len(tags), scheme)


def names(kinds: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """All tags that a scheme has for these types: O, then those of each type."""
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in MARKS[scheme]))


def kinds_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The types in tags, each once, in their order."""
    return tuple(dict.fromkeys(kind for _, kind in map(split, labels) if kind))


def allowed(labels: Sequence[str], scheme: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of C tags may follow which, begin and end a sentence: bool [C, C] (row before column),
    [C] and [C]."""
    pairs = [[follows(before, tag, scheme) for tag in labels] for before in labels]
    begins = [follows(OUTSIDE, tag, scheme) for tag in labels]
    ends = [follows(tag, OUTSIDE, scheme) for tag in labels]
    return np.array(pairs), np.array(begins), np.array(ends)
