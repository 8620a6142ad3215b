"""A small classification with domains and unlabelled examples, packed and padded, for terms."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from research import initialize
from research.models.transformer import Spec, Transformer
from research.tasks.classify import Classify
from research.view import View

SPEC = Spec(vocab_size=40, width=8, depth=1, heads=2, hidden=16, max_positions=16, token_types=2)
CLASSIFY = Classify(backbone=Transformer(SPEC), labels=("a", "b", "c"))
KEY = jax.random.key(3)


def batch_of(lengths: list[list[int]], tokens: int = 12, places: int = 3) -> dict[str, np.ndarray]:
    """Example n is the same in whatever row it lies; every fourth is of domain 1, unlabelled."""
    names = ("tokens", "positions", "segments", "types")
    batch = {name: np.zeros((len(lengths), tokens), np.int32) for name in names}
    slots = ("starts", "lengths", "labels", "domains")
    batch |= {name: np.zeros((len(lengths), places), np.int32) for name in slots}
    batch["ids"] = np.full((len(lengths), places), -1, np.int32)
    batch["weights"] = np.zeros((len(lengths), places), np.float32)
    example = 0
    for b, row in enumerate(lengths):
        start = 0
        for m, length in enumerate(row):
            generator = np.random.default_rng(example)
            span = slice(start, start + length)
            batch["tokens"][b, span] = generator.integers(5, 40, length)
            batch["positions"][b, span] = np.arange(length)
            batch["segments"][b, span] = m + 1
            batch["starts"][b, m], batch["lengths"][b, m] = start, length
            batch["ids"][b, m], batch["domains"][b, m] = example, example % 4 == 3
            batch["labels"][b, m] = 0 if example % 4 == 3 else generator.integers(3)
            batch["weights"][b, m] = example % 4 != 3
            start, example = start + length, example + 1
    return batch


ROWS = [[5, 4, 3], [6, 2], [9], [3, 3]]
PACKED = batch_of(ROWS)
PADDED = batch_of([[n] for row in ROWS for n in row])


@functools.cache
def start(task: nn.Module) -> Any:
    """Parameters on the host, a head with an opinion among them."""
    params = jax.device_get(initialize.initialize(task, PACKED, jax.random.key(0)))
    params["head"]["kernel"] = params["head"]["kernel"] * 40
    return params


def view(batch: dict[str, np.ndarray] = PACKED, task: nn.Module = CLASSIFY) -> View:
    """What a term is handed half way through a run."""
    rows = jax.tree.map(jax.numpy.asarray, batch)
    return View(task, start(task), rows, KEY, jax.numpy.float32(0.5))


def told(values: Any) -> np.ndarray:
    """What a term reads, as float64 on the host."""
    return np.asarray(values, np.float64)
