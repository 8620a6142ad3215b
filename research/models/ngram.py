"""Language models by counting: n-grams of any order with interpolated, modified Kneser-Ney.

Counts are sorted arrays of numbers, one for each n-gram that occurs, so that fitting and asking are
sorts and binary searches over whole corpora. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """The k-grams of one k that occur, in ascending order of their keys.

    A key, int64, is (number of its first k - 1 tokens) * (V + 1) + last token. `kept` float64
    [k-grams] is the count after discounting, over the total of its context; of every context, the
    (k - 1)-grams of the level below, `spare` float64 is what the lower order shares out, and 1
    where nothing followed.
    """

    keys: np.ndarray
    kept: np.ndarray
    spare: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The numbers of k-grams, int64 as `keys`; -1 for those that do not occur."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class NGram:
    """P(token | the up to `order` - 1 tokens before it in its document), over V tokens.

    Interpolated Kneser-Ney (Kneser & Ney, 1995) with three discounts an order (Chen & Goodman,
    1999), the lowest order interpolated with the uniform distribution: no token has probability 0.
    Every document begins with a start of its own, number V, that is never predicted; an n-gram
    that begins with it keeps its plain count, as in KenLM (Heafield et al., 2013). Order 1 is the
    unigram model. Made by `fit`.
    """

    order: int
    vocab_size: int
    levels: tuple[Level, ...]

    @property
    def parameters(self) -> int:
        """How many n-grams are counted."""
        return sum(len(level.keys) for level in self.levels)

    def log_prob(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Of every token given its document's history, in nats: float64 [tokens].

        Document i is tokens[offsets[i]:offsets[i + 1]], as in `Encoded`.
        """
        line, real = with_starts(tokens, offsets, self.vocab_size)
        found = np.full(len(line), 1.0 / self.vocab_size)
        context = np.zeros(len(line), np.int64)
        for level in self.levels:
            # Where the history is unseen or not that long, the lower order has the last word.
            keys = context * (self.vocab_size + 1) + line
            gram = np.where(context >= 0, level.find(keys), -1)
            spare = np.where(context >= 0, level.spare[context], 1.0)
            found = np.where(gram >= 0, level.kept[gram], 0.0) + spare * found
            context = contexts(gram, real)
        log_prob: np.ndarray = np.log(found[real])
        return log_prob

    def probabilities(self, history: np.ndarray) -> np.ndarray:
        """Of every token after a document's first tokens, int [any length]: float64 [V]."""
        line = np.append(self.vocab_size, np.asarray(history, np.int64))[-max(1, self.order - 1) :]
        found = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for k, level in enumerate(self.levels):
            context = self.number(line[len(line) - k :]) if k <= len(line) else -1
            if context < 0:
                break
            first = context * (self.vocab_size + 1)
            span = slice(*np.searchsorted(level.keys, [first, first + self.vocab_size]))
            found *= level.spare[context]
            found[level.keys[span] - first] += level.kept[span]
        return found

    def number(self, gram: np.ndarray) -> int:
        """The number of a k-gram in its level, -1 where it does not occur; 0 of the empty one."""
        number = 0
        for level, token in zip(self.levels, gram.tolist()):
            number = int(level.find(np.array([number * (self.vocab_size + 1) + token]))[0])
            if number < 0:
                break
        return number

    def sample(self, length: int, seed: int = 0) -> np.ndarray:
        """The first tokens of a document, drawn one after another: int64 [length]."""
        chosen: list[int] = []
        for draw in np.random.Generator(np.random.Philox(seed)).random(length):
            upto = np.cumsum(self.probabilities(np.array(chosen, np.int64)))
            chosen.append(int(np.searchsorted(upto, draw * upto[-1], side="right")))
        return np.array(chosen)

    def outputs(self, examples: Any) -> dict[str, np.ndarray]:
        """What `CausalLM.predict` says, of `Examples` whose texts begin with one special token.

        `nll` float64 [N] in nats and `count` [N] of the tokens after that first one, which stands
        for the start of a document here.
        """
        encoded = examples.encoded
        values = -self.log_prob(*without_first(encoded.tokens, encoded.offsets))
        count = encoded.lengths - 1
        owner = np.repeat(np.arange(len(count)), count)
        return {
            "ids": np.arange(len(count)),
            "nll": np.bincount(owner, values, len(count)),
            "count": count,
            **examples.slots,
        }


