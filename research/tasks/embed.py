"""Sentence embeddings: one vector a text, learned by comparing the texts of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research import contrastive, metrics, ranking, sharding
from research.data.batches import Examples
from research.data.pairs import ANCHOR, POSITIVE
from research.errors import ConfigError
from research.metrics import Mean
from research.models import layers
from research.models.pooling import Pool, pooled

Batch = dict[str, jax.Array]


class Embed(nn.Module, ABC):
    """What all losses on sentence vectors share (Reimers & Gurevych, 2019); a loss is `compare`.

    `pool` makes the vector of a text of those of its tokens; `pooler`: BERT's dense tanh layer on
    top; `normalize` to unit length. Scores are inner products over `temperature`, which is learned
    with `learn_temperature` (Radford et al., 2021). In training `chunks` parts of a batch are
    encoded one after another and again in the backward pass, so that memory does not bound the
    number of texts compared; loss and gradient stay the same (Gao et al., 2021).

    A batch is compared as a whole, over all devices. A scored split has no contrastive loss, and
    plain pairs none that regresses on scores: there the means are empty, the scores are not.
    """

    backbone: Any = None
    pool: Pool = "mean"
    pooler: bool = False
    normalize: bool = True
    temperature: float = 0.05
    learn_temperature: bool = False
    chunks: int = 1
    per_token = ()
    whole_batch = True
    views = 1
    resampled = ("spearman", "pearson")
    learns_from_scores = False

    def setup(self) -> None:
        if self.learn_temperature:
            start = nn.initializers.constant(np.log(self.temperature))
            self.log_temperature = self.param("log_temperature", start, ())

    def encode(self, batch: Batch, *, noise: jax.Array | None = None) -> jax.Array:
        """One vector a text: float32 [B, M, D]."""
        x = pooled(self.backbone, batch, self.pool, noise)
        x = (self.backbone.pool(x) if self.pooler else x).astype(jnp.float32)
        if not self.normalize:
            return x
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        # Empty places are zero under mean pooling: their gradient has to stay finite.
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

    def encode_in_chunks(self, batch: Batch, noise: jax.Array) -> jax.Array:
        """The same as `encode`, one part of the rows after another: [B, M, D]."""
        if self.chunks == 1:
            return self.encode(batch, noise=noise)
        rows = noise.shape[0]
        if rows % self.chunks:
            raise ConfigError(f"task.chunks is {self.chunks}, which does not divide {rows} rows")
        task, params = self.clone(parent=None), self.variables["params"]

        @jax.checkpoint
        def part(inputs: tuple[Batch, jax.Array]) -> Any:
            rows, noise = inputs
            return task.apply({"params": params}, rows, noise=noise, method="encode")

        # Every chunks-th row, so that each shard of the rows stays on its device.
        split = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, self.chunks, *x.shape[1:]), 0, 1), (batch, noise)
        )
        vectors = jnp.swapaxes(jax.lax.map(part, split), 0, 1)  # [B / chunks, chunks, M, D]
        return vectors.reshape(rows, *vectors.shape[2:])

    def vectors(self, batch: Batch, *, train: bool) -> tuple[jax.Array, ...]:
        """`views` times [B, M, D], which differ in their dropout."""
        if not train:
            return (self.encode(batch),) * self.views
        return self.noisy(batch, self.make_rng("noise"), self.views)

    def noisy(self, batch: Batch, key: jax.Array, views: int) -> tuple[jax.Array, ...]:
        """So many vectors of every text, each under a dropout of its own: [B, M, D] each."""
        keys = [jax.random.fold_in(key, view) for view in range(views)]
        return tuple(self.encode_in_chunks(batch, layers.token_noise(key, batch)) for key in keys)

    def products(self, queries: jax.Array, candidates: jax.Array) -> jax.Array:
        """Inner products with every text of the batch: [B, M, D] twice -> float32 [B, M, B M]."""
        flat = candidates.reshape(-1, candidates.shape[-1])
        found = jnp.einsum("bmd,nd->bmn", queries, flat, precision="highest")
        return sharding.constrain_rows(found)

    def scale(self) -> jax.Array:
        """One over the temperature, which is never learned to be below 0.01."""
        if not self.learn_temperature:
            return jnp.float32(1.0 / self.temperature)
        return jnp.exp(-jnp.maximum(self.log_temperature, jnp.log(0.01)))

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Mean]:
        views = self.vectors(batch, train=train)
        if self.learns_from_scores == ("scores" in batch):
            return self.compare(views, batch)
        if train:
            wanted = "scored pairs" if self.learns_from_scores else "texts without scores"
            raise ConfigError(f"{type(self).__name__} learns from {wanted}: see data.scored")
        return {}

    @abstractmethod
    def compare(self, views: tuple[jax.Array, ...], batch: Batch) -> dict[str, Mean]:
        """The means of a batch, its texts as vectors [B, M, D] in each view."""

    def predict(self, batch: Batch) -> dict[str, jax.Array]:
        """`vectors` float32 [B, M, D]."""
        return {"vectors": self.encode(batch)}

    def score(
        self, means: dict[str, float], outputs: dict[str, Any], examples: Examples
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Of scored pairs, correlations of cosines with scores; of pairs, how well anchors find
        their positives among all of the split; of labelled texts, how often the nearest other text
        has the same label (`neighbour`)."""
        if "scores" in outputs:
            return similarity(means, outputs, examples)
        if "roles" in outputs and (outputs["roles"] == POSITIVE).any():
            return means | retrieval(outputs), {}
        if len(np.unique(outputs.get("labels", ()))) > 1:
            vectors, labels = ranking.unit(outputs["vectors"]), outputs["labels"]
            nearest = ranking.neighbours(vectors, vectors, 1, same=True)[:, 0]
            return means | {"neighbour": float((labels[nearest] == labels).mean())}, {}
        return means, {}

    def decode(self, outputs: dict[str, Any], examples: Examples) -> Iterator[dict[str, Any]]:
        """{"vector": [...]} for a text, {"similarity": cosine, "vectors": [...]} for a pair."""
        bounds = examples.bounds.tolist()
        for first, last in pairwise(bounds):
            vectors = outputs["vectors"][first:last]
            if len(vectors) == 1:
                yield {"vector": vectors[0].tolist()}
                continue
            a, b = ranking.unit(vectors[:2])
            yield {"similarity": float(a @ b), "vectors": vectors.tolist()}


