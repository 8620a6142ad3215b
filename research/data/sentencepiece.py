"""XLNet's spiece.model, a SentencePiece Unigram, as a tokenizer (Kudo & Richardson, 2018)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from research.errors import ConfigError

# A kind of pieces that are no text, and the kind of model that is a Unigram.
CONTROL, UNIGRAM = 3, 1
NO_TEXT = ("<unk>", "<pad>", "<mask>", "<eod>", "<eop>")
ONLY = "expected a SentencePiece Unigram with <sep> and <cls>, as XLNet's"


def load_xlnet(path: Path) -> Tokenizer:
    """The tokenizer of a cased XLNet, which puts <sep> <cls> after a text (Yang et al., 2019).

    Raises ConfigError for a file that is not one.
    """
    try:
        pieces, kinds, unknown, characters = read(path.read_bytes())
        names = [name for name, _ in pieces]
        ids = {name: names.index(name) for name in ("<sep>", "<cls>")}
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    except Exception as error:  # a damaged file may fail anywhere, in tokenizers too
        raise ConfigError(f"{path}: {ONLY} ({str(error)[:100]})") from None
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if characters:
        steps.append(normalizers.Precompiled(characters))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    # What else a user defined, such as ".", is a piece that wins by its score: as added tokens they
    # would cut words.
    control = [name for name, kind in zip(names, kinds) if kind == CONTROL]
    tokenizer.add_special_tokens([*control, *(name for name in NO_TEXT if name in names)])
    tokenizer.post_processor = TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=list(ids.items()),
    )
    return tokenizer


def read(data: bytes) -> tuple[list[tuple[str, float]], list[int], int, bytes]:
    """Pieces with their scores, their kinds, the id of the unknown one, and the table by which
    characters are unified. Raises ValueError for another model than a Unigram."""
    pieces: list[tuple[str, float]] = []
    kinds: list[int] = []
    unknown, characters = None, b""
    for number, value in fields(data):
        if number not in (1, 2, 3) or not isinstance(value, bytes):
            continue
        inner: dict[int, Any] = dict(fields(value))
        if number == 1:
            (score,) = struct.unpack("<f", inner[2]) if 2 in inner else (0.0,)
            pieces.append((inner[1].decode("utf-8"), score))
            kinds.append(inner.get(3, 1))
        elif number == 2:
            if inner.get(3, UNIGRAM) != UNIGRAM:
                raise ValueError("it is no Unigram")
            unknown = inner.get(40, 0)
        else:
            characters = inner.get(2, b"")
    # What is told of the training comes after all pieces.
    if unknown is None:
        raise ValueError("the file ends too soon")
    return pieces, kinds, unknown, characters


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of a protocol buffer's message, in their order.

    https://protobuf.dev/programming-guides/encoding
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"byte {at} begins no field")
        size = {1: 8, 5: 4}.get(kind) or varint()
        if at + size > len(data):
            raise ValueError("the file ends too soon")
        yield number, data[at : at + size]
        at += size
