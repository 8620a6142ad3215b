"""Answers: packed equals padded, the loss by its formula, windows merged, telling and scoring."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
from squad_files import squad, tokenizer, write

from research import initialize, spans
from research.data.batches import Batches
from research.data.questions import Questions
from research.models.transformer import Spec, Transformer
from research.tasks.answer import NO_ANSWER, Answer

SPEC = Spec(vocab_size=120, width=16, depth=2, heads=2, hidden=32, max_positions=32, token_types=2)
TASK = Answer(backbone=Transformer(SPEC), unanswerable=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    folder = tmp_path_factory.mktemp("answers")
    return Questions(
        train=write(folder / "train.json", squad(2, 2)),
        tokenizer=tokenizer(folder),
        max_length=24,
        max_question=6,
        stride=5,
        cache=str(folder / "cache"),
    )


def parameters(batch: dict[str, np.ndarray]) -> Any:
    params = initialize.initialize(TASK, batch, jax.random.key(0))
    # A head that is far from flat, so that every token matters.
    kernel = jax.random.normal(jax.random.key(1), params["span"]["kernel"].shape)
    return params | {"span": {"kernel": kernel, "bias": params["span"]["bias"]}}


def one_batch(data: Questions, **changes: Any) -> tuple[Batches, dict[str, np.ndarray]]:
    batches = dataclasses.replace(data, **changes).open("train", 64)
    return batches, batches.batch(0)


def test_packed_equals_padded_with_dropout_on(data: Questions) -> None:
    batches = [
        one_batch(data, row_length=64, shapes=1)[1],
        one_batch(data, layout="padded", shapes=1)[1],
    ]
    assert batches[0]["ids"].shape[1] > 1 == batches[1]["ids"].shape[1]
    params = parameters(batches[0])

    @jax.jit
    def gradients(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            rngs = {"noise": jax.random.key(3)}
            means = TASK.apply({"params": params}, batch, train=True, rngs=rngs)
            return means["loss"].value, means

        return jax.grad(loss, has_aux=True)(params)

    (packed, means), (padded, others) = (gradients(params, batch) for batch in batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), packed, padded)
    for name, mean in means.items():
        np.testing.assert_allclose(mean.total, others[name].total, rtol=1e-5)
        assert mean.count == others[name].count > 1


def test_the_loss_is_the_mean_of_both_ends_over_the_context_and_the_first_token(
    data: Questions,
) -> None:
    _, batch = one_batch(data, row_length=64)
    params = parameters(batch)
    logits = np.asarray(TASK.apply({"params": params}, batch, method="logits"), np.float64)
    means = TASK.apply({"params": params}, batch, train=False)
    values, right = [], []
    for b, m in np.argwhere(batch["ids"] >= 0):
        first, length = batch["starts"][b, m], batch["lengths"][b, m]
        inside = [0, *np.flatnonzero(batch["context"][b, first : first + length] == 1)]
        loss, hit = 0.0, True
        for side, name in enumerate(("start", "end")):
            scores = logits[b, first : first + length, side]
            target = batch[name][b, m]
            loss += 0.5 * (np.log(np.exp(scores[inside]).sum()) - scores[target])
            hit &= inside[int(np.argmax(scores[inside]))] == target
        values.append(loss)
        right.append(hit)
    np.testing.assert_allclose(means["loss"].total, sum(values), rtol=1e-5)
    assert float(means["loss"].count) == len(values)
    assert float(means["window_accuracy"].total) == sum(right)


def outputs_of(examples: Any, seed: int) -> dict[str, Any]:
    """Random scores for every window."""
    rng = np.random.default_rng(seed)
    lengths = examples.encoded.lengths.tolist()
    return {
        name: [rng.normal(size=n).astype(np.float32) for n in lengths] for name in TASK.per_token
    }


def brute_force(
    task: Answer, outputs: dict[str, Any], examples: Any, row: int
) -> tuple[float, float, set[tuple[int, int]]]:
    """Score of no answer, of the best span, and where in the context the latter lies."""
    windows, row_of = examples.source.windows, examples.encoded.row_of
    null, best, where = math.inf, -math.inf, set[tuple[int, int]]()
    for i in np.flatnonzero(row_of == row):
        begin, size = int(windows.begins[i]), int(windows.sizes[i])
        start, end = (outputs[name][i].astype(np.float64) for name in task.per_token)
        null = min(null, start[0] + end[0])
        for a in range(begin, begin + size):
            for z in range(a, min(begin + size, a + task.longest)):
                score = start[a] + end[z]
                if score > best:
                    best, where = score, set()
                if score == best:
                    where.add(windows.characters(i, a - begin, z - begin))
    return null, best, where


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_the_best_over_all_windows_is_told_in_the_characters_of_the_context(
    data: Questions, longest: int
) -> None:
    examples = one_batch(data)[0].examples
    task = TASK.clone(longest=longest, nbest=5)
    outputs = outputs_of(examples, longest)
    told = list(task.decode(outputs, examples))
    assert len(told) == len(examples.source.rows)
    for row, answer in enumerate(told):
        null, best, where = brute_force(task, outputs, examples, row)
        context = examples.source.rows[row]["context"]
        top = answer["nbest"][0]
        assert (top["start"], top["end"]) in where
        for one in answer["nbest"]:
            assert one["answer"] == context[one["start"] : one["end"]]
        places = [(one["start"], one["end"]) for one in answer["nbest"]]
        assert len(set(places)) == len(places) == 5
        chances = [one["score"] for one in answer["nbest"]]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) + answer["no_answer_probability"] == pytest.approx(1)
        assert math.log(answer["no_answer_probability"] / chances[0]) == pytest.approx(null - best)
        if null - best > 0:
            assert (answer["answer"], answer["start"], answer["end"]) == ("", None, None)
            assert answer["score"] == answer["no_answer_probability"]
        else:
            assert {key: answer[key] for key in top} == top
        assert answer["id"] == examples.source.rows[row]["id"]


def test_a_threshold_moves_answers_and_without_unanswerable_there_is_always_one(
    data: Questions,
) -> None:
    examples = one_batch(data)[0].examples
    outputs = outputs_of(examples, 0)

    def silent(task: Answer) -> int:
        return sum(answer["answer"] == "" for answer in task.decode(outputs, examples))

    counts = [silent(TASK.clone(threshold=t)) for t in (-99.0, -2.0, 0.0, 99.0)]
    assert counts[0] == 16 and counts[-1] == 0
    assert counts == sorted(counts, reverse=True)
    assert silent(TASK.clone(unanswerable=False, threshold=-99.0)) == 0


def test_scores_are_what_the_told_answers_earn(data: Questions) -> None:
    examples = one_batch(data)[0].examples
    outputs = outputs_of(examples, 1)
    for which, row in enumerate(examples.encoded.row_of):
        # Half of the answers are made the best, and a quarter of the questions said to have none.
        windows = examples.source.windows
        if row % 2 and windows.start[which]:
            outputs["start_logits"][which][windows.start[which]] = 9.0
            outputs["end_logits"][which][windows.end[which]] = 9.0
        outputs["start_logits"][which][0] = 30.0 if row % 4 == 3 else -5.0
    numbers, details = TASK.score({"loss": 1.0}, outputs, examples)
    told = [answer["answer"] for answer in TASK.decode(outputs, examples)]
    gold = examples.source.answers
    right = [bool(grade) for grade in spans.grade(told, gold)[0]]
    assert numbers["loss"] == 1.0
    assert numbers["exact_match"] == pytest.approx(np.mean(right))
    answerable = np.array([bool(answers) for answers in gold])
    assert numbers["no_answer_accuracy"] == pytest.approx(np.mean(np.array(right)[~answerable]))
    assert numbers["has_answer_exact_match"] == pytest.approx(np.mean(np.array(right)[answerable]))
    assert numbers["f1"] == pytest.approx(spans.grade(told, gold)[1].mean())
    assert numbers["exact_match"] <= numbers["f1"]
    for name, (totals, counts) in TASK.by_row(outputs, examples).items():
        assert len(totals) == len(counts) == len(gold)
        assert totals.sum() / counts.sum() == pytest.approx(numbers[name])
    mistakes = details["mistakes"]
    assert len(mistakes) == min(20, right.count(False))
    chances = [mistake["probability"] for mistake in mistakes]
    assert chances == sorted(chances, reverse=True)
    for mistake in mistakes:
        row = int(examples.encoded.row_of[mistake["id"]])
        assert not right[row]
        assert mistake["prediction"] == (told[row] or NO_ANSWER)
        assert mistake["label"] == (" / ".join(dict.fromkeys(gold[row])) or NO_ANSWER)


def test_the_tuned_threshold_reaches_the_best_f1(data: Questions) -> None:
    examples = one_batch(data)[0].examples
    outputs = outputs_of(examples, 2)
    tuned = TASK.clone(**TASK.tuned(outputs, examples))
    numbers, _ = tuned.score({}, outputs, examples)
    others = [TASK.clone(threshold=t).score({}, outputs, examples)[0]["f1"] for t in (-3, -1, 0, 2)]
    assert numbers["f1"] >= max(*others, numbers["best_f1"]) - 1e-9
    assert numbers["threshold"] == tuned.threshold
    assert TASK.clone(unanswerable=False).tuned(outputs, examples) == {}


def test_version_1_1_has_no_threshold(data: Questions) -> None:
    examples = one_batch(data)[0].examples
    numbers, _ = TASK.clone(unanswerable=False).score({}, outputs_of(examples, 3), examples)
    assert set(numbers) == {"exact_match", "f1"}
