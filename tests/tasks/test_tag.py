"""Taggers: packed equals padded for every head and trunk; what is told fits the words it is of."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tagged_files import write_tagged

from research import evaluate, initialize, sharding
from research.adapt import Full
from research.data import tags
from research.data.tagged import Tagged
from research.errors import ConfigError
from research.evaluate import Model
from research.evaluators.intervals import Intervals
from research.models.recurrent import Recurrent, RecurrentSpec
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.step import abstract_state, make_step
from research.tasks.intent import IntentSlots, IntentSlotsCRF
from research.tasks.tag import Tag, TagCRF

TRANSFORMER = Transformer(
    Spec(vocab_size=90, width=16, depth=1, heads=2, hidden=32, max_positions=32)
)
BILSTM = Recurrent(
    RecurrentSpec(vocab_size=90, word_width=8, filters=4, width=16, depth=2, dropout=0.3)
)
INTENTS = ("person", "place")


def task_of(kind: type[Tag], trunk: Any, scheme: Any = "BIO") -> Tag:
    more = {"intents": INTENTS} if issubclass(kind, IntentSlots) else {}
    labels = tags.names(("LOC", "PER"), scheme)
    return kind(backbone=trunk, labels=labels, scheme=scheme, **more)


TASKS = [
    task_of(Tag, TRANSFORMER),
    task_of(TagCRF, TRANSFORMER, "IOBES"),
    task_of(TagCRF, BILSTM, "IOBES"),
    task_of(Tag, BILSTM),
    task_of(IntentSlots, TRANSFORMER),
    task_of(IntentSlotsCRF, BILSTM),
]
NAMES = [f"{type(task).__name__}-{type(task.backbone).__name__}" for task in TASKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("tagged"))


def data_of(folder: Path, task: Tag, **changes: Any) -> Tagged:
    recurrent = isinstance(task.backbone, Recurrent)
    made = Tagged(
        train=str(folder / "train.jsonl"),
        dev=str(folder / "dev.jsonl"),
        intent="intent" if isinstance(task, IntentSlots) else None,
        target=task.scheme or "BIO",
        tokenizer="words:90" if recurrent else str(folder / "tokenizer.json"),
        characters=6 if recurrent else 0,
        max_length=12,
        stride=4,
        shapes=1,
        cache=str(folder / "cache"),
    )
    return dataclasses.replace(made, **changes)


@functools.cache
def start(task: Tag, folder: Path) -> Any:
    """Parameters far from their initial values, so that every one of them matters."""
    batch = data_of(folder, task).open("train", 16, steps=1).batch(0)
    shapes = jax.eval_shape(lambda: initialize.initialize(task, batch, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def gradients(task: Tag, params: Any, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    def loss(params: Any) -> tuple[jax.Array, Any]:
        rngs = {"noise": jax.random.key(3)}
        means = task.apply({"params": params}, batch, train=True, rngs=rngs)
        return means["loss"].value, means

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_packed_equals_padded_with_dropout_on(task: Tag, folder: Path) -> None:
    params = start(task, folder)
    batches = [
        data_of(folder, task, layout=layout).open("train", 16, steps=2)
        for layout in ("packed", "padded")
    ]
    packed, padded = (made.batch(1) for made in batches)
    assert packed["tokens"].shape[0] < padded["tokens"].shape[0]
    (one, means), (other, wanted) = (gradients(task, params, b) for b in (packed, padded))
    for name, mean in means.items():
        np.testing.assert_allclose(mean.total, wanted[name].total, rtol=1e-5)
        assert mean.count == wanted[name].count
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), one, other)


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_evaluation_does_not_depend_on_the_layout(task: Tag, folder: Path) -> None:
    params = start(task, folder)
    mesh = MeshSpec().build(jax.devices()[:1])
    found = []
    for layout, size in (("packed", 16), ("padded", 5)):
        model = Model(task, jax.device_put(params), data_of(folder, task, layout=layout), mesh)
        with jax.set_mesh(mesh):
            found.append(evaluate.HeldOut(batch_size=size)(model).numbers)
            intervals = Intervals(resamples=50)(model).details["intervals"]
            assert set(intervals) == set(found[-1]) - {"macro_f1"}
            for name, interval in intervals.items():
                assert interval["value"] == pytest.approx(found[-1][name])
                assert interval["low"] <= interval["value"] <= interval["high"]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    names = {"loss", "f1", "precision", "recall", "macro_f1", "accuracy"}
    assert set(found[0]) >= names
    if isinstance(task, IntentSlots):
        assert set(found[0]) >= {"intent_accuracy", "exact_match"}


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_what_is_told_fits_the_words(task: Tag, folder: Path) -> None:
    """As many tags as words, well formed, whatever the length; entities lie where they say."""
    rows: list[Any] = [
        "Ada Quill met Bo, at (New Quay).",
        {"tokens": ["Cy", "Van", "Dorn"]},
        {"text": "Bo"},
        " ".join(["Ada left Borealis ."] * 20),
        {"tokens": ["Borealis"] * 31},
    ]
    mesh = MeshSpec().build(jax.devices()[:1])
    data = data_of(folder, task)
    with jax.set_mesh(mesh):
        model = Model(task, jax.device_put(start(task, folder)), data, mesh)
        batches = data.encode_rows(rows, batch_size=4)
        _, outputs = evaluate.forward(model, batches, means=False)
    told = list(task.decode(outputs, batches.examples))
    assert len(told) == len(rows)
    assert [len(answer["tokens"]) for answer in told] == [11, 3, 1, 80, 31]
    for row, answer in zip(rows, told):
        text = row if isinstance(row, str) else row.get("text") or " ".join(row["tokens"])
        assert len(answer["tags"]) == len(answer["tokens"])
        assert tags.breach(answer["tags"], task.scheme) is None
        assert [e["type"] for e in answer["entities"]] == [
            kind for kind, _, _ in tags.entities(answer["tags"])
        ]
        for entity in answer["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]
            assert 0 < entity["score"] <= 1
        if isinstance(task, IntentSlots):
            assert answer["intent"] in INTENTS


def test_confidence_and_probability_of_a_chain_are_those_of_its_paths(folder: Path) -> None:
    """exp(-loss) of a sentence is the probability that `predict` gives to the path it is scored
    by."""
    task = TASKS[1]
    params = start(task, folder)
    batch = data_of(folder, task, max_length=64).open("dev", 16).batch(0)
    predict = jax.jit(lambda batch: task.apply({"params": params}, batch, method="predict"))
    outputs = jax.device_get(predict(batch))
    batch |= {"tags": np.where(batch["tags"] >= 0, outputs["tags"], -1).astype(np.int32)}
    mean = jax.jit(lambda batch: task.apply({"params": params}, batch, train=False)["loss"])(batch)
    taken = batch["ids"] >= 0
    np.testing.assert_allclose(-mean.total, outputs["log_probability"][taken].sum(), rtol=1e-4)
    words = batch["tags"] >= 0
    assert (outputs["confidence"][words] <= 1 + 1e-5).all()
    # A path is at most as probable as the rarest of its steps.
    total = np.exp(outputs["log_probability"])
    for b, m in np.argwhere(taken):
        inside = words[b] & (batch["segments"][b] == m + 1)
        assert total[b, m] <= outputs["confidence"][b][inside].min() + 1e-5


def test_meshes_and_microbatches_do_not_change_a_step(folder: Path) -> None:
    task = TASKS[5]

    def losses(spec: MeshSpec, devices: int, microbatches: int) -> list[float]:
        mesh = spec.build(jax.devices()[:devices])
        batch = data_of(folder, task).open("train", 16, steps=3, multiple=8).batch(0)
        optim = Optim(learning_rate=1e-2, warmup=0)
        with jax.set_mesh(mesh):
            params = initialize.abstract_params(task, batch, mesh)
            abstract, create = abstract_state(optim, Full(), 10, params, mesh)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            state = jax.jit(create, out_shardings=shardings)(start(task, folder))
            program = make_step(task, optim, Full(), 10, microbatches)
            found = []
            for _ in range(3):
                state, means = program(state, sharding.put(batch, mesh), jax.random.key(7))
                found.append(float(means["loss"].value))
        return found

    if jax.device_count() < 2:
        pytest.skip("needs 2 devices: tests/conftest.py simulates them")
    one = losses(MeshSpec(), 1, 1)
    np.testing.assert_allclose(losses(MeshSpec(data=1, fsdp=2), 2, 1), one, atol=1e-5)
    np.testing.assert_allclose(losses(MeshSpec(), 1, 4), one, atol=1e-5)
    assert one[-1] < one[0]


def test_a_chain_learns_no_forbidden_step(folder: Path) -> None:
    task = TASKS[1]
    batch = data_of(folder, task).open("train", 16, steps=1).batch(0)
    gradient, means = gradients(task, start(task, folder), batch)
    pairs, begins, ends = tags.allowed(task.labels, task.scheme)
    for name, rule in (("transitions", pairs), ("starts", begins), ("ends", ends)):
        assert not gradient[f"{name}_bias"][~rule].any()
        assert gradient[f"{name}_bias"][rule].any()
    assert np.isfinite(means["loss"].value)


def test_what_makes_no_sense_is_refused(folder: Path) -> None:
    batch = data_of(folder, TASKS[0]).open("train", 16, steps=1).batch(0)

    def shapes(task: Tag) -> Any:
        return jax.eval_shape(lambda: initialize.initialize(task, batch, jax.random.key(0)))

    with pytest.raises(ConfigError, match="expected O"):
        shapes(TASKS[0].clone(labels=("B-x", "O")))
    with pytest.raises(ConfigError, match=r"task\.scheme is not set"):
        shapes(TASKS[1].clone(scheme=None))
