"""Tokens: equal to the tokenizer's own encoding, none lost, none invented."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from research.data.tokenize import Vocabulary, encode, load_tokenizer
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError

CHECKPOINTS = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared")) / "ckpt"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "unbelievable", "rain", "was"]
WORDS += ["falling,", "wasn't", "it?", "naïve", "café", "雪"]
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]

plain = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)


def roberta_like() -> Tokenizer:
    """A word-level tokenizer that puts <s> a </s></s> b </s> around, with types 0, 0, 1."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS, "a"]
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s>:1 $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def bare() -> Tokenizer:
    """Without special tokens."""
    tokenizer = roberta_like()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[]
    )
    return tokenizer


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load_tokenizer(str(train_wordpiece(TEXTS, 120, tmp_path_factory.mktemp("bert"))))


@pytest.fixture(params=["bert", "roberta", "bare"])
def tokenizer(request, bert):
    return {"bert": lambda: bert, "roberta": roberta_like, "bare": bare}[request.param]()


def examples(encoded):
    """[(tokens, types)] of every example."""
    cuts = encoded.offsets[1:-1]
    return [
        (tokens.tolist(), types.tolist())
        for tokens, types in zip(np.split(encoded.tokens, cuts), np.split(encoded.types, cuts))
    ]


def test_truncated_examples_are_those_of_the_tokenizer(tokenizer):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(plain, plain), min_size=1, max_size=6), st.integers(6, 30))
    def check(rows, max_length):
        texts, pairs = [a for a, _ in rows], [b for _, b in rows]
        for second in (None, pairs):
            tokenizer.enable_truncation(max_length, strategy="longest_first")
            expected = [
                tokenizer.encode(text, None if second is None else second[i])
                for i, text in enumerate(texts)
            ]
            tokenizer.no_truncation()
            found = encode(texts, second, tokenizer, max_length=max_length)
            assert examples(found) == [(one.ids, one.type_ids) for one in expected]
            assert found.truncated == sum(bool(one.overflowing) for one in expected)
            whole = encode(texts, second, tokenizer, max_length=1000)
            assert found.lost == len(whole.tokens) - len(found.tokens)
            special = [flag for one in expected for flag in one.special_tokens_mask]
            assert (found.words == 2).tolist() == [bool(flag) for flag in special]

    check()


def test_split_examples_lose_no_token(tokenizer):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(plain, min_size=1, max_size=6), st.integers(3, 20))
    def check(texts, max_length):
        found = encode(texts, None, tokenizer, max_length=max_length, long="split")
        assert found.lengths.max() <= max_length
        assert found.truncated == found.lost == 0
        owner = np.repeat(found.row_of, found.lengths)
        for i, text in enumerate(texts):
            body = found.tokens[(owner == i) & (found.words != 2)]
            assert body.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        assert set(found.row_of.tolist()) == set(range(len(texts)))

    check()


def test_words_begin_where_the_tokenizer_says(bert):
    for text in TEXTS:
        encoding = bert.encode(text)
        found = encode([text], None, bert, max_length=200)
        owners = encoding.word_ids
        expected = [
            2 if own is None else int(own != before) for before, own in zip([None, *owners], owners)
        ]
        assert found.words.tolist() == expected


def test_texts_without_a_token_are_no_examples(bert):
    found = encode(["cat", "\u200b", "mat"], None, bert, max_length=8)
    assert found.row_of.tolist() == [0, 2]
    assert found.blank.tolist() == [1]


def test_settings_without_room_are_config_errors(bert):
    with pytest.raises(ConfigError, match="max_length is 2, but 2 special tokens"):
        encode(["cat"], None, bert, max_length=2)
    with pytest.raises(ConfigError, match="max_length is 4, but 3 special tokens"):
        encode(["cat"], ["mat"], bert, max_length=4)
    with pytest.raises(ConfigError, match="for single texts"):
        encode(["cat"], ["mat"], bert, max_length=9, long="split")


def test_the_fingerprint_is_over_texts_tokenizer_and_settings(bert):
    def of(texts, pairs=None, tokenizer=bert, **settings):
        return encode(texts, pairs, tokenizer, **{"max_length": 9, **settings}).fingerprint

    prints = [
        of(["a cat", "b"]),
        of(["a ca", "tb"]),
        of(["b", "a cat"]),
        of(["a cat"], ["b"]),
        of(["a cat", "b"], max_length=10),
        of(["a cat", "b"], long="split"),
        of(["a cat", "b"], tokenizer=roberta_like()),
    ]
    assert len(set(prints)) == len(prints)
    assert of(["a cat", "b"]) == prints[0]


