"""Objectives of pre-training: packing, causality, exact sums of terms, and what each predicts."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_step import PACKED, PADDED, SPEC, assert_close, gradients, start, step
from workshop import loss_curve

from research.errors import ConfigError
from research.evaluators.pseudo import pseudo_nll
from research.metrics import Mean, WeightedSum
from research.models import attention
from research.models.transformer import Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.tasks.causal import CausalLM, draw_prefix, of_next
from research.tasks.lm import MaskedLM
from research.tasks.mixture import Mixture, Term
from research.tasks.replaced import ReplacedTokens
from research.tasks.sentence_order import SentenceOrder

FACTS: dict[str, Any] = {"vocab_size": 60, "mask_id": 4, "special_ids": (0, 1)}
SPEC = dataclasses.replace(SPEC, depth=1)
DECODER = Transformer(dataclasses.replace(SPEC, causal=True))
SMALL = Transformer(dataclasses.replace(SPEC, heads=1, hidden=8))
CAUSAL = CausalLM(backbone=DECODER)
REPLACED = ReplacedTokens(backbone=Transformer(SPEC), generator=SMALL, rate=0.3, **FACTS)
ORDER = SentenceOrder(backbone=Transformer(SPEC), labels=("a", "b", "c"), rate=0.3, **FACTS)
MIXTURE = Mixture(
    backbone=DECODER,
    terms=(
        Term(name="causal", task=CausalLM(z_loss=1e-2, prefix=True)),
        Term(name="masked", task=MaskedLM(rate=0.3), weight=0.5),
    ),
    **FACTS,
)
TASKS = {"causal": CAUSAL, "replaced": REPLACED, "order": ORDER, "mixture": MIXTURE}


@pytest.mark.parametrize("name", TASKS)
def test_packed_equals_padded_with_dropout_on(name: str) -> None:
    (packed, means), (padded, others) = (gradients(TASKS[name], b) for b in (PACKED, PADDED))
    assert_close(packed, padded, 1e-5)
    for key, mean in means.items():
        np.testing.assert_allclose(mean.total, others[key].total, rtol=1e-5, atol=1e-5)
        assert mean.count == others[key].count


@pytest.mark.parametrize("name", ["replaced", "order"])
def test_terms_add_up_exactly_over_ragged_micro_batches(name: str) -> None:
    whole, means = step(TASKS[name], PACKED)
    parts, sums = step(TASKS[name], PACKED, microbatches=2)
    np.testing.assert_allclose(means["loss"].value, sums["loss"].value, rtol=1e-5)
    np.testing.assert_allclose(means["grad_norm"].value, sums["grad_norm"].value, rtol=1e-5)
    assert_close(whole.opt_state.mu, parts.opt_state.mu, 1e-5)


def test_the_loss_of_a_mixture_is_the_weighted_sum_of_its_terms() -> None:
    _, means = gradients(MIXTURE, PACKED)
    expected = means["causal_loss"].value + 0.5 * means["masked_loss"].value
    np.testing.assert_allclose(means["loss"].value, expected, rtol=1e-6)
    parts = WeightedSum((Mean(6.0, 3.0), Mean(5.0, 1.0)), (1.0, 10.0))  # type: ignore[arg-type]
    assert float(parts.value) == 2 + 10 * 5
    assert float((parts + parts).value) == 52
    nothing = WeightedSum((Mean(6.0, 3.0), Mean(0.0, 0.0)), (1.0, 10.0))  # type: ignore[arg-type]
    assert float(nothing.value) == 2


def test_meshes_do_not_change_the_loss() -> None:
    task, batch = REPLACED, {k: np.concatenate([v, v]) for k, v in PACKED.items()}
    optim = Optim(learning_rate=1e-2, warmup=0)

    def curve(spec: MeshSpec, devices: int) -> list[float]:
        return loss_curve(task, optim, batch, start(task), spec, devices, steps=2)

    one = curve(MeshSpec(), 1)
    np.testing.assert_allclose(curve(MeshSpec(data=2, fsdp=2, tensor=2), 8), one, rtol=1e-5)


def bound(task: nn.Module) -> nn.Module:
    return task.bind({"params": start(task)}, rngs={"noise": jax.random.key(3)})


def test_a_causal_token_is_told_from_its_past_and_its_own_example_alone() -> None:
    """By gradients that are exactly zero: of each token's loss by the vectors of all tokens."""
    model: Any = bound(CAUSAL)
    table = model.variables["params"]["backbone"]["embed"]["table"]
    # Every cell gets a token of its own, so that a row of the table is one cell.
    row = {k: jnp.asarray(v[:1]) for k, v in PACKED.items()}
    row["tokens"] = jnp.arange(24, dtype=jnp.int32)[None] + 10

    def losses(table: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda x: x, model.variables["params"])
        params["backbone"]["embed"] = {"table": table}
        x = CAUSAL.apply({"params": params}, row, method=lambda task, b: task.backbone(b))
        return jnp.sum(x * jnp.arange(1.0, 17.0)[None, None], axis=-1)[0]

    seen = np.abs(np.asarray(jax.jit(jax.jacrev(losses))(table))).sum(-1)[:, 10:34] > 0
    segments, positions = (np.asarray(row[k][0]) for k in ("segments", "positions"))
    allowed = segments[:, None] == segments[None]
    allowed &= positions[:, None] >= positions[None]
    real = segments > 0
    np.testing.assert_array_equal(seen[real][:, real], allowed[real][:, real])


