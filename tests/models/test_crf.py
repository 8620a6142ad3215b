"""The CRF against brute force over all paths, on packed rows, and under constraints."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data import tags
from research.models import crf

CASES = 500
T, C, M = 12, 4, 3


def cases(count: int, seed: int = 0):
    """Rows of up to three segments with words at random cells of them, at most four a segment."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((count, T), np.int32)
    words = np.zeros((count, T), bool)
    for b in range(count):
        start = 0
        for m in range(rng.integers(1, M + 1)):
            length = int(rng.integers(1, 5))
            end = min(start + length, T)
            segments[b, start:end] = m + 1
            words[b, start:end] = rng.random(end - start) < 0.7
            start = end
    emissions = rng.normal(0, 2, (count, T, C))
    edges = rng.integers(0, 2, (2, count, M))
    return emissions, words, segments, edges[0], edges[1]


def weights_of(seed: int):
    rng = np.random.default_rng(seed)
    return crf.Weights(rng.normal(0, 1, (C, C)), rng.normal(0, 1, C), rng.normal(0, 1, C))


def brute(emissions, opens, closes, weights):
    """log Z, the best path and the marginals of one chain [W, C], by listing all paths."""
    paths = list(itertools.product(range(C), repeat=len(emissions)))
    scores = []
    for path in paths:
        score = sum(emissions[i, tag] for i, tag in enumerate(path))
        score += sum(weights.transitions[a, b] for a, b in itertools.pairwise(path))
        score += opens * weights.starts[path[0]] + closes * weights.ends[path[-1]]
        scores.append(score)
    scores = np.array(scores)
    top = scores.max()
    log_z = top + np.log(np.exp(scores - top).sum())
    odds = np.exp(scores - log_z)
    marginals = np.zeros_like(emissions)
    for path, p in zip(paths, odds):
        for i, tag in enumerate(path):
            marginals[i, tag] += p
    return log_z, paths[int(scores.argmax())], marginals, dict(zip(paths, scores))


def test_log_partition_viterbi_and_marginals_equal_brute_force_on_packed_rows() -> None:
    with jax.enable_x64(True):
        emissions, words, segments, opens, closes = cases(CASES)
        weights = weights_of(1)
        tags_given = np.random.default_rng(2).integers(0, C, (CASES, T)).astype(np.int32)

        @jax.jit
        def run(emissions, words, segments, opens, closes, given):
            chain = crf.chains(words, segments, opens, closes)
            scores = jax.tree.map(jnp.asarray, weights)
            return (
                crf.log_partition(emissions, chain, scores),
                crf.viterbi(emissions, chain, scores),
                crf.marginals(emissions, chain, scores),
                crf.path_scores(emissions, given, chain, scores),
            )

        found = run(emissions, words, segments, opens, closes, tags_given)
        log_z, path, marginals, scores = (np.asarray(x) for x in found)
        assert log_z.dtype == np.float64
        checked = 0
        for b in range(CASES):
            assert not log_z[b][~words[b]].any() and not scores[b][~words[b]].any()
            for m in range(M):
                (cells,) = np.nonzero((segments[b] == m + 1) & words[b])
                if not len(cells):
                    continue
                expected = brute(emissions[b, cells], opens[b, m], closes[b, m], weights)
                assert log_z[b, cells[-1]] == pytest.approx(expected[0], abs=1e-10)
                assert not log_z[b, cells[:-1]].any()
                assert tuple(path[b, cells]) == expected[1]
                np.testing.assert_allclose(marginals[b, cells], expected[2], atol=1e-10)
                told = tuple(tags_given[b, cells].tolist())
                assert scores[b, cells].sum() == pytest.approx(expected[3][told], abs=1e-10)
                checked += 1
        assert checked > CASES


@pytest.mark.parametrize("scheme", ["BIO", "IOBES"])
def test_a_constrained_path_never_takes_a_forbidden_step(scheme) -> None:
    labels = tags.names(("LOC", "PER"), scheme)
    pairs, begins, ends = tags.allowed(labels, scheme)
    rng = np.random.default_rng(0)
    count, length = 200, 9
    # Scores that ask for what is forbidden, as strongly as a network can.
    emissions = rng.normal(0, 50, (count, length, len(labels))).astype(np.float32)
    weights = crf.Weights(
        *(
            jnp.where(rule, rng.normal(0, 5, rule.shape), crf.NEVER).astype(jnp.float32)
            for rule in (pairs, begins, ends)
        )
    )
    words, segments = np.ones((count, length), bool), np.ones((count, length), np.int32)
    edges = np.ones((count, 1), np.int32)
    chain = crf.chains(words, segments, edges, edges)
    for row in np.asarray(crf.viterbi(emissions, chain, weights)):
        assert tags.breach([labels[tag] for tag in row], scheme) is None
    total = crf.log_partition(emissions, chain, weights)
    assert np.isfinite(total).all()
    gradient = jax.grad(
        lambda e, w: jnp.sum(crf.log_partition(e, chain, w)), argnums=(0, 1), allow_int=False
    )(emissions, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.asarray(gradient[1].transitions)[~pairs].any()
