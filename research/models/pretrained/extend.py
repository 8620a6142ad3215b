"""A Hugging Face directory whose tokenizer and trunk know more words: those of a domain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.data.domain import Domain, with_words
from research.errors import ConfigError
from research.models.pretrained.directory import family_of, resolve
from research.models.pretrained.export import refuse_foreign, to_tokenizer, write_directory
from research.models.pretrained.family import Family
from research.models.pretrained.tensors import Tensors

# Parameters with a row or a number a token.
BY_TOKEN = ("backbone/embed/table", "backbone/unembed/table", "bias")


@dataclass(frozen=True)
class Extension:
    """What was added to a directory, and the tokens a word of the domain before and after."""

    directory: Path
    words: tuple[str, ...]
    before: float
    after: float

    def __str__(self) -> str:
        first = f" ({', '.join(self.words[:5])}, ...)" if self.words else ""
        return (
            f"{self.directory}: {len(self.words)} words added{first}, tokens a word "
            f"{self.before:.3f} -> {self.after:.3f}"
        )


def by_words(source: str, texts: Iterable[str], most: int, to: str | Path) -> Extension:
    """Writes to `to` the model of `source` with up to `most` words of the texts in its vocabulary.

    They are the words that save most tokens (AVocaDo's aim: Hong et al., 2021). The vector of a
    new word is the mean of those of its pieces (Hewitt, 2021, takes the mean of all), in the output
    and its bias too. Texts without a new word give the tokens, vectors and logits they gave before.
    Raises ConfigError for a tokenizer that is no WordPiece and for `most` below 1.
    """
    if most < 1:
        raise ConfigError(f"{most} words to add; expected 1 or more")
    directory, to = resolve(source), Path(to)
    refuse_foreign(to)
    family, config = family_of(directory)
    spec = family.to_spec(config)
    tokenizer, settings = to_tokenizer(family, spec, str(directory))
    domain = Domain.of(texts, tokenizer)
    words = domain.useful(tokenizer, most)
    extended = with_words(tokenizer, words)
    numbers = extended.get_vocab(with_added_tokens=True)
    pieces = {numbers[word]: ids for word, ids in words.items()}
    rows = max([spec.vocab_size, *(i + 1 for i in pieces)])
    tensors = grown(directory, family, pieces, rows)
    values = {**config.values, "vocab_size": rows}
    write_directory(to, values, extended, settings, tensors)
    before, after = (domain.tokens_per_word(t) for t in (tokenizer, extended))
    return Extension(to, tuple(words), before, after)


def grown(
    directory: Path, family: Family, pieces: Mapping[int, tuple[int, ...]], rows: int
) -> dict[str, np.ndarray]:
    """All tensors of a directory, those by token with `rows` rows: row i is the mean of the rows
    `pieces[i]`."""
    spec = family.to_spec(family_of(directory)[1])
    rules = (*family.rules, *(rule for task in family.tasks.values() for rule in task.rules))
    by_token = {rule.theirs for rule in rules if rule.ours in BY_TOKEN}
    found = {}
    with Tensors(directory) as tensors:
        names, _ = family.canonical(tensors.files)
        for today, name in names.items():
            value = tensors.files[name].get_tensor(name)
            mine = today in by_token or any(re.search(tied, today) for tied in family.tied)
            if mine and value.shape[0] == spec.vocab_size:
                larger = np.zeros((rows, *value.shape[1:]), value.dtype)
                larger[: len(value)] = value
                for row, parts in pieces.items():
                    mean = value[list(parts)].astype(np.float32).mean(axis=0)
                    larger[row] = mean.astype(value.dtype)
                value = larger
            found[name] = value
    return found
