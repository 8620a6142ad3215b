"""Tokenizers as other libraries left them: byte-level BPE in two files, unigram SentencePiece."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from research.errors import ConfigError

NAMES = ("vocab.json", "encoder.json", "spiece.model", "sentencepiece.bpe.model")
# What lies beside the tokens of byte-level BPE, by the names of Hugging Face and of OpenAI.
MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
# What sentencepiece's own format calls the kinds of its models.
UNIGRAM = 1


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A SentencePiece model (Kudo & Richardson, 2018): pieces with their log-probabilities, the id
    of the unknown one, and the table of characters that are replaced, empty for none."""

    pieces: list[tuple[str, float]]
    unknown: int
    characters: bytes


def load_files(path: Path, settings: dict[str, Any], model_type: str | None) -> Tokenizer:
    """The tokenizer of a file called as one of NAMES.

    `settings` are those of the tokenizer_config.json beside it, `model_type` that of a config.json.
    Raises ConfigError for a file that is damaged or of a tokenizer that is none of these.
    """
    if path.suffix == ".json":
        return byte_level(path)
    pieces = read_pieces(path)
    words = {piece for piece, _ in pieces.pieces}
    if path.name == "sentencepiece.bpe.model":
        if model_type not in (None, "xlm-roberta"):
            raise ConfigError(
                f"{path}: its ids are known for XLM-R, but config.json says {model_type!r}; keep "
                f"a tokenizer.json beside it"
            )
        return xlm_roberta(pieces)
    if {"[CLS]", "[SEP]"} <= words:
        return albert(pieces, settings)
    if {"<cls>", "<sep>"} <= words:
        return xlnet(pieces, settings)
    raise ConfigError(
        f"{path}: has neither the pieces [CLS] and [SEP] of ALBERT nor <cls> and <sep> of XLNet, "
        f"so that what goes around a text is unknown; keep a tokenizer.json beside it"
    )


def byte_level(path: Path) -> Tokenizer:
    """Byte-level BPE (Radford et al., 2019): tokens with their MERGES beside them. Texts stand
    between <s> and </s> where there are such tokens, as RoBERTa's do, and for themselves else."""
    merges = path.with_name(MERGES[path.name])
    if not merges.is_file():
        raise ConfigError(f"{merges}: no such file; {path.name} needs it beside it")
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = Tokenizer(models.BPE.from_file(str(path), str(merges)))
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(f"{path}: is no vocabulary of BPE: {str(error)[:200]}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    between = "<s>" in words and "</s>" in words
    special = ("<s>", "</s>", "<unk>", "<pad>", "<mask>") if between else ("<|endoftext|>",)
    # The mask takes the space before it, as a word would.
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=token == "<mask>") for token in special if token in words]
    )
    if between:
        tokenizer.post_processor = RobertaProcessing(
            ("</s>", words["</s>"]), ("<s>", words["<s>"]), add_prefix_space=False
        )
    return tokenizer


def albert(pieces: Pieces, settings: dict[str, Any]) -> Tokenizer:
    """ALBERT's: lower case without accents unless the settings say otherwise."""
    lower, accents = settings.get("do_lower_case", True), settings.get("keep_accents", False)
    tokenizer = unigram(pieces, cleaning(lower, accents))
    finish(
        tokenizer,
        ["[CLS]", "[SEP]", "<unk>", "<pad>", "[MASK]"],
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    )
    return tokenizer


def xlnet(pieces: Pieces, settings: dict[str, Any]) -> Tokenizer:
    """XLNet's: what stands for a text comes last, and has a type of its own."""
    lower = settings.get("do_lower_case", False)
    # transformers has taken accents away whatever `keep_accents` says.
    tokenizer = unigram(pieces, cleaning(lower, False))
    names = ["<s>", "</s>", "<unk>", "<sep>", "<pad>", "<cls>", "<mask>", "<eop>", "<eod>"]
    finish(
        tokenizer,
        names,
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
    )
    return tokenizer


def xlm_roberta(pieces: Pieces) -> Tokenizer:
    """XLM-R's, whose ids are fairseq's: four special tokens, then the other pieces, the mask."""
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    moved = Pieces(
        pieces=[*first, *pieces.pieces[3:], ("<mask>", 0.0)],
        unknown=3,
        characters=pieces.characters,
    )
    tokenizer = unigram(moved, [])
    finish(
        tokenizer,
        ["<s>", "</s>", "<unk>", "<pad>", "<mask>"],
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
    )
    return tokenizer


def cleaning(lower: bool, accents: bool) -> list[Any]:
    """What ALBERT and XLNet do before SentencePiece's own table."""
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [] if accents else [normalizers.NFKD(), normalizers.StripAccents()]
    return [*steps, normalizers.Lowercase()] if lower else steps


def unigram(pieces: Pieces, steps: list[Any]) -> Tokenizer:
    """A unigram language model over pieces (Kudo, 2018)."""
    tokenizer = Tokenizer(models.Unigram(pieces.pieces, pieces.unknown, byte_fallback=False))
    own = [normalizers.Precompiled(pieces.characters)] if pieces.characters else []
    tokenizer.normalizer = normalizers.Sequence([*steps, *own])
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


def finish(tokenizer: Tokenizer, special: list[str], *, single: str, pair: str) -> None:
    """Special tokens, and the template that puts them around texts."""
    present = [token for token in special if tokenizer.token_to_id(token) is not None]
    # The space before XLNet's mask is part of it.
    marked = [
        AddedToken(token, lstrip="<eop>" in present and token == "<mask>") for token in present
    ]
    tokenizer.add_special_tokens(marked)
    used = [token for token in present if token in pair]
    tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in used],
    )


def read_pieces(path: Path) -> Pieces:
    """A SentencePiece model, from the wire format of protocol buffers.

    Read here, as neither sentencepiece nor its compiled messages are a dependency.
    """
    pieces: list[tuple[str, float]] = []
    kind, unknown, characters = UNIGRAM, 0, b""
    try:
        for number, value in messages(path.read_bytes()):
            if number == 1:
                piece = dict(messages(value))
                (score,) = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))
                pieces.append((piece[1].decode("utf-8"), score))
            elif number == 2:
                trainer = dict(messages(value))
                kind, unknown = trainer.get(3, UNIGRAM), trainer.get(40, 0)
            elif number == 3:
                characters = dict(messages(value)).get(2, b"")
    except (LookupError, ValueError, TypeError, AttributeError, struct.error):
        raise ConfigError(f"{path}: is not a model of SentencePiece") from None
    if not pieces:
        raise ConfigError(f"{path}: is not a model of SentencePiece")
    if kind != UNIGRAM:
        raise ConfigError(f"{path}: is not a unigram model, the one kind that is read")
    return Pieces(pieces=pieces, unknown=unknown, characters=characters)


def messages(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: (number, integer or bytes). Raises ValueError if cut short."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size = {1: 8, 5: 4}.get(wire) or varint()
        if at + size > len(raw):
            raise ValueError("cut short")
        yield number, raw[at : at + size]
        at += size
