"""Masks: their rate, their fate, whole words, and that only hidden tokens are asked for."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from research.models.transformer import Spec, Transformer
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


@pytest.mark.parametrize("whole_word", [False, True])
def test_rate_and_fate_are_bert_s(whole_word: bool) -> None:
    rows = batch()
    shown, chosen = hide(task(whole_word=whole_word), rows)
    real = (rows["segments"] > 0) & (rows["positions"] > 0)
    draws = real.sum() / (3 if whole_word else 1)
    assert abs(chosen[real].mean() - 0.15) < 5 * (0.15 * 0.85 / draws) ** 0.5
    assert not chosen[~real].any()
    hidden, original = shown[chosen], rows["tokens"][chosen]
    spread = 5 * (0.8 * 0.2 / len(hidden)) ** 0.5
    assert abs((hidden == MASK).mean() - 0.8) < spread
    assert abs((hidden == original).mean() - 0.1) < spread
    np.testing.assert_array_equal(shown[~chosen], rows["tokens"][~chosen])


def test_whole_words_are_hidden_whole() -> None:
    rows = batch()
    _, chosen = hide(task(whole_word=True), rows)
    for row in range(5):
        for word in range(80):
            members = chosen[row][(rows["words"][row] == word) & (rows["segments"][row] > 0)]
            assert members.all() or not members.any()


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
    params = model.init(
        {"params": jax.random.key(0), "noise": jax.random.key(0)}, rows, train=False
    )
    found = model.apply(params, rows, train=False, rngs={"noise": jax.random.key(5)})["loss"]

    def plainly(module: MaskedLM) -> tuple[jax.Array, jax.Array, jax.Array]:
        shown, chosen = module.hide(rows, module.make_rng("noise"))
        return module.logits(module.backbone(rows | {"tokens": shown})), shown, chosen

    logits, _, chosen = model.apply(params, rngs={"noise": jax.random.key(5)}, method=plainly)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    nll = -np.take_along_axis(log_p, rows["tokens"][..., None], -1)[..., 0]
    assert float(found.count) == np.asarray(chosen).sum() > 0
    np.testing.assert_allclose(float(found.total), nll[np.asarray(chosen)].sum(), rtol=1e-5)
