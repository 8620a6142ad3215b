"""Documents as one stream of tokens, cut into blocks of one length: nothing is lost or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from research.data.by_word import ids_by
from research.data.cache import Arrays, Growing
from research.data.tokenize import BEGINS, CONTINUES, SPECIAL, Template
from research.data.vocabulary import Vocabulary
from research.errors import ConfigError

Segments = Literal["documents", "blocks"]


@dataclass(frozen=True)
class Frame:
    """Ids and types that stand before and after the text of every document, and the text's type."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    before_types: tuple[int, ...]
    after_types: tuple[int, ...]
    text_type: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, end: str | None) -> Frame:
        """`end` alone, after the text, or where it is None what the tokenizer puts around one.

        Raises ConfigError for a token there is not.
        """
        if end is None:
            template = Template.of(tokenizer, 1)
            (before, after), (first, last) = template.parts, template.part_types
            return cls(before, after, first, last, template.text_types[0])
        token = tokenizer.token_to_id(end)
        if token is None:
            raise ConfigError(f"data.end: the tokenizer has no token {end!r}")
        return cls((), (token,), (), (0,), 0)

    @property
    def size(self) -> int:
        """Special tokens a document."""
        return len(self.before) + len(self.after)


class Stream:
    """The tokens of one split in the making, appended to files in `folder` a chunk at a time.

    Each source is a stream of its own, cut every `length` tokens. What lies between two cuts is a
    block, and what of one document lies in a block a piece.
    """

    def __init__(
        self, tokenizer: Tokenizer, frame: Frame, length: int, segments: Segments, folder: Path
    ) -> None:
        self.tokenizer, self.frame, self.length, self.segments = tokenizer, frame, length, segments
        self.continues, self.ids = Vocabulary.of(tokenizer).continues, ids_by(tokenizer)
        kinds = {"tokens": np.int32, "types": np.uint8, "words": np.uint8}
        kinds |= {"starts": np.int64, "row_of": np.int64, "bytes": np.int64, "units": np.int64}
        self.arrays = {name: Growing(folder, kind) for name, kind in kinds.items()}
        self.documents = self.position = self.blank = 0
        self.sizes: list[int] = []

    def add(self, texts: Sequence[str]) -> None:
        """Appends documents; those without a token are counted and left out."""
        bodies = self.ids(texts)
        self.blank += sum(not body for body in bodies)
        kept = [i for i, body in enumerate(bodies) if body]
        if not kept:
            return
        texts, bodies = [texts[i] for i in kept], [bodies[i] for i in kept]
        sizes = np.array([len(body) for body in bodies])
        starts = np.cumsum(sizes + self.frame.size) - sizes - self.frame.size
        tokens, types, special = self.framed(bodies, sizes, starts)
        pieces = self.cut(starts, len(tokens))
        row_of = np.searchsorted(starts, pieces, side="right") - 1
        words = np.where(self.continues[tokens], CONTINUES, BEGINS)
        # A piece begins with a word even where it was cut in the middle of one.
        words[pieces] = words[starts + len(self.frame.before)] = BEGINS
        words[special] = SPECIAL
        units = sum(self.sizes) + (self.position + pieces) // self.length
        made = {"tokens": tokens, "types": types, "words": words, "units": units}
        made |= {"starts": self.arrays["tokens"].size + pieces, "row_of": self.documents + row_of}
        made["bytes"] = self.bytes_of(texts, pieces - starts[row_of], row_of)
        for name, values in made.items():
            self.arrays[name].append(values)
        self.documents += len(texts)
        self.position += len(tokens)

    def framed(
        self, bodies: list[list[int]], sizes: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, types, and which are special: the documents' tokens with the frame around each."""
        frame, total = self.frame, int(sizes.sum())
        tokens = np.zeros(total + len(bodies) * frame.size, np.int32)
        types = np.full(len(tokens), frame.text_type, np.uint8)
        special = np.ones(len(tokens), bool)
        within = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = np.repeat(starts + len(frame.before), sizes) + within
        tokens[places] = np.fromiter(chain.from_iterable(bodies), np.int32, total)
        special[places] = False
        for k, (token, kind) in enumerate(zip(frame.before, frame.before_types)):
            tokens[starts + k], types[starts + k] = token, kind
        for k, (token, kind) in enumerate(zip(frame.after, frame.after_types)):
            place = starts + len(frame.before) + sizes + k
            tokens[place], types[place] = token, kind
        return tokens, types, special

    def cut(self, starts: np.ndarray, total: int) -> np.ndarray:
        """Where pieces begin: with every document and with every block."""
        blocks = np.arange(-self.position % self.length, total, self.length)
        return np.union1d(starts, blocks)

    def bytes_of(self, texts: Sequence[str], within: np.ndarray, row_of: np.ndarray) -> np.ndarray:
        """UTF-8 bytes of the text of each piece, which begins at token `within` of its document.

        White space counts with the token after it, at the end of a text with the last one: the
        pieces of a document have its bytes together.
        """
        sizes = np.array([len(text.encode("utf-8")) for text in texts])
        first = np.zeros(len(within), np.int64)
        inner = np.flatnonzero(within)
        # Offsets cost as much as the tokens: only those of documents that are cut are looked at.
        cut, which = np.unique(row_of[inner], return_inverse=True)
        found = self.tokenizer.encode_batch([texts[i] for i in cut], add_special_tokens=False)
        for number, (row, encoding) in enumerate(zip(cut.tolist(), found)):
            mine = inner[which == number]
            signs = np.frombuffer(texts[row].encode("utf-32-le"), np.uint32)
            wide = np.searchsorted(np.array([0x80, 0x800, 0x10000]), signs, side="right") + 1
            before = np.concatenate([[0], np.cumsum(wide)])
            ends = before[np.maximum.accumulate(np.array(encoding.offsets)[:, 1])]
            bounds = np.concatenate([[0], ends[:-1], [sizes[row]]])
            first[mine] = bounds[np.clip(within[mine] - len(self.frame.before), 0, len(ends))]
        last = np.append(row_of[1:] != row_of[:-1], True)
        stop = np.where(last, sizes[row_of], np.append(first[1:], 0))
        return stop - first

    def close_source(self) -> int:
        """Ends the stream of a source: the next one begins a block. Returns its blocks."""
        self.sizes.append(-(-self.position // self.length))
        self.position = 0
        return self.sizes[-1]

    def close(self) -> None:
        """Gives the files back: what `finish` returned stays mapped."""
        for array in self.arrays.values():
            array.file.close()

    def finish(self) -> Arrays:
        """The arrays of an Encoded, with `bytes` and `units` of each example."""
        made = {name: array.mapped() for name, array in self.arrays.items()}
        pieces = made.pop("starts")
        if self.segments == "blocks":
            first = np.flatnonzero(np.diff(made["units"], prepend=-1))
            made["bytes"] = np.add.reduceat(made["bytes"], first)
            pieces, made["row_of"], made["units"] = (
                values[first] for values in (pieces, made["row_of"], made["units"])
            )
        made["bytes"] = made["bytes"].astype(np.int32)
        return made | {"offsets": np.append(pieces, self.arrays["tokens"].size)}
