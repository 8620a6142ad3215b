"""Texts to ids, each distinct word tokenised once where that gives what whole texts give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

Ids = Callable[[Sequence[str]], list[list[int]]]
# Words remembered, and the longest of them: some tens of MiB however many there are.
REMEMBERED, LONGEST = 2**17, 64


def ids_by(tokenizer: Tokenizer) -> Ids:
    """The function from texts to their ids, without special tokens around them.

    The tokenizers library splits texts over its threads; a BERT's tokenizer is several times
    faster still word by word, since words come again and again.
    """
    if splits_at_blanks(tokenizer):
        return Words(tokenizer)

    def whole(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    return whole


def splits_at_blanks(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of what lies between its blanks, one after another.

    So it is for BERT's normalizer, which looks at one character at a time; its pre-tokenizer,
    which cuts at every blank; WordPiece; and added tokens that hold no blank and are sought in
    the text as it is.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        isinstance(tokenizer.model, models.WordPiece)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.normalizer, normalizers.BertNormalizer | None)
        and not any(token.normalized or " " in token.content for token in added)
    )


class Words:
    """The ids of the words met so far."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        if len(self.known) > REMEMBERED:
            self.known = {}
        split = [text.split(" ") for text in texts]
        new = list(set(chain.from_iterable(split)).difference(self.known))
        encoded = self.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        self.known.update((word, encoding.ids) for word, encoding in zip(new, encoded))
        found = [list(chain.from_iterable(map(self.known.__getitem__, words))) for words in split]
        for word in new:
            if len(word) > LONGEST:
                del self.known[word]
        return found
