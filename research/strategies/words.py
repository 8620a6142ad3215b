"""SeenWords: of the table of words, only the rows of words that the training data have learn.

A word that no training text has gets no gradient, and AdamW has nothing to do for it. What it does
for all others in vain is most of what an optimizer does in a small trunk, and for a vocabulary of
many languages most of what it holds. So gradient, optimizer state and update are of the rows that
are `seen`; everything else meets the whole table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax

from research.adapt import Flat, Leaves, Rule, Strategy
from research.errors import ConfigError

TABLE = "backbone/embed/table"
ROWS, WORDS = "backbone/embed/seen_rows", "backbone/embed/seen_words"


@dataclass(frozen=True, kw_only=True)
class SeenWords(Strategy):
    """Words that the training data do not have stay as they are; weight decay spares them too.

    All else is left as other strategies have it. For tasks that read the table to look words up:
    one whose words are scored against it moves all of its rows, and is refused.
    """

    def check(self, leaves: Leaves) -> None:
        if TABLE not in leaves:
            raise ConfigError(f"adapt: SeenWords: this trunk has no {TABLE}")

    def refine(self, rules: dict[str, Rule], leaves: Leaves) -> dict[str, Rule]:
        return rules | {TABLE: dataclasses.replace(rules[TABLE], seen=True)}


def picked(flat: Flat, words: jax.Array | None) -> Flat:
    """Of the table, and of where it started, the rows of `words` alone: [V, D] -> [U, D]."""
    if words is None:
        return flat
    return {
        path: leaf[words] if path in (TABLE, f"{TABLE}_start") else leaf
        for path, leaf in flat.items()
    }


def shown(learning: Flat, words: jax.Array | None) -> Flat:
    """What learns as the layers are to find it: rows of the table beside the whole of it."""
    if words is None:
        return learning
    rest = {path: leaf for path, leaf in learning.items() if path != TABLE}
    return rest | {ROWS: learning[TABLE], WORDS: words}


def put_back(whole: Flat, learned: Flat, words: jax.Array | None) -> Flat:
    """What has learned, with the table whole again, of which `whole` has the other rows."""
    if words is None:
        return learned
    table = whole[TABLE].at[words].set(learned[TABLE], unique_indices=True, indices_are_sorted=True)
    return learned | {TABLE: table}
