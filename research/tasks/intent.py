"""What a sentence asks for and the words that say it: an intent and slots, learned together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import losses, metrics
from research.data.batches import Examples
from research.metrics import Mean
from research.models import layers
from research.models.layers import Dense
from research.models.pooling import Pool, pool
from research.tasks.tag import Batch, Tag, TagCRF, per_example


class IntentSlots(Tag):
    """One of `intents` for a sentence beside a tag for every word (Chen et al., 2019).

    The loss of a sentence is -log p(intent) - log p(tags), the tags' part times `slot_weight`. The
    intent is told by the first token (`pool`), through BERT's pooler where `pooler`; of a sentence
    in several windows, by the first.
    """

    intents: tuple[str, ...] = ()
    pool: Pool = "first"
    pooler: bool = True
    slot_weight: float = 1.0

    def prepare(self) -> None:
        super().prepare()
        self.intent = Dense(len(self.intents), dtype="float32", kernel_init=layers.small_normal)

    def both(self, batch: Batch, *, noise: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Scores of tags [B, T, C] and of intents [B, M, intents]."""
        x = self.backbone(batch, noise=noise)
        sentence = pool(x, batch, self.pool)
        sentence = self.backbone.pool(sentence) if self.pooler else sentence
        if noise is not None:
            first = jnp.take_along_axis(noise, batch["starts"], axis=1)
            sentence = layers.dropout(sentence, self.dropout, first ^ jnp.uint32(0x8))
        return self.scores_of(x, noise), self.intent(sentence.astype(jnp.float32))

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        emissions, scores = self.both(batch, noise=noise)
        slots = per_example(self.losses(emissions, batch), batch)
        # A sentence in several windows has its intent in the first of them.
        weights = batch["weights"] * batch["opens"].astype(jnp.float32)
        intent = losses.cross_entropy(scores, batch["intents"])
        return {
            "loss": Mean(
                Mean.of(intent, weights).total
                + self.slot_weight * Mean.of(slots, batch["weights"]).total,
                jnp.sum(weights),
            ),
            "slot_loss": Mean(Mean.of(slots, batch["weights"]).total, jnp.sum(weights)),
            "intent_loss": Mean.of(intent, weights),
        }

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """Beside what `Tag` says, `intent` [B, M, intents], the probability of each."""
        emissions, scores = self.both(batch)
        told, confidence, log_probability = self.answer(emissions, batch)
        return {
            "tags": told,
            "confidence": confidence,
            "log_probability": log_probability,
            "intent": jax.nn.softmax(scores, axis=-1),
        }

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """`intent_accuracy`, and `exact_match`, the share of sentences with intent and all tags
        right, beside the scores of slots."""
        numbers, details = super().score(means, outputs, examples)
        labels, guesses, same = self.graded(outputs, examples)
        numbers |= {
            "intent_accuracy": float((guesses == labels).mean()),
            "exact_match": float((same & (guesses == labels)).mean()),
        }
        matrix = metrics.confusion(labels, guesses, len(self.intents))
        return numbers, details | {"labels": list(self.intents), "confusion": matrix.tolist()}

    def graded(
        self, outputs: dict[str, Any], examples: Examples
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each sentence its intent, the one told, and whether all tags are right: [rows]."""
        labels = np.array([self.intents.index(name) for name in examples.source.intents])
        guesses = outputs["intent"][first_windows(examples)].argmax(-1)
        told = [row for row, _ in self.sentences(outputs, examples)]
        same = [gold == guess for gold, guess in zip(examples.source.tags, told)]
        return labels, guesses, np.array(same)

    def by_row(
        self, outputs: dict[str, Any], examples: Examples
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Those of `Tag`, the intent's accuracy and the share of sentences wholly right."""
        labels, guesses, same = self.graded(outputs, examples)
        right, every = guesses == labels, np.ones(len(labels))
        own = {"intent_accuracy": (right, every), "exact_match": (right & same, every)}
        return super().by_row(outputs, examples) | own

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"intent": name, "probability": p} and what `Tag` tells, for each row."""
        odds = outputs["intent"][first_windows(examples)]
        for row, answer in zip(odds, super().decode(outputs, examples)):
            best = int(row.argmax())
            yield {"intent": self.intents[best], "probability": float(row[best])} | answer


class IntentSlotsCRF(IntentSlots, TagCRF):
    """The same with the tags as a chain."""


def first_windows(examples: Examples) -> np.ndarray:
    """The first window of each row, int64 [rows]."""
    return np.flatnonzero(np.diff(examples.encoded.row_of, prepend=-1) != 0)
