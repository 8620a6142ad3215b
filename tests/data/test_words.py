"""Windows of sub-words: every word is answered for once, where it has most context."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from research.data import wordpiece
from research.data.words import encode_words, split_text, windows
from research.errors import ConfigError, DataError


@st.composite
def sized(draw):
    room = draw(st.integers(2, 14))
    sizes = draw(st.lists(st.integers(1, room), min_size=1, max_size=40))
    return sizes, room, draw(st.integers(0, 20))


@given(sized())
@settings(max_examples=500)
def test_windows_cover_every_word_once_and_in_order(case) -> None:
    sizes, room, stride = case
    found = windows(sizes, room, stride)
    answered = [word for _, (first, last) in found for word in range(first, last)]
    assert answered == list(range(len(sizes)))
    for (start, end), (first, last) in found:
        assert start <= first <= last <= end
        assert 0 < sum(sizes[start:end]) <= room
    for ((_, end), _), ((start, _), _) in itertools.pairwise(found):
        assert sum(sizes[start:end]) <= min(stride, room // 2)


@given(sized())
@settings(max_examples=500)
def test_a_word_is_answered_for_where_it_has_most_context(case) -> None:
    """Context is what lies on the poorer side; a sentence's own edge is no lack of it."""
    sizes, room, stride = case
    found = windows(sizes, room, stride)

    def context(word, start, end):
        left = sum(sizes[start:word]) if start else np.inf
        right = sum(sizes[word + 1 : end]) if end < len(sizes) else np.inf
        return min(left, right)

    for (start, end), (first, last) in found:
        for word in range(first, last):
            best = max(context(word, s, e) for (s, e), _ in found if s <= word < e)
            # A word at the middle of what two windows share may go to either.
            assert context(word, start, end) >= best - sizes[word]


def pieces() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b", "."]
    return wordpiece.wordpiece(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"), True
    )


def test_examples_are_what_the_tokenizer_makes_of_words() -> None:
    sentences = [["ab", "b.", "\u200b"], ["a"], ["aaaaaaaaaa", "b"]]
    found = encode_words(sentences, pieces(), max_length=8, stride=2)
    encoded = found.encoded
    rows = np.split(encoded.tokens, encoded.offsets[1:-1])
    assert rows[0].tolist() == [2, 5, 8, 6, 9, 1, 3]
    assert np.split(found.places, encoded.offsets[1:-1])[0].tolist() == [-1, 0, -1, 1, -1, 2, -1]
    assert rows[1].tolist() == [2, 5, 3]
    # A word longer than the window keeps its beginning; the word after it has a window of its own.
    assert rows[2].tolist() == [2, 5, 7, 7, 7, 7, 7, 3]
    assert rows[3].tolist() == [2, 6, 3]
    assert encoded.row_of.tolist() == [0, 1, 2, 2]
    assert encoded.lost == 4
    assert encoded.words.tolist()[:7] == [2, 1, 0, 1, 0, 1, 2]


@given(st.lists(st.lists(st.sampled_from(["a", "ab", "aba", "zz", "b."]), min_size=1), min_size=1))
@settings(max_examples=100, deadline=None)
def test_places_name_every_word_of_every_sentence_once(sentences) -> None:
    found = encode_words(sentences, pieces(), max_length=7, stride=3)
    lengths = found.encoded.lengths
    assert lengths.max() <= 7
    row_of = np.repeat(found.encoded.row_of, lengths)
    heads = found.places >= 0
    told = list(zip(row_of[heads].tolist(), found.places[heads].tolist()))
    assert told == [(i, k) for i, words in enumerate(sentences) for k in range(len(words))]


def test_the_cache_gives_the_same_and_other_sentences_other_arrays(tmp_path) -> None:
    one = encode_words([["a", "b"]], pieces(), max_length=8, stride=2, keep_in=tmp_path)
    again = encode_words([["a", "b"]], pieces(), max_length=8, stride=2, keep_in=tmp_path)
    other = encode_words([["a"], ["b"]], pieces(), max_length=8, stride=2, keep_in=tmp_path)
    np.testing.assert_array_equal(one.places, again.places)
    assert one.encoded.fingerprint == again.encoded.fingerprint != other.encoded.fingerprint
    with pytest.raises(ConfigError, match="max_length is 3"):
        encode_words([["a"]], pieces(), max_length=3, stride=0)


def test_a_tokenizer_that_makes_nothing_of_a_word_says_so() -> None:
    bare = Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    bare.normalizer = wordpiece.normalizers.Strip()
    with pytest.raises(DataError, match="makes nothing of the word"):
        encode_words([["a", "  "]], bare, max_length=8, stride=0)


def test_a_byte_level_tokenizer_cuts_words_as_within_a_text() -> None:
    """The reference adds the space itself, as transformers asks of RoBERTa's."""
    letters = "abĠ"
    vocab = {letter: i for i, letter in enumerate(letters)} | {"Ġa": 3, "Ġab": 4, "ab": 5}
    merges = [("Ġ", "a"), ("Ġa", "b"), ("a", "b")]
    bare, reference = (Tokenizer(models.BPE(vocab, merges)) for _ in range(2))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = ["ab", "b", "aab"]
    found = encode_words([words], bare, max_length=20, stride=0)
    wanted = reference.encode(words, is_pretokenized=True)
    assert found.encoded.tokens.tolist() == wanted.ids == bare.encode(" ab b aab").ids
    firsts = [wanted.word_ids.index(word) for word in range(3)]
    assert np.flatnonzero(found.places >= 0).tolist() == firsts


@given(st.text(max_size=60))
def test_words_of_a_text_lie_in_it_in_order_and_hold_all_but_white_space(text) -> None:
    spans = split_text(text)
    assert all(a < b for a, b in spans)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert "".join(text[a:b] for a, b in spans) == "".join(text.split())


def test_a_text_is_split_as_newswire_is() -> None:
    text = "Peter (of U.S.) pays $5,000 to @bob: 東京abc don't!! 1996-08-22"
    words = [text[a:b] for a, b in split_text(text)]
    assert words[:9] == ["Peter", "(", "of", "U.S", ".", ")", "pays", "$", "5,000"]
    assert words[9:] == ["to", "@bob", ":", "東", "京", "abc", "don't", "!", "!", "1996-08-22"]
