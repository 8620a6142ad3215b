"""Packing: nothing overlaps, near the fewest rows, every step fits a planned shape."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.pack import (
    COMPILING,
    WORTH,
    Plan,
    choose_rows,
    pack,
    plan,
    rescue,
    rows_spent,
    slots_of,
)
from research.errors import ConfigError

lengths_of = st.lists(st.integers(1, 12), min_size=1, max_size=40).map(np.array)


def fewest_rows(lengths: list[int], row_length: int) -> int:
    """By trying every assignment of examples to rows, up to renaming rows."""
    best = len(lengths)

    def place(i: int, rows: list[int]) -> None:
        nonlocal best
        if len(rows) >= best:
            return
        if i == len(lengths):
            best = len(rows)
            return
        for r in range(len(rows)):
            if rows[r] + lengths[i] <= row_length:
                place(i + 1, [*rows[:r], rows[r] + lengths[i], *rows[r + 1 :]])
        place(i + 1, [*rows, lengths[i]])

    place(0, [])
    return best


@settings(max_examples=200, deadline=None)
@given(lengths_of, st.integers(12, 30))
def test_examples_lie_whole_in_a_row_and_apart(lengths, row_length):
    row, start = pack(lengths, row_length)
    covered = np.zeros((row.max() + 1, row_length), int)
    for r, s, n in zip(row, start, lengths):
        assert s + n <= row_length
        covered[r, s : s + n] += 1
    assert covered.max() == 1
    assert covered.sum() == lengths.sum()
    assert (covered.sum(axis=1) > 0).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_rows_are_near_the_fewest_that_brute_force_finds(lengths):
    rows = pack(np.array(lengths), 12)[0].max() + 1
    assert rows <= 11 / 9 * fewest_rows(lengths, 12) + 6 / 9


@settings(max_examples=200, deadline=None)
@given(lengths_of, st.integers(12, 30))
def test_slots_number_the_examples_of_a_row_from_left_to_right(lengths, row_length):
    row, start = pack(lengths, row_length)
    slots = slots_of(row, start)
    for r in range(row.max() + 1):
        inside = np.flatnonzero(row == r)
        assert slots[inside[np.argsort(start[inside])]].tolist() == list(range(len(inside)))


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="lengths 1 to 9 in rows of 8"):
        pack(np.array([1, 9]), 8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([40, 200, 10_000]),
)
def test_row_counts_are_the_best_of_all_choices_compilation_included(needed, shapes, steps):
    needed = np.array(needed)
    values = sorted(set(needed.tolist()))
    choices = [
        list(sizes)
        for k in range(1, shapes + 1)
        for sizes in itertools.combinations(values, k)
        if sizes[-1] == values[-1]
    ]
    fewest = min(rows_spent(needed, sizes) for sizes in choices)

    def cost(sizes: list[int]) -> float:
        return rows_spent(needed, sizes) + len(sizes) * fewest * max(WORTH, COMPILING / steps)

    found = choose_rows(needed, shapes, steps)
    assert len(found) <= shapes
    assert cost(found) == pytest.approx(min(map(cost, choices)))


def test_a_short_run_is_not_worth_a_second_compilation():
    needed = np.array([1, 9] * 5)
    assert choose_rows(needed, 2) == [9]
    assert choose_rows(needed, 2, 10_000) == [1, 9]


steps_of = st.lists(
    st.lists(st.integers(1, 20), min_size=1, max_size=30).map(np.array), min_size=1, max_size=10
)


@settings(max_examples=150, deadline=None)
@given(
    steps_of,
    st.sampled_from(["packed", "padded"]),
    st.integers(1, 3),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([None, 20, 64]),
    st.one_of(st.none(), steps_of),
)
def test_every_step_fits_and_padding_is_what_is_said(
    steps, layout, shapes, multiple, row_length, usual
):
    more = {"row_length": row_length, "usual": usual}
    found = plan(steps, layout=layout, shapes=shapes, multiple=multiple, **more)
    cells = 0
    for lengths in steps:
        row, start = found.place(lengths)
        rows, length, most = found.shape(row)
        assert row.max() < rows
        assert (start + lengths <= length).all()
        assert np.bincount(row).max() <= most
        cells += rows * length
    assert len(found.shapes) <= shapes
    assert all(rows % multiple == 0 for rows, _, _ in found.shapes)
    assert len({length for _, length, _ in found.shapes}) == 1
    assert row_length is None or found.row_length == row_length
    assert row_length is not None or found.row_length % 8 == 0
    assert found.padding == pytest.approx(1 - sum(map(np.sum, steps)) / cells, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=20).map(np.array), st.data())
def test_the_rescue_shape_takes_any_step_of_a_stream(every, data):
    count = data.draw(st.integers(1, 40))
    multiple = data.draw(st.sampled_from([1, 4]))
    shapes = ((1, 16, 1), *rescue((1, 16, 1), every, count, multiple))
    epochs = [data.draw(st.permutations(range(len(every)))) for _ in range(count // len(every) + 2)]
    stream = np.concatenate([every[order] for order in epochs])
    first = data.draw(st.integers(0, len(every)))
    found = Plan(shapes, 0.0)
    row, _ = found.place(stream[first : first + count])
    assert found.shape(row)[0] > row.max()


def test_a_plan_from_a_sample_takes_steps_it_never_saw():
    lengths = np.concatenate([np.full(992, 4), np.full(32, 60)])
    found = plan([lengths[:32]], every=lengths, multiple=2)
    worst = lengths[-32:]
    row, _ = found.place(worst)
    assert found.shape(row) == found.shapes[-1]
    assert found.shape(found.place(lengths[:32])[0]) == found.shapes[0]


def test_packing_takes_a_fraction_of_the_padded_cells():
    rng = np.random.default_rng(0)
    steps = [np.clip(rng.lognormal(2.4, 0.6, 32).astype(int), 3, 66) for _ in range(500)]
    packed, padded = plan(steps), plan(steps, layout="padded")
    assert packed.padding < 0.2
    assert padded.padding > 0.7
    assert padded.shapes == ((32, 72, 1),)


def test_a_row_length_below_the_longest_example_is_a_config_error():
    with pytest.raises(ConfigError, match="row_length is 8, but the longest example has 9 tokens"):
        plan([np.array([9, 3])], row_length=8)


def test_a_run_of_the_usual_size_is_planned_at_once():
    rng = np.random.default_rng(0)
    steps = [np.clip(rng.lognormal(2.4, 0.6, 32).astype(int), 3, 66) for _ in range(2_100)]
    began = time.process_time()
    plan(steps, multiple=8)
    assert time.process_time() - began < 2.0
