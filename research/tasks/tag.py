"""Tagging: one tag for every word, by itself or as a chain, and the entities that tags spell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import entities, losses
from research.data import tags
from research.data.batches import Examples
from research.data.sentences import Sentences
from research.errors import ConfigError
from research.metrics import Mean
from research.models import crf, layers
from research.models.layers import Dense

Batch = dict[str, jax.Array]
Answer = tuple[jax.Array, jax.Array, jax.Array]


class Tag(nn.Module):
    """A linear layer on the first token of every word (Devlin et al., 2019).

    `labels` are the tags in `scheme`, BIO or IOBES. What is told is well formed: an inner tag
    without a beginning begins an entity, as conlleval reads it. `token_pooler` puts the trunk's
    dense layer under the head, as ModernBERT's class does. Without `backbone` the trunk is that of
    the config's `init_from`.
    """

    backbone: Any = None
    labels: tuple[str, ...] = ()
    scheme: Literal["BIO", "IOBES"] | None = None
    token_pooler: bool = False
    dropout: float = 0.1
    per_token = ("tags", "confidence")
    chained = False

    def setup(self) -> None:
        if self.labels and self.labels[0] != tags.OUTSIDE:
            raise ConfigError(f"task.labels begin with {self.labels[0]!r}, expected O")
        self.head = Dense(len(self.labels), dtype="float32", kernel_init=layers.small_normal)
        self.prepare()

    def prepare(self) -> None:
        """What a subclass sets up besides."""

    def emissions(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """A score for every tag at every token: float32 [B, T, C]."""
        return self.scores_of(self.backbone(batch, noise=noise), noise)

    def scores_of(self, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        """The same of the trunk's vectors [B, T, D]."""
        x = self.backbone.pool(x) if self.token_pooler else x
        if noise is not None:
            x = layers.dropout(x, self.dropout, noise ^ jnp.uint32(0x4))
        return self.head(x.astype(jnp.float32))

    def losses(self, emissions: jax.Array, batch: Batch) -> jax.Array:
        """Negative log-likelihood in nats, word by word: [B, T, C] -> [B, T].

        It means something where `batch["tags"]` is not negative.
        """
        return losses.cross_entropy(emissions, jnp.maximum(batch["tags"], 0))

    def answer(self, emissions: jax.Array, batch: Batch) -> Answer:
        """The likeliest tags int32 [B, T], the probability of each [B, T], and log p of all tags of
        an example [B, M]."""
        likely = jnp.max(jax.nn.log_softmax(emissions, axis=-1), axis=-1)
        told = jnp.argmax(emissions, axis=-1).astype(jnp.int32)
        return told, jnp.exp(likely), per_example(likely, batch)

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        noise = layers.token_noise(self.make_rng("noise"), batch) if train else None
        values = self.losses(self.emissions(batch, noise=noise), batch)
        return {"loss": Mean.of(values, word_weights(batch))}

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`tags` int32 [B, T] and `confidence` [B, T], which mean something at words, and
        `log_probability` [B, M] of an example's tags together."""
        told, confidence, log_probability = self.answer(self.emissions(batch), batch)
        return {"tags": told, "confidence": confidence, "log_probability": log_probability}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Precision, recall and F1 of entities, of all together and as mean over types, and the
        share of words whose tag is right; by type among the details."""
        source: Sentences = examples.source
        told = [row for row, _ in self.sentences(outputs, examples)]
        found = entities.score(source.tags, told)
        right = sum(a == b for gold, guess in zip(source.tags, told) for a, b in zip(gold, guess))
        precision, recall, f1 = found.micro
        numbers = {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "macro_f1": found.macro[2],
            "accuracy": right / sum(map(len, told)),
        }
        wrong = [i for i, (gold, guess) in enumerate(zip(source.tags, told)) if gold != guess]
        details = {
            "type": found.by_kind(),
            "mistakes": mistakes(
                {i: (spell(source, i, source.tags[i]), spell(source, i, told[i])) for i in wrong},
                outputs,
                examples,
            ),
        }
        return means | numbers, details

    def by_row(
        self, outputs: dict[str, Any], examples: Examples
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Scores as two sums a sentence: F1 is twice the right entities over those told and
        those there."""
        source: Sentences = examples.source
        told = [row for row, _ in self.sentences(outputs, examples)]
        right = [sum(a == b for a, b in zip(*pair)) for pair in zip(source.tags, told)]
        kept = zip(map(tags.entities, source.tags), map(tags.entities, told))
        counts = [(len(set(gold) & set(guess)), len(guess), len(gold)) for gold, guess in kept]
        hits, predicted, labelled = np.array(counts, np.float64).T
        return {
            "f1": (2 * hits, predicted + labelled),
            "precision": (hits, predicted),
            "recall": (hits, labelled),
            "accuracy": (np.array(right), np.array([len(row) for row in told])),
        }

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"tokens": [...], "tags": [...], "entities": [{"type", "text", "start", "end", "score"},
        ...]} a row: characters [start, end) of the text, and the mean probability of the tags."""
        source: Sentences = examples.source
        for row, (told, confidence) in enumerate(self.sentences(outputs, examples)):
            text, spans = source.texts[row], source.spans[row]
            found = [
                {
                    "type": kind,
                    "text": text[spans[start][0] : spans[end - 1][1]],
                    "start": spans[start][0],
                    "end": spans[end - 1][1],
                    "score": float(confidence[start:end].mean()),
                }
                for kind, start, end in tags.entities(told)
            ]
            yield {"tokens": source.words[row], "tags": told, "entities": found}

    def sentences(
        self, outputs: dict[str, Any], examples: Examples
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """The tag of every word of each row, and its probability: windows put together."""
        scheme = scheme_of(self)
        heads = np.asarray(examples.cells["tags"]) >= 0
        offsets, row_of = examples.encoded.offsets, examples.encoded.row_of
        edges = np.flatnonzero(np.append(np.diff(row_of, prepend=-1) != 0, True))
        for first, after in zip(edges[:-1].tolist(), edges[1:].tolist()):
            kept = [heads[offsets[i] : offsets[i + 1]] for i in range(first, after)]
            numbers, confidence = (
                np.concatenate([outputs[name][first + i][mask] for i, mask in enumerate(kept)])
                for name in ("tags", "confidence")
            )
            yield tags.convert([self.labels[number] for number in numbers], scheme), confidence


class TagCRF(Tag):
    """Tags as a chain: a linear-chain CRF on the linear layer's scores (Lample et al., 2016).

    Transitions that the scheme does not have are impossible, in training and in Viterbi's path; the
    probability of a tag is its marginal. The loss is a sentence's, over its number of words.
    """

    chained = True

    def prepare(self) -> None:
        count = len(self.labels)
        zeros = nn.initializers.zeros
        self.transitions = self.param("transitions_bias", zeros, (count, count))
        self.starts = self.param("starts_bias", zeros, (count,))
        self.ends = self.param("ends_bias", zeros, (count,))

    def chains(self, batch: Batch) -> crf.Chains:
        """The words of the batch."""
        return crf.chains(batch["tags"] >= 0, batch["segments"], batch["opens"], batch["closes"])

    def weights(self) -> crf.Weights:
        """The learned scores, `crf.NEVER` where the scheme forbids."""
        rules = tags.allowed(self.labels, scheme_of(self))
        learned = (self.transitions, self.starts, self.ends)
        return crf.Weights(*(jnp.where(rule, x, crf.NEVER) for rule, x in zip(rules, learned)))

    def losses(self, emissions: jax.Array, batch: Batch) -> jax.Array:
        """A sentence's loss is log Z, at its last word, less what each word adds to the score."""
        chain, weights = self.chains(batch), self.weights()
        path = crf.path_scores(emissions, jnp.maximum(batch["tags"], 0), chain, weights)
        return crf.log_partition(emissions, chain, weights) - path

    def answer(self, emissions: jax.Array, batch: Batch) -> Answer:
        chain, weights = self.chains(batch), self.weights()
        told = crf.viterbi(emissions, chain, weights)
        odds = crf.marginals(emissions, chain, weights)
        confidence = jnp.take_along_axis(odds, told[..., None], axis=-1)[..., 0]
        scores = crf.path_scores(emissions, told, chain, weights)
        total = crf.log_partition(emissions, chain, weights)
        return told, confidence, per_example(scores - total, batch)


