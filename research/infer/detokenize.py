"""Text from tokens as they come: whole characters only, and none of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from research.errors import ConfigError

# What a decoder writes for bytes that are no character, or not yet.
BROKEN = "\ufffd"


class Detokenizer:
    """The text of tokens that follow `ids`, piece by piece; the pieces together are all of it."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.told, self.seen = self.text(), len(self.ids)

    def text(self) -> str:
        """What the tokens at hand say."""
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def add(self, token: int) -> str:
        """The characters that a token completes."""
        self.ids.append(token)
        text = self.text()
        return "" if text.endswith(BROKEN) else self.advance(text)

    def finish(self) -> str:
        """What is left, bytes that never became a character included."""
        return self.advance(self.text())

    def advance(self, text: str) -> str:
        """What `text` says beyond what was told."""
        new = text[len(self.told) :]
        if new:
            # The tokens before the next ones decide how these are written (spaces, parts of words):
            # those last told do for that, and they begin with a whole character.
            ids, self.ids = self.ids, self.ids[self.seen :]
            if not self.text():
                self.ids = ids
            self.told, self.seen = self.text(), len(self.ids)
        return new


class Stopper:
    """Passes text on up to the first of some strings, holding back what may begin one."""

    def __init__(self, strings: Sequence[str]) -> None:
        if "" in strings:
            raise ConfigError("a stop string is empty, which would stop every text at once")
        self.strings = tuple(strings)
        self.held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """What may be told now; empty after a stop string, which is not told."""
        if self.stopped:
            return ""
        self.held += text
        found = [place for place in map(self.held.find, self.strings) if place >= 0]
        if found:
            self.stopped = True
            return self.release(min(found), drop=True)
        longest = max(map(len, self.strings), default=1) - 1
        for size in range(min(longest, len(self.held)), 0, -1):
            if any(string.startswith(self.held[-size:]) for string in self.strings):
                return self.release(len(self.held) - size)
        return self.release(len(self.held))

    def finish(self) -> str:
        """What was held back and is no stop string after all."""
        return "" if self.stopped else self.release(len(self.held))

    def release(self, size: int, *, drop: bool = False) -> str:
        """The first characters of what is held; the rest is kept, or dropped."""
        told, rest = self.held[:size], self.held[size:]
        self.held = "" if drop else rest
        return told
