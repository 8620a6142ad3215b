"""Prototypes against scikit-learn, episodes against what they must be; FewRel's files."""

from __future__ import annotations

import dataclasses
import json
import lzma
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from sklearn.neighbors import NearestCentroid

from research import initialize, ranking
from research.data.relations import read_relations
from research.errors import ConfigError, DataError
from research.evaluate import Model
from research.evaluators import features
from research.evaluators.prototypes import Episodes, Prototypes, class_means, nearest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny classifier with parameters as drawn."""
    folder = tmp_path_factory.mktemp("prototypes")
    workshop.write_rows(folder)
    config = initialize.resolve(workshop.config(folder))
    mesh = config.mesh.build(jax.devices()[:1])
    batch = config.data.open("train", 8).batch(0)
    params = initialize.initialize(config.task, batch, jax.random.key(1))
    return Model(config.task, params, config.data, mesh)


def test_prototypes_are_scikit_learns_nearest_centroid(model: Model) -> None:
    with jax.set_mesh(model.mesh):
        told = Prototypes()(model).numbers
        known, seen = features.encode(model, model.open("train", 128))
        asked, held = features.encode(model, model.open("dev", 128))
    reference = NearestCentroid().fit(ranking.unit(known), seen["labels"])
    guesses = reference.predict(ranking.unit(asked))
    assert told["accuracy"] == pytest.approx(np.mean(guesses == held["labels"]))


def test_the_nearest_mean_is_that_of_all_distances() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(40, 3)), np.arange(40) % 4
    means = class_means(vectors, labels, 4)
    for label in range(4):
        np.testing.assert_allclose(means[label], np.mean(vectors[labels == label], axis=0))
    distance = np.linalg.norm(vectors[:, None] - means[None], axis=-1)
    np.testing.assert_array_equal(nearest(vectors, means), distance.argmin(1))


def test_episodes_draw_classes_and_tell_queries_from_supports() -> None:
    """Classes far apart are always told, classes that are one are told by chance, and no query is
    among the examples that its class is known by."""
    labels = np.repeat(np.arange(6), 12)
    episodes = Episodes(ways=4, queries=5, episodes=300)
    assert (episodes.accuracies(np.eye(6)[labels], labels, 1) == 1).all()
    noise = np.random.default_rng(1).normal(size=(72, 200))
    chance = episodes.accuracies(noise, labels, 3)
    assert abs(chance.mean() - 0.25) < 4 * chance.std() / 300**0.5
    again = dataclasses.replace(episodes).accuracies(noise, labels, 3)
    np.testing.assert_array_equal(chance, again)
    other = dataclasses.replace(episodes, seed=1).accuracies(noise, labels, 3)
    assert not np.array_equal(chance, other)


def test_episodes_say_their_interval_and_refuse_what_cannot_be_drawn(model: Model) -> None:
    episodes = Episodes(ways=2, shots=(1, 3), queries=2, episodes=50)
    with jax.set_mesh(model.mesh):
        episodes.prepare(model)
        found = episodes(model).numbers
    for shots in (1, 3):
        low, mean, high = (found[f"{shots}_shot{name}"] for name in ("_low", "", "_high"))
        assert low < mean < high and mean - low == pytest.approx(high - mean)
    with pytest.raises(ConfigError, match=r"draws 3 classes of 5 \+ 5 examples, but dev has 2"):
        Episodes(ways=3).prepare(model)


def test_vectors_are_computed_once_for_several_evaluators(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, calls = dataclasses.replace(model, known={}), []
    forward = features.forward
    monkeypatch.setattr(
        features, "forward", lambda *args, **more: calls.append(1) or forward(*args, **more)
    )
    with jax.set_mesh(model.mesh):
        first = Prototypes()(fresh).numbers
        assert len(calls) == 2
        assert Prototypes()(fresh).numbers == first
        assert len(calls) == 2
        Prototypes()(dataclasses.replace(model, known={}))
    assert len(calls) == 4


def instance(**changes: Any) -> dict[str, Any]:
    tokens = ["Ada", "Byron", "knew", "Babbage", "."]
    return {"tokens": tokens, "h": ["", "", [[0, 1]]], "t": ["", "", [[3]]]} | changes


def test_relations_are_read_with_their_entities_marked(tmp_path: Path) -> None:
    file = tmp_path / "relations.json.xz"
    beside = instance(tokens=["x", "y"], h=["", "", [[1]]], t=["", "", [[0]]])
    file.write_bytes(lzma.compress(json.dumps({"P1": [instance()], "P2": [beside]}).encode()))
    assert read_relations(str(file)) == [
        {"text": "* Ada Byron * knew # Babbage # .", "label": "P1"},
        {"text": "# x # * y *", "label": "P2"},
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "1: expected an object of relations"),
        ("{", "1: cannot be read"),
        (json.dumps({"P1": [instance(), {"tokens": []}]}), "P1 2: no 'h'"),
        (json.dumps({"P1": [instance(h=["", "", [[9]]])]}), "P1 1: 'h' is outside the tokens"),
        (json.dumps({"P1": [instance(h=["", "", []])]}), "P1 1: list index out of range"),
    ],
)
def test_damaged_relations_are_refused_by_place(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=f"bad.json:{reason}"):
        read_relations(str(tmp_path / "bad.json"))
