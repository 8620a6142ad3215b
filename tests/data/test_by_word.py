"""Word by word, texts have the ids that the tokenizers library gives to whole texts."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

from research.data import by_word
from research.data.by_word import Words, ids_by, splits_at_blanks
from research.data.vocabulary import load_tokenizer
from research.data.wordpiece import train_wordpiece

CHECKPOINTS = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared")) / "ckpt"
WORDS = ["the", "Unbelievable", "wasn't", "naïve", "cafe\u0301", "雪山", "ΟΔΟΣ", "3,14"]


@pytest.fixture(scope="module", params=[True, False])
def bert(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = load_tokenizer(str(train_wordpiece([" ".join(WORDS)] * 3, 90, folder)))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=request.param)
    return tokenizer


def whole(tokenizer, texts):
    return [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def test_any_text_has_the_ids_of_the_library(bert):
    parts = st.sampled_from(
        [*WORDS, " ", "  ", "\u00a0", "\x1c", "\n", "\u0301", "[SEP]", "[MASK]x"]
    )
    sentences = st.lists(parts | st.characters(exclude_categories=["Cs"]), max_size=12)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(sentences.map("".join), max_size=4))
    def check(texts):
        assert splits_at_blanks(bert)
        assert Words(bert)(texts) == whole(bert, texts)

    check()


def test_what_is_remembered_is_bounded_and_changes_nothing(bert, monkeypatch):
    monkeypatch.setattr(by_word, "REMEMBERED", 20)
    monkeypatch.setattr(by_word, "LONGEST", 6)
    ids = Words(bert)
    for start in range(0, 200, 5):
        texts = [f"the snow {i} {'a' * (i % 9)}" for i in range(start, start + 5)]
        assert ids(texts) == whole(bert, texts)
        assert len(ids.known) <= 20 + 12
        assert max(map(len, ids.known)) <= 6


def test_tokenizers_that_look_across_blanks_get_whole_texts(bert):
    def changed(change):
        tokenizer = type(bert).from_str(bert.to_str())
        change(tokenizer)
        return tokenizer

    others = [
        changed(lambda one: one.add_tokens(["the cat"])),
        changed(lambda one: one.add_tokens([AddedToken("雪", normalized=True)])),
        changed(lambda one: setattr(one, "pre_tokenizer", pre_tokenizers.Metaspace())),
        changed(lambda one: setattr(one, "normalizer", normalizers.Replace("e c", "x"))),
    ]
    texts = ["the cat", "a 雪 the cat", "the  cafe cat"]
    for one in others:
        assert not splits_at_blanks(one)
        assert ids_by(one)(texts) == whole(one, texts)


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the stored tokenizers are not here")
def test_stored_tokenizers_give_their_own_ids():
    texts = [
        "Hello, world! It's 12:30 [MASK] now.",
        "naïve  café\u00a0雪",
        " <s>a</s> ",
        "",
        "\u200b",
    ]
    kinds = set()
    for name in ("albert", "bert-base-cased", "bert-base-chinese", "gpt2", "roberta"):
        tokenizer = load_tokenizer(str(CHECKPOINTS / "tokenizers" / name))
        kinds.add(splits_at_blanks(tokenizer))
        assert ids_by(tokenizer)(texts) == whole(tokenizer, texts)
    assert kinds == {True, False}