def fit(tokens: np.ndarray, offsets: np.ndarray, *, order: int, vocab_size: int) -> NGram:
    """Counts the n-grams of documents up to `order`: tokens int [tokens] in [0, vocab_size).

    Document i is tokens[offsets[i]:offsets[i + 1]]; no n-gram spans two. Raises ConfigError for an
    order below 1, for tokens out of range and where there are none.
    """
    if order < 1:
        raise ConfigError(f"n-gram: order is {order}, but must be positive")
    if not len(tokens) or tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ConfigError(f"n-gram: expected one token or more, all in [0, {vocab_size})")
    line, real = with_starts(tokens, offsets, vocab_size)
    # Of each k: keys, a place where each k-gram ends, and the k-gram that ends at each place or -1.
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    context = np.zeros(len(line), np.int64)
    for _ in range(order):
        places = np.flatnonzero(context >= 0)
        if not len(places):
            break
        keys, first, inverse = np.unique(
            context[places] * (vocab_size + 1) + line[places],
            return_index=True,
            return_inverse=True,
        )
        gram = np.full(len(line), -1, np.int64)
        gram[places] = inverse
        found.append((keys, places[first], gram))
        context = contexts(gram, real)
    levels = []
    for k, (keys, _, gram) in enumerate(found):
        counts = np.bincount(gram[gram >= 0], minlength=len(keys))
        if k + 1 < len(found):
            # How many different tokens come before it; before a document's start there are none.
            different = np.bincount(gram[found[k + 1][1]], minlength=len(keys))
            counts = np.where(different > 0, different, counts)
        contexts_below = len(found[k - 1][0]) if k else 1
        levels.append(discounted(keys, counts, contexts_below, vocab_size, unigrams=k == 0))
    return NGram(order=order, vocab_size=vocab_size, levels=tuple(levels))


def discounted(
    keys: np.ndarray, counts: np.ndarray, contexts_below: int, vocab_size: int, *, unigrams: bool
) -> Level:
    """A level from its k-grams and their counts, plain or of different tokens before."""
    context, token = keys // (vocab_size + 1), keys % (vocab_size + 1)
    if unigrams:
        counts = np.where(token == vocab_size, 0, counts)
    steps = discounts(counts)
    taken = np.minimum(steps[np.minimum(counts, 3)], counts)
    total = np.bincount(context, counts, contexts_below)
    lost = np.bincount(context, taken, contexts_below)
    spare = np.divide(lost, total, out=np.ones(contexts_below), where=total > 0)
    return Level(keys=keys, kept=(counts - taken) / np.maximum(total[context], 1), spare=spare)


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken of a count of 0, 1, 2 and of 3 or more: float64 [4].

    Those of Chen & Goodman (1999); where counts are too few to tell them apart, the one discount
    of Kneser & Ney (1995), and a half where nothing was seen once or nothing twice.
    """
    once, twice, thrice, often = (int(np.sum(counts == k)) for k in (1, 2, 3, 4))
    if not once or not twice:
        return np.array([0.0, 0.5, 0.5, 0.5])
    share = once / (once + 2 * twice)
    if thrice and often:
        found = np.array(
            [
                0.0,
                1 - 2 * share * twice / once,
                2 - 3 * share * thrice / twice,
                3 - 4 * share * often / thrice,
            ]
        )
        if (found[1:] > 0).all():
            return found
    return np.array([0.0, share, share, share])


def with_starts(
    tokens: np.ndarray, offsets: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents one after another, `start` before each: int64 [tokens + documents], and which of
    them are tokens, bool."""
    begins = np.asarray(offsets[:-1], np.int64) + np.arange(len(offsets) - 1)
    real = np.ones(len(tokens) + len(begins), bool)
    real[begins] = False
    line = np.full(len(real), start, np.int64)
    line[real] = tokens
    return line, real


def contexts(gram: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The number of the gram that ends before each place of its document, -1 for none."""
    before = np.concatenate([[-1], gram[:-1]])
    return np.where(real, before, -1)


def without_first(tokens: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same documents, each without its first token."""
    keep = np.ones(len(tokens), bool)
    keep[offsets[:-1]] = False
    return np.asarray(tokens)[keep], offsets - np.arange(len(offsets))
