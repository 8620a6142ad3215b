"""Documents that are there twice, word for word or nearly, or that hold text of other splits."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Copies: equal but for case and white space. The first stays."""

    reason = "copies"

    def sketch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of texts: uint64 [2 N], and how many each has, int64 [N]."""
        folded = (" ".join(text.lower().split()).encode("utf-8") for text in texts)
        raw = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in folded)
        return np.frombuffer(raw, "<u8"), np.full(len(texts), 2)

    def firsts(self, hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Which texts to keep, bool [N], of the sketches of all."""
        pairs = hashes.reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        new = np.append(True, (np.diff(pairs[order].astype(np.uint64), axis=0) != 0).any(axis=1))
        keep = np.zeros(len(pairs), bool)
        keep[order[new[: len(order)]]] = True
        return keep


@dataclass(frozen=True, kw_only=True)
class MinHash:
    """Near copies by their shingles, the runs of `words` words (Broder, 1997; Lee et al., 2022).

    A text goes where an earlier one that stays shares at least `threshold` of the shingles of the
    two (their Jaccard similarity s). Which earlier ones are asked is decided by MinHash: those with
    which it agrees in all `rows` hashes of at least one of `bands`, which has the probability
    1 - (1 - s^rows)^bands: 0.9999 at s = 0.8, 0.55 at 0.5, 0.06 at 0.3. The similarity itself is
    counted, so nothing goes that is less alike. Memory: 8 bytes a word and 8 a band and text.
    """

    threshold: float = 0.8
    words: int = 5
    bands: int = 25
    rows: int = 5
    reason = "near copies"

    def sketch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the shingles of texts, uint64 [S], and how many each has, int64 [N]."""
        return shingles(texts, self.words)

    def firsts(self, hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Which texts to keep, bool [N], of the sketches of all."""
        keep = np.ones(len(counts), bool)
        ends = np.cumsum(counts)
        bands = self.signatures(hashes, counts)
        # A text that agrees with no other in any band is not looked at again.
        shared = np.zeros(len(bands), bool)
        for band in bands.T:
            _, which, count = np.unique(band, return_inverse=True, return_counts=True)
            shared |= count[which] > 1
        buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(self.bands)]
        kept: dict[int, np.ndarray] = {}
        written = np.flatnonzero(counts)
        for row, text in zip(np.flatnonzero(shared).tolist(), written[shared].tolist()):
            mine = np.unique(hashes[ends[text] - counts[text] : ends[text]])
            keys = list(zip(buckets, bands[row].tolist()))
            asked = sorted({other for bucket, key in keys for other in bucket.get(key, ())})
            if any(jaccard(mine, kept[other]) >= self.threshold for other in asked):
                keep[text] = False
                continue
            kept[text] = mine
            for bucket, key in keys:
                bucket[key].append(text)
        return keep

    def signatures(self, hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """One hash a band of each text that has a shingle: uint64 [N', bands].

        The hashes of a band are the smallest that a text's shingles have under random functions:
        two texts agree in one of them with the probability of their similarity.
        """
        counts = counts[counts > 0]
        starts = np.cumsum(counts) - counts
        drawn = np.random.Philox(key=np.array([0, 0], np.uint64)).random_raw(2 * self.functions)
        bands = np.zeros((len(counts), self.bands), np.uint64)
        for number in range(self.functions if len(counts) else 0):
            factor, shift = drawn[2 * number] | np.uint64(1), drawn[2 * number + 1]
            least = np.minimum.reduceat(mix(hashes * factor + shift), starts)
            band = bands[:, number // self.rows]
            band[:] = mix(band ^ least)
        return bands

    @property
    def functions(self) -> int:
        """Random functions in all."""
        return self.bands * self.rows


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The share of two sets' members that both have; sorted arrays without repeats."""
    both = np.intersect1d(one, other, assume_unique=True).size
    return both / (one.size + other.size - both)


def mix(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of `x` (Steele et al., 2014), uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def words_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A hash of every word, lower-cased and without punctuation, uint64 [W]; words of each text.

    A word is a polynomial of its bytes, modulo 2^64.
    """
    found = [WORD.findall(text.lower()) for text in texts]
    counts = np.array([len(words) for words in found], np.int64)
    raw = "".join(f"{word} " for words in found for word in words).encode("utf-8", "surrogatepass")
    signs = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(signs == 32) + 1
    if not len(ends):
        return np.zeros(0, np.uint64), counts
    lengths = np.diff(ends, prepend=0)
    within = np.arange(len(signs)) - np.repeat(ends - lengths, lengths)
    table = mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    powers = np.full(int(lengths.max()), 0xD1342543DE82EF95, np.uint64).cumprod(dtype=np.uint64)
    return mix(np.add.reduceat(table[signs] * powers[within], ends - lengths)), counts


def shingles(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash of every run of `size` words, uint64 [S], in order, and how many each text has.

    A text of fewer words is one shingle, one without words has none.
    """
    words, counts = words_of(texts)
    runs = np.where(counts > 0, np.maximum(counts - size + 1, 1), 0)
    first = np.cumsum(counts) - counts
    within = np.arange(int(runs.sum())) - np.repeat(np.cumsum(runs) - runs, runs)
    starts = np.repeat(first, runs) + within
    length = np.repeat(np.minimum(counts, size), runs)
    total = np.zeros(len(starts), np.uint64)
    for k in range(size):
        inside = k < length
        # Horner's rule: the order of the words counts.
        total[inside] = mix(total[inside] + words[starts[inside] + k])
    return total, runs


def overlapping(texts: Sequence[str], held_out: np.ndarray, size: int) -> np.ndarray:
    """Which texts share a run of `size` words with others, whose hashes are `held_out`, ascending:
    bool [N]."""
    hashes, counts = shingles(texts, size)
    place = np.minimum(np.searchsorted(held_out, hashes), max(len(held_out) - 1, 0))
    hit = held_out[place] == hashes if len(held_out) else np.zeros(len(hashes), bool)
    owner = np.repeat(np.arange(len(texts)), counts)
    return np.bincount(owner[hit], minlength=len(texts)) > 0
