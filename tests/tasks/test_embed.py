"""Embeddings: layout, devices and chunks change neither loss nor gradient; scores by loops."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from research import initialize, sharding
from research.config import Config
from research.data.batches import Examples
from research.data.pairs import Pairs
from research.data.tokenize import Encoded
from research.errors import ConfigError
from research.metrics import Mean
from research.models.transformer import Spec, Transformer
from research.sharding import MeshSpec
from research.tasks.embed import CosineRegression, Embed, InfoNCE
from research.tasks.simcse import SimCSE
from research.tasks.supcon import SupCon
from research.tasks.triplet import Triplet

SPEC = Spec(
    vocab_size=60,
    width=16,
    depth=1,
    heads=2,
    hidden=32,
    max_positions=32,
    dropout=0.2,
    attention_dropout=0.2,
    dtype="float32",
)
TRUNK = Transformer(SPEC)
LENGTHS = [[9, 8, 7], [5, 12], [20], [3, 3, 3, 15], [4, 4], [6, 6, 2], [11], []]
TASKS = [
    InfoNCE(backbone=TRUNK),
    InfoNCE(backbone=TRUNK, symmetric=True, learn_temperature=True, pool="first", pooler=True),
    Triplet(backbone=TRUNK, margin=0.5),
    Triplet(backbone=TRUNK, margin=0.5, hardest=False, pool="last"),
    CosineRegression(backbone=TRUNK),
    SimCSE(backbone=TRUNK),
    SupCon(backbone=TRUNK, labels=("a", "b", "c")),
    SupCon(backbone=TRUNK, labels=("a", "b", "c"), second_view=True),
]
NAMES = [f"{type(task).__name__}-{i}" for i, task in enumerate(TASKS)]


def batch_of(task: Embed, lengths: list[list[int]], tokens: int = 24) -> dict[str, np.ndarray]:
    """Random texts in rows; three in turn are an anchor, its positive and a hard negative. Text n
    is always the same, in whatever row it lies; anchors 0 and 3 are the same text."""
    rows, places = len(lengths), 4
    cells = ("tokens", "positions", "segments", "types")
    slots = ("starts", "lengths", "labels", "roles", "pairs", "texts")
    batch = {name: np.zeros((rows, tokens), np.int32) for name in cells}
    batch |= {name: np.zeros((rows, places), np.int32) for name in slots}
    batch["ids"] = np.full((rows, places), -1, np.int32)
    batch["weights"] = np.zeros((rows, places), np.float32)
    scores = np.zeros((rows, places), np.float32)
    example = 0
    for b, row in enumerate(lengths):
        start = 0
        for m, length in enumerate(row):
            rng = np.random.default_rng(example)
            span = slice(start, start + length)
            batch["tokens"][b, span] = rng.integers(5, 60, length)
            batch["positions"][b, span] = np.arange(length)
            batch["segments"][b, span] = m + 1
            batch["starts"][b, m], batch["lengths"][b, m] = start, length
            batch["ids"][b, m], batch["labels"][b, m] = example, rng.integers(3)
            batch["roles"][b, m], batch["pairs"][b, m] = example % 3, example // 3
            batch["texts"][b, m] = 0 if example == 3 else example
            batch["weights"][b, m] = 1.0 + 0.5 * (example % 2)
            scores[b, m] = np.random.default_rng(1000 + example // 3).random()
            start, example = start + length, example + 1
    return batch | ({"scores": scores} if task.learns_from_scores else {})


def padded(task: Embed, rows: int = 24) -> dict[str, np.ndarray]:
    """The same texts, one a row, and rows without any."""
    alone = [[n] for row in LENGTHS for n in row]
    return batch_of(task, alone + [[]] * (rows - len(alone)))


@functools.cache
def start(task: Embed) -> Any:
    batch = batch_of(task, LENGTHS)
    return jax.device_get(initialize.initialize(task, batch, jax.random.key(0)))


def gradients(task: Embed, batch: Any, params: Any = None) -> tuple[Any, dict[str, Mean]]:
    """The gradient of the mean loss, and all means, with dropout on."""

    def loss(params: Any, batch: Any) -> tuple[jax.Array, dict[str, Mean]]:
        rngs = {"noise": jax.random.key(3)}
        means: Any = task.apply({"params": params}, batch, train=True, rngs=rngs)
        return means["loss"].value, means

    return jax.jit(jax.grad(loss, has_aux=True))(start(task) if params is None else params, batch)


def assert_same(found: Any, expected: Any) -> None:
    (grads, means), (other, sums) = found, expected
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=0),
        *jax.device_get((grads, other)),
    )
    assert float(means["loss"].count) > 0
    for name, mean in means.items():
        np.testing.assert_allclose(mean.total, sums[name].total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mean.count, sums[name].count, rtol=1e-6)


@functools.cache
def expected(task: Embed) -> Any:
    return gradients(task, batch_of(task, LENGTHS))


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_packed_equals_padded_with_dropout_on(task: Embed) -> None:
    assert_same(gradients(task, padded(task)), expected(task))


@pytest.mark.parametrize(("task", "chunks"), [(TASKS[0], 4), (TASKS[5], 2), (TASKS[7], 2)])
def test_chunks_change_neither_loss_nor_gradient(task: Embed, chunks: int) -> None:
    found = gradients(task.clone(chunks=chunks), batch_of(task, LENGTHS), start(task))
    assert_same(found, expected(task))


@pytest.mark.parametrize(
    ("axes", "chunks"),
    [((2, 1, 1), 1), ((4, 1, 1), 1), ((8, 1, 1), 1), ((2, 2, 2), 1), ((2, 2, 1), 2)],
)
def test_negatives_are_those_of_all_devices(axes: tuple[int, int, int], chunks: int) -> None:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: tests/conftest.py simulates them")
    task = TASKS[0].clone(chunks=chunks)
    batch = batch_of(task, LENGTHS)
    data, fsdp, tensor = axes
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = MeshSpec(data=data, fsdp=fsdp, tensor=tensor).build(devices)
    with jax.set_mesh(mesh):
        abstract = initialize.abstract_params(task, batch, mesh)
        params = jax.device_put(start(TASKS[0]), jax.tree.map(lambda x: x.sharding, abstract))
        found = jax.device_get(gradients(task, sharding.put(batch, mesh), params))
    assert_same(found, expected(TASKS[0]))


def test_info_nce_equals_a_loop() -> None:
    task = TASKS[0].clone(temperature=0.3)
    batch = batch_of(task, LENGTHS)
    vectors = np.asarray(task.apply({"params": start(TASKS[0])}, batch, method="encode"), float)
    means = task.apply({"params": start(TASKS[0])}, batch, train=False)
    where = {int(batch["ids"][b, m]): (b, m) for b, m in np.argwhere(batch["ids"] >= 0)}
    total = weight = hits = 0.0
    for anchor in range(0, len(where), 3):
        if anchor + 1 not in where:
            continue
        query, own = vectors[where[anchor]], vectors[where[anchor + 1]]
        rivals = [vectors[where[j]] @ query / 0.3 for j in where if j % 3 and j != anchor + 1]
        best = own @ query / 0.3
        w = batch["weights"][where[anchor]]
        total += w * (np.logaddexp.reduce([best, *rivals]) - best)
        hits += w * (best > max(rivals))
        weight += w
    np.testing.assert_allclose(means["loss"].total, total, rtol=1e-5)
    np.testing.assert_allclose(means["loss"].count, weight, rtol=1e-6)
    np.testing.assert_allclose(means["accuracy"].total, hits, rtol=1e-6)


def test_an_equal_text_is_no_negative() -> None:
    """Positives that repeat another row's positive leave only hard negatives and distinct texts."""
    task = TASKS[0]
    batch = batch_of(task, LENGTHS)
    positives = batch["roles"] == 1
    batch["texts"] = np.where(positives, 1000, batch["texts"]).astype(np.int32)
    batch["roles"] = np.where(batch["roles"] == 2, 1, batch["roles"]).astype(np.int32)
    batch["texts"] = np.where(batch["roles"] == 1, 1000, batch["texts"]).astype(np.int32)
    means = task.apply({"params": start(task)}, batch, train=False)
    np.testing.assert_allclose(means["loss"].total, 0.0, atol=1e-6)


