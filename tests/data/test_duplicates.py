"""Duplicates: what goes has a like that stays, and brute force over all pairs finds no others."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.duplicates import Exact, MinHash, overlapping, shingles, words_of

VOCABULARY = [f"w{i}" for i in range(500)]


def firsts(finder: Exact | MinHash, texts: list[str], chunk: int = 7) -> list[int]:
    """What stays, where the texts come a few at a time."""
    found = [finder.sketch(texts[i : i + chunk]) for i in range(0, len(texts), chunk)]
    hashes, counts = (np.concatenate(parts) for parts in zip(*found))
    return np.flatnonzero(finder.firsts(hashes, counts)).tolist()


def shingle_set(text: str, size: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} - {()}


def brute(texts: list[str], threshold: float, size: int) -> list[int]:
    """The greedy rule over all pairs: a text goes where an earlier one that stays is like it."""
    kept: list[int] = []
    sets = [shingle_set(text, size) for text in texts]
    for i, mine in enumerate(sets):
        like = (len(mine & sets[j]) / len(mine | sets[j]) for j in kept if mine | sets[j])
        if not any(s >= threshold for s in like):
            kept.append(i)
    return kept


def near_copies(seed: int, count: int = 60) -> list[str]:
    """Texts of 30 to 60 words, and after them copies with 0 to 12 words changed, mixed."""
    rng = np.random.default_rng(seed)
    texts = [list(rng.choice(VOCABULARY, rng.integers(30, 60))) for _ in range(count)]
    for text in list(texts):
        copy = list(text)
        for place in rng.integers(0, len(copy), rng.integers(0, 13)):
            copy[place] = rng.choice(VOCABULARY)
        texts.append(copy)
    return [" ".join(texts[i]) for i in rng.permutation(len(texts))]


def test_near_copies_are_those_of_brute_force() -> None:
    kept = expected = both = 0
    for seed in range(8):
        texts = near_copies(seed)
        mine, theirs = set(firsts(MinHash(threshold=0.5), texts)), set(brute(texts, 0.5, 5))
        gone, should = set(range(120)) - mine, set(range(120)) - theirs
        assert gone <= should
        kept, expected, both = kept + len(gone), expected + len(should), both + len(gone & should)
    assert expected > 100
    # At a similarity of just 0.5 a pair is asked about with probability 0.55, at 0.8 with 0.9999.
    assert both / expected > 0.9
    assert both == kept


def test_at_the_usual_threshold_nothing_is_missed() -> None:
    for seed in range(4):
        texts = near_copies(seed)
        assert firsts(MinHash(), texts) == brute(texts, 0.8, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab \n.B", max_size=6), min_size=1, max_size=20))
def test_exact_copies_are_those_of_a_set(texts: list[str]) -> None:
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        seen.setdefault(" ".join(text.lower().split()), i)
    assert firsts(Exact(), texts) == sorted(seen.values())


def test_the_first_stays_and_case_and_punctuation_do_not_tell_near_copies_apart() -> None:
    one = " ".join(VOCABULARY[:30])
    other = " ".join(VOCABULARY[40:70])
    texts = [one, other, one.upper(), f"({one})!", "", "...", "short", "Short.", other + " more"]
    assert firsts(MinHash(), texts) == [0, 1, 4, 5, 6]
    assert firsts(Exact(), texts) == [0, 1, 3, 4, 5, 6, 7, 8]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=8), st.integers(1, 6))
def test_hashes_are_equal_where_the_words_are(texts: list[str], size: int) -> None:
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    hashes, counts = words_of(texts)
    assert counts.tolist() == [len(found) for found in words]
    flat = [word for found in words for word in found]
    assert len(set(hashes.tolist())) == len(set(flat))
    assert len(set(zip(flat, hashes.tolist()))) == len(set(flat))
    runs, counts = shingles(texts, size)
    ends = np.cumsum(counts)
    grams = {}
    for text, end, count in zip(texts, ends, counts):
        mine = set(runs[end - count : end].tolist())
        assert len(mine) == len(shingle_set(text, size))
        grams[text] = mine
    for one in texts:
        for other in texts:
            common = shingle_set(one, size) & shingle_set(other, size)
            assert len(grams[one] & grams[other]) == len(common)


def test_overlap_is_that_of_word_runs() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(VOCABULARY[:20], 12)) for _ in range(200)]
    held_out = texts[:3]
    forbidden = np.unique(shingles(held_out, 4)[0])
    sets = [shingle_set(text, 4) for text in texts]
    expected = [bool(mine & (sets[0] | sets[1] | sets[2])) for mine in sets]
    assert overlapping(texts, forbidden, 4).tolist() == expected
    assert 3 <= sum(expected) < 50
    assert not overlapping(texts, np.zeros(0, np.uint64), 4).any()


def test_another_process_finds_the_same(tmp_path: object) -> None:
    """No hash of Python's own, which differs between processes, decides anything."""
    code = (
        "from research.data.duplicates import MinHash; import sys, hashlib;"
        "m = MinHash(); h, c = m.sketch(['a b c d e f g', 'x y z']);"
        "print(hashlib.sha256(h.tobytes() + m.signatures(h, c).tobytes()).hexdigest())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    finder = MinHash()
    hashes, counts = finder.sketch(["a b c d e f g", "x y z"])
    both = hashes.tobytes() + finder.signatures(hashes, counts).tobytes()
    assert said == hashlib.sha256(both).hexdigest()