def test_predict_sums_the_tokens_of_each_example_but_its_first() -> None:
    model: Any = bound(CAUSAL)
    found = model.predict(PACKED)
    logs = np.asarray(model.token_log_probabilities(PACKED)["log_probabilities"])
    scores = jax.nn.log_softmax(model.backbone.logits(model.backbone(PACKED)), axis=-1)
    for b, m in np.argwhere(PACKED["ids"] >= 0):
        first, length = PACKED["starts"][b, m], PACKED["lengths"][b, m]
        here = range(first + 1, first + length)
        expected = [float(scores[b, t - 1, PACKED["tokens"][b, t]]) for t in here]
        assert found["count"][b, m] == length - 1
        np.testing.assert_allclose(found["nll"][b, m], -sum(expected), rtol=1e-5)
        np.testing.assert_allclose(logs[b, first + 1 : first + length], expected, rtol=1e-4)
        assert logs[b, first] == 0
    _, means = gradients(CAUSAL, PACKED)
    assert float(means["loss"].count) == float(found["count"].sum())


def test_a_prefix_is_seen_by_all_and_never_predicted() -> None:
    prefix = np.asarray(draw_prefix(jax.random.key(0), PACKED))
    sizes = [
        int(prefix[b][PACKED["segments"][b] == m + 1].sum())
        for b, m in np.argwhere(PACKED["lengths"] > 1)
    ]
    assert len(set(sizes)) > 2 and min(sizes) >= 1
    mask = np.asarray(attention.attention_mask(PACKED | {"prefix": prefix}, causal=True))
    segments, positions = PACKED["segments"], PACKED["positions"]
    for b, query, key in np.argwhere(np.ones_like(mask)):
        same = segments[b, query] == segments[b, key] > 0
        expected = same and (positions[b, query] >= positions[b, key] or prefix[b, key])
        assert mask[b, query, key] == expected
    _, means = gradients(CausalLM(backbone=DECODER, prefix=True), PACKED)
    assert 0 < float(means["loss"].count) < (of_next(segments) > 0).sum()


def test_what_is_replaced_is_what_differs_and_chance_spares_what_is_sampled_right() -> None:
    model: Any = bound(REPLACED)
    key = jax.random.key(1)
    tokens, means = model.corrupt(PACKED, key, noise=None)
    _, chosen = model.hide(PACKED, key)
    changed = np.asarray(tokens) != PACKED["tokens"]
    assert changed.any() and not (changed & ~np.asarray(chosen)).any()
    assert float(means["generator_loss"].count) == np.asarray(chosen).sum()
    # A generator that knows every token replaces none: a bias decides what it samples.
    certain = start(REPLACED) | {"bias": np.where(np.arange(60) == 7, 1e4, 0).astype(np.float32)}
    same = PACKED | {"tokens": np.where(PACKED["segments"] > 0, 7, 0).astype(np.int32)}
    found = REPLACED.apply(
        {"params": certain}, same, train=False, rngs={"noise": jax.random.key(0)}
    )
    assert float(found["replaced"].total) == 0 < float(found["generator_loss"].count)
    assert float(found["replaced"].count) == (PACKED["segments"] > 0).sum()


def test_the_generator_learns_from_its_own_loss_alone() -> None:
    def slopes(name: str) -> dict[str, np.ndarray]:
        def loss(params: Any) -> jax.Array:
            rngs = {"noise": jax.random.key(3)}
            return REPLACED.apply({"params": params}, PACKED, train=True, rngs=rngs)[name].value

        return flatten_dict(jax.device_get(jax.jit(jax.grad(loss))(start(REPLACED))), sep="/")

    own, detection = slopes("generator_loss"), slopes("detection_loss")
    small = [p for p in own if p.startswith(("generator/", "transform/", "norm/", "bias"))]
    assert len(small) > 15 and not any("embed/" in path for path in small)
    for path in small:
        assert not detection[path].any(), path
    assert sum(own[path].any() for path in small) > 15
    for path in ("backbone/embed/table", "backbone/embed_positions/table"):
        assert own[path].any() and detection[path].any()
    assert not own["backbone/block_0/mlp/up/kernel"].any()
    assert detection["backbone/block_0/mlp/up/kernel"].any()


def test_pseudo_likelihood_is_that_of_each_token_masked_by_hand() -> None:
    task = MaskedLM(backbone=Transformer(SPEC), **FACTS)
    model: Any = bound(task)
    batch = {k: v[1:2] for k, v in PACKED.items()}
    found = task.apply({"params": start(task)}, batch, method=pseudo_nll)
    for m, length in ((0, 5), (1, 12)):
        first, total = int(batch["starts"][0, m]), 0.0
        for t in range(first, first + length):
            shown = batch["tokens"].copy()
            shown[0, t] = 4
            scores = model.logits(model.backbone(batch | {"tokens": shown}))[0, t]
            total -= float(jax.nn.log_softmax(scores)[batch["tokens"][0, t]])
        assert int(found["count"][0, m]) == length
        np.testing.assert_allclose(float(found["nll"][0, m]), total, rtol=1e-5)


def test_settings_that_would_leak_or_lack_something_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"spec\.causal is not set"):
        start(CausalLM(backbone=Transformer(SPEC)))
    with pytest.raises(ConfigError, match="generator is not set"):
        start(ReplacedTokens(backbone=Transformer(SPEC), **FACTS))
    with pytest.raises(ConfigError, match=r"no mask token"):
        start(MaskedLM(backbone=Transformer(SPEC)))
    with pytest.raises(ConfigError, match="different names"):
        start(Mixture(backbone=DECODER, terms=(MIXTURE.terms[0],) * 2, **FACTS))
    with pytest.raises(ConfigError, match=r"data\.words is not set"):
        start(MaskedLM(backbone=Transformer(SPEC), unit="span", **FACTS))
