"""Questions with their contexts as windows: each a question and a stretch of its context."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from research.data import cache
from research.data.tokenize import CHUNK, Builder, Encoded, Template, Vocabulary, content_key
from research.errors import ConfigError

# Bumped whenever the same questions would give other arrays.
VERSION = 1
# The arrays that are not those of an Encoded.
OWN = ("context", "begins", "sizes", "firsts", "chars", "start", "end", "unmarked")


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Examples that are windows, those of a question one after another, and what they show.

    `context` uint8 [tokens]: 1 for a token of the context. Window i holds `sizes[i]` tokens of it
    from its place `begins[i]` on; the characters [from, to) of these are the rows of `chars`,
    int32 [context tokens, 2], from `firsts[i]` on. `start` and `end` int32 [examples] are the
    places of the answer's first and last token, 0 where the window does not hold all of it.
    `unmarked` are the questions whose answer has no token.
    """

    encoded: Encoded
    context: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray
    chars: np.ndarray
    start: np.ndarray
    end: np.ndarray
    unmarked: np.ndarray

    def characters(self, example: int, first: int, last: int) -> tuple[int, int]:
        """Where in the context the tokens `first` to `last` of a window's stretch lie."""
        row = int(self.firsts[example])
        return int(self.chars[row + first, 0]), int(self.chars[row + last, 1])


def cut(
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[tuple[int, int] | None],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    stride: int,
    max_question: int,
    keep_in: Path | None = None,
) -> Windows:
    """Windows of at most `max_length` tokens: the question, then a stretch of its context.

    A window begins `stride` tokens of the context after the one before it, less where that would
    leave a token out. A question keeps its first `max_question` tokens. `answers` are characters
    [from, to) of the contexts. With `keep_in` the arrays are kept there and mapped into memory.
    """
    template = Template.of(tokenizer, 2)
    if max_length <= template.size + max_question:
        raise ConfigError(
            f"data.max_length is {max_length}, but {template.size} special tokens and a question "
            f"of data.max_question={max_question} leave nothing of that to the context"
        )
    vocabulary = Vocabulary.of(tokenizer)
    wanted = hashlib.sha256(repr(list(answers)).encode()).hexdigest()
    settings = f"windows {VERSION} {vocabulary.fingerprint} {max_length} {stride} {max_question}"
    key = content_key(questions, contexts, f"{settings} {wanted}")

    def make() -> tuple[cache.Arrays, dict[str, int]]:
        cutter = Cutter(template, vocabulary, max_length, stride, max_question)
        for number, question, context in encodings(questions, contexts, tokenizer):
            cutter.add(number, question, context, contexts[number], answers[number])
        facts = {"truncated": cutter.builder.truncated, "lost": cutter.builder.lost}
        return cutter.arrays(), facts

    arrays, facts = make() if keep_in is None else cache.load_or_make(keep_in / key, make)
    encoded = Encoded.of(arrays, facts, key)
    return Windows(encoded=encoded, **{name: arrays[name] for name in OWN})


def encodings(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: Tokenizer
) -> Iterator[tuple[int, Encoding, Encoding]]:
    """(number, question, context), a chunk at a time; neighbours share the work of a context."""
    for start in range(0, len(questions), CHUNK):
        chunk = list(contexts[start : start + CHUNK])
        distinct = list(dict.fromkeys(chunk))
        found = dict(zip(distinct, tokenizer.encode_batch(distinct, add_special_tokens=False)))
        asked = tokenizer.encode_batch(
            list(questions[start : start + CHUNK]), add_special_tokens=False
        )
        for i, (question, context) in enumerate(zip(asked, chunk)):
            yield start + i, question, found[context]


class Cutter:
    """Windows in the making."""

    def __init__(
        self,
        template: Template,
        vocabulary: Vocabulary,
        max_length: int,
        stride: int,
        max_question: int,
    ) -> None:
        self.builder = Builder(template, vocabulary, max_length, "truncate")
        self.template, self.stride, self.max_question = template, stride, max_question
        self.context = bytearray()
        self.columns = {name: array("i") for name in ("begins", "sizes", "start", "end")}
        self.firsts, self.unmarked = array("q"), array("q")
        self.chars: list[np.ndarray] = []
        self.shown, self.known, self.rows = "", 0, 0

    def add(
        self,
        number: int,
        question: Encoding,
        context: Encoding,
        text: str,
        answer: tuple[int, int] | None,
    ) -> None:
        """Takes in question `number`."""
        asked, told = question.ids, context.ids
        if not asked or not told:
            self.builder.blank.append(number)
            return
        chars = np.asarray(context.offsets, np.int32).reshape(-1, 2)
        marked = None if answer is None else tokens_of(chars, answer)
        if answer is not None and marked is None:
            self.unmarked.append(number)
            return
        if text != self.shown or not self.chars:
            self.chars.append(chars)
            self.shown, self.known, self.rows = text, self.rows, self.rows + len(chars)
        if len(asked) > self.max_question:
            self.builder.truncated += 1
            self.builder.lost += len(asked) - self.max_question
            asked = asked[: self.max_question]
        for first, last in stretches(len(told), self.builder.room - len(asked), self.stride):
            self.put(number, asked, told[first:last], first, marked)

    def put(
        self,
        number: int,
        asked: list[int],
        told: list[int],
        first: int,
        marked: tuple[int, int] | None,
    ) -> None:
        """Appends one window, whose stretch of the context begins with its token `first`."""
        self.builder.put(number, [asked, told])
        before, between, after = (len(part) for part in self.template.parts)
        begin = before + len(asked) + between
        self.context += b"\0" * begin + b"\1" * len(told) + b"\0" * after
        held = marked is not None and first <= marked[0] and marked[1] < first + len(told)
        start, end = (begin + place - first for place in marked) if held and marked else (0, 0)
        for name, value in (("begins", begin), ("sizes", len(told)), ("start", start)):
            self.columns[name].append(value)
        self.columns["end"].append(end)
        self.firsts.append(self.known + first)

    def arrays(self) -> cache.Arrays:
        """The arrays of a Windows and of its Encoded."""
        return {
            **self.builder.arrays(),
            "context": np.frombuffer(bytes(self.context), np.uint8),
            "firsts": np.asarray(self.firsts, np.int64),
            "unmarked": np.asarray(self.unmarked, np.int64),
            "chars": np.concatenate([np.zeros((0, 2), np.int32), *self.chars]),
            **{name: np.asarray(column, np.int32) for name, column in self.columns.items()},
        }


def stretches(tokens: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """[first, last) of each window over `tokens` tokens; together they leave none out."""
    first = 0
    while first + room < tokens:
        yield first, first + room
        first += min(stride, room)
    yield first, tokens


def tokens_of(chars: np.ndarray, answer: tuple[int, int]) -> tuple[int, int] | None:
    """The first and the last token that share a character with [from, to), None without any."""
    (inside,) = np.nonzero((chars[:, 1] > answer[0]) & (chars[:, 0] < answer[1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None
