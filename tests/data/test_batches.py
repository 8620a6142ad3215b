"""Batches: conservation, purity, permutations, hosts; against a plain padded loader."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import batches as module
from research.data.batches import Arrangement, Batches, Examples
from research.data.prefetch import prefetch
from research.data.tokenize import Encoded
from research.errors import ConfigError


def make(lengths, *, labels=None, units=None) -> Examples:
    """Examples whose tokens are all different, so that any of them can be traced."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    rng = np.random.default_rng(total)
    words = rng.integers(0, 3, total).astype(np.uint8)
    words[offsets[:-1]] = 2
    for first, last in itertools.pairwise(offsets):
        if last - first > 1:
            words[first + 1] = 1
    encoded = Encoded(
        tokens=np.arange(1, total + 1, dtype=np.int32),
        types=rng.integers(0, 2, total).astype(np.uint8),
        words=words,
        offsets=offsets,
        row_of=np.arange(len(lengths)),
        blank=np.zeros(0, np.int64),
        truncated=0,
        lost=0,
        fingerprint=str(list(lengths)),
    )
    numbers = np.arange(len(lengths), dtype=np.int32) % 7 if labels is None else labels
    weights = np.ones(len(lengths), np.float32)
    return Examples(encoded=encoded, slots={"labels": numbers, "weights": weights}, units=units)


def unpack(batch) -> list[dict[str, np.ndarray]]:
    """The examples of a batch one by one, read off by starts and lengths."""
    found = []
    for b, m in np.argwhere(batch["ids"] >= 0):
        first, length = batch["starts"][b, m], batch["lengths"][b, m]
        cells = {
            name: batch[name][b, first : first + length]
            for name in ("tokens", "positions", "segments", "types", "words")
            if name in batch
        }
        single = {name: batch[name][b, m] for name in ("ids", "labels", "weights")}
        found.append({"slot": m, **cells, **single})
    return found


lengths_of = st.lists(st.integers(1, 12), min_size=1, max_size=40)
arrangements = st.builds(
    Arrangement,
    layout=st.sampled_from(["packed", "padded"]),
    row_length=st.sampled_from([None, 16]),
    shapes=st.integers(1, 3),
    words=st.just(True),
)


@settings(max_examples=150, deadline=None)
@given(lengths_of, st.integers(1, 50), st.sampled_from([1, 2, 8]), arrangements)
def test_a_pass_holds_every_example_and_token_exactly_once(lengths, size, multiple, arrangement):
    examples = make(lengths)
    batches = Batches(examples, size, multiple=multiple, arrangement=arrangement)
    seen, tokens = [], []
    for step in range(batches.steps):
        batch = batches.batch(step)
        assert (*batch["tokens"].shape, batch["ids"].shape[1]) in batches.shapes
        assert batch["tokens"].shape[0] % multiple == 0
        inside = unpack(batch)
        seen += sorted(int(one["ids"]) for one in inside)
        tokens.append(batch["tokens"][batch["segments"] > 0])
        assert (batch["segments"] > 0).sum() == sum(len(one["tokens"]) for one in inside)
        for name, empty in (("tokens", 0), ("positions", 0), ("types", 0), ("words", -1)):
            assert (batch[name][batch["segments"] == 0] == empty).all()
        for name in ("starts", "lengths", "labels", "weights"):
            assert (batch[name][batch["ids"] < 0] == 0).all()
    assert seen == list(range(len(lengths)))
    assert sorted(np.concatenate(tokens)) == list(range(1, sum(lengths) + 1))


