"""Masks: their rate, their fate, whole words, and that only hidden tokens are asked for."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from research import initialize
from research.models.transformer import Spec, Transformer
from research.tasks import span_masks
from research.tasks.lm import MaskedLM, gather_chosen

VOCABULARY, MASK = 1000, 4
SPEC = Spec(vocab_size=VOCABULARY, width=16, depth=1, heads=2, hidden=32, max_positions=256)


def task(**changes: object) -> MaskedLM:
    return MaskedLM(
        backbone=Transformer(SPEC),
        vocab_size=VOCABULARY,
        mask_id=MASK,
        special_ids=(0, 1, 2, 3, 4),
        **changes,
    )


def batch(rows: int = 40, tokens: int = 250) -> dict[str, np.ndarray]:
    """One example a row: a special token, words of three tokens, padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, VOCABULARY, (rows, tokens))
    ids[:, 0] = 1
    segments = np.ones((rows, tokens))
    segments[:, -10:] = 0
    positions = np.tile(np.arange(tokens), (rows, 1))
    words = (positions - 1) // 3
    words[:, 0] = -1
    made = {"tokens": ids, "segments": segments, "positions": positions, "words": words}
    made["ids"] = np.arange(rows)[:, None]
    return {name: value.astype(np.int32) for name, value in made.items()}


PARAMS = {"params": {"bias": np.zeros(VOCABULARY, np.float32)}}


def hide(model: MaskedLM, rows: dict[str, np.ndarray], seed: int = 0) -> tuple[np.ndarray, ...]:
    shown, chosen = model.apply(PARAMS, rows, jax.random.key(seed), method="hide")
    return np.asarray(shown), np.asarray(chosen)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_rate_and_fate_are_bert_s(unit: str) -> None:
    rows = batch()
    shown, chosen = hide(task(unit=unit), rows)
    real = (rows["segments"] > 0) & (rows["positions"] > 0)
    draws = real.sum() / {"token": 1, "word": 3, "span": 3 * 6}[unit]
    assert abs(chosen[real].mean() - 0.15) < 5 * (0.15 * 0.85 / draws) ** 0.5
    assert not chosen[~real].any()
    hidden, original = shown[chosen], rows["tokens"][chosen]
    # The tokens of a span share their fate.
    spread = 5 * (0.8 * 0.2 / len(hidden) * (18 if unit == "span" else 1)) ** 0.5
    assert abs((hidden == MASK).mean() - 0.8) < spread
    assert abs((hidden == original).mean() - 0.1) < spread
    np.testing.assert_array_equal(shown[~chosen], rows["tokens"][~chosen])


@pytest.mark.parametrize("unit", ["word", "span"])
def test_whole_words_are_hidden_whole(unit: str) -> None:
    rows = batch()
    _, chosen = hide(task(unit=unit), rows)
    for row in range(5):
        for word in range(80):
            members = chosen[row][(rows["words"][row] == word) & (rows["segments"][row] > 0)]
            assert members.all() or not members.any()


def test_spans_have_the_lengths_and_the_rate_of_their_process() -> None:
    """Against a simulation word by word: spans begin by chance, are geometric, and are cut at 10.

    Runs of hidden words are longer than spans, for spans touch and overlap.
    """
    words = np.tile(np.arange(-1, 1999), (40, 1)).astype(np.int32)
    rows = {
        "tokens": np.where(words < 0, 1, 7).astype(np.int32),
        "segments": np.ones_like(words),
        "positions": words + 1,
        "words": words,
        "ids": np.arange(40, dtype=np.int32)[:, None],
    }
    _, chosen = hide(task(unit="span"), rows)
    odds = 0.8 ** np.arange(10)
    rng = np.random.default_rng(0)
    starts = rng.random((400, 2010)) < span_masks.start_rate(0.15)
    lengths = rng.choice(np.arange(1, 11), starts.shape, p=odds / odds.sum())
    free = np.zeros((400, 2010), bool)
    for row, begin in zip(*np.nonzero(starts)):
        free[row, begin : begin + lengths[row, begin]] = True
    expected, found = runs_of(free[:, 10:]), runs_of(chosen[:, 1:])
    assert abs(found.mean() - expected.mean()) < 5 * expected.std() / len(found) ** 0.5
    for length in range(1, 13):
        share = (expected == length).mean()
        assert abs((found == length).mean() - share) < 5 * (share / len(found)) ** 0.5
    # The first words are hidden as often as any.
    many = np.concatenate([hide(task(unit="span"), rows, seed)[1][:, 1:4] for seed in range(60)])
    assert abs(many.mean() - 0.15) < 5 * (0.15 * 0.85 / len(many)) ** 0.5


def runs_of(hidden: np.ndarray) -> np.ndarray:
    """The lengths of all runs of hidden words."""
    edges = np.diff(np.pad(hidden.astype(int), ((0, 0), (1, 1))), axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


def test_masks_differ_between_steps_and_not_between_calls() -> None:
    rows = batch()
    first, again, other = (hide(task(), rows, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.1


def test_gathering_keeps_every_chosen_position_once() -> None:
    rng = np.random.default_rng(1)
    chosen = rng.random((8, 32)) < 0.15
    tokens = np.arange(8 * 32, dtype=np.int32).reshape(8, 32)
    x = np.stack([tokens, tokens + 1], -1).astype(np.float32)
    vectors, labels, weights = gather_chosen(x, tokens, chosen, 0.15, spread=1)
    kept = np.asarray(weights) > 0
    assert sorted(np.asarray(labels)[kept]) == sorted(tokens[chosen])
    np.testing.assert_array_equal(np.asarray(vectors)[kept][:, 0], np.asarray(labels)[kept])
    assert labels.size < tokens.size


def test_the_loss_is_that_of_the_full_projection() -> None:
    rows = batch(4, 60)
    model = task()
    params = {"params": initialize.initialize(model, rows, jax.random.key(0))}
    found = model.apply(params, rows, train=False, rngs={"noise": jax.random.key(5)})["loss"]

    def plainly(module: MaskedLM) -> tuple[jax.Array, jax.Array, jax.Array]:
        shown, chosen = module.hide(rows, module.make_rng("noise"))
        return module.logits(module.backbone(rows | {"tokens": shown})), shown, chosen

    logits, _, chosen = model.apply(params, rngs={"noise": jax.random.key(5)}, method=plainly)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    nll = -np.take_along_axis(log_p, rows["tokens"][..., None], -1)[..., 0]
    assert float(found.count) == np.asarray(chosen).sum() > 0
    np.testing.assert_allclose(float(found.total), nll[np.asarray(chosen)].sum(), rtol=1e-5)
