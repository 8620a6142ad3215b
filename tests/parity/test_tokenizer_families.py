"""Tokenizers read from vocabularies and transformers', live: the same ids, alone and in pairs."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from research.data.vocabulary import load_tokenizer
from research.models.pretrained import albert, export, roberta
from research.models.pretrained.family import Family
from research.models.transformer import Spec

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")
pytest.importorskip("torch", reason="torch is not installed")

REAL = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
TEXTS = (
    "A lab that grafts heads onto trunks.",
    "Köln, naïve CAFÉ 東京 don't  3.14!  \tnew\nline ``quoted''",
    "unaffable [MASK] words<mask> and <unk> ﬁne Ⅳ ½ \u200bzero",
    "中文分词很有趣，明天再说。",
    "   ",
    "",
)
# The model's type, the real file and the name it has in a directory of that type.
KINDS = {
    "roberta": ("roberta", "roberta/vocab.json", "vocab.json"),
    "albert": ("albert", "albert/spiece.model", "spiece.model"),
    "xlnet": ("xlnet", "xlnet-chinese/spiece.model", "spiece.model"),
    # Not XLM-R's own pieces, but read by its rules.
    "xlm-roberta": ("xlm-roberta", "t5/spiece.model", "sentencepiece.bpe.model"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_transformers(tmp_path: Path, kind: str) -> None:
    model_type, source, name = KINDS[kind]
    file = REAL / "ckpt" / "tokenizers" / source
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    if name != "vocab.json":
        pytest.importorskip("sentencepiece", reason="transformers needs it to read the file")
    shutil.copy(file, tmp_path / name)
    if name == "vocab.json":
        shutil.copy(file.with_name("merges.txt"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(str(tmp_path))
    # What a model of SentencePiece calls user-defined, transformers cuts out of a text before
    # anything else, and begins a new word after it: "3.14" becomes 3 . and the word 14. Neither
    # SentencePiece nor the tokenizer.json files that were published with these models do.
    texts = [text.translate(dict.fromkeys(map(ord, ".-()"), " ")) for text in TEXTS]
    texts = list(TEXTS) if name == "vocab.json" else texts
    for text in texts:
        # An empty second text is none to transformers.
        for pair in (None, *filter(None, texts)):
            found = ours.encode(text, pair)
            expected = theirs(text, pair, return_token_type_ids=True)
            assert found.ids == expected["input_ids"], (text, pair)
            assert found.type_ids == expected["token_type_ids"], (text, pair)


@pytest.mark.parametrize(
    ("kind", "family"), [("roberta", roberta.FAMILY), ("albert", albert.FAMILY)]
)
def test_exported_tokenizer_gives_the_same_ids(tmp_path: Path, kind: str, family: Family) -> None:
    """transformers on what is written, names of special tokens included, and ours on the source."""
    source = REAL / "ckpt" / "tokenizers" / KINDS[kind][1]
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    words, settings = export.to_tokenizer(family, Spec(vocab_size=60000), str(source))
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(source))
    for role, name in family.special_tokens.items():
        assert getattr(theirs, role) == name and theirs.convert_tokens_to_ids(name) is not None
    for text in TEXTS:
        for pair in (None, *filter(None, TEXTS)):
            assert theirs(text, pair)["input_ids"] == ours.encode(text, pair).ids, (text, pair)


@pytest.mark.parametrize("kind", ["albert", "xlnet"])
def test_pieces_equal_sentencepiece(kind: str) -> None:
    """The library that the models were trained with, on texts cleaned as their code does."""
    file = REAL / "ckpt" / "tokenizers" / KINDS[kind][1]
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))
    ours = load_tokenizer(str(file))
    for text in TEXTS:
        plain = text.replace("<mask>", "").replace("[MASK]", "").replace("<unk>", "")
        cleaned = unicodedata.normalize("NFKD", plain.replace("``", '"').replace("''", '"'))
        cleaned = "".join(c for c in cleaned if not unicodedata.combining(c))
        expected = reference.encode(cleaned.lower() if kind == "albert" else cleaned)
        assert ours.encode(plain, add_special_tokens=False).ids == expected, text