@settings(max_examples=50, deadline=None)
@given(lengths_of, st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_units_stay_together_and_are_what_a_batch_counts(lengths, size, seed, shuffled):
    units = np.sort(np.random.default_rng(seed).integers(0, 10, len(lengths)))
    names = np.unique(units)
    steps = -(-len(names) // size) if shuffled else None
    batches = Batches(make(lengths, units=units), size, steps=steps, seed=seed)
    counts = dict.fromkeys(names.tolist(), 0)
    for step in range(batches.steps):
        held = batches.examples_of(step)
        taken = 0
        for unit in np.unique(units[held]).tolist():
            members, mine = np.flatnonzero(units == unit), held[units[held] == unit]
            times = len(mine) // len(members)
            assert mine.tolist() == members.tolist() * times
            counts[unit] += times
            taken += times
        assert taken == (size if shuffled else min(size, len(names) - step * size))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert shuffled or set(counts.values()) == {1}


@settings(max_examples=100, deadline=None)
@given(lengths_of, st.integers(1, 50), arrangements)
def test_each_example_is_what_a_plain_loader_gives(lengths, size, arrangement):
    examples = make(lengths)
    encoded = examples.encoded
    for one in unpack(Batches(examples, size, arrangement=arrangement).batch(0)):
        i = one["ids"]
        cells = slice(encoded.offsets[i], encoded.offsets[i + 1])
        assert one["tokens"].tolist() == encoded.tokens[cells].tolist()
        assert one["types"].tolist() == encoded.types[cells].tolist()
        assert one["positions"].tolist() == list(range(lengths[i]))
        assert set(one["segments"].tolist()) == {one["slot"] + 1}
        assert one["labels"] == examples.slots["labels"][i]
        assert one["weights"] == 1.0
        number, expected = -1, []
        for kind in encoded.words[cells].tolist():
            number += kind == 1
            expected.append(-1 if kind == 2 else number)
        assert one["words"].tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 70), st.integers(-3, 2**40))