def test_two_views_of_simcse_differ_and_each_is_a_function_of_the_text_alone() -> None:
    task = SimCSE(backbone=TRUNK)

    def views(batch: Any) -> Any:
        return task.apply(
            {"params": start(task)},
            batch,
            train=True,
            method="vectors",
            rngs={"noise": jax.random.key(1)},
        )

    packed, alone = batch_of(task, LENGTHS), padded(task)
    one, two = views(packed)
    assert float(np.abs(one - two).max()) > 0.05
    for a, b in zip((one, two), views(alone)):
        order = np.argsort(packed["ids"][packed["ids"] >= 0])
        np.testing.assert_allclose(a[packed["ids"] >= 0][order], b[alone["ids"] >= 0], atol=1e-5)


def test_chunks_bound_the_memory_of_a_step() -> None:
    """The compiled gradient of a large batch needs a fraction of the temporary memory."""
    spec = Spec(vocab_size=60, width=64, depth=2, heads=4, hidden=256, dtype="float32")
    deep, rows, tokens = Transformer(spec), 128, 64
    base = batch_of(TASKS[0], [[tokens]] * rows, tokens)

    def temporary(chunks: int) -> int:
        task = InfoNCE(backbone=deep, chunks=chunks)
        params = jax.eval_shape(
            lambda: initialize.initialize(InfoNCE(backbone=deep), base, jax.random.key(0))
        )

        def loss(params: Any, batch: Any) -> jax.Array:
            means: Any = task.apply(
                {"params": params}, batch, train=True, rngs={"noise": jax.random.key(0)}
            )
            return means["loss"].value

        compiled = jax.jit(jax.grad(loss)).lower(params, base).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    whole, eighths = temporary(1), temporary(8)
    print(
        f"temporary memory of a step, MB: {whole / 1e6:.1f} whole, {eighths / 1e6:.1f} in 8 chunks"
    )
    assert eighths < 0.3 * whole


