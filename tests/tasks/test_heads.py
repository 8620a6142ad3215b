"""Heads on a pooled vector: packed equals padded for each; each against its own definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.utils import class_weight

from research import initialize, losses
from research.data.batches import Arrangement, Batches, Examples
from research.data.tokenize import Encoded
from research.errors import ConfigError
from research.models.transformer import Spec, Transformer
from research.tasks.choice import MultipleChoice
from research.tasks.classify import Classify
from research.tasks.imbalance import ClassBalanced, Focal, LogitAdjusted
from research.tasks.multilabel import MultiLabel
from research.tasks.regress import Regress
from research.tasks.scope import ScopedClassify

SPEC = Spec(vocab_size=60, width=16, depth=2, heads=2, hidden=32, max_positions=32, token_types=2)
TRUNK = Transformer(SPEC)
LABELS = ("a", "b", "c")
CLASSES: dict[str, Any] = {"backbone": TRUNK, "labels": LABELS, "label_counts": (5, 2, 20)}
TASKS: dict[str, nn.Module] = {
    "balanced": Classify(**CLASSES, label_weights="balanced", label_smoothing=0.1),
    "last": Classify(**CLASSES, pool="last"),
    "focal": Focal(**CLASSES, gamma=0.5),
    "class-balanced": ClassBalanced(**CLASSES, gamma=1.0),
    "logit-adjusted": LogitAdjusted(**CLASSES),
    "scoped": ScopedClassify(**CLASSES, outside="c"),
    "regress": Regress(backbone=TRUNK, label_mean=1.5),
    "multi-label": MultiLabel(**CLASSES, label_weights="balanced", train_rows=30),
    "choice": MultipleChoice(backbone=TRUNK),
}


def examples_for(task: nn.Module, questions: int = 5) -> Examples:
    """Random texts of 3 to 20 tokens: questions of 2 to 4 choices, and whatever labels fit."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 5, questions)
    count = int(sizes.sum())
    lengths = rng.integers(3, 21, count)
    question = np.repeat(np.arange(questions), sizes)
    first = np.cumsum(sizes) - sizes
    right = np.zeros(count, np.int32)
    right[first + rng.integers(0, sizes)] = 1
    labels: dict[type, Any] = {
        Regress: rng.uniform(0, 5, count).astype(np.float32),
        MultiLabel: rng.integers(0, 2, (count, 3)).astype(np.int32),
        MultipleChoice: right,
    }
    slots = {
        "labels": labels.get(type(task), rng.integers(0, 3, count).astype(np.int32)),
        "weights": np.ones(count, np.float32),
    }
    choice = isinstance(task, MultipleChoice)
    if choice:
        slots["questions"] = question.astype(np.int32)
    total = int(lengths.sum())
    encoded = Encoded(
        tokens=rng.integers(5, 60, total).astype(np.int32),
        types=rng.integers(0, 2, total).astype(np.uint8),
        words=np.ones(total, np.uint8),
        offsets=np.append(0, np.cumsum(lengths)),
        row_of=question if choice else np.arange(count),
        blank=np.zeros(0, np.int64),
        truncated=0,
        lost=0,
        fingerprint="random",
    )
    names = [tuple("ABCD"[:size]) for size in sizes]
    return Examples(
        encoded=encoded,
        slots=slots,
        units=question if choice else None,
        source=[(chosen, {}) for chosen in names] if choice else None,
    )


def batch_of(examples: Examples, layout: Any, row_length: int | None = None) -> dict[str, Any]:
    """All examples as one batch."""
    arrangement = Arrangement(layout=layout, row_length=row_length)
    return Batches(examples, len(examples.bounds) - 1, arrangement=arrangement).batch(0)


