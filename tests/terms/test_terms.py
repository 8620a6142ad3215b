"""Each term equals a reference in numpy, or one example at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives import CLASSIFY, KEY, PACKED, PADDED, start, told, view

from research.models import layers
from research.regularize import Objective
from research.terms import adversarial, distill
from research.terms.adversarial import Fgm, FreeLB, Pgd, Smart, Vat
from research.terms.compare import Mixup, SimCSE, SupCon, partners
from research.terms.consistency import PseudoLabel, RDrop, Uda
from research.terms.distill import Distill
from research.terms.domains import Coral, DomainAdversarial, Mmd
from research.view import View

FILLED = PACKED["ids"] >= 0
LABELLED = PACKED["weights"] > 0


def asked(method: str, key: Any = KEY, **options: Any) -> np.ndarray:
    """What the bare task says of the packed batch."""
    variables = {"params": start(CLASSIFY)}
    rngs = {"noise": key}
    return told(CLASSIFY.apply(variables, PACKED, method=method, rngs=rngs, **options))


@functools.cache
def logits(train: bool = True, second: bool = False) -> np.ndarray:
    key = jax.random.fold_in(KEY, 1) if second else KEY
    return asked("noisy_logits", key, train=train)


def encoded(task: Any, batch: Any) -> Any:
    return task.encode(batch, noise=layers.token_noise(task.make_rng("noise"), batch))


@functools.cache
def vectors(second: bool = False) -> np.ndarray:
    return asked(encoded, jax.random.fold_in(KEY, 1) if second else KEY)  # type: ignore[arg-type]


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * (np.log(p) - np.log(q))).sum(-1)


def mean(term: Any, seen: View | None = None) -> float:
    found = term(view() if seen is None else seen)
    return float(found.total) / float(found.count)


def test_rdrop_is_half_the_divergence_both_ways() -> None:
    p, q = softmax(logits()), softmax(logits(second=True))
    assert np.abs(p - q).max() > 1e-3
    assert mean(RDrop()) == pytest.approx(((kl(p, q) + kl(q, p)) / 2)[FILLED].mean(), rel=1e-4)


def test_pseudo_labels_are_learned_where_the_model_is_sure() -> None:
    plain = softmax(logits(train=False))
    free = FILLED & ~LABELLED
    cut = float(np.sort(plain.max(-1)[free])[1]) - 1e-4
    sure = free & (plain.max(-1) >= cut)
    assert 0 < sure.sum() < free.sum() or free.sum() == 2
    values = -np.log(softmax(logits())[sure, plain.argmax(-1)[sure]])
    assert mean(PseudoLabel(threshold=cut)) == pytest.approx(values.mean(), rel=1e-4)
    sharp = softmax(logits(train=False) / 0.4)
    values = kl(sharp, softmax(logits())) * (plain.max(-1) >= cut)
    assert mean(Uda(threshold=cut)) == pytest.approx(values[free].mean(), rel=1e-4)


@pytest.mark.parametrize("kind", [SupCon, SimCSE])
def test_contrast_is_a_loop_over_queries(kind: Any) -> None:
    keep = LABELLED if kind is SupCon else FILLED
    labels, heat = PACKED["labels"][keep], kind().temperature
    one = vectors()[keep]
    two = one if kind is SupCon else vectors(second=True)[keep]
    one, two = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (one, two))
    scores = one @ two.T / heat
    values = []
    for i, row in enumerate(scores):
        others = [j for j in range(len(row)) if j != i or kind is SimCSE]
        own = [j for j in others if (labels[j] == labels[i] if kind is SupCon else j == i)]
        total = np.log(sum(np.exp(row[j]) for j in others))
        if own:
            values.append(np.mean([total - row[j] for j in own]))
    assert values
    assert mean(kind()) == pytest.approx(np.mean(values), rel=1e-4)


def test_mixup_is_a_loop_over_pairs_in_one_cycle() -> None:
    key = jax.random.fold_in(KEY, 5)
    other = np.asarray(partners(jnp.asarray(PACKED["ids"]), jnp.asarray(LABELLED), key))
    places = np.flatnonzero(LABELLED)
    visited, place = [], int(places[0])
    for _ in places:
        visited.append(place)
        place = int(other.reshape(-1)[place])
    assert place == places[0] and sorted(visited) == places.tolist()
    head = {name: told(x) for name, x in start(CLASSIFY)["head"].items()}
    x, labels = vectors().reshape(-1, 8), PACKED["labels"].reshape(-1)
    values = []
    for i in places:
        own = jax.random.fold_in(jax.random.fold_in(key, 1), int(PACKED["ids"].reshape(-1)[i]))
        share, j = float(jax.random.beta(own, 0.5, 0.5)), int(other.reshape(-1)[i])
        mixed = (share * x[i] + (1 - share) * x[j]) @ head["kernel"] + head["bias"]
        p = softmax(mixed)
        values.append(-share * np.log(p[labels[i]]) - (1 - share) * np.log(p[labels[j]]))
    assert mean(Mixup(alpha=0.5)) == pytest.approx(np.mean(values), rel=1e-4)


def test_a_step_in_the_embeddings_is_a_step_of_the_table() -> None:
    batch = {name: x.copy() for name, x in PADDED.items()}
    batch["tokens"] = np.where(batch["segments"] > 0, 5 + batch["positions"], 0)
    delta = np.random.default_rng(0).normal(size=(len(batch["tokens"]), 12, 8)).astype(np.float32)
    delta[:] = delta[:1]
    moved = jax.tree.map(np.array, start(CLASSIFY))
    moved["backbone"]["embed"]["table"][5:17] += delta[0]
    a = CLASSIFY.apply({"params": moved}, batch, method="logits")
    b = CLASSIFY.apply({"params": start(CLASSIFY)}, batch | {"delta": delta}, method="logits")
    taken = batch["ids"] >= 0
    np.testing.assert_allclose(np.asarray(a)[taken], np.asarray(b)[taken], atol=1e-5)


@functools.cache
def oracle() -> Any:
    """Loss and its gradient by the embeddings of one example alone, by kind of loss."""

    def value(delta: Any, row: Any, plain: Any, kind: Any) -> Any:
        variables, rngs = {"params": start(CLASSIFY)}, {"noise": KEY}
        seen: Any = CLASSIFY.apply(
            variables, row | {"delta": delta}, train=True, rngs=rngs, method="noisy_logits"
        )
        log_q = jax.nn.log_softmax(seen)[0, 0]
        log_p = jax.nn.log_softmax(plain)[0, 0]
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        one_way = jnp.sum(p * (log_p - log_q))
        kinds = (-log_q[row["labels"][0, 0]], one_way, one_way + jnp.sum(q * (log_q - log_p)))
        return jnp.stack(kinds)[kind]

    return jax.jit(jax.value_and_grad(value))


def climb(term: Any, row: Any, plain: Any, first: np.ndarray) -> float:
    """A term of one example, by its definition."""

    def ask(delta: np.ndarray, kind: int) -> tuple[float, np.ndarray]:
        found, slope = oracle()(delta.astype(np.float32), row, plain, kind)
        return float(found), told(slope)

    def cut(delta: np.ndarray) -> np.ndarray:
        return delta * min(1.0, term.epsilon / np.linalg.norm(delta))

    zero = np.zeros_like(first)
    if isinstance(term, Fgm):
        slope = ask(zero, 0)[1]
        return ask(term.epsilon * slope / np.linalg.norm(slope), 0)[0]
    if isinstance(term, Vat):
        slope = ask(term.xi * first / np.linalg.norm(first), 1)[1]
        return ask(term.epsilon * slope / np.linalg.norm(slope), 1)[0]
    if isinstance(term, Smart):
        slope = ask(term.sigma * first, 2)[1]
        delta = term.sigma * first + term.step * slope / np.abs(slope).max()
        return ask(np.clip(delta, -term.epsilon, term.epsilon), 2)[0]
    length = int(row["lengths"][0, 0])
    delta = zero if isinstance(term, Pgd) else term.epsilon * first / np.sqrt(length * 8)
    losses = []
    for _ in range(term.steps):
        found, slope = ask(delta, 0)
        losses.append(found)
        delta = cut(delta + term.step * slope / np.linalg.norm(slope))
    return ask(delta, 0)[0] if isinstance(term, Pgd) else float(np.mean(losses))


ATTACKS = [
    Fgm(epsilon=1.0),
    Pgd(epsilon=0.5, step=0.3),
    FreeLB(epsilon=0.5, step=0.3),
    Vat(epsilon=1.0),
    Smart(epsilon=0.1, step=0.1, sigma=0.01),
]


@pytest.mark.parametrize("term", ATTACKS, ids=lambda term: term.name)
def test_attacks_are_those_on_each_example_alone(term: Any) -> None:
    drawn = {"freelb": (adversarial.uniform, 2), "vat": (adversarial.gauss, 3)}
    draw, use = drawn.get(term.name, (adversarial.gauss, 4))
    first = told(draw(view(PADDED), use))
    free = isinstance(term, Vat | Smart)
    plain = CLASSIFY.apply(
        {"params": start(CLASSIFY)}, PADDED, train=True, rngs={"noise": KEY}, method="noisy_logits"
    )
    values = []
    for b in range(len(PADDED["tokens"])):
        row = {name: x[b : b + 1] for name, x in PADDED.items()}
        if free or row["weights"][0, 0]:
            values.append(climb(term, row, plain[b : b + 1], first[b : b + 1]))
    assert mean(term) == pytest.approx(np.mean(values), rel=2e-4)
    ordinary = mean(lambda seen: seen.main.means["loss"])
    assert free or mean(term) > ordinary


def test_noise_is_uniform_and_normal_and_none_at_padding() -> None:
    there = PACKED["segments"] > 0
    even, normal = told(adversarial.uniform(view(), 9)), told(adversarial.gauss(view(), 9))
    assert not even[~there].any() and not normal[~there].any()
    count = even[there].size
    assert abs(even[there].mean()) < 4 * 3**-0.5 / count**0.5
    assert abs(even[there].std() - 3**-0.5) < 0.05
    assert abs(normal[there].std() - 1.0) < 0.15


def test_distillation_is_the_divergence_at_a_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    other = jax.tree.map(lambda x: x * 1.5, start(CLASSIFY))
    monkeypatch.setattr(distill, "load", lambda run: (CLASSIFY, other))
    teacher = told(CLASSIFY.apply({"params": other}, PACKED, method="logits"))
    values = 4.0 * kl(softmax(teacher / 2), softmax(logits() / 2))
    assert mean(Distill(teacher="run")) == pytest.approx(values[FILLED].mean(), rel=1e-4)


def test_coral_and_mmd_are_sums_over_rows_and_pairs() -> None:
    source, target = (vectors()[FILLED & (PACKED["domains"] == d)] for d in (0, 1))
    gap = np.cov(source.T) - np.cov(target.T)
    assert mean(Coral()) == pytest.approx((gap**2).sum() / (4 * 8**2), rel=1e-4)
    x = np.concatenate([source, target])
    n, m = len(source), len(target)
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    width = distance.sum() / (len(x) * (len(x) - 1))
    kernel = sum(np.exp(-distance / (width * s)) for s in (0.25, 0.5, 1.0, 2.0, 4.0))
    expected = kernel[:n, :n].sum() / n**2 + kernel[n:, n:].sum() / m**2
    expected -= 2 * kernel[:n, n:].sum() / (n * m)
    assert mean(Mmd()) == pytest.approx(expected, rel=1e-3)


def test_the_domain_head_learns_and_the_trunk_unlearns() -> None:
    term = DomainAdversarial(hidden=5)
    params = start(Objective(task=CLASSIFY, terms=term))
    head = jax.tree.map(told, params["domain_adversarial"])
    hidden = np.maximum(vectors() @ head["up"]["kernel"] + head["up"]["bias"], 0)
    p = softmax(hidden @ head["out"]["kernel"] + head["out"]["bias"])
    values = -np.log(np.take_along_axis(p, PACKED["domains"][..., None], -1)[..., 0])

    def loss(params: Any, share: float, reverse: bool) -> Any:
        seen = View(CLASSIFY, params, view().batch, KEY, jnp.float32(share))
        if reverse:
            return term(seen).value
        scores = term.scores(seen, seen.main.vectors)
        nll = -jax.nn.log_softmax(scores)
        at = jnp.asarray(PACKED["domains"])[..., None]
        own = jnp.take_along_axis(nll, at, axis=-1)[..., 0]
        return jnp.sum(own * FILLED) / FILLED.sum()

    # The vectors above are of this trunk.
    params = params | {"backbone": start(CLASSIFY)["backbone"]}
    assert float(loss(params, 0.5, True)) == pytest.approx(values[FILLED].mean(), rel=1e-4)
    plain, turned = (jax.grad(loss)(params, 0.3, reverse) for reverse in (False, True))
    factor = 2 / (1 + np.exp(-3.0)) - 1
    for part, times in (("domain_adversarial", 1.0), ("backbone", -factor)):
        jax.tree.map(
            lambda a, b, times=times: np.testing.assert_allclose(b, times * a, atol=1e-6),
            plain[part],
            turned[part],
        )
