"""Tokenizers from the files of other libraries: templates, ids, damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from research.data.tokenize import Template
from research.data.vocabulary import Vocabulary, load_tokenizer
from research.errors import ConfigError
from research.models import pretrained

REAL = Path(__file__).parents[3] / "shared" / "ckpt" / "tokenizers"
ALBERT = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
XLNET = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
XLMR = ("<unk>", "<s>", "</s>")
WORDS = ("▁a", "▁lab", "▁gra", "ft", "s", "▁")


def number(value: int) -> bytes:
    """An integer as protocol buffers write it."""
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + number(rest) if rest else bytes([head])


def field(place: int, value: Any) -> bytes:
    """A field of a message: an integer, a float or bytes."""
    if isinstance(value, int):
        return number(place << 3) + number(value)
    if isinstance(value, float):
        return number(place << 3 | 5) + struct.pack("<f", value)
    return number(place << 3 | 2) + number(len(value)) + value


def sentencepiece(special: tuple[str, ...], kind: int = 1, unknown: int | None = None) -> bytes:
    """A model of SentencePiece, as its trainer writes one."""
    pieces = [(token, 0.0) for token in special] + [(w, -float(i)) for i, w in enumerate(WORDS, 1)]
    raw = b"".join(field(1, field(1, t.encode()) + field(2, score)) for t, score in pieces)
    unknown = special.index("<unk>") if unknown is None else unknown
    return raw + field(2, field(3, kind) + field(40, unknown)) + field(3, field(1, b"nfkc"))


def directory(path: Path, name: str, raw: bytes, model_type: str, **settings: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_bytes(raw)
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def tokens(path: Path, text: str, pair: str | None = None) -> list[tuple[str, int]]:
    encoding = load_tokenizer(str(path)).encode(text, pair)
    return list(zip(encoding.tokens, encoding.type_ids))


def test_albert(tmp_path):
    path = directory(tmp_path / "a", "spiece.model", sentencepiece(ALBERT), "albert")
    alone = [("[CLS]", 0), ("▁a", 0), ("▁lab", 0), ("[SEP]", 0)]
    assert tokens(path, "A lab") == alone == tokens(path, "Á  lab")
    pair = [("▁gra", 1), ("ft", 1), ("s", 1), ("[SEP]", 1)]
    assert tokens(path, "a lab", "grafts") == alone + pair
    cased = directory(
        tmp_path / "b", "spiece.model", sentencepiece(ALBERT), "albert", do_lower_case=False
    )
    assert tokens(cased, "A lab")[1] == ("▁", 0)
    vocabulary = Vocabulary.of(load_tokenizer(str(path)))
    assert (vocabulary.pad, vocabulary.unk, vocabulary.cls, vocabulary.sep) == (0, 1, 2, 3)
    assert vocabulary.mask == 4 and vocabulary.special == (0, 1, 2, 3, 4)
    # What begins a word is marked: all other pieces but the special ones go on with one.
    assert vocabulary.continues.tolist() == [False] * 8 + [True, True, False]


def test_xlnet(tmp_path):
    path = directory(tmp_path / "a", "spiece.model", sentencepiece(XLNET), "xlnet")
    alone = [("▁a", 0), ("▁lab", 0), ("<sep>", 0)]
    assert tokens(path, "a lab") == [*alone, ("<cls>", 2)]
    assert tokens(path, "a lab", "a") == [*alone, ("▁a", 1), ("<sep>", 1), ("<cls>", 2)]
    vocabulary = Vocabulary.of(load_tokenizer(str(path)))
    assert (vocabulary.cls, vocabulary.sep, vocabulary.pad, vocabulary.mask) == (3, 4, 5, 6)
    template = Template.of(load_tokenizer(str(path)), 2)
    assert template.parts == ((), (4,), (4, 3)) and template.part_types == ((), (0,), (1, 2))


def test_xlm_roberta(tmp_path):
    """Ids are fairseq's: <s> <pad> </s> <unk>, the pieces but their own three, <mask>."""
    name, raw = "sentencepiece.bpe.model", sentencepiece(XLMR)
    path = directory(tmp_path / "a", name, raw, "xlm-roberta")
    assert load_tokenizer(str(path)).encode("a lab").ids == [0, 4, 5, 2]
    assert load_tokenizer(str(path)).encode("a", "lab").ids == [0, 4, 2, 2, 5, 2]
    assert load_tokenizer(str(path)).encode("<mask>").ids == [0, 10, 2]
    assert load_tokenizer(str(path)).encode("a q").ids == [0, 4, 9, 3, 2]
    other = directory(tmp_path / "b", name, raw, "mbart")
    with pytest.raises(ConfigError, match=r"known for XLM-R, but config\.json says 'mbart'"):
        load_tokenizer(str(other))


