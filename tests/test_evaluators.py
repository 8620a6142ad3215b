"""Evaluators against independent references, on a tiny model or on outputs made up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from scipy import stats
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neighbors import KNeighborsClassifier

from research import initialize
from research.config import Config, build, describe
from research.data.pairs import Pairs
from research.data.texts import Texts
from research.errors import ConfigError, DataError
from research.evaluate import HeldOut, Model, forward
from research.evaluators import calibration, features
from research.evaluators.calibration import Calibration
from research.evaluators.intervals import Intervals
from research.evaluators.probes import Neighbours, Ridge, vote
from research.evaluators.retrieval import Retrieval
from research.evaluators.similarity import Similarity, semeval
from research.study.report import run_page
from research.study.statistics import bootstrap_interval
from research.tasks.lm import MaskedLM
from research.tasks.simcse import SimCSE
from research.train import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluators")
    workshop.write_rows(path)
    (path / "one.tsv").write_text("5\tthe iron\tthe zinc\n0\tan apple\ttin\n2\tpear of\tiron\n")
    (path / "two.tsv").write_text("1\tplum\ttin\n\tnot\tscored\n4\tplum\tcherry\n2\tgrape\tiron\n")
    return path


def model_of(task: Any, config: Config) -> Model:
    """The task with parameters as drawn, on one device."""
    config = initialize.resolve(dataclasses.replace(config, task=task))
    mesh = config.mesh.build(jax.devices()[:1])
    batch = config.data.open("train", 8).batch(0)
    params = initialize.initialize(config.task, batch, jax.random.key(1))
    return Model(config.task, params, config.data, mesh)


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Model:
    config = workshop.config(folder)
    return model_of(config.task, config)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Model:
    config = workshop.config(folder)
    return model_of(SimCSE(backbone=config.task.backbone), config)


def vectors_of(model: Model, split: str) -> tuple[np.ndarray, np.ndarray]:
    with jax.set_mesh(model.mesh):
        vectors, outputs = features.encode(model, model.open(split, 128))
    return vectors, outputs["labels"]


def scores_of(evaluator: Any, model: Model) -> Any:
    with jax.set_mesh(model.mesh):
        evaluator.prepare(model)
        return evaluator(model)


def test_ridge_is_scikit_learns_on_standardised_vectors(classifier: Model) -> None:
    """The encode of a classifier serves: probes are of any task that has one."""
    (known, labels), (asked, expected) = (vectors_of(classifier, s) for s in ("train", "dev"))
    center, spread = known.mean(0), known.std(0) + 1e-8
    evaluator = Ridge()
    ridge = RidgeClassifierCV(evaluator.penalties).fit((known - center) / spread, labels)
    guesses = ridge.predict((asked - center) / spread)
    numbers = scores_of(evaluator, classifier).numbers
    assert numbers["accuracy"] == pytest.approx(accuracy_score(expected, guesses))
    assert numbers["penalty"] == ridge.alpha_


def test_neighbours_are_scikit_learns_by_cosine(embedder: Model) -> None:
    (known, labels), (asked, expected) = (vectors_of(embedder, s) for s in ("train", "dev"))
    for count in (1, 5):
        found = KNeighborsClassifier(count, metric="cosine").fit(known, labels).predict(asked)
        numbers = scores_of(Neighbours(count=count), embedder).numbers
        assert numbers["accuracy"] == pytest.approx(accuracy_score(expected, found))
    np.testing.assert_array_equal(vote([[2, 1, 1], [3, 0, 3], [5, 4, 6]]), [1, 3, 5])


def test_a_probe_of_other_data_borrows_the_tokenizer(embedder: Model, folder: Path) -> None:
    data = Texts(train=str(folder / "dev.tsv"), dev=str(folder / "train.tsv"), text="sentence")
    assert 0 <= scores_of(Ridge(data=data, limit=8), embedder).numbers["accuracy"] <= 1


def test_tasks_and_data_without_what_is_needed_are_refused(
    embedder: Model, folder: Path, classifier: Model
) -> None:
    config = workshop.config(folder)
    masked = model_of(MaskedLM(backbone=config.task.backbone), config)
    with pytest.raises(ConfigError, match="MaskedLM has no encode"):
        scores_of(Ridge(), masked)
    with pytest.raises(ConfigError, match="needs data with labels"):
        scores_of(
            Ridge(
                data=Pairs(
                    train=str(folder / "one.tsv"), anchor="a", positive="b", columns=("s", "a", "b")
                )
            ),
            embedder,
        )
    with pytest.raises(ConfigError, match="fitted on dev says nothing when told of dev"):
        scores_of(Calibration(split="dev"), classifier)
    with pytest.raises(ConfigError, match="SimCSE gives no class probabilities"):
        scores_of(Calibration(fit="train", split="dev"), embedder)


def test_similarity_ranks_each_set_and_averages(embedder: Model, folder: Path) -> None:
    columns = ("score", "sentence1", "sentence2")
    sets = tuple(
        (name, Pairs(dev=str(folder / f"{name}.tsv"), scored_columns=columns, unscored="leave-out"))
        for name in ("one", "two")
    )
    found = scores_of(Similarity(sets=sets), embedder)
    for name in ("one", "two"):
        rows = [r.split("\t") for r in (folder / f"{name}.tsv").read_text().splitlines()]
        rows = [row for row in rows if row[0]]
        with jax.set_mesh(embedder.mesh):
            data = features.borrow(sets[0][1], embedder)
            batches = data.encode_rows([text for row in rows for text in row[1:]], 8)
            vectors, _ = features.encode(embedder, batches)
        cosine = (vectors[::2] * vectors[1::2]).sum(1)
        expected = stats.spearmanr(cosine, [float(row[0]) for row in rows]).statistic
        assert found.numbers[name] == pytest.approx(expected, abs=1e-6)
    assert found.numbers["spearman"] == pytest.approx(
        (found.numbers["one"] + found.numbers["two"]) / 2
    )
    assert found.details["sets"]["two"]["pairs"] == 3


@pytest.fixture
def collection(tmp_path: Path) -> Retrieval:
    texts = ["the iron", "an apple", "zinc of tin", "pear and plum", "cherry", "silver tin"]
    documents = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(texts[::2])]
    for name, rows in (("documents", documents), ("queries", [*queries, documents[3]])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    judged = ["q0\td2\t2", "q0\td5\t1", "q1\td1\t0", "q2\td3\t1", "d3\td1\t1"]
    header = "query-id\tcorpus-id\tscore"
    (tmp_path / "judged.tsv").write_text("\n".join([header, *judged]) + "\n")
    return Retrieval(
        queries=str(tmp_path / "queries.jsonl"),
        documents=str(tmp_path / "documents.jsonl"),
        judgements=str(tmp_path / "judged.tsv"),
        cutoffs=(1, 3),
    )


def test_retrieval_equals_ranking_by_hand(collection: Retrieval, embedder: Model) -> None:
    """q1 has nothing relevant and is not asked; d3 does not find itself."""
    numbers = scores_of(collection, embedder).numbers
    lines = Path(collection.documents).read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    asked = {"q0": texts[0], "q2": texts[4], "d3": texts[3]}
    with jax.set_mesh(embedder.mesh):
        batches = features.borrow(Pairs(), embedder).encode_rows([*texts, *asked.values()], 8)
        vectors, _ = features.encode(embedder, batches)
    gains = {"q0": {2: 2, 5: 1}, "q2": {3: 1}, "d3": {1: 1}}
    first, discounted, share = [], [], []
    for i, name in enumerate(asked):
        values = vectors[:6] @ vectors[6 + i]
        order = [d for d in np.argsort(-values, kind="stable") if name != f"d{d}"]
        first.append(1 / (1 + min(order.index(d) for d in gains[name])))
        got = sum(gains[name].get(d, 0) / np.log2(r + 2) for r, d in enumerate(order[:3]))
        best = sorted(gains[name].values(), reverse=True)
        discounted.append(got / sum(g / np.log2(r + 2) for r, g in enumerate(best)))
        share.append(np.mean([d in order[:3] for d in gains[name]]))
    assert numbers["mrr"] == pytest.approx(np.mean(first))
    assert numbers["ndcg@3"] == pytest.approx(np.mean(discounted))
    assert numbers["recall@3"] == pytest.approx(np.mean(share))


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("judgements", "q9\td1\t1", r"judged.tsv:7: there is no query 'q9'"),
        ("judgements", "q1\td9\t1", r"judged.tsv:7: there is no document 'd9'"),
        ("judgements", "q1\td1\tyes", r"judged.tsv:7: score 'yes' is no number"),
        (
            "documents",
            '{"_id": "d1", "text": "tin"}',
            r"documents.jsonl:7: _id 'd1' is given twice",
        ),
        ("documents", '{"_id": "d7", "text": " "}', r"documents.jsonl:7: the text is empty"),
        ("queries", '{"_id": "q7"}', r"queries.jsonl:5: no column 'text'"),
    ],
)
def test_a_collection_that_does_not_fit_is_refused_by_line(
    collection: Retrieval, embedder: Model, name: str, line: str, reason: str
) -> None:
    with Path(getattr(collection, name)).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=reason):
        collection.prepare(embedder)


def test_the_fitted_temperature_is_where_log_loss_is_least() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 4))
    labels = np.array([rng.choice(4, p=p) for p in np.exp(logits) / np.exp(logits).sum(1)[:, None]])
    sharp = np.exp(3 * logits) / np.exp(3 * logits).sum(1)[:, None]
    temperature = calibration.fit_temperature(sharp, labels)
    assert temperature == pytest.approx(3, rel=0.15)
    grid = np.linspace(1, 6, 501)
    losses = [log_loss(labels, calibration.soften(sharp, t)) for t in grid]
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], abs=0.011)
    np.testing.assert_allclose(calibration.soften(sharp, 1.0), sharp, atol=1e-12)
    np.testing.assert_allclose(
        calibration.soften(sharp, 3.0), np.exp(logits) / np.exp(logits).sum(1)[:, None], atol=1e-9
    )


def test_calibration_is_told_for_the_other_split(classifier: Model) -> None:
    scores = scores_of(Calibration(fit="train", split="dev", bins=5), classifier)
    with jax.set_mesh(classifier.mesh):
        _, outputs = forward(classifier, classifier.open("dev", 128), means=False)
    table, labels = outputs["probabilities"].astype(float), outputs["labels"]
    table /= table.sum(1, keepdims=True)
    assert scores.numbers["nll"] == pytest.approx(log_loss(labels, table), rel=1e-5)
    softer = calibration.soften(table, scores.numbers["temperature"])
    assert scores.numbers["scaled_nll"] == pytest.approx(log_loss(labels, softer), rel=1e-5)
    assert sum(row["examples"] for row in scores.details["reliability"]) == len(labels)


def test_intervals_are_those_of_resampled_examples(classifier: Model) -> None:
    """The share of right answers, resampled by another program; equal means; a fixed seed."""
    evaluator = Intervals(resamples=4000, seed=1)
    scores, plain = scores_of(evaluator, classifier), scores_of(HeldOut(), classifier)
    for name, value in plain.numbers.items():
        assert scores.numbers[name] == pytest.approx(value, abs=1e-6)
    with jax.set_mesh(classifier.mesh):
        _, outputs = forward(classifier, classifier.open("dev", 128), means=False)
    right = outputs["probabilities"].argmax(1) == outputs["labels"]
    expected = bootstrap_interval(right, resamples=20_000)
    found = scores.details["intervals"]
    assert found["accuracy"]["value"] == pytest.approx(right.mean())
    for side, bound in zip(("low", "high"), expected):
        assert found["accuracy"][side] == pytest.approx(bound, abs=1 / len(right))
        assert found["micro_f1"][side] == pytest.approx(found["accuracy"][side])
    nll = -np.log(outputs["probabilities"][np.arange(len(right)), outputs["labels"]])
    for side, bound in zip(("low", "high"), bootstrap_interval(nll, resamples=20_000)):
        assert found["loss"][side] == pytest.approx(bound, abs=0.02)
    assert scores_of(evaluator, classifier).details["intervals"] == found


def test_evaluators_are_written_down_and_built_again() -> None:
    evaluators = (
        Similarity(sets=semeval("folder")),
        Ridge(data=Texts(train="x")),
        Neighbours(),
        Calibration(),
        Intervals(),
        Retrieval(queries="q", documents="d", judgements="j"),
    )
    for evaluator in evaluators:
        assert build(json.loads(json.dumps(describe(evaluator)))) == evaluator


def test_a_run_keeps_and_draws_what_its_evaluators_say(folder: Path) -> None:
    evals = (Intervals(resamples=50), Ridge(), Neighbours(count=3))
    result = run(workshop.config(folder, name="measured", evals=evals), folder / "runs")
    assert {"dev/accuracy", "ridge/accuracy", "neighbours/macro_f1"} <= set(result.metrics)
    kept = json.loads((result.path / "result.json").read_text())["details"]["dev"]["intervals"]
    assert kept["loss"]["low"] <= result.metrics["dev/loss"] <= kept["loss"]["high"]
    page = run_page(result.path).text()
    assert "intervals" in page
    assert "macro_f1" in page
