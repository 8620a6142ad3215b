"""A tiny BERT with random weights as a Hugging Face directory, for tests that start from one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research import initialize
from research.data.wordpiece import train_wordpiece
from research.models import pretrained
from research.models.transformer import Spec, Transformer
from research.tasks.classify import Classify
from research.tasks.lm import MaskedLM


def write_bert(folder: Path, texts: Sequence[str], size: int = 90, *, words: bool = False) -> Path:
    """`folder`/bert, its tokenizer of `size` tokens trained on `texts`; a classifier, or with the
    head of masked language modelling where `words`."""
    train_wordpiece(texts, size, folder / "tokenizer.json")
    spec = Spec(
        vocab_size=size, width=8, depth=1, heads=2, hidden=16, max_positions=256, token_types=2
    )
    task: Any = Classify(backbone=Transformer(spec), labels=("0", "1"))
    if words:
        task = MaskedLM(backbone=Transformer(spec), vocab_size=size, mask_id=4)
    zero = np.zeros((1, 1), np.int32)
    names = ("tokens", "positions", "segments", "types", "ids", "starts", "lengths", "labels")
    batch: dict[str, Any] = dict.fromkeys(names, zero) | {"weights": zero.astype(np.float32)}
    params = initialize.initialize(task, batch, jax.random.key(0))
    pretrained.save(folder / "bert", task, params, folder / "tokenizer.json")
    return folder / "bert"