def gradients(task: nn.Module, batch: dict[str, Any], params: Any) -> tuple[Any, Any]:
    """Of the mean loss, with dropout on; and the means."""

    def loss(params: Any) -> Any:
        rngs = {"noise": jax.random.key(3)}
        means: Any = task.apply({"params": params}, batch, train=True, rngs=rngs)
        return means["loss"].value, means

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("name", TASKS)
def test_packed_equals_padded_with_dropout_on(name: str) -> None:
    task = TASKS[name]
    examples = examples_for(task)
    packed, padded = batch_of(examples, "packed", 48), batch_of(examples, "padded")
    assert packed["ids"].shape[1] > 2 and padded["ids"].shape[1] == 1
    params = jax.device_get(initialize.initialize(task, padded, jax.random.key(0)))
    (ours, means), (theirs, expected) = (gradients(task, b, params) for b in (packed, padded))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=0), ours, theirs)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(ours))
    for key, mean in means.items():
        np.testing.assert_allclose(mean.total, expected[key].total, rtol=1e-5)
        np.testing.assert_allclose(mean.count, expected[key].count, rtol=1e-6)


def outputs_of(task: Any, examples: Examples, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Means without dropout, and what `predict` says of each example in order."""
    params = initialize.initialize(task, batch, jax.random.key(0))
    means = task.apply({"params": params}, batch, train=False)
    found = task.apply({"params": params}, batch, method="predict")
    taken = batch["ids"] >= 0
    order = np.argsort(batch["ids"][taken])
    found = {name: np.asarray(x)[taken][order] for name, x in found.items()}
    count = len(examples.encoded.row_of)
    return means, found | dict(examples.slots) | {"ids": np.arange(count)}


def test_choices_are_a_softmax_over_their_question_wherever_they_lie() -> None:
    task: Any = TASKS["choice"]
    examples = examples_for(task)
    batch = batch_of(examples, "packed", 48)
    means, outputs = outputs_of(task, examples, batch)
    params = initialize.initialize(task, batch, jax.random.key(0))
    logits = np.asarray(task.apply({"params": params}, batch, method="logits"))[..., 0]
    taken = batch["ids"] >= 0
    flat = logits[taken][np.argsort(batch["ids"][taken])].astype(np.float64)
    nll, hits, told = [], [], list(task.decode(outputs, examples))
    for q, (start, stop) in enumerate(zip(examples.bounds, examples.bounds[1:])):
        p = np.exp(flat[start:stop]) / np.exp(flat[start:stop]).sum()
        np.testing.assert_allclose(outputs["probabilities"][start:stop], p, rtol=1e-5)
        right = int(np.argmax(outputs["labels"][start:stop]))
        nll.append(-np.log(p[right]))
        hits.append(np.argmax(p) == right)
        assert told[q]["choice"] == "ABCD"[int(np.argmax(p))]
        assert list(told[q]["probabilities"]) == list("ABCD"[: len(p)])
    assert float(means["loss"].value) == pytest.approx(np.mean(nll), rel=1e-5)
    assert float(means["accuracy"].value) == pytest.approx(np.mean(hits))
    assert float(means["loss"].count) == len(nll) == len(told)
    _, details = task.score({}, outputs, examples)
    assert len(details["mistakes"]) == len(nll) - sum(hits)


def test_objectives_equal_their_papers_formulas() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 9, 3)).astype(np.float32), rng.integers(0, 3, (2, 9))
    p = np.exp(logits.astype(np.float64))
    p = np.take_along_axis(p / p.sum(-1, keepdims=True), labels[..., None], -1)[..., 0]
    for gamma in (0.0, 0.5, 2.0):
        expected = -((1 - p) ** gamma) * np.log(p)
        np.testing.assert_allclose(losses.focal(logits, labels, gamma), expected, rtol=1e-5)
    adjusted = LogitAdjusted(**CLASSES, tau=0.7).values(jnp.asarray(logits), jnp.asarray(labels))
    shifted = logits + 0.7 * np.log(np.array([5, 2, 20]) / 27)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(adjusted, expected, rtol=1e-5)
    effective = np.array([(1 - 0.9) / (1 - 0.9**n) for n in (5, 2, 20)])
    weights = ClassBalanced(**CLASSES, beta=0.9).weights_of_labels()
    np.testing.assert_allclose(weights, 3 * effective / effective.sum(), rtol=1e-9)


def test_focal_has_a_gradient_where_an_example_is_certain() -> None:
    logits = jnp.array([[100.0, 0.0]])
    gradient = jax.grad(lambda x: losses.focal(x, jnp.array([0]), 0.5).sum())(logits)
    assert np.isfinite(gradient).all()


def test_balanced_weights_equal_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2], [5, 2, 20])
    expected = class_weight.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(losses.balanced_weights([5, 2, 20]), expected)
    np.testing.assert_allclose(losses.effective_weights([5, 2, 20], 0.0), 1.0)
    ratio = losses.effective_weights([5, 2, 20], 1 - 1e-9) / expected
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_multi_label_loss_and_scores_equal_scikit_learns() -> None:
    task: Any = MultiLabel(**CLASSES, thresholds=(0.45, 0.5, 0.55))
    examples = examples_for(task, questions=20)
    means, outputs = outputs_of(task, examples, batch_of(examples, "packed"))
    yes, p = outputs["labels"], outputs["probabilities"].astype(np.float64)
    values = [sklearn.log_loss(yes[:, c], p[:, c]) for c in range(3)]
    assert float(means["loss"].value) == pytest.approx(np.mean(values), rel=1e-5)
    numbers, details = task.score({}, outputs, examples)
    told = p >= np.array([0.45, 0.5, 0.55])
    options: Any = {"zero_division": 0}
    for average in ("micro", "macro"):
        expected = sklearn.f1_score(yes, told, average=average, **options)
        assert numbers[f"{average}_f1"] == pytest.approx(expected)
    assert numbers["exact_match"] == pytest.approx(sklearn.accuracy_score(yes, told))
    assert numbers["auroc"] == pytest.approx(sklearn.roc_auc_score(yes, p, average="macro"))
    assert numbers["pr_auc"] == pytest.approx(sklearn.average_precision_score(yes, p))
    for c, row in enumerate(details["by_label"].values()):
        assert row["examples"] == yes[:, c].sum()
        assert row["recall"] == pytest.approx(sklearn.recall_score(yes[:, c], told[:, c]))
    first = next(iter(task.decode(outputs, examples)))
    assert first["labels"] == [name for name, taken in zip(LABELS, told[0]) if taken]
    tuned = task.clone(tune_each=True).tuned(outputs, examples)
    better, _ = task.clone(**tuned).score({}, outputs, examples)
    assert better["macro_f1"] >= numbers["macro_f1"]
    one = task.clone(**task.tuned(outputs, examples))
    assert len(one.thresholds) == 1
    assert one.score({}, outputs, examples)[0]["micro_f1"] >= numbers["micro_f1"]


def test_positive_weights_balance_yes_and_no() -> None:
    task = MultiLabel(**CLASSES, label_weights="balanced", train_rows=30)
    np.testing.assert_allclose(task.positive_weights(), [25 / 5, 28 / 2, 10 / 20])
    logits, targets = jnp.array([[0.3, -1.0, 2.0]]), jnp.array([[1, 1, 0]])
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = [[-5 * np.log(p[0, 0]), -14 * np.log(p[0, 1]), -np.log(1 - p[0, 2])]]
    found = losses.binary_cross_entropy(logits, targets, jnp.asarray(task.positive_weights()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_regression_begins_at_the_mean_and_is_told_as_a_number() -> None:
    task: Any = TASKS["regress"]
    examples = examples_for(task)
    means, outputs = outputs_of(task, examples, batch_of(examples, "packed"))
    assert np.abs(outputs["scores"] - 1.5).max() < 0.5
    error = outputs["scores"] - outputs["labels"]
    assert float(means["loss"].value) == pytest.approx((error**2).mean(), rel=1e-5)
    assert float(means["absolute_error"].value) == pytest.approx(np.abs(error).mean(), rel=1e-5)
    numbers, details = task.score({}, outputs, examples)
    expected = np.corrcoef(outputs["scores"], outputs["labels"])[0, 1]
    assert numbers["pearson"] == pytest.approx(expected, rel=1e-4)
    assert details["mistakes"][0]["error"] == pytest.approx(np.abs(error).max())
    assert next(iter(task.decode(outputs, examples))) == {"score": float(outputs["scores"][0])}


def binary(**more: Any) -> tuple[Any, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    labels = (rng.random(200) < 0.2).astype(np.int64)
    scores = np.clip(0.15 * labels + rng.normal(0.25, 0.1, 200), 0.01, 0.99)
    outputs = {
        "probabilities": np.stack([1 - scores, scores], -1),
        "labels": labels,
        "ids": np.arange(200),
    }
    return Classify(backbone=TRUNK, labels=("no", "yes"), **more), outputs


@pytest.mark.parametrize("aim", ["f1", "mcc"])
def test_a_tuned_threshold_is_the_best_there_is_and_decides(aim: Any) -> None:
    task, outputs = binary(tune_for=aim)
    examples: Any = None
    before, _ = task.score({"accuracy": 0.0}, outputs, examples)
    tuned = task.clone(**task.tuned(outputs, examples))
    after, details = tuned.score({"accuracy": 0.0}, outputs, examples)
    assert before["accuracy"] == 0.0 and "threshold" not in before
    guesses = outputs["probabilities"][:, 1] >= after["threshold"]
    score = {"f1": sklearn.f1_score, "mcc": sklearn.matthews_corrcoef}[aim]
    everywhere = np.linspace(0, 1, 2001)
    best = max(score(outputs["labels"], outputs["probabilities"][:, 1] >= t) for t in everywhere)
    assert after[aim] == pytest.approx(score(outputs["labels"], guesses))
    assert after[aim] >= best - 1e-12 > before[aim]
    assert after["accuracy"] == pytest.approx(sklearn.accuracy_score(outputs["labels"], guesses))
    told = [answer["label"] for answer in tuned.decode(outputs, examples)]
    assert told == ["yes" if guess else "no" for guess in guesses]
    assert len(details["pr_auc"]) == 2


def test_what_is_out_of_scope_is_scored_by_its_class_and_by_the_others() -> None:
    rng = np.random.default_rng(2)
    p = rng.dirichlet([1, 1, 1], 300)
    labels = rng.integers(0, 3, 300)
    task = ScopedClassify(**CLASSES, outside="b")
    outputs = {"probabilities": p, "labels": labels, "ids": np.arange(300)}
    numbers, _ = task.score({}, outputs, examples_for(task))
    away = labels == 1
    assert numbers["outside_auroc"] == pytest.approx(sklearn.roc_auc_score(away, p[:, 1]))
    by_max = sklearn.roc_auc_score(away, 1 - p[:, [0, 2]].max(-1))
    assert numbers["outside_auroc_by_max"] == pytest.approx(by_max)
    assert numbers["outside_recall"] == pytest.approx((p.argmax(-1) == 1)[away].mean())
    right = (p.argmax(-1) == labels)[~away].mean()
    assert numbers["in_scope_accuracy"] == pytest.approx(right)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Classify(**CLASSES | {"backbone": Transformer(dataclasses.replace(SPEC, causal=True))}),
         "a causal trunk's first token sees nothing"),
        (Classify(**CLASSES, label_weights=(1.0, 2.0)), "label_weights has 2 numbers"),
        (Classify(**CLASSES, threshold=0.5), "threshold is for two labels, but there are 3"),
        (Classify(backbone=TRUNK, labels=LABELS, label_weights="balanced"),
         "needs task.label_counts"),
        (LogitAdjusted(**CLASSES | {"label_counts": (1, 0, 2)}), "train has no 'b'"),
        (ClassBalanced(**CLASSES, beta=1.0), "beta is 1.0"),
        (ClassBalanced(**CLASSES, label_weights="balanced"), "has its own"),
        (ScopedClassify(**CLASSES), "outside is 'oos', which is not among the labels"),
        (MultiLabel(**CLASSES, thresholds=(0.5, 0.5)), "thresholds has 2 numbers"),
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_are_one_sentence(task: nn.Module, reason: str) -> None:
    batch = batch_of(examples_for(task), "packed")
    with pytest.raises(ConfigError, match=reason) as caught:
        jax.eval_shape(lambda b: initialize.initialize(task, b, jax.random.key(0)), batch)
    assert "\n" not in str(caught.value)


def test_a_threshold_of_three_labels_cannot_be_tuned() -> None:
    with pytest.raises(ConfigError, match="a threshold is for two labels, not 3"):
        Classify(**CLASSES).tuned({}, examples_for(Classify(**CLASSES)))