def test_chunks_that_do_not_divide_are_refused() -> None:
    task = TASKS[0].clone(chunks=3)
    with pytest.raises(ConfigError, match="chunks is 3, which does not divide 8 rows"):
        gradients(task, batch_of(task, LENGTHS), start(TASKS[0]))


def test_a_split_of_the_wrong_kind_is_refused_in_training_and_has_no_loss_in_evaluation() -> None:
    plain, regression = TASKS[0], TASKS[4]
    scored, bare = batch_of(regression, LENGTHS), batch_of(plain, LENGTHS)
    assert plain.apply({"params": start(plain)}, scored, train=False) == {}
    assert regression.apply({"params": start(regression)}, bare, train=False) == {}
    with pytest.raises(ConfigError, match="InfoNCE learns from texts without scores"):
        gradients(plain, scored)
    with pytest.raises(ConfigError, match="CosineRegression learns from scored pairs"):
        gradients(regression, bare)
    with pytest.raises(ConfigError, match="fewer than two"):
        gradients(SupCon(backbone=TRUNK, labels=("a",)), bare, start(plain))


def test_microbatches_are_refused_by_name() -> None:
    config = Config(
        name="x", task=TASKS[0], data=Pairs(train="x"), steps=1, microbatches=2, batch_size=4
    )
    with pytest.raises(ConfigError, match="InfoNCE compares all examples"):
        initialize.resolve(config)


