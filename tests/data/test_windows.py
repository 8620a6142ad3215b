"""Windows: no token of a context is lost, and an answer is where its characters are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_files import tokenizer

from research.data.vocabulary import load_tokenizer
from research.data.windows import cut, stretches, tokens_of
from research.errors import ConfigError

QUESTION = "What does Anna have?"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return load_tokenizer(tokenizer(tmp_path_factory.mktemp("words")))


def windows_of(words, contexts, answers=None, **sizes):
    sizes = {"max_length": 24, "stride": 4, "max_question": 6} | sizes
    answers = [None] * len(contexts) if answers is None else answers
    return cut([QUESTION] * len(contexts), contexts, answers, words, **sizes)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 60))
def test_stretches_cover_everything_and_only_the_last_is_short(tokens, room, stride):
    found = list(stretches(tokens, room, stride))
    assert set().union(*(range(*one) for one in found)) == set(range(tokens))
    assert all(0 < last - first <= room for first, last in found)
    assert all(last - first == room for first, last in found[:-1])
    steps = np.diff([first for first, _ in found])
    assert (steps == min(stride, room)).all()
    assert found[-1][1] == tokens


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["apple", "iron", "Zinc", "the", "red", ".", "é", "pears"]), max_size=60
    ),
    st.integers(1, 20),
    st.integers(16, 40),
)
def test_every_token_of_a_context_is_in_a_window_with_its_characters(words, texts, stride, length):
    context = " ".join([*texts, "apple"])
    expected = words.encode(context, add_special_tokens=False)
    found = windows_of(words, [context], stride=stride, max_length=length, max_question=5)
    encoded, seen = found.encoded, {}
    for i in range(len(encoded.row_of)):
        tokens = encoded.tokens[encoded.offsets[i] : encoded.offsets[i + 1]]
        inside = found.context[encoded.offsets[i] : encoded.offsets[i + 1]]
        begin, size = found.begins[i], found.sizes[i]
        assert len(tokens) <= length
        assert np.flatnonzero(inside).tolist() == list(range(begin, begin + size))
        for place in range(size):
            at = found.characters(i, place, place)
            seen[at] = int(tokens[begin + place])
    assert seen == dict(zip(expected.offsets, expected.ids))


def test_a_window_is_what_the_tokenizer_makes_of_the_pair(words):
    context = "Anna has the red apple. Boris has the green zinc."
    found = windows_of(words, [context], max_length=64)
    pair = words.encode(QUESTION, context)
    assert found.encoded.tokens.tolist() == pair.ids
    assert found.encoded.types.tolist() == pair.type_ids
    told = [side == 1 for side in pair.sequence_ids]
    assert found.context.astype(bool).tolist() == told


@pytest.mark.parametrize(("length", "stride"), [(17, 3), (20, 5), (24, 11), (64, 9)])
def test_windows_equal_those_of_the_tokenizers_library(words, length, stride):
    """Its `stride` is what neighbours share."""
    context = "Anna has the red apple. Boris has the green zinc. " * 3
    asked = len(words.encode(QUESTION, add_special_tokens=False).ids)
    room = length - 3 - asked
    other = type(words).from_str(words.to_str())
    other.enable_truncation(length, stride=room - stride, strategy="only_second")
    first = other.encode(QUESTION, context)
    found = windows_of(words, [context], stride=stride, max_length=length, max_question=asked)
    encoded = found.encoded
    pieces = [first, *first.overflowing]
    assert len(encoded.row_of) == len(pieces)
    for i, piece in enumerate(pieces):
        here = slice(encoded.offsets[i], encoded.offsets[i + 1])
        assert encoded.tokens[here].tolist() == piece.ids
        chars = [span for span, side in zip(piece.offsets, piece.sequence_ids) if side == 1]
        assert [found.characters(i, p, p) for p in range(found.sizes[i])] == chars


def test_an_answer_is_marked_where_a_window_holds_all_of_it(words):
    context = "Anna has the red apple. Boris has the green zinc. " * 5
    start = context.index("green zinc")
    answer = (start, start + len("green zinc"))
    found = windows_of(words, [context], [answer], stride=3)
    marks = 0
    for i in range(len(found.encoded.row_of)):
        begin = int(found.begins[i])
        shown = [found.characters(i, place, place) for place in range(found.sizes[i])]
        whole = any(a <= answer[0] < z for a, z in shown) and any(z == answer[1] for _, z in shown)
        assert whole == bool(found.start[i])
        if whole:
            marks += 1
            here = found.characters(i, found.start[i] - begin, found.end[i] - begin)
            assert here == answer
        else:
            assert (found.start[i], found.end[i]) == (0, 0)
    assert 1 < marks < len(found.encoded.row_of)


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ((0, 3), (0, 0)),
        ((1, 2), (0, 0)),
        ((2, 5), (0, 1)),
        ((3, 4), None),
        ((9, 12), (1, 2)),
        ((13, 20), None),
    ],
)
def test_tokens_of_characters(answer, tokens):
    """The last token begins with the space before its word, as byte-level ones do."""
    assert tokens_of(np.array([[0, 3], [4, 10], [10, 13]]), answer) == tokens


def test_questions_are_shortened_and_counted(words):
    found = cut(
        ["apple " * 50, QUESTION],
        ["Anna has iron."] * 2,
        [None, None],
        words,
        max_length=24,
        stride=4,
        max_question=6,
    )
    assert (found.encoded.truncated, found.encoded.lost) == (1, 44)
    assert len(found.chars) == len(words.encode("Anna has iron.", add_special_tokens=False).ids)
    assert found.firsts.tolist() == [0, 0]


def test_nothing_to_read_is_named_and_not_an_example(words):
    found = cut(
        [QUESTION, "\u200b", QUESTION, QUESTION],
        ["\u200b", "Anna", "Anna\u200b has", "Anna has"],
        [None, None, (4, 5), (0, 4)],
        words,
        max_length=24,
        stride=4,
        max_question=6,
    )
    assert found.encoded.blank.tolist() == [0, 1]
    assert found.unmarked.tolist() == [2]
    assert found.encoded.row_of.tolist() == [3]
    assert found.start.tolist() == found.begins.tolist()


def test_a_context_of_a_hundred_thousand_words(words):
    context = "apple " * 99_999 + "zinc"
    found = windows_of(
        words, [context], [(len(context) - 4, len(context))], stride=128, max_length=384
    )
    assert len(found.encoded.row_of) > 700
    assert np.count_nonzero(found.start) >= 1
    assert found.start[-1] > 0
    assert found.characters(len(found.firsts) - 1, found.sizes[-1] - 1, found.sizes[-1] - 1) == (
        len(context) - 4,
        len(context),
    )


def test_windows_are_kept_and_read_back(words, tmp_path):
    contexts = ["Anna has the red apple. " * 4, "Boris has zinc."]
    made = windows_of(words, contexts, [(0, 4), None])
    for _ in range(2):
        kept = windows_of(words, contexts, [(0, 4), None], keep_in=tmp_path)
        for name in ("context", "begins", "sizes", "firsts", "chars", "start", "end"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(made, name))
        np.testing.assert_array_equal(kept.encoded.tokens, made.encoded.tokens)
        assert kept.encoded.fingerprint == made.encoded.fingerprint
    other = windows_of(words, contexts, [(0, 4), (0, 5)], keep_in=tmp_path)
    assert other.encoded.fingerprint != made.encoded.fingerprint


def test_no_room_for_a_context_is_refused(words):
    with pytest.raises(ConfigError, match=r"max_length is 9.*data.max_question=6"):
        windows_of(words, ["Anna"], max_length=9)
