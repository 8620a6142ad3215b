"""Two domains: half of every batch each, pure in (seed, step), the target's labels never read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.data.domains import Domains
from research.data.wordpiece import train_wordpiece
from research.errors import ConfigError

SOURCE = [(f"the apple {word}", label) for word in ("pie", "tree", "core") for label in "ab"]
TARGET = [(f"a zinc {word} here", "b") for word in ("bar", "pot", "ore", "lid", "nail")]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> Domains:
    train_wordpiece([text for text, _ in SOURCE + TARGET], 60, tmp_path / "tokenizer.json")
    labelled = [{"text": t, "label": c} for t, c in SOURCE]
    source = write(tmp_path / "source.jsonl", labelled)
    target = write(tmp_path / "target.jsonl", [{"text": t, "label": c} for t, c in TARGET])
    return Domains(
        train=source,
        dev=source,
        target=target,
        tokenizer=str(tmp_path / "tokenizer.json"),
        shapes=1,
        cache=str(tmp_path / "cache"),
    )


def test_half_of_every_batch_is_of_each_domain(data: Domains) -> None:
    batches = data.open("train", 8, steps=9, seed=3)
    drawn: dict[int, list[int]] = {0: [], 1: []}
    for step in range(9):
        batch = batches.batch(step)
        taken = batch["ids"] >= 0
        domains, ids = batch["domains"][taken], batch["ids"][taken]
        assert (domains == 0).sum() == (domains == 1).sum() == 4
        np.testing.assert_array_equal(domains, ids >= len(SOURCE))
        np.testing.assert_array_equal(batch["weights"][taken], 1.0 - domains)
        for domain, found in drawn.items():
            found += batches.examples_of(step)[4 * domain : 4 * domain + 4].tolist()
    for domain, size in ((0, 6), (1, 5)):
        for turn in range(36 // size):
            part = drawn[domain][turn * size : (turn + 1) * size]
            assert sorted(part) == [6 * domain + i for i in range(size)]
    again = data.open("train", 8, steps=9, seed=3).batch(7)
    for name, values in batches.batch(7).items():
        np.testing.assert_array_equal(again[name], values)
    other = data.open("train", 8, steps=9, seed=4).examples_of(0).tolist()
    assert other != batches.examples_of(0).tolist()


def test_labels_of_the_target_are_never_read(data: Domains, tmp_path: Path) -> None:
    before = data.open("train", 4, steps=3)
    for name, cell in (("wrong", "c"), ("none", None)):
        rows = [{"text": t} | ({"label": cell} if cell else {}) for t, _ in TARGET]
        file = write(tmp_path / f"{name}.jsonl", rows)
        other = dataclasses.replace(data, target=file)
        assert other.facts() == data.facts()
        after = other.open("train", 4, steps=3)
        assert after.fingerprint == before.fingerprint
        for step in range(3):
            for key, values in before.batch(step).items():
                np.testing.assert_array_equal(after.batch(step)[key], values)
    target = before.batch(0)["domains"] == 1
    assert not before.batch(0)["labels"][target].any()


def test_evaluation_and_settings(data: Domains) -> None:
    assert data.open("dev", 4).rows == len(SOURCE)
    assert data.open("train", 4).rows == len(SOURCE) + len(TARGET)
    with pytest.raises(ConfigError, match="batch_size is 5, but two domains need it even"):
        data.open("train", 5, steps=1)
    with pytest.raises(ConfigError, match=r"data\.target is not set"):
        dataclasses.replace(data, target="").open("train", 4, steps=1)
    with pytest.raises(ConfigError, match=r"data\.resample is set"):
        dataclasses.replace(data, resample=1.0).open("train", 4, steps=1)
