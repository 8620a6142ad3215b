"""Prompts and what a language model has to follow them, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from research.errors import ConfigError, DataError
from research.infer import beam
from research.infer.decode import tokens_after
from research.infer.detokenize import Detokenizer, Stopper
from research.infer.language import LanguageModel
from research.infer.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Options:
    """How prompts are continued: at most `max_tokens` each, up to one of `stops`, drawn by
    `sampling` with `seed`, or the best of `beams` at a time where there are several."""

    sampling: Sampling = Sampling()
    max_tokens: int = 256
    stops: tuple[str, ...] = ()
    beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "beams"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive integer")
        if self.beams > 1 and self.sampling != Sampling(temperature=0.0):
            raise ConfigError(
                "beams search for the most probable text, which leaves nothing for temperature, "
                "top_k, top_p, min_p and repetition_penalty to do"
            )


class Continuation:
    """One prompt and what follows it so far.

    `finish` says why it ended: "eos", "stop" for a stop string, or "length"; None before.
    """

    def __init__(self, model: LanguageModel, prompt: str, options: Options) -> None:
        self.prompt, self.ids = prompt, model.encode(prompt)
        room = model.trunk.spec.max_positions - len(self.ids)
        self.eos, self.limit = model.eos, min(options.max_tokens, room)
        self.tokens: list[int] = []
        self.text = ""
        self.finish: str | None = None
        self.detokenizer = Detokenizer(model.tokenizer, self.ids)
        self.stopper = Stopper(options.stops)

    def add(self, token: int) -> str:
        """Takes one more token; returns the text that can be told by it."""
        if self.finish is not None:
            return ""
        self.tokens.append(token)
        ended = token in self.eos
        told = self.stopper.add("" if ended else self.detokenizer.add(token))
        if ended or len(self.tokens) == self.limit:
            told += self.stopper.add(self.detokenizer.finish())
            told += self.stopper.finish()
            self.finish = "eos" if ended else "length"
        if self.stopper.stopped:
            self.finish = "stop"
        self.text += told
        return told

    def row(self) -> dict[str, Any]:
        """{"prompt", "text", "tokens", "finish"} as JSON values."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "tokens": len(self.tokens),
            "finish": self.finish,
        }


def generate(
    model: LanguageModel, continuations: Sequence[Continuation], options: Options, *, first: int = 0
) -> Iterator[tuple[Continuation, str]]:
    """Continues all of them at once, telling each piece of text as it comes.

    What is drawn for a prompt depends on `seed` and its number, counted from `first`, alone.
    """
    if options.beams > 1:
        for one in continuations:
            yield one, search(model, one, options)
        return
    numbers = jnp.arange(first, first + len(continuations))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(options.seed), numbers)
    stream = tokens_after(
        model.trunk,
        model.params,
        [one.ids for one in continuations],
        keys,
        options.sampling,
        max(one.limit for one in continuations),
    )
    with closing(stream):
        for tokens in stream:
            for one, token in zip(continuations, tokens.tolist()):
                if told := one.add(token):
                    yield one, told
            if all(one.finish for one in continuations):
                return


def tell(model: LanguageModel, prompt: str, options: Options, sink: TextIO) -> None:
    """Writes a prompt and what follows it, as it comes; a terminal gets a line end after it."""
    one = Continuation(model, prompt, options)
    sink.write(prompt)
    sink.flush()
    for _, piece in generate(model, [one], options):
        sink.write(piece)
        sink.flush()
    sink.write("\n" if sink.isatty() else "")
    sink.flush()


def from_lines(
    model: LanguageModel, lines: Iterable[bytes], name: str, options: Options, *, rows: int = 8
) -> Iterator[dict[str, Any]]:
    """What follows every line of a file, `rows` of them at a time, as `Continuation.row`.

    Raises DataError "name:line: reason" for a line that cannot be continued.
    """
    waiting = (prompt_of(model, line, f"{name}:{i}", options) for i, line in enumerate(lines, 1))
    first = 0
    while chunk := list(islice(waiting, rows)):
        # The last ones are filled up to a shape that is compiled already.
        missing = rows - len(chunk) if first and options.beams == 1 else 0
        together = chunk + [Continuation(model, chunk[-1].prompt, options) for _ in range(missing)]
        for _ in generate(model, together, options, first=first):
            pass
        yield from (one.row() for one in chunk)
        first += len(chunk)


def prompt_of(model: LanguageModel, line: bytes, where: str, options: Options) -> Continuation:
    """The prompt on one line."""
    try:
        prompt = line.decode("utf-8").rstrip("\r\n")
        if not prompt.strip():
            raise DataError(f"{where}: the line is empty; a line is a prompt")
        return Continuation(model, prompt, options)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}") from None
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None


def search(model: LanguageModel, one: Continuation, options: Options) -> str:
    """Continues one prompt by beam search; its whole text."""
    found, _ = beam.search(
        model.trunk,
        model.params,
        one.ids,
        width=options.beams,
        count=one.limit,
        eos=model.eos,
    )
    return "".join(one.add(token) for token in found)
