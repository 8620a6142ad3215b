"""Arms: the table holds every seed, the tests are those of paired_test, corrected by Holm's."""

from __future__ import annotations

import pytest

from research.errors import ConfigError
from research.study.arms import Arms
from research.study.statistics import Summary, holm, paired_test

SCORES = {
    ("plain", "few"): [0.1, 0.4, 0.3],
    ("plain", "many"): [0.5, 0.6, 0.4],
    ("new", "few"): [0.2, 0.6, 0.35],
    ("new", "many"): [0.5, 0.55, 0.5],
    ("odd", "few"): [0.0, 0.1, 0.0],
}


@pytest.fixture
def arms() -> Arms:
    made = Arms("F1")
    for (arm, condition), values in SCORES.items():
        for value in values:
            made.add(arm, condition, value)
    return made


def test_the_table_has_an_arm_a_row_and_a_condition_a_column(arms: Arms) -> None:
    table = arms.table("All")
    assert table.columns == ("", "few", "many")
    assert [row[0] for row in table.rows] == ["plain", "new", "odd"]
    assert table.rows[1][2] == Summary.of(SCORES["new", "many"])
    assert table.rows[2][2] == ""


def test_tests_pair_seeds_at_each_condition_and_over_all(arms: Arms) -> None:
    table = arms.tests("Tests", [("new", "plain"), ("odd", "plain")])
    assert [row[:3] for row in table.rows] == [
        ("new", "plain", "few"),
        ("new", "plain", "many"),
        ("new", "plain", "all"),
        ("odd", "plain", "few"),
    ]
    both = paired_test(
        SCORES["new", "few"] + SCORES["new", "many"],
        SCORES["plain", "few"] + SCORES["plain", "many"],
    )
    assert table.rows[2][3:6] == (both.difference, 6, both.p)
    assert [row[6] for row in table.rows] == holm([row[5] for row in table.rows])


def test_arms_with_other_seeds_are_refused_and_one_seed_is_not_tested(arms: Arms) -> None:
    arms.add("odd", "few", 0.2)
    with pytest.raises(ConfigError, match="'odd' has 4 scores under 'few' and 'plain' 3"):
        arms.tests("Tests", [("odd", "plain")])
    single = Arms("F1", {("a", "x"): [0.1], ("b", "x"): [0.2]})
    assert single.tests("Tests", [("a", "b")]).rows == ()
    assert len(arms.figures()) == 2


def test_arms_that_are_equal_have_no_size_of_effect() -> None:
    equal = Arms("F1", {("a", "x"): [0.1, 0.2], ("b", "x"): [0.1, 0.2]})
    ((*_, size, needed),) = equal.tests("Tests", [("a", "b")]).rows
    assert size is None and needed is None
    assert "nan" not in equal.tests("Tests", [("a", "b")]).to_text()
