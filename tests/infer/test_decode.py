"""Decoding with a cache gives what the whole forward pass gives, alone or beside other prompts."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import load, logits, task_of, write

from research.infer import beam, decode
from research.infer.sampling import Sampling
from research.models import cache
from research.models.transformer import Spec, Transformer

PROMPTS = [[5, 9, 30, 7, 12, 3, 21], [8, 4], [11, 6, 11, 39]]
GREEDY = Sampling(temperature=0.0)
CASES = [
    ("gpt2", False),
    ("llama3", False),
    ("qwen3", False),
    ("mistral", False),
    ("mistral", True),
]


def keys(count: int):
    return jax.random.split(jax.random.key(0), count)


def whole(rows) -> dict[str, jax.Array]:
    """Texts of one length as a batch."""
    tokens = jnp.asarray(rows, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return {"tokens": tokens, "positions": positions, "segments": jnp.ones_like(tokens)}


@pytest.mark.parametrize("name, scan", CASES)
def test_cached_logits_equal_the_full_forward_at_every_position(tmp_path, name, scan):
    directory = write(tmp_path, name)
    task = task_of(directory, scan=scan)
    params, _ = load(directory, task)
    trunk, length = task.backbone, 12
    texts = np.random.default_rng(0).integers(3, 40, (2, length))
    expected = logits(task, params, whole(texts))
    read = jax.jit(functools.partial(decode.read, trunk))
    # The second prompt is three tokens shorter than the first, and stands behind padding.
    start = jax.device_put(decode.lay_out([texts[0, :5].tolist(), texts[1, :2].tolist()], 8))
    found, held = read(params["backbone"], start, cache.empty(trunk.spec, 2, 16))
    np.testing.assert_allclose(found[0], expected[0, 4], atol=1e-4, rtol=0)
    np.testing.assert_allclose(found[1], expected[1, 1], atol=1e-4, rtol=0)
    for i in range(5, length):
        batch = {
            "tokens": jnp.asarray([[texts[0, i]], [texts[1, i - 3]]]),
            "positions": jnp.asarray([[i], [i - 3]]),
            "segments": jnp.ones((2, 1), jnp.int32),
        }
        found, held = read(params["backbone"], batch, held)
        np.testing.assert_allclose(found[0], expected[0, i], atol=1e-4, rtol=0)
        np.testing.assert_allclose(found[1], expected[1, i - 3], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, repetition_penalty=1.3)])
def test_prompts_beside_each_other_equal_each_alone(tmp_path, sampling):
    directory = write(tmp_path, "mistral")
    task = task_of(directory)
    params = load(directory, task)[0]["backbone"]
    run = functools.partial(decode.tokens_after, task.backbone, params)
    together = np.stack(list(run(PROMPTS, keys(3), sampling, 9)), axis=1)
    alone = [
        np.concatenate(list(run([prompt], keys(3)[i : i + 1], sampling, 9)))
        for i, prompt in enumerate(PROMPTS)
    ]
    np.testing.assert_array_equal(together, alone)


def test_penalties_see_prompts_and_what_followed(tmp_path):
    """Under an overwhelming penalty no positive logit of a seen token survives: nothing repeats."""
    directory = write(tmp_path, "llama")
    task = task_of(directory)
    params = load(directory, task)[0]["backbone"]
    sampling = Sampling(temperature=0.0, repetition_penalty=1e6)
    run = decode.tokens_after(task.backbone, params, PROMPTS, keys(3), sampling, 8)
    for prompt, found in zip(PROMPTS, np.stack(list(run), axis=1).tolist()):
        assert len({*prompt, *found}) == len(set(prompt)) + 8


def tiny_trunk() -> tuple[Transformer, dict]:
    """Five tokens, three of which go on for long."""
    spec = Spec(
        vocab_size=5,
        width=8,
        depth=1,
        heads=2,
        hidden=8,
        causal=True,
        norm_first=True,
        dtype="float32",
        max_positions=16,
    )
    trunk = Transformer(spec)
    batch = whole([[1, 2]])
    shapes = jax.eval_shape(
        lambda key: trunk.init(key, batch, method=lambda t, b: t.logits(t(b))), jax.random.key(0)
    )
    rng = np.random.default_rng(3)
    draw = lambda leaf: rng.normal(0, 0.8, leaf.shape).astype(np.float32)  # noqa: E731
    return trunk, jax.tree.map(draw, shapes["params"])


def brute_force(
    trunk: Transformer, params, prompt: list[int], count: int, penalty: float
) -> tuple[list[int], float]:
    """The best of all texts that end in token 4 or have `count` tokens, by one forward for all."""
    texts = np.asarray(list(itertools.product(range(5), repeat=count)))
    batch = whole(np.concatenate([np.tile(prompt, (len(texts), 1)), texts], axis=1))
    scores = jax.nn.log_softmax(
        trunk.apply({"params": params}, batch, method=lambda t, b: t.logits(t(b)))
    )[:, len(prompt) - 1 : -1]
    steps = np.take_along_axis(np.asarray(scores), texts[..., None], axis=-1)[..., 0]
    ends = [row.index(4) + 1 if 4 in row else count for row in texts.tolist()]
    totals = [float(row[:end].sum()) for row, end in zip(steps, ends)]
    best = max(range(len(texts)), key=lambda i: totals[i] / ends[i] ** penalty)
    return texts[best, : ends[best]].tolist(), totals[best]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("prompt", [[1, 2], [3, 0]])
def test_beams_that_hold_all_texts_find_the_best(prompt, penalty):
    trunk, params = tiny_trunk()
    found, score = beam.search(
        trunk, params, prompt, width=125, count=3, eos=(4,), length_penalty=penalty
    )
    expected, total = brute_force(trunk, params, prompt, 3, penalty)
    assert found == expected
    assert score == pytest.approx(total, abs=1e-5)


def test_one_beam_is_greedy():
    trunk, params = tiny_trunk()
    for prompt in ([1, 2], [3, 0], [0, 0]):
        stream = decode.tokens_after(trunk, params, [prompt], keys(1), GREEDY, 8)
        greedy = np.concatenate(list(stream)).tolist()
        greedy = greedy[: greedy.index(4) + 1] if 4 in greedy else greedy
        assert beam.search(trunk, params, prompt, width=1, count=8, eos=(4,))[0] == greedy


def test_the_score_of_a_beam_is_the_log_probability_of_its_text(tmp_path):
    """Also where beams change places, whose caches change with them."""
    directory = write(tmp_path, "mistral")
    task = task_of(directory)
    params, _ = load(directory, task)
    for prompt in PROMPTS[1:]:
        found, score = beam.search(
            task.backbone, params["backbone"], prompt, width=4, count=7, eos=(2,)
        )
        text = whole([prompt + found])
        steps = np.asarray(jax.nn.log_softmax(logits(task, params, text)))[0, len(prompt) - 1 : -1]
        assert score == pytest.approx(steps[np.arange(len(found)), found].sum(), abs=1e-4)
