"""A tiny classification for tests: 60 sentences of words that a small trunk can tell apart."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.texts import Texts
from research.data.wordpiece import train_wordpiece
from research.evaluate import HeldOut
from research.models.transformer import Spec, Transformer
from research.optim import Optim
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