class InfoNCE(Embed):
    """Anchors find their positives among all positives and hard negatives of the batch.

    In-batch negatives (Henderson et al., 2017; Karpukhin et al., 2020). With `symmetric`, positives
    look for their anchors too (Radford et al., 2021). A text equal to the anchor or to its positive
    is no negative.
    """

    symmetric: bool = False

    def compare(self, views: tuple[jax.Array, ...], batch: Batch) -> dict[str, Mean]:
        scores = self.products(views[0], views[0]) * self.scale()
        positive, negative = pair_masks(batch)
        values, found = contrastive.info_nce(scores, positive, negative)
        anchor = batch["roles"] == ANCHOR
        weights = batch["weights"] * found
        best = jnp.max(jnp.where(positive, scores, contrastive.NOTHING), axis=-1)
        rival = jnp.max(jnp.where(negative, scores, contrastive.NOTHING), axis=-1)
        hits = (best > rival).astype(jnp.float32)
        means = {
            "loss": Mean.of(values, weights if self.symmetric else weights * anchor),
            "accuracy": Mean.of(hits, weights * anchor),
        }
        if self.learn_temperature:
            means["temperature"] = Mean.of(1.0 / self.scale())
        return means


class CosineRegression(Embed):
    """A pair's cosine approaches its score in [0, 1] (Reimers & Gurevych, 2019)."""

    learns_from_scores = True

    def compare(self, views: tuple[jax.Array, ...], batch: Batch) -> dict[str, Mean]:
        positive, _ = pair_masks(batch)
        similarity = self.products(views[0], views[0])
        values, found = contrastive.cosine_regression(similarity, positive, batch["scores"])
        weights = batch["weights"] * found * (batch["roles"] == ANCHOR)
        return {"loss": Mean.of(values, weights)}


