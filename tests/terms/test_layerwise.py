"""What a student's blocks learn from a teacher's equals numpy, text by text, in any layout."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from flax.traverse_util import flatten_dict, unflatten_dict
from objectives import CLASSIFY, KEY, PACKED, PADDED, SPEC, told

from research import initialize, runs, train
from research.errors import ConfigError
from research.infer.loaded import load
from research.models import layers
from research.models.recurrent import Recurrent, RecurrentSpec
from research.models.transformer import Transformer
from research.regularize import Objective
from research.terms import distill
from research.terms.layerwise import DistillAttention, DistillHidden, DistillRelations
from research.view import View, forward

WIDE = dataclasses.replace(SPEC, width=12, depth=4)
STUDENT = CLASSIFY.clone(backbone=Transformer(dataclasses.replace(SPEC, depth=2)))
TEACHER = CLASSIFY.clone(backbone=Transformer(WIDE))
HIDDEN, ATTENTION = DistillHidden(teacher="run"), DistillAttention(teacher="run")
RELATIONS = DistillRelations(teacher="run")
FOUR = DistillRelations(
    teacher="run", heads=4, layer=3, relations=("query_query", "key_key", "value_value")
)


@functools.cache
def params_of(task: Any) -> Any:
    rng = np.random.default_rng(0)
    made = flatten_dict(jax.device_get(initialize.initialize(task, PACKED, KEY)), sep="/")
    noisy = {p: np.float32(x + rng.normal(0, 0.3, x.shape)) for p, x in sorted(made.items())}
    return unflatten_dict(noisy, sep="/")


@pytest.fixture(autouse=True)
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "load", lambda run: (TEACHER, params_of(TEACHER)))


@functools.cache
def hidden(task: Any, train: bool) -> np.ndarray:
    """[L + 1, B, T, D], by the trunk's own method."""

    def states(task: Any, batch: Any) -> Any:
        noise = layers.token_noise(task.make_rng("noise"), batch) if train else None
        return task.backbone.layers(batch, noise=noise)

    variables, rngs = {"params": params_of(task)}, {"noise": KEY}
    return told(task.apply(variables, PACKED, method=states, rngs=rngs))


def side(task: Any, name: str, block: int, train: bool) -> np.ndarray:
    """Queries, keys or values of all tokens, heads side by side, from the kernel itself."""
    leaf = params_of(task)["backbone"][f"block_{block}"]["attention"][name]
    return hidden(task, train)[block] @ leaf["kernel"] + leaf["bias"]


def texts() -> list[tuple[int, np.ndarray]]:
    """Row and places of the tokens of every text."""
    found = []
    for b, row in enumerate(PACKED["segments"]):
        found += [(b, np.flatnonzero(row == m)) for m in range(1, row.max() + 1)]
    return found


def value_of(term: Any, task: Any = STUDENT, own: Any = None) -> float:
    rows = jax.tree.map(jax.numpy.asarray, PACKED)
    params = params_of(task) | (own or {})
    found = jax.jit(lambda: term(View(task, params, rows, KEY, jax.numpy.float32(0.5), True)))()
    return float(found.total) / float(found.count)


def test_hidden_states_are_brought_to_the_teachers_width() -> None:
    kernel = np.random.default_rng(1).normal(size=(8, 12)).astype(np.float32)
    there = PACKED["segments"] > 0
    expected = 0.0
    for mine, theirs in ((0, 0), (1, 2), (2, 4)):
        gap = hidden(STUDENT, True)[mine] @ kernel - hidden(TEACHER, False)[theirs]
        expected += (gap[there] ** 2).mean()
    found = value_of(HIDDEN, own={"distill_hidden": {"kernel": kernel}})
    assert found == pytest.approx(expected, rel=1e-4)


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """[n, H K] -> [H, n, K]."""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def scores(task: Any, sides: tuple[str, str], block: int, heads: int, place: Any) -> np.ndarray:
    b, tokens = place
    train = task is STUDENT
    a, c = (split(side(task, name, block, train)[b, tokens], heads) for name in sides)
    return a @ c.swapaxes(1, 2) / a.shape[-1] ** 0.5


def test_attention_scores_are_compared_before_the_softmax() -> None:
    total, count = 0.0, 0
    for place in texts():
        for mine, theirs in ((0, 1), (1, 3)):
            ours, other = (
                scores(task, ("query", "key"), block, 2, place)
                for task, block in ((STUDENT, mine), (TEACHER, theirs))
            )
            total += ((ours - other) ** 2).sum()
        count += ours.size
    assert value_of(ATTENTION) == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("term", [RELATIONS, FOUR], ids=["minilm", "minilm2"])