def test_the_stream_is_one_permutation_after_another(rows, size, seed):
    batches = Batches(make([2] * rows), size, steps=12, seed=seed)
    stream = np.concatenate([batches.examples_of(step) for step in range(12)])
    for epoch in range(len(stream) // rows):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_and_seeds_differ_and_every_place_is_equally_likely():
    single = Batches(make([1] * 6), 6, steps=1)
    orders = np.array([single.permute(epoch) for epoch in range(3000)])
    counts = np.array([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    assert ((counts - 500) ** 2 / 500).sum() < 60  # chi squared, 25 degrees of freedom
    first, second = (Batches(make([1] * 50), 50, steps=2, seed=seed) for seed in (0, 1))
    assert (first.permute(0) != first.permute(1)).any()
    assert (first.permute(0) != second.permute(0)).any()


def test_the_order_of_a_seed_never_changes():
    batches = Batches(make([1] * 10), 10, steps=1, seed=7)
    assert batches.permute(3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


def test_a_batch_depends_on_seed_and_step_alone():
    examples = make(np.arange(1, 40) % 9 + 1)
    first, second = (Batches(examples, 16, steps=20, seed=3) for _ in range(2))
    forward = [first.batch(step) for step in range(20)]
    for step in reversed(range(20)):
        again = second.batch(step)
        for name, array in forward[step].items():
            np.testing.assert_array_equal(array, again[name])
    other = Batches(examples, 16, steps=20, seed=4).batch(0)
    assert sorted(other["ids"][other["ids"] >= 0]) != sorted(
        forward[0]["ids"][forward[0]["ids"] >= 0]
    )


def test_a_longer_run_sees_the_same_examples_first():
    examples = make([3] * 30)
    short, long = (Batches(examples, 8, steps=n, seed=1) for n in (5, 50))
    for step in range(5):
        assert short.examples_of(step).tolist() == long.examples_of(step).tolist()
    assert short.fingerprint == long.fingerprint


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.sampled_from([2, 4, 8]), st.integers(1, 40), st.booleans())
def test_the_rows_of_all_hosts_are_the_rows_of_one(lengths, hosts, size, shuffled):
    examples = make(lengths)
    steps = 3 if shuffled else None
    whole = Batches(examples, size, steps=steps, multiple=8)
    parts = [
        Batches(examples, size, steps=steps, multiple=8, host=(i, hosts)) for i in range(hosts)
    ]
    for step in range(whole.steps):
        expected, found = whole.batch(step), [part.batch(step) for part in parts]
        for name, array in expected.items():
            np.testing.assert_array_equal(np.concatenate([one[name] for one in found]), array)
    assert {part.fingerprint for part in parts} == {whole.fingerprint}


@pytest.mark.parametrize("multiple", [2, 8])
def test_more_devices_read_the_examples_of_one(multiple):
    examples = make(np.arange(60) % 11 + 1)
    one = Batches(examples, 16, steps=9, seed=2)
    many = Batches(examples, 16, steps=9, seed=2, multiple=multiple)
    for step in range(9):
        for a, b in zip(*(sorted(unpack(x.batch(step)), key=by_id) for x in (one, many))):
            assert a["tokens"].tolist() == b["tokens"].tolist()
    assert one.fingerprint == many.fingerprint


def by_id(example):
    """The order to compare in."""
    return int(example["ids"])


def test_the_fingerprint_tells_pipelines_apart():
    base = make([3, 4, 5, 6])
    labels = np.array([0, 1, 1, 0], np.int32)
    pipelines = [
        Batches(base, 2, steps=4),
        Batches(base, 2, steps=4, seed=1),
        Batches(base, 3, steps=4),
        Batches(base, 2),
        Batches(make([3, 4, 5, 7]), 2, steps=4),
        Batches(make([3, 4, 5, 6], labels=labels), 2, steps=4),
        Batches(base, 2, steps=4, arrangement=Arrangement(layout="padded")),
        Batches(base, 2, steps=4, arrangement=Arrangement(row_length=24)),
        Batches(base, 2, steps=4, arrangement=Arrangement(words=True)),
    ]
    assert len({pipeline.fingerprint for pipeline in pipelines}) == len(pipelines)


def test_dtypes_are_those_of_the_contract():
    for labels, kind in ((None, np.int32), (np.array([0.5, 2.5], np.float32), np.float32)):
        batch = Batches(make([2, 3], labels=labels), 2, arrangement=Arrangement(words=True)).batch(
            0
        )
        kinds = {name: array.dtype for name, array in batch.items()}
        assert kinds.pop("labels") == kind
        assert kinds.pop("weights") == np.float32
        assert set(kinds.values()) == {np.dtype(np.int32)}


def test_a_run_too_long_to_plan_whole_still_fits(monkeypatch):
    lengths = np.concatenate([np.full(500, 2), np.full(12, 40)])
    examples = make(lengths)
    monkeypatch.setattr(module, "PLANNED", 100)
    batches = Batches(examples, 10, steps=400, seed=5)
    seen = [batches.batch(step) for step in range(400)]
    assert {(*batch["tokens"].shape, batch["ids"].shape[1]) for batch in seen} <= set(
        batches.shapes
    )
    assert sum((batch["ids"] >= 0).sum() for batch in seen) == 4000


def test_most_seeds_have_the_shapes_of_seed_0_and_others_larger_ones():
    examples = make(np.clip(np.random.default_rng(0).lognormal(2.4, 0.6, 768), 3, 62).astype(int))
    usual, *others = (Batches(examples, 32, steps=24, seed=seed).shapes for seed in range(12))
    assert sum(shapes == usual for shapes in others) >= 8
    for shapes in others:
        assert shapes[:-1] == usual[:-1]
        assert all(a >= b for a, b in zip(shapes[-1], usual[-1])) and shapes[-1][1] == usual[-1][1]


def test_sizes_that_make_no_batches_are_config_errors():
    examples = make([1, 2])
    for arguments in ({"steps": 0}, {"multiple": 0}, {"host": (2, 2)}, {"host": (-1, 2)}):
        with pytest.raises(ConfigError):
            Batches(examples, 2, **arguments)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Batches(examples, 0)
    with pytest.raises(IndexError):
        Batches(examples, 2).batch(1)


def test_prefetch_gives_the_steps_in_order_from_any_start():
    batches = Batches(make([3] * 20), 4, steps=11)
    for start in (0, 4, 11):
        found = list(prefetch(batches, start))
        assert [step for step, _ in found] == list(range(start, 11))
        for step, batch in found:
            np.testing.assert_array_equal(batch["tokens"], batches.batch(step)["tokens"])
    assert [step for step, _ in prefetch(batches, 2, 5)] == [2, 3, 4]


class Failing:
    """Batches of which step 3 cannot be made."""

    steps = 10

    def batch(self, step):
        if step == 3:
            raise OSError("the disk is gone")
        return {}


def test_prefetch_raises_where_the_batch_was_due_and_leaves_no_thread():
    before = set(threading.enumerate())
    stream = prefetch(Failing(), depth=4)
    assert [next(stream)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    closed = prefetch(Failing(), 5)
    next(closed)
    closed.close()
    assert set(threading.enumerate()) == before
