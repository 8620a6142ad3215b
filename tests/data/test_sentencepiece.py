"""XLNet's spiece.model: what the file holds, and the tokens that transformers makes of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from transformers import XLNetTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from research.data.sentencepiece import read
from research.data.tokenize import encode
from research.data.vocabulary import load_tokenizer, tokenizer_of
from research.errors import ConfigError

SHARED = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[3] / "shared"))
CHINESE = SHARED / "ckpt" / "tokenizers" / "xlnet-chinese" / "spiece.model"
real = pytest.mark.skipif(not CHINESE.is_file(), reason="GRAFT_DATA: the real files are not here")
TEXTS = (
    "这家酒店的服务很好，房间也干净。",
    "京东的订单处理速度实在.......周二就打包完成，周五才发货",
    "Hello  world, 2019, ok ``x'' naïve 30-40元",
    "𠮷 <mask> a<eop>",
)


@real
def test_the_file_is_read_as_a_protocol_buffer() -> None:
    message = import_protobuf().ModelProto()
    message.ParseFromString(CHINESE.read_bytes())
    pieces, kinds, unknown, characters = read(CHINESE.read_bytes())
    assert pieces == [(piece.piece, piece.score) for piece in message.pieces]
    assert kinds == [piece.type for piece in message.pieces]
    assert unknown == message.trainer_spec.unk_id
    assert characters == message.normalizer_spec.precompiled_charsmap != b""


@real
def test_tokens_are_those_of_transformers() -> None:
    pieces, _, unknown, characters = read(CHINESE.read_bytes())
    theirs = XLNetTokenizer(
        vocab=pieces, unk_id=unknown, _spm_precompiled_charsmap=characters, mask_token="<mask>"
    )
    ours, vocabulary = tokenizer_of(str(CHINESE.parent))
    for text in TEXTS:
        for pair in (None, TEXTS[0]):
            expected = theirs(text, pair, return_token_type_ids=True)
            got = ours.encode(text, pair)
            assert (got.ids, got.type_ids) == (expected["input_ids"], expected["token_type_ids"])
    assert (vocabulary.size, vocabulary.cls, vocabulary.sep, vocabulary.mask) == (32000, 3, 4, 6)
    (place,) = (i for i, token in enumerate(ours.encode(TEXTS[2]).tokens) if token == "x")
    assert not vocabulary.continues[ours.token_to_id("▁w")]
    assert vocabulary.continues[ours.encode(TEXTS[2]).ids[place]]


@real
def test_texts_and_pairs_end_in_cls() -> None:
    ours = load_tokenizer(str(CHINESE))
    pairs = encode(TEXTS[:2], TEXTS[1:3], ours, max_length=16)
    for start, end in zip(pairs.offsets[:-1], pairs.offsets[1:]):
        assert pairs.tokens[start:end][-2:].tolist() == [4, 3]
        assert pairs.types[start:end][-2:].tolist() == [1, 2]
        assert (pairs.tokens[start:end] == 4).sum() == 2 and end - start == 16


@real
def test_a_damaged_or_another_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "spiece.model"
    shutil.copyfile(CHINESE, file)
    whole = CHINESE.read_bytes()
    for data in (b"", b"\x0a", b"no model", whole[:1000], whole.replace(b"<cls>", b"<clx>")):
        file.write_bytes(data)
        with pytest.raises(ConfigError, match=r"spiece\.model: expected a SentencePiece Unigram"):
            load_tokenizer(str(tmp_path))