def scheme_of(task: Tag) -> tags.Scheme:
    """The scheme of a task's tags. Raises ConfigError where it is not known."""
    if task.scheme is None:
        raise ConfigError("task.scheme is not set, expected BIO or IOBES")
    return task.scheme


def word_weights(batch: Batch) -> jax.Array:
    """The weight of its example at every word, 0 at all other tokens: float32 [B, T]."""
    slots = jnp.maximum(batch["segments"] - 1, 0)
    weights = jnp.take_along_axis(batch["weights"], slots, axis=1)
    return jnp.where(batch["tags"] >= 0, weights, 0.0)


def per_example(values: jax.Array, batch: Batch) -> jax.Array:
    """Sums over the words of each example: [B, T] -> [B, M]."""
    slots = jnp.arange(1, batch["ids"].shape[1] + 1, dtype=jnp.int32)
    member = batch["segments"][:, None, :] == slots[None, :, None]  # [B, M, T]
    values = jnp.where(batch["tags"] >= 0, values, 0.0)
    return jnp.sum(jnp.where(member, values[:, None, :], 0.0), axis=-1)


def spell(source: Sentences, row: int, told: list[str]) -> str:
    """The entities of a sentence as a text: "PER Peter Blackburn; LOC Paris"."""
    words = source.words[row]
    found = tags.entities(told)
    return "; ".join(f"{kind} {' '.join(words[start:end])}" for kind, start, end in found) or "none"


def mistakes(
    wrong: dict[int, tuple[str, str]], outputs: dict[str, Any], examples: Examples, most: int = 20
) -> list[dict[str, Any]]:
    """The wrong sentences whose answer had the highest probability; label and answer by row."""
    row_of = np.asarray(examples.encoded.row_of)
    sure = np.exp(np.bincount(row_of, weights=outputs["log_probability"]))
    first = np.flatnonzero(np.diff(row_of, prepend=-1) != 0)
    surest = sorted(wrong, key=lambda row: -sure[row])[:most]
    return [
        {
            "id": int(first[row]),
            "label": wrong[row][0],
            "prediction": wrong[row][1],
            "probability": float(sure[row]),
        }
        for row in surest
    ]
