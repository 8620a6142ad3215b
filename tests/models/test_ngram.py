"""N-grams against Kneser-Ney by its definition in dictionaries of tuples; sums to one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from research.data.batches import Examples
from research.data.tokenize import Encoded
from research.errors import ConfigError
from research.models.ngram import NGram, discounts, fit

VOCABULARY = 60


def documents(seed: int, count: int = 80) -> list[tuple[int, ...]]:
    """Texts of a sticky chain over 55 of 60 tokens, the first ones far more frequent."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        text = [int(rng.zipf(1.5)) % 55]
        for _ in range(int(rng.integers(0, 14))):
            often = rng.random() < 0.5
            text.append((2 * text[-1] + 1) % 55 if often else int(rng.zipf(1.5)) % 55)
        found.append(tuple(text))
    return found


def flat(texts: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(texts).astype(np.int32), np.cumsum([0, *map(len, texts)])


class ByDefinition:
    """Interpolated modified Kneser-Ney, one n-gram at a time."""

    def __init__(self, texts: list[tuple[int, ...]], order: int) -> None:
        lines = [("<s>", *text) for text in texts]
        plain = [
            Counter(line[i : i + k] for line in lines for i in range(len(line) - k + 1))
            for k in range(1, order + 1)
        ]
        self.counts, self.steps = [], []
        for k in range(1, order + 1):
            before = Counter(gram[1:] for gram in plain[k]) if k < order else Counter()
            counts = {
                gram: before[gram] if k < order and gram[0] != "<s>" else count
                for gram, count in plain[k - 1].items()
                if gram != ("<s>",)
            }
            self.counts.append(counts)
            n = Counter(counts.values())
            assert all(n[i] for i in (1, 2, 3, 4))
            y = n[1] / (n[1] + 2 * n[2])
            self.steps.append([i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)])

    def probability(self, history: tuple, token: int) -> float:
        lower = self.probability(history[1:], token) if history else 1 / VOCABULARY
        counts, steps = self.counts[len(history)], self.steps[len(history)]
        followers = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == history}
        if not followers:
            return lower
        total = sum(followers.values())
        spare = sum(steps[min(c, 3) - 1] for c in followers.values()) / total
        own = followers.get(token, 0)
        return (own - steps[min(own, 3) - 1] if own else 0) / total + spare * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_probability_is_that_of_the_definition(order: int) -> None:
    model = fit(*flat(documents(0)), order=order, vocab_size=VOCABULARY)
    reference = ByDefinition(documents(0), order)
    asked = documents(1, 12)
    wanted = []
    for text in asked:
        line = ("<s>", *text)
        for i in range(1, len(line)):
            wanted.append(reference.probability(line[max(0, i - order + 1) : i], line[i]))
    got = model.log_prob(*flat(asked))
    np.testing.assert_allclose(np.exp(got), wanted, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 30])
def test_probabilities_sum_to_one_after_any_history_and_are_those_of_log_prob(order: int) -> None:
    texts = documents(2)
    model = fit(*flat(texts), order=order, vocab_size=VOCABULARY)
    rng = np.random.default_rng(0)
    strange = [tuple(rng.integers(0, VOCABULARY, n).tolist()) for n in range(8)]
    for history in [*strange, *texts[:5], (59, 59)]:
        found = model.probabilities(np.array(history, np.int64))
        assert found.shape == (VOCABULARY,)
        assert (found > 0).all()
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-12)
        for token in (0, 5, 59):
            line = np.array([*history, token])
            last = model.log_prob(line, np.array([0, len(line)]))[-1]
            np.testing.assert_allclose(np.exp(last), found[token], rtol=1e-12)


def test_documents_are_apart_and_their_order_does_not_matter() -> None:
    texts = documents(3)
    model = fit(*flat(texts), order=4, vocab_size=VOCABULARY)
    other = fit(*flat(texts[::-1]), order=4, vocab_size=VOCABULARY)
    together = model.log_prob(*flat(texts))
    apart = [model.log_prob(np.array(text), np.array([0, len(text)])) for text in texts]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    np.testing.assert_allclose(together, other.log_prob(*flat(texts)), rtol=1e-12)


def test_a_longer_history_helps_where_text_has_memory() -> None:
    """Half of the tokens are given by the one before: also on unseen text."""
    held_out = flat(documents(5, 200))
    loss = [
        -fit(*flat(documents(4, 400)), order=n, vocab_size=VOCABULARY).log_prob(*held_out).mean()
        for n in (1, 2)
    ]
    assert loss[1] < loss[0] - 0.5


def test_samples_are_drawn_from_the_model_and_repeat() -> None:
    model = fit(*flat(documents(6, 400)), order=2, vocab_size=VOCABULARY)
    drawn = np.concatenate([model.sample(1, seed) for seed in range(400)])
    shares = np.bincount(drawn, minlength=VOCABULARY) / 400
    np.testing.assert_allclose(shares, model.probabilities(np.array([], int)), atol=0.08)
    np.testing.assert_array_equal(model.sample(9, 1), model.sample(9, 1))
    assert (model.sample(9, 1) != model.sample(9, 2)).any()


def test_few_counts_fall_back_to_fewer_discounts() -> None:
    np.testing.assert_allclose(discounts(np.array([1, 1, 2])), [0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(discounts(np.array([1, 2, 2])), [0, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(discounts(np.array([5, 9])), [0, 0.5, 0.5, 0.5])
    one = fit(np.array([3]), np.array([0, 1]), order=3, vocab_size=5)
    np.testing.assert_allclose(one.probabilities(np.array([], int)).sum(), 1)
    assert np.argmax(one.probabilities(np.array([], int))) == 3


def test_outputs_are_sums_over_all_tokens_but_the_first_of_each_example() -> None:
    texts = documents(7, 6)
    model: NGram = fit(*flat(documents(0)), order=3, vocab_size=VOCABULARY)
    tokens, offsets = flat([(59, *text) for text in texts])
    nothing = np.zeros(len(tokens), np.uint8)
    encoded = Encoded.of(
        {
            "tokens": tokens,
            "types": nothing,
            "words": nothing,
            "offsets": offsets,
            "row_of": np.arange(6),
        },
        {"lost": 0},
        "",
    )
    outputs = model.outputs(Examples(encoded=encoded, slots={"labels": np.arange(6)}))
    for i, text in enumerate(texts):
        alone = model.log_prob(np.array(text), np.array([0, len(text)]))
        np.testing.assert_allclose(outputs["nll"][i], -alone.sum())
        assert outputs["count"][i] == len(text)
    assert outputs["labels"].tolist() == list(range(6))


def test_bad_input_is_refused_in_one_sentence() -> None:
    tokens, offsets = flat(documents(0))
    with pytest.raises(ConfigError, match="order is 0"):
        fit(tokens, offsets, order=0, vocab_size=VOCABULARY)
    with pytest.raises(ConfigError, match=r"all in \[0, 5\)"):
        fit(tokens, offsets, order=2, vocab_size=5)