def test_relations_are_divergences_token_by_token(term: Any) -> None:
    block, heads = (3, 2) if term is RELATIONS else (2, 4)
    total, count = 0.0, 0
    for place in texts():
        for relation in term.relations:
            sides: Any = tuple(relation.split("_"))
            p, q = (
                np.exp(x) / np.exp(x).sum(-1, keepdims=True)
                for x in (
                    scores(TEACHER, sides, block, heads, place),
                    scores(STUDENT, sides, 1, heads, place),
                )
            )
            total += (p * np.log(p / q)).sum(-1).mean(0).sum()
        count += len(place[1])
    assert value_of(term) == pytest.approx(total / count, rel=1e-4)


def test_packed_equals_padded_and_only_the_student_learns() -> None:
    task = Objective(task=STUDENT, terms=HIDDEN + 0.5 * ATTENTION + RELATIONS)
    params = params_of(task)

    def loss(params: Any, batch: Any) -> Any:
        means: Any = task.apply({"params": params}, batch, train=True, rngs={"noise": KEY})
        return means["loss"].value, means

    program = jax.jit(jax.grad(loss, has_aux=True))
    (a, packed), (b, padded) = program(params, PACKED), program(params, PADDED)
    for name, mean in packed.items():
        np.testing.assert_allclose(mean.value, padded[name].value, rtol=2e-5, err_msg=name)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4), a, b)
    assert params["distill_hidden"]["kernel"].shape == (8, 12)
    assert np.any(np.asarray(a["distill_hidden"]["kernel"]))


def test_what_is_seen_of_a_scanned_stack_is_that_of_its_blocks_and_changes_nothing() -> None:
    params = params_of(STUDENT)
    scanned = STUDENT.clone(backbone=Transformer(dataclasses.replace(SPEC, depth=2, scan=True)))
    trunk = dict(params["backbone"])
    both = [trunk.pop(f"block_{i}") for i in range(2)]
    stacked = params | {"backbone": trunk | {"blocks": jax.tree.map(lambda *x: np.stack(x), *both)}}
    bare = forward(STUDENT, params, PACKED, KEY, train=True)
    one = forward(STUDENT, params, PACKED, KEY, train=True, inside=True)
    other = forward(scanned, stacked, PACKED, KEY, train=True, inside=True)
    there = PACKED["segments"] > 0
    for name, mine in one.layers._asdict().items():
        theirs = np.asarray(getattr(other.layers, name))
        np.testing.assert_allclose(np.asarray(mine)[:, there], theirs[:, there], atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(one.layers.vectors)[:, there], hidden(STUDENT, True)[:, there], atol=1e-5
    )
    np.testing.assert_allclose(bare.logits, one.logits, atol=1e-5)
    assert bare.layers is None


def test_what_does_not_compare_is_refused() -> None:
    def student(**changes: Any) -> Any:
        return CLASSIFY.clone(backbone=Transformer(dataclasses.replace(SPEC, **changes)))

    def refused(term: Any, match: str, task: Any = STUDENT) -> None:
        with pytest.raises(ConfigError, match=match):
            objective = Objective(task=task, terms=term)
            jax.eval_shape(lambda: initialize.initialize(objective, PACKED, KEY))

    refused(DistillHidden(), "DistillHidden.teacher is not set; expected a run directory")
    refused(HIDDEN, "run has 4 blocks, which this trunk's 3 do not divide", student(depth=3))
    refused(HIDDEN, "run reads 40 tokens, but this trunk 41", student(vocab_size=41))
    refused(ATTENTION, "run has 2 heads, but this trunk 4", student(heads=4))
    refused(RELATIONS, "run has 2 heads, but this trunk 4; set heads", student(heads=4))
    refused(dataclasses.replace(FOUR, layer=5), "run has 4 blocks, but layer 5")
    refused(dataclasses.replace(FOUR, heads=5), "heads is 5, which do not divide 12")
    refused(dataclasses.replace(FOUR, relations=()), r"relations is \(\)")
    causal = student(causal=True).clone(pool="last")
    refused(RELATIONS, "is no Transformer that reads as this trunk does", causal)
    lstm = CLASSIFY.clone(backbone=Recurrent(RecurrentSpec(vocab_size=40, word_width=8, width=8)))
    refused(RELATIONS, "DistillRelations needs a Transformer's layers", lstm)


def test_a_student_is_served_without_its_projection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    workshop.write_rows(tmp_path)
    short = {"steps": 3, "eval_every": 3, "save_every": 3}
    taught = train.run(workshop.config(tmp_path, name="teacher", **short), tmp_path)
    plain = workshop.config(tmp_path)
    spec = dataclasses.replace(plain.task.backbone.spec, width=8)
    run = str(taught.path)
    terms = DistillHidden(teacher=run) + DistillRelations(teacher=run)
    task = Objective(task=plain.task.clone(backbone=Transformer(spec)), terms=terms)
    student = train.run(workshop.config(tmp_path, name="student", task=task, **short), tmp_path)
    assert {"distill_hidden", "distill_relations"} <= set(runs.read_metrics(student.path)[0])
    assert sorted(load(student.path).params) == ["backbone", "head"]