def byte_level(path: Path, special: tuple[str, ...]) -> Path:
    """vocab.json and merges.txt."""
    letters = ["a", "b", "l", "Ġ", "ab", "Ġl", "Ġlab"]
    path.mkdir()
    words = {token: i for i, token in enumerate([*special, *letters])}
    (path / "vocab.json").write_text(json.dumps(words))
    (path / "merges.txt").write_text("#version: 0.2\na b\nĠ l\nĠl ab\n")
    return path


def test_byte_level(tmp_path):
    path = byte_level(tmp_path / "a", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.encode("ab lab").ids == [0, 9, 11, 2]
    assert tokenizer.encode("ab", "ab").ids == [0, 9, 2, 2, 9, 2]
    assert set(tokenizer.encode("ab", "ab").type_ids) == {0}
    assert Vocabulary.of(tokenizer).mask == 4
    bare = load_tokenizer(str(byte_level(tmp_path / "b", ("<|endoftext|>",))))
    assert bare.encode("ab<|endoftext|>").ids == [5, 0]
    (path / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"merges\.txt: no such file"):
        load_tokenizer(str(path))


def test_damage_is_refused(tmp_path):
    raw = sentencepiece(ALBERT)
    for broken in (b"", raw[:-3], raw[:7], b"\xff" * 40, b"not a model at all"):
        path = directory(tmp_path / "a", "spiece.model", broken, "albert")
        with pytest.raises(ConfigError, match=r"spiece\.model: is not a model of SentencePiece"):
            load_tokenizer(str(path))
    directory(tmp_path / "a", "spiece.model", sentencepiece(ALBERT, kind=2), "albert")
    with pytest.raises(ConfigError, match="is not a unigram model"):
        load_tokenizer(str(tmp_path / "a"))
    directory(tmp_path / "a", "spiece.model", sentencepiece(("<pad>", "</s>", "<unk>")), "t5")
    with pytest.raises(ConfigError, match="what goes around a text is unknown"):
        load_tokenizer(str(tmp_path / "a"))


def test_more_pieces_than_vectors_are_refused(tmp_path):
    path = directory(tmp_path / "a", "spiece.model", sentencepiece(ALBERT), "albert")
    config = {
        "model_type": "albert",
        "vocab_size": 10,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"ids up to 10, but config\.json says vocab_size 10"):
        pretrained.trunk(path)
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": 11}))
    assert pretrained.trunk(path).spec.vocab_size == 11


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("albert/spiece.model", [2, 21, 4343, 30, 26813, 18, 4153, 3, 81, 3]),
        ("roberta/vocab.json", [0, 250, 6348, 14, 19433, 29, 3885, 2, 2, 7109, 2]),
    ],
)
def test_real_vocabularies(file, expected):
    """A text and a pair as transformers writes them."""
    if not (REAL / file).is_file():
        pytest.skip(f"{REAL / file} is not there")
    assert load_tokenizer(str(REAL / file)).encode("A lab that grafts heads", "two").ids == expected