def examples_of(count: int) -> Examples:
    """Pairs that only score and decode look at."""
    empty = np.zeros(0, np.int32)
    units = np.arange(2 * count) // 2
    encoded = Encoded(
        tokens=empty,
        types=empty,
        words=empty,
        offsets=np.zeros(2 * count + 1, np.int64),
        row_of=units,
        blank=empty,
        truncated=0,
        lost=0,
        fingerprint="",
    )
    source = [[f"a{i}", f"b{i}"] for i in range(count)]
    return Examples(encoded=encoded, slots={}, units=units, source=source)


def test_scored_pairs_give_scipys_correlations() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    scores = rng.random(30).astype(np.float32)
    outputs = {
        "vectors": vectors,
        "scores": np.repeat(scores, 2),
        "roles": np.arange(60) % 2,
        "ids": np.arange(60),
    }
    numbers, details = InfoNCE().score({}, outputs, examples_of(30))
    a, b = vectors[::2], vectors[1::2]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert numbers["spearman"] == pytest.approx(stats.spearmanr(cosine, scores).statistic, abs=1e-9)
    assert numbers["pearson"] == pytest.approx(stats.pearsonr(cosine, scores).statistic, abs=1e-6)
    gaps = np.abs(stats.rankdata(cosine) - stats.rankdata(scores))
    worst = int(np.argmax(gaps))
    assert details["furthest in rank"][0]["texts"] == f"a{worst} | b{worst}"


def test_pairs_without_scores_are_searched_for() -> None:
    """Every anchor among the distinct other texts; an anchor asked twice has two answers."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    texts = np.arange(40)
    texts[2], vectors[2] = texts[0], vectors[0]  # row 1 asks what row 0 asks
    texts[5], vectors[5] = texts[7], vectors[7]  # rows 2 and 3 have one answer
    outputs = {"vectors": vectors, "texts": texts, "roles": np.arange(40) % 2}
    numbers, _ = InfoNCE().score({}, outputs, examples_of(20))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    documents = {int(texts[i]): unit[i] for i in range(1, 40, 2)}
    first, top = [], []
    for anchor in range(0, 40, 2):
        if anchor == 2:
            continue
        right = {int(texts[anchor + 1])} | ({int(texts[3])} if anchor == 0 else set())
        order = sorted(documents, key=lambda text: -float(documents[text] @ unit[anchor]))
        ranks = sorted(order.index(text) + 1 for text in right)
        first.append(1 / ranks[0])
        top.append(np.mean([rank <= 10 for rank in ranks]))
    assert numbers["mrr"] == pytest.approx(np.mean(first), abs=1e-6)
    assert numbers["recall@10"] == pytest.approx(np.mean(top), abs=1e-6)


def test_labelled_texts_are_scored_by_their_nearest_neighbour() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [1, 0.05]], np.float32)
    outputs = {"vectors": vectors, "labels": np.array([0, 0, 1, 1, 1])}
    assert SupCon().score({}, outputs, examples_of(5))[0] == {"neighbour": 2 / 5}


def test_decode_gives_vectors_of_texts_and_the_cosine_of_pairs() -> None:
    vectors = np.array([[3, 4], [4, 3]], np.float32)
    (pair,) = InfoNCE().decode({"vectors": vectors}, examples_of(1))
    assert pair["similarity"] == pytest.approx(0.96)
    single = Examples(encoded=examples_of(1).encoded, slots={})
    told = list(InfoNCE().decode({"vectors": vectors}, single))
    assert told == [{"vector": [3.0, 4.0]}, {"vector": [4.0, 3.0]}]


def test_single_texts_have_no_positives() -> None:
    batch = {k: v for k, v in batch_of(TASKS[0], LENGTHS).items() if k not in ("roles", "pairs")}
    with pytest.raises(ConfigError, match="data are no pairs"):
        gradients(TASKS[0], batch)
    assert float(gradients(TASKS[5], batch, start(TASKS[5]))[1]["loss"].count) > 0