def test_vocabulary_facts(bert):
    facts = Vocabulary.of(bert)
    assert (facts.pad, facts.unk, facts.cls, facts.sep, facts.mask) == (0, 1, 2, 3, 4)
    assert facts.special == (0, 1, 2, 3, 4)
    assert facts.size == bert.get_vocab_size() == len(facts.continues)
    tokens = bert.get_vocab()
    assert {t for t, i in tokens.items() if facts.continues[i]} == {
        t for t in tokens if t.startswith("##")
    }
    roberta = Vocabulary.of(roberta_like())
    assert (roberta.cls, roberta.pad, roberta.sep, roberta.mask) == (0, 1, 2, 4)
    assert not roberta.continues.any()
    assert roberta.fingerprint != facts.fingerprint


def test_begin_marks_say_which_tokens_continue():
    tokens = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3, "▁": 4}
    facts = Vocabulary.of(Tokenizer(models.WordLevel(tokens, unk_token="<unk>")))
    assert facts.continues.tolist() == [False, False, False, True, False]


def test_training_is_deterministic_across_processes(tmp_path):
    program = (
        "import sys\nfrom research.data.wordpiece import train_wordpiece\n"
        "train_wordpiece(sys.argv[2:], 120, sys.argv[1])"
    )
    files = []
    for name, threads in (("one", "1"), ("two", "4")):
        path = tmp_path / f"{name}.json"
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        root = Path(__file__).parents[2]
        subprocess.run(
            [sys.executable, "-c", program, path, *TEXTS], check=True, env=environment, cwd=root
        )
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert train_wordpiece(TEXTS, 120, tmp_path / "three.json") == tmp_path / "three.json"
    assert (tmp_path / "three.json").read_bytes() == files[0]


def test_a_vocabulary_holds_at_least_the_letters(tmp_path):
    with pytest.raises(ConfigError, match="a vocabulary of 20 tokens is too small"):
        train_wordpiece(TEXTS, 20, tmp_path)
    tokenizer = load_tokenizer(str(train_wordpiece(TEXTS, 90, tmp_path)))
    assert tokenizer.get_vocab_size() <= 90
    for text in TEXTS:
        assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode(text).ids


def test_a_trained_directory_loads_in_transformers(tmp_path, bert):
    from transformers import AutoTokenizer

    train_wordpiece(TEXTS, 120, tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert theirs(text)["input_ids"] == bert.encode(text).ids
    assert theirs.mask_token_id == bert.token_to_id("[MASK]")


def test_the_files_own_truncation_and_padding_are_switched_off(tmp_path, bert):
    copy = Tokenizer.from_str(bert.to_str())
    copy.enable_truncation(4)
    copy.enable_padding(length=16)
    copy.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.encode(TEXTS[0]).ids == bert.encode(TEXTS[0]).ids
    assert loaded.to_str() == bert.to_str()


def test_vocab_txt_takes_case_from_its_settings_or_its_letters(tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

    def tokens(words, settings=None):
        (tmp_path / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")
        config = tmp_path / "tokenizer_config.json"
        config.unlink(missing_ok=True)
        if settings is not None:
            config.write_text(json.dumps(settings))
        by_file = load_tokenizer(str(tmp_path / "vocab.txt")).encode("Cat cat").tokens
        assert load_tokenizer(str(tmp_path)).encode("Cat cat").tokens == by_file
        return by_file[1:-1]

    assert tokens(["cat"]) == ["cat", "cat"]
    assert tokens(["cat", "Cat"]) == ["Cat", "cat"]
    assert tokens(["cat", "Cat"], {"do_lower_case": True}) == ["cat", "cat"]
    assert tokens(["cat"], {"do_lower_case": False}) == ["[UNK]", "cat"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", b"{}", "is not a tokenizer.json"),
        ("tokenizer.json", b"\xff", "is not a tokenizer.json"),
        ("vocab.txt", b"cat\nmat\n", r"it has no \[UNK\]"),
        ("vocab.txt", b"\xff\n", "is not UTF-8"),
    ],
)
def test_damaged_tokenizers_are_config_errors(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_is_nowhere_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for spec in (str(tmp_path / "none"), str(tmp_path), "graft-no-such/tokenizer"):
        with pytest.raises(ConfigError, match=f"tokenizer {spec}: ") as caught:
            load_tokenizer(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="GRAFT_DATA: the tokenizers are not here")
def test_real_vocabularies():
    uncased = load_tokenizer(str(CHECKPOINTS / "tokenizers/bert-base-uncased"))
    assert uncased.encode("Unaffable naïve!").tokens == [
        "[CLS]", "una", "##ffa", "##ble", "naive", "!", "[SEP]",
    ]  # fmt: skip
    assert uncased.encode("the cat", "sat").type_ids == [0, 0, 0, 0, 1, 1]
    assert Vocabulary.of(uncased).size == 30_522
    cased = load_tokenizer(str(CHECKPOINTS / "tokenizers/bert-base-cased/vocab.txt"))
    assert cased.encode("The Cat").tokens == ["[CLS]", "The", "Cat", "[SEP]"]
    llama = load_tokenizer(str(CHECKPOINTS / "stories260K"))
    assert Vocabulary.of(llama).size == 512