def across(x: jax.Array) -> jax.Array:
    """Of every text of the batch, to be compared with [B, M, 1]: [B, M] -> [1, 1, B M]."""
    return x.reshape(1, 1, -1)


def both_filled(batch: Batch) -> jax.Array:
    """Where two places both hold a text: bool [B, M, B M]."""
    filled = batch["ids"] >= 0
    return filled[..., None] & across(filled)


def pair_masks(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Of every text, its positives and its negatives in the batch: bool [B, M, B M] each.

    Anchors are asked against all others, positives against anchors. Raises ConfigError for texts
    that are not in pairs.
    """
    if "roles" not in batch:
        raise ConfigError("task: this loss compares anchors with positives, and data are no pairs")
    roles, texts = batch["roles"], batch["texts"]
    anchor = roles == ANCHOR
    own = both_filled(batch) & (batch["pairs"][..., None] == across(batch["pairs"]))
    positive = roles == POSITIVE
    partner = (anchor[..., None] & across(positive)) | (positive[..., None] & across(anchor))
    positives = own & partner
    asked = (anchor[..., None] & across(~anchor)) | (positive[..., None] & across(anchor))
    answer = jnp.max(jnp.where(positives, across(texts), -1), axis=-1)
    same = (texts[..., None] == across(texts)) | (answer[..., None] == across(texts))
    return positives, both_filled(batch) & asked & ~positives & ~same


def cosines(outputs: dict[str, Any]) -> np.ndarray:
    """The cosine of each pair, float [pairs]: anchors and positives alternate."""
    vectors, roles = ranking.unit(outputs["vectors"]), outputs["roles"]
    return np.einsum("nd,nd->n", vectors[roles == ANCHOR], vectors[roles == POSITIVE])


def similarity(
    means: dict[str, float], outputs: dict[str, Any], examples: Examples
) -> tuple[dict[str, float], dict[str, Any]]:
    """Spearman's and Pearson's correlation of cosines with scores; the pairs furthest apart."""
    anchors = outputs["roles"] == ANCHOR
    scores, found = outputs["scores"][anchors], cosines(outputs)
    numbers = {
        "spearman": metrics.spearman(found, scores),
        "pearson": metrics.pearson(found, scores),
    }
    gaps = np.argsort(np.argsort(found)) - np.argsort(np.argsort(scores))
    rows = examples.encoded.row_of[outputs["ids"][anchors]]
    worst = [
        {
            "texts": " | ".join(examples.source[rows[i]]),
            "score": float(scores[i]),
            "cosine": float(found[i]),
        }
        for i in np.argsort(-np.abs(gaps), kind="stable")[:10]
    ]
    return means | numbers, {"furthest in rank": worst}


def retrieval(outputs: dict[str, Any]) -> dict[str, float]:
    """How well the distinct anchors find their positives among the distinct other texts."""
    vectors, texts, roles = ranking.unit(outputs["vectors"]), outputs["texts"], outputs["roles"]
    known, first = np.unique(texts[roles != ANCHOR], return_index=True)
    queries: dict[int, int] = {}
    relevant: dict[int, set[int]] = {}
    anchors = np.flatnonzero(roles == ANCHOR)
    answers = np.searchsorted(known, texts[roles == POSITIVE])
    for place, answer in zip(anchors.tolist(), answers.tolist()):
        queries.setdefault(int(texts[place]), place)
        relevant.setdefault(int(texts[place]), set()).add(answer)
    own = {text: i for i, text in enumerate(known.tolist())}
    asked = list(queries)
    found = ranking.search(
        vectors[list(queries.values())],
        vectors[np.flatnonzero(roles != ANCHOR)[first]],
        [sorted(relevant[text]) for text in asked],
        hidden=lambda i: own.get(asked[i]) if own.get(asked[i]) not in relevant[asked[i]] else None,
    )
    return ranking.summary(found)
