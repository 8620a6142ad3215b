"""Quality filters: each rule by an example on either side of it, and on real prose."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest
from test_corpus import DATA

from research.data.quality import Gopher, Length, Repetition, repeated_share, top_share

PROSE = (
    "The committee met on a Tuesday to decide what should be done with the old bridge, and "
    "nobody was surprised that it took them until the evening to agree. Some of the members "
    "have argued for years that a new one would cost less; others think of it as theirs."
)


def test_prose_passes() -> None:
    for rule in (Gopher(words=(20, 1000)), Repetition(), Length(fewest=20, most=60)):
        assert rule.reason(PROSE) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("too short", "under 20 words"),
        (PROSE * 30, "over 1000 words"),
        ("a b c d e " * 10, "mean word length not within 3 to 10"),
        (PROSE + " # # # # # ...", "over 0.1 symbols a word"),
        ("\n".join(f"- {line}" for line in PROSE.split(",")), "over 0.9 of the lines are bullets"),
        ("...\n".join(PROSE.split(",")) + "…", "over 0.3 of the lines end in an ellipsis"),
        (PROSE + " 1234" * 30, "under 0.8 of the words have a letter"),
        ("bridge committee evening " * 10, "under 2 stop words"),
    ],
)
def test_each_rule_of_quality_has_its_reason(text: str, reason: str) -> None:
    assert Gopher(words=(20, 1000)).reason(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one\ntwo\none\none", "over 0.3 of the lines are copies"),
        (f"{PROSE}\na\nb\nc\nd\n{PROSE}", "copied lines hold over 0.2 of the characters"),
        ("a\nb\n\nc\nd\n\na\nb", "over 0.3 of the lines are copies"),
        ("rain on the roof and rain on the hill and rain on", "a 2-gram covers over 0.2 of the"),
        (f"{PROSE} So. {PROSE}", "repeated 5-grams cover over 0.15 of the words"),
    ],
)
def test_each_rule_of_repetition_has_its_reason(text: str, reason: str) -> None:
    found = Repetition().reason(text)
    assert found is not None
    assert found.startswith(reason)


def test_shares_of_n_grams_are_those_counted_by_hand() -> None:
    words = ["a", "bb", "a", "bb", "ccc"]
    assert top_share(words, 2) == pytest.approx(2 * 3 / 9)
    assert repeated_share(words, 2) == pytest.approx(6 / 9)
    assert repeated_share(["a", "a", "a", "a"], 3) == 1.0
    assert top_share(["a", "b", "c"], 2) == repeated_share(["a"], 2) == 0.0


@pytest.mark.skipif(not DATA.is_dir(), reason="GRAFT_DATA: the real data sets are not here")
def test_real_speeches_pass() -> None:
    with zipfile.ZipFile(Path(DATA) / "data/lm/state_union.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".txt")][:12]
        texts = [archive.read(name).decode(errors="replace") for name in names]
    reasons = Counter(Gopher().reason(text) or Repetition(top=()).reason(text) for text in texts)
    assert reasons == {None: len(texts)}
