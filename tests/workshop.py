"""A tiny classification for tests: 60 sentences of words that a small trunk can tell apart."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from pathlib import Path
from typing import Any

import jax
import pytest

from research import initialize, sharding, train
from research.config import Config
from research.data.texts import Texts
from research.data.wordpiece import train_wordpiece
from research.errors import PreemptedError
from research.evaluate import HeldOut
from research.manifest import latest
from research.models.transformer import Spec, Transformer
from research.optim import Optim
from research.sharding import MeshSpec
from research.step import abstract_state, make_step
from research.strategies import Full
from research.tasks.classify import Classify

WORDS = {"fruit": "apple pear plum cherry grape", "metal": "iron zinc copper silver tin"}


def write_rows(folder: Path) -> None:
    """train.tsv (48 rows) and dev.tsv (12 rows) with columns sentence and label."""
    generator = random.Random(0)
    rows = []
    for number in range(60):
        label = sorted(WORDS)[number % 2]
        words = generator.choices([*WORDS[label].split(), "the", "of", "and"], k=3 + number % 9)
        rows.append(f"{' '.join(words)}\t{label}")
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "\n".join(rows[:48]) + "\n")
    (folder / "dev.tsv").write_text("sentence\tlabel\n" + "\n".join(rows[48:]) + "\n")
    train_wordpiece([row.split("\t")[0] for row in rows], 80, folder / "tokenizer.json")


def config(folder: Path, **changes: Any) -> Config:
    """A run of 12 steps in under a second; `folder` has been through `write_rows`."""
    spec = Spec(vocab_size=80, width=16, depth=1, heads=2, hidden=32, max_positions=32)
    made = Config(
        name="tiny",
        task=Classify(backbone=Transformer(spec)),
        data=Texts(
            train=str(folder / "train.tsv"),
            dev=str(folder / "dev.tsv"),
            text="sentence",
            tokenizer=str(folder / "tokenizer.json"),
            max_length=16,
            shapes=1,
            cache=str(folder / "cache"),
        ),
        optim=Optim(learning_rate=1e-2, warmup=2),
        steps=12,
        batch_size=8,
        evals=(HeldOut(split="dev", batch_size=5),),
        eval_every=6,
        save_every=2,
        log_every=3,
        track="dev/accuracy",
    )
    return dataclasses.replace(made, **changes)


def stopped_and_resumed(
    config: Config, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> train.Result:
    """The run of a config that SIGTERM stops after `step` steps, and that then goes on."""

    def advance(self: train.Loop, batch: Any) -> Any:
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    original = train.Loop.advance
    monkeypatch.setattr(train.Loop, "advance", advance)
    with pytest.raises(PreemptedError, match=f"saved at step {step}"):
        train.run(config, folder)
    assert latest(folder / config.name / "checkpoints") == step
    monkeypatch.undo()
    return train.run(config, folder)


def loss_curve(
    task: Any, optim: Optim, batch: Any, params: Any, spec: MeshSpec, devices: int, *, steps: int
) -> list[float]:
    """The losses of some steps on one batch, all over a mesh of the first `devices` devices."""
    mesh = spec.build(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        shapes = initialize.abstract_params(task, batch, mesh)
        abstract, create = abstract_state(optim, Full(), 10, shapes, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = jax.jit(create, out_shardings=shardings)(params)
        program = make_step(task, optim, Full(), 10, 1)
        losses = []
        for _ in range(steps):
            state, means = program(state, sharding.put(batch, mesh), jax.random.key(7))
            losses.append(float(means["loss"].value))
    return losses
