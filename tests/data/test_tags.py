"""Schemes of tags: what is written is read back, and what breaks a scheme is found."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data import tags

SCHEMES = ("BIO", "IOBES")


@st.composite
def entity_lists(draw):
    """Entities in order, none overlapping, some touching, and the number of words."""
    found, place = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = place + draw(st.integers(0, 2))
        place = start + draw(st.integers(1, 3))
        found.append((draw(st.sampled_from(["LOC", "PER", "a-b"])), start, place))
    return found, place + draw(st.integers(0, 2))


@given(entity_lists(), st.sampled_from(SCHEMES))
def test_entities_written_as_tags_are_read_back(case, scheme) -> None:
    found, words = case
    written = tags.to_tags(found, words, scheme)
    assert tags.breach(written, scheme) is None
    assert tags.entities(written) == found
    assert tags.strict_entities(written, scheme) == found
    other = SCHEMES[scheme == "BIO"]
    assert tags.convert(tags.convert(written, other), scheme) == written


def to_iob1(found, words):
    """Ramshaw and Marcus: B only where an entity of the same type ends just before."""
    written = ["O"] * words
    ends = {}
    for kind, start, end in found:
        written[start:end] = [f"I-{kind}"] * (end - start)
        if ends.get(start) == kind:
            written[start] = f"B-{kind}"
        ends[end] = kind
    return written


@given(entity_lists(), st.sampled_from(SCHEMES))
def test_iob1_is_read_and_converted(case, scheme) -> None:
    found, words = case
    written = to_iob1(found, words)
    assert tags.breach(written, "IOB1") is None
    assert tags.convert(written, scheme) == tags.to_tags(found, words, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_may_follow_is_what_the_scheme_writes(scheme) -> None:
    """Of all short sentences of tags, those without a breach are those some entities spell."""
    labels = tags.names(("A", "B"), scheme)
    kinds = ("A", "B")
    for words in range(1, 4):
        spelled = set()
        spans = [(k, s, e) for k in kinds for s in range(words) for e in range(s + 1, words + 1)]
        for count in range(words + 1):
            for chosen in itertools.combinations(sorted(spans, key=lambda x: x[1]), count):
                if all(a[2] <= b[1] for a, b in itertools.pairwise(chosen)):
                    spelled.add(tuple(tags.to_tags(chosen, words, scheme)))
        sound = {
            row
            for row in itertools.product(labels, repeat=words)
            if tags.breach(row, scheme) is None
        }
        assert sound == spelled
        pairs, begins, ends = tags.allowed(labels, scheme)
        number = {label: i for i, label in enumerate(labels)}
        walked = {
            row
            for row in itertools.product(labels, repeat=words)
            if begins[number[row[0]]]
            and ends[number[row[-1]]]
            and all(pairs[number[a], number[b]] for a, b in itertools.pairwise(row))
        }
        assert walked == spelled


@pytest.mark.parametrize(
    ("row", "scheme", "place", "reason"),
    [
        (["O", "I-PER"], "BIO", 1, "tag 'I-PER' after 'O' breaks BIO; data.scheme IOB1"),
        (["I-PER"], "BIO", 0, "tag 'I-PER' at the sentence's start breaks BIO"),
        (["B-LOC", "I-PER"], "BIO", 1, "tag 'I-PER' after 'B-LOC' breaks BIO"),
        (["O", "S-PER"], "BIO", 1, "tag 'S-PER' is none of BIO"),
        (["O", "B-"], "BIO", 1, "tag 'B-' is none of BIO"),
        (["PER"], "IOB1", 0, "tag 'PER' is none of IOB1"),
        (["o"], "IOB1", 0, "tag 'o' is none of IOB1"),
        (["B-PER", "O"], "IOBES", 1, "tag 'O' after 'B-PER' breaks IOBES"),
        (["O", "B-PER"], "IOBES", 1, "tag 'B-PER' is the sentence's last, which breaks IOBES"),
        (["E-PER"], "IOBES", 0, "tag 'E-PER' at the sentence's start breaks IOBES"),
    ],
)
def test_a_breach_names_the_word_and_why(row, scheme, place, reason) -> None:
    found = tags.breach(row, scheme)
    assert found is not None
    assert found[0] == place
    assert reason in found[1]


def test_names_and_types() -> None:
    assert tags.names(("LOC", "PER"), "BIO") == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert tags.kinds_of(("O", "B-x-y", "I-x-y", "S-b")) == ("x-y", "b")
